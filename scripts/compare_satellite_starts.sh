#!/usr/bin/env bash
# Regression from the MAE start against the same model without it, at equal steps: both on the held-out cities.
# MAE: a run of train_satellite_mae.sh, made where it is missing; BASE_MODEL: what it started from (read from the run).
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
explain "$@"
find_python
: "${MAE:=outputs/satellite-mae}" "${OUTPUT:=outputs/satellite-starts}"
if [[ ! -f "$MAE/config.json" ]]; then
    MODEL_PATH="${BASE_MODEL:-}" OUTPUT_DIR="$MAE" scripts/train_satellite_mae.sh
fi
if [[ -z "${BASE_MODEL:-}" ]]; then
    BASE_MODEL="$(sed -n 's/^ *"base_model": "\(.*\)",*$/\1/p' "$MAE/run.json" 2> /dev/null | head -1)" || true
    if [[ -z "$BASE_MODEL" && "$DRY_RUN" != 1 ]]; then
        fail "$MAE/run.json names no base model: set BASE_MODEL to what the MAE run started from"
    fi
fi
for start in mae random; do
    if [[ "$start" = mae ]]; then MODEL_PATH="$MAE"; else MODEL_PATH="$BASE_MODEL"; fi
    # No early stopping, no rest for the tower: both train all of it in every step.
    MODEL_PATH="$MODEL_PATH" OUTPUT_DIR="$OUTPUT/$start" PATIENCE=0 FREEZE_ENCODER_EPOCHS=0 scripts/train_satellite_sft.sh "$@"
    step "$PYTHON" scripts/evaluate_satellite.py --checkpoint "$OUTPUT/$start"
done
step "$PYTHON" scripts/compare_satellite.py "MAE start=$OUTPUT/mae" "start without MAE=$OUTPUT/random"
