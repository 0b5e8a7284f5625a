#!/usr/bin/env bash
# Fine-tune a Qwen-VL model on the taps of many users (11-73): the global stage.
# MODE=lora (default) or full; vision tower and merger stay frozen. OUTPUT_DIR=outputs/gui-global.
MODE="${MODE:-lora}"
case "$MODE" in
    lora) ;;
    full) LORA_R=0 TUNE_LLM=True ;;
    *) echo "error: MODE is lora or full, not $MODE" >&2; exit 2 ;;
esac
DOMAIN=gui CONFIG=scripts/configs/gui_global.yaml TINY_EPOCHS=6 TINY_MAX_PIXELS=36864
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${TUNE_MERGER:=${TUNE_VISION:-}}"  # the tiny model with random weights trains both
if [[ "$MODE" = full ]]; then : "${LR:=1e-6}"; fi
launch "$@"
