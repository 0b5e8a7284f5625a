#!/usr/bin/env bash
# Fine-tune a Qwen-VL model on the taps of many users (11-73): the global stage.
# MODE=lora (default) or full; vision tower and merger stay frozen. OUTPUT_DIR=outputs/gui-global.
MODE="${MODE:-lora}"
case "$MODE" in
    lora) ;;
    full) LORA_R=0 TUNE_LLM=True ;;
    *) echo "error: MODE is lora or full, not $MODE" >&2; exit 2 ;;
esac
DOMAIN=gui REAL_MODEL=Qwen/Qwen3-VL-8B-Instruct TINY_EPOCHS=6
: "${TUNE_MERGER:=}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[[ -n "${TUNE_MERGER}" ]] || TUNE_MERGER="$TUNE_VISION"  # the tiny model with random weights trains both
: "${OUTPUT_DIR:=outputs/gui-global}" "${LORA_R:=8}" "${LORA_ALPHA:=32}" "${LORA_DROPOUT:=0.05}"
: "${EPOCHS:=1}" "${BATCH_SIZE:=1}" "${GRAD_ACCUM:=8}" "${WARMUP_STEPS:=50}" "${WEIGHT_DECAY:=0.01}"
if [[ "$MODE" = full ]]; then : "${LR:=1e-6}"; else : "${LR:=1e-4}"; fi
: "${MIN_PIXELS:=12544}" "${MAX_PIXELS:=${TINY:+36864}}" "${MAX_PIXELS:=1003520}"
launch --lora_target_modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj "$@"
