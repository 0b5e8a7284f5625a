#!/usr/bin/env bash
# Hyperspectral mineral mapping on several GPUs (torchrun, ZeRO-3); without a GPU, two CPU processes.
DOMAIN=cuprite REAL_MODEL=Qwen/Qwen3-VL-8B-Instruct TINY_EPOCHS=6
: "${DEEPSPEED_CONFIG:=scripts/zero3.json}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${LORA_R:=16}" "${LORA_ALPHA:=32}" "${LORA_DROPOUT:=0.05}" "${LR:=1e-5}" "${MM_PROJECTOR_LR:=1e-4}"
: "${MAX_PIXELS:=50176}" "${MIN_PIXELS:=12544}" "${EPOCHS:=3}" "${BATCH_SIZE:=4}" "${GRAD_ACCUM:=2}"
: "${OUTPUT_DIR:=outputs/cuprite_zero3}"
launch "$@"
