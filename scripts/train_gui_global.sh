#!/usr/bin/env bash
# Fine-tune a Qwen-VL model on the taps of many users (11-73): the global stage.
# MODE=lora (default) or full; vision tower and merger stay frozen. OUTPUT_DIR=outputs/gui-global.
# MODE=full of the recipe's 8B model needs several GPUs, and runs under ZeRO-3: about 75 GB on each of two.
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
if [[ "$MODE" = full && -z "$MODEL_PATH" && -z "${DEEPSPEED_CONFIG:-}" ]]; then
    (( NPROC_PER_NODE * NNODES > 1 )) || fail "MODE=full of $(setting model_name_or_path) takes about 150 GB on one GPU" \
        "(python -m overlays.plan $CONFIG --gpu 80): use MODE=lora, several GPUs, or a smaller model as MODEL_PATH"
    DEEPSPEED_CONFIG=scripts/zero3.json
fi
launch "$@"
