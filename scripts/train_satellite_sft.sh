#!/usr/bin/env bash
# Satellite embeddings -> a city's number. HEAD=vision or text: a regression head; HEAD=none: the model writes the number.
# Starts from outputs/satellite-mae where that is there (HEAD=none: from outputs/satellite-sft), else from the base model,
# whose patch embedding is widened to 64 channels. CHANNELS=pca: the untouched RGB model on three principal components.
DOMAIN=satellite REAL_MODEL=Qwen/Qwen3-VL-2B-Instruct
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${HEAD:=vision}"
starts=(outputs/satellite-mae)
if [[ "$HEAD" = none ]]; then starts=(outputs/satellite-sft "${starts[@]}"); fi
if [[ "${CHANNELS:=all}" != all && "$CHANNELS" != pca ]]; then
    echo "error: CHANNELS is all or pca, not '$CHANNELS'" >&2
    exit 2
fi
if [[ "$CHANNELS" = pca ]]; then
    starts=() IN_CHANNELS=0
    : "${DATASETS:=satellite_rgb_train}" "${EVAL_DATASETS=satellite_rgb_val}" "${OUTPUT_DIR:=outputs/satellite-rgb}"
fi
for start in "${starts[@]}"; do
    if [[ -z "${MODEL_PATH:-}" && -f "$start/config.json" ]]; then MODEL_PATH="$start" && echo "starting from $start"; fi
done
# A tower that has learned the number already is only read.
if [[ "$HEAD" = none && -f "${MODEL_PATH:-}/additions.json" ]]; then : "${TUNE_VISION:=False}"; fi
: "${TUNE_VISION:=True}"
if [[ "$TUNE_VISION" = False ]]; then : "${FREEZE_ENCODER_EPOCHS:=0}"; fi
if [[ "$HEAD" = vision ]]; then : "${LORA_R:=0}" "${TRAIN_EMBEDDINGS:=False}"; fi  # the language model does not run
if [[ "$HEAD" = none ]]; then : "${OUTPUT_DIR:=outputs/satellite-text}"; else : "${OUTPUT_DIR:=outputs/satellite-sft}"; fi
given=("${LR:-}" "${MM_PROJECTOR_LR:-}" "${VISION_LR:-}" "${MIN_PIXELS:-}")
TINY_EPOCHS=6
source scripts/common.sh
if [[ "$MODEL_PATH" == data/models/tiny-* ]] || grep -qs '"tiny_random": true' "$MODEL_PATH/config.json"; then
    # Random weights again, at the rates of a head instead of words.
    if [[ "$HEAD" = none ]]; then rates=(3e-3 3e-4 1e-4); else rates=(1e-3 3e-4 3e-4); fi
    LR="${given[0]:-${rates[0]}}" MM_PROJECTOR_LR="${given[1]:-${rates[1]}}" VISION_LR="${given[2]:-${rates[2]}}"
    MIN_PIXELS="${given[3]:-4096}"
    : "${MAX_PIXELS:=4096}" "${SAMPLES_PER_FILE:=4}" "${FREEZE_ENCODER_EPOCHS:=0}" "${PATIENCE:=6}"
fi
: "${LORA_R:=16}" "${LORA_ALPHA:=32}" "${LORA_DROPOUT:=0.05}" "${LR:=1e-4}" "${MM_PROJECTOR_LR:=1e-4}" "${VISION_LR:=1e-5}"
: "${MAX_PIXELS:=65536}" "${MIN_PIXELS:=16384}" "${EPOCHS:=5}" "${BATCH_SIZE:=8}" "${GRAD_ACCUM:=4}"
: "${SAMPLES_PER_FILE:=50}" "${FREEZE_ENCODER_EPOCHS:=1}" "${PATIENCE:=2}" "${IN_CHANNELS:=64}" "${CHANNEL_INIT:=normal}"
if [[ "$DATASETS" == *satellite_rgb_train* && ! -f data/prepared/satellite_rgb/metadata.json ]]; then
    [[ -f data/prepared/satellite/metadata.json ]] || step "$PYTHON" scripts/prepare_satellite.py
    step "$PYTHON" scripts/compute_pca.py
    step "$PYTHON" scripts/prepare_satellite.py --rgb-pca
fi
flags=(--head "$HEAD" --in_channels "$IN_CHANNELS" --channel_init "$CHANNEL_INIT" --samples_per_file "$SAMPLES_PER_FILE")
flags+=(--freeze_encoder_epochs "$FREEZE_ENCODER_EPOCHS")
if [[ -n "$EVAL_DATASETS" ]]; then
    flags+=(--load_best_model_at_end True --early_stopping_patience "$PATIENCE")
    if [[ "$HEAD" != none ]]; then flags+=(--metric_for_best_model r2 --greater_is_better True); fi
fi
launch "${flags[@]}" "$@"
