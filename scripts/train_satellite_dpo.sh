#!/usr/bin/env bash
# Satellite numbers in words: pairs of answers drawn from the SFT model (HEAD=none), the one nearer to the truth preferred.
# Trains that model first where MODEL_PATH is unset and outputs/satellite-text is missing, from BASE_MODEL or else from the
# regression in outputs/satellite-sft, which is trained too where it is missing: its tower has learned the number.
DOMAIN=satellite REAL_MODEL=Qwen/Qwen3-VL-2B-Instruct TINY_EPOCHS=3 ENTRY=overlays.train_dpo
cd "$(dirname "${BASH_SOURCE[0]}")/.."
whole() { [[ -f "$1/adapter_config.json" || -f "$1/config.json" ]]; }
if [[ -z "${MODEL_PATH:-}" ]]; then
    MODEL_PATH=outputs/satellite-text
    if ! whole "$MODEL_PATH"; then
        echo "no SFT model in $MODEL_PATH: training it first"
        first() { env -u EPOCHS -u LR -u MAX_STEPS -u DATASETS -u EVAL_DATASETS -u OUTPUT_DIR "$@" scripts/train_satellite_sft.sh; }
        if [[ -z "${BASE_MODEL:-}" ]] && ! whole outputs/satellite-sft; then first -u MODEL_PATH HEAD=vision || exit; fi
        first MODEL_PATH="${BASE_MODEL:-}" HEAD=none OUTPUT_DIR="$MODEL_PATH" || exit
    fi
fi
base="$(sed -n 's/^ *"base_model_name_or_path": "\(.*\)",*$/\1/p' "$MODEL_PATH/adapter_config.json" 2> /dev/null)"
if [[ "$base" == data/models/tiny-* ]] || grep -qs '"tiny_random": true' "${base:-$MODEL_PATH}/config.json"; then
    : "${LR:=3e-4}" "${EPOCHS:=$TINY_EPOCHS}" "${BATCH_SIZE:=16}" "${GRAD_ACCUM:=1}" "${MIN_PIXELS:=4096}" "${WARMUP_STEPS:=10}"
    : "${LORA_R:=16}" "${LORA_ALPHA:=32}" "${LORA_DROPOUT:=0.0}" "${MAX_PIXELS:=4096}" "${EVAL_STRATEGY:=no}" "${PAIRS:=2}"
fi
: "${TUNE_MERGER:=False}" "${TUNE_VISION:=False}" "${TRAIN_EMBEDDINGS:=False}"
pairs=data/prepared/satellite/preferences
: "${DATASETS:=${pairs}_train.jsonl}" "${EVAL_DATASETS=${pairs}_val.jsonl,${pairs}_test.jsonl}"
: "${EVAL_STRATEGY:=epoch}" "${OUTPUT_DIR:=outputs/satellite-dpo}"
source scripts/common.sh
: "${LORA_R:=16}" "${LORA_ALPHA:=32}" "${LORA_DROPOUT:=0.0}" "${LR:=5e-6}" "${EPOCHS:=1}" "${BATCH_SIZE:=4}" "${GRAD_ACCUM:=8}"
: "${MAX_PIXELS:=65536}" "${MIN_PIXELS:=16384}" "${BETA:=0.1}" "${SAMPLES:=16}" "${PAIRS:=4}" "${TEMPERATURE:=1.0}" "${MIN_GAP:=0}"
# Numbers share their digits, so DPO alone makes both answers of a pair less likely, until neither is written; the second
# loss keeps the chosen ones.
read -ra losses <<< "${LOSS:=sigmoid sft}"
read -ra weights <<< "${LOSS_WEIGHTS:=1.0 1.0}"
if [[ "$DATASETS" == *"${pairs}_train.jsonl"* ]]; then
    for split in train val test; do
        step "$PYTHON" scripts/make_preferences.py --checkpoint "$MODEL_PATH" --dataset_use "satellite_$split" \
            --samples "$SAMPLES" --pairs "$PAIRS" --temperature "$TEMPERATURE" --min_gap "$MIN_GAP" --batch_size 64
    done
fi
(launch --beta "$BETA" --loss_type "${losses[@]}" --loss_weights "${weights[@]}" "$@") || exit $?
for run in "$MODEL_PATH" "$OUTPUT_DIR"; do
    step "$PYTHON" scripts/evaluate_satellite.py --checkpoint "$run" --head none > /dev/null
done
step "$PYTHON" scripts/compare_satellite.py "SFT=$MODEL_PATH" "DPO=$OUTPUT_DIR"
