#!/usr/bin/env bash
# Zero-shot: the model as it comes, on the taps of the test users. USERS="1-10" OUTPUT_DIR=outputs/gui-vanilla
DOMAIN=gui REAL_MODEL=Qwen/Qwen3-VL-8B-Instruct TINY_EPOCHS=1
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${OUTPUT_DIR:=outputs/gui-vanilla}" "${MIN_PIXELS:=12544}"
: "${MAX_PIXELS:=${TINY:+36864}}" "${MAX_PIXELS:=1003520}"
step "$PYTHON" scripts/evaluate_gui.py --checkpoint "$MODEL_PATH" --output_dir "$OUTPUT_DIR" \
    --min_pixels "$MIN_PIXELS" --max_pixels "$MAX_PIXELS" ${USERS:+--users $USERS} "$@"
