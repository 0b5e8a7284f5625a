#!/usr/bin/env bash
# Satellite numbers in words: pairs of answers drawn from the SFT model (HEAD=none), the one nearer to the truth preferred.
# Trains that model first where MODEL_PATH is unset and outputs/satellite-text is missing, from BASE_MODEL or else from the
# regression in outputs/satellite-sft, which is trained too where it is missing: its tower has learned the number.
DOMAIN=satellite CONFIG=scripts/configs/satellite_dpo.yaml ENTRY=overlays.train_dpo
TINY_LR=3e-4 TINY_EPOCHS=3 TINY_WARMUP_STEPS=10 TINY_LORA_R=16 TINY_LORA_ALPHA=32 TINY_MAX_PIXELS=4096
TINY_TUNE_VISION=False TINY_TRAIN_EMBEDDINGS=False TINY_EVAL_STRATEGY=no TINY_PAIRS=2
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
variables+=(BETA:beta)
explain "$@"
has_model() { [[ -f "$1/adapter_config.json" || -f "$1/config.json" ]]; }
if [[ -z "${MODEL_PATH:-}" ]]; then
    MODEL_PATH=outputs/satellite-text
    if ! has_model "$MODEL_PATH"; then
        echo "no SFT model in $MODEL_PATH: training it first"
        first() { env -u EPOCHS -u LR -u MAX_STEPS -u DATASETS -u EVAL_DATASETS -u OUTPUT_DIR "$@" scripts/train_satellite_sft.sh; }
        if [[ -z "${BASE_MODEL:-}" ]] && ! has_model outputs/satellite-sft; then first -u MODEL_PATH HEAD=vision || exit; fi
        first MODEL_PATH="${BASE_MODEL:-}" HEAD=none OUTPUT_DIR="$MODEL_PATH" || exit
    fi
fi
start "$@"
: "${OUTPUT_DIR:=$(setting output_dir)}" "${SAMPLES:=16}" "${PAIRS:=4}" "${TEMPERATURE:=1.0}" "${MIN_GAP:=0}"
losses=()
if [[ -n "${LOSS:-}" ]]; then
    read -ra losses <<< "$LOSS"
    read -ra weights <<< "${LOSS_WEIGHTS:-${losses[*]/*/1.0}}"
    losses=(--loss_type "${losses[@]}" --loss_weights "${weights[@]}")
elif [[ -n "${LOSS_WEIGHTS:-}" ]]; then
    read -ra weights <<< "$LOSS_WEIGHTS"
    losses=(--loss_weights "${weights[@]}")
fi
pairs="$(setting dataset_use)"
if [[ "${DATASETS:-$pairs}" == *"$pairs"* ]]; then
    for split in train val test; do
        step "$PYTHON" scripts/make_preferences.py --checkpoint "$MODEL_PATH" --dataset_use "satellite_$split" \
            --samples "$SAMPLES" --pairs "$PAIRS" --temperature "$TEMPERATURE" --min_gap "$MIN_GAP" --batch_size 64
    done
fi
(launch ${losses[@]+"${losses[@]}"} "$@") || exit $?
for run in "$MODEL_PATH" "$OUTPUT_DIR"; do
    step "$PYTHON" scripts/evaluate_satellite.py --checkpoint "$run" --head none > /dev/null
done
step "$PYTHON" scripts/compare_satellite.py "SFT=$MODEL_PATH" "DPO=$OUTPUT_DIR"
