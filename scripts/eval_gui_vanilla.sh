#!/usr/bin/env bash
# Zero-shot: the model as it comes, on the taps of the test users. USERS="1-10" OUTPUT_DIR=outputs/gui-vanilla
DOMAIN=gui CONFIG=scripts/configs/gui_global.yaml TINY_MAX_PIXELS=36864 TINY_MIN_PIXELS=4096
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
start "$@"
read -ra users <<< "${USERS:+--users $USERS}"
step "$PYTHON" scripts/evaluate_gui.py --checkpoint "${MODEL_PATH:-$(setting model_name_or_path)}" \
    --output_dir "${OUTPUT_DIR:-outputs/gui-vanilla}" --min_pixels "${MIN_PIXELS:-$(setting min_pixels)}" \
    --max_pixels "${MAX_PIXELS:-$(setting max_pixels)}" ${users[@]+"${users[@]}"} "$@"
