#!/usr/bin/env bash
# Fine-tune a Qwen-VL model on the taps of many users (11-73): the global stage.
# MODE=lora (default) or full; vision tower and merger stay frozen. OUTPUT_DIR=outputs/gui-global.
DOMAIN=gui CONFIG=scripts/configs/gui_global.yaml TINY_EPOCHS=6 TINY_MAX_PIXELS=36864
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
explain "$@"
case "${MODE:=lora}" in
    lora) ;;
    full) LORA_R=0 TUNE_LLM=True ;;
    *) fail "MODE is lora or full, not '$MODE'" ;;
esac
start "$@"
: "${TUNE_MERGER:=${TUNE_VISION:-}}"  # the tiny model with random weights trains both
if [[ "$MODE" = full ]]; then : "${LR:=1e-6}"; fi
launch "$@"
