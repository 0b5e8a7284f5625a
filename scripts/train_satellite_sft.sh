#!/usr/bin/env bash
# Satellite embeddings -> a city's number. HEAD=vision or text: a regression head; HEAD=none: the model writes the number.
# Starts from outputs/satellite-mae where that is there (HEAD=none: from outputs/satellite-sft), else from the base model,
# whose patch embedding is adapted to 64 channels. CHANNELS=pca: the untouched RGB model on three principal components.
DOMAIN=satellite
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
variables+=(HEAD:head IN_CHANNELS:in_channels CHANNEL_INIT:channel_init SAMPLES_PER_FILE:samples_per_file
    FREEZE_ENCODER_EPOCHS:freeze_encoder_epochs)
: "${HEAD:=vision}"
starts=(outputs/satellite-mae)
TINY_EPOCHS=6 TINY_MAX_PIXELS=4096 TINY_SAMPLES_PER_FILE=4 TINY_FREEZE_ENCODER_EPOCHS=0 TINY_PATIENCE=6
if [[ "$HEAD" = none ]]; then
    CONFIG=scripts/configs/satellite_text.yaml
    starts=(outputs/satellite-sft "${starts[@]}")
    TINY_LR=3e-3 TINY_MM_PROJECTOR_LR=3e-4 TINY_VISION_LR=1e-4
else
    CONFIG=scripts/configs/satellite_sft.yaml
    TINY_LR=1e-3 TINY_MM_PROJECTOR_LR=3e-4 TINY_VISION_LR=3e-4  # the rates of a head instead of words
    if [[ "$HEAD" = vision ]]; then TINY_LORA_R=0 TINY_TRAIN_EMBEDDINGS=False; fi  # the language model does not run
fi
explain "$@"
if [[ "${CHANNELS:=all}" != all && "$CHANNELS" != pca ]]; then fail "CHANNELS is all or pca, not '$CHANNELS'"; fi
if [[ "$CHANNELS" = pca ]]; then
    starts=() IN_CHANNELS=0
    : "${DATASETS:=satellite_rgb_train}" "${EVAL_DATASETS=satellite_rgb_val}" "${OUTPUT_DIR:=outputs/satellite-rgb}"
fi
for start in ${starts[@]+"${starts[@]}"}; do
    if [[ -z "${MODEL_PATH:-}" && -f "$start/config.json" ]]; then MODEL_PATH="$start" && echo "starting from $start"; fi
done
# A tower that has learned the number already is only read.
if [[ "$HEAD" = none && -f "${MODEL_PATH:-}/additions.json" ]]; then : "${TUNE_VISION:=False}"; fi
if [[ "${TUNE_VISION:-}" = False ]]; then : "${FREEZE_ENCODER_EPOCHS:=0}"; fi
start "$@"
if [[ "$DATASETS" == *satellite_rgb_train* && ! -f data/prepared/satellite_rgb/metadata.json ]]; then
    [[ -f data/prepared/satellite/metadata.json ]] || step "$PYTHON" scripts/prepare_satellite.py
    step "$PYTHON" scripts/compute_pca.py
    step "$PYTHON" scripts/prepare_satellite.py --rgb-pca
fi
if [[ "$HEAD" = text ]]; then : "${LORA_R:=$(setting lora_r)}"; fi
if [[ "${EVAL_DATASETS-set}" ]]; then variables+=(PATIENCE:early_stopping_patience); fi
launch "$@"
