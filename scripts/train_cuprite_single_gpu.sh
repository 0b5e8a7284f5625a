#!/usr/bin/env bash
# Hyperspectral mineral mapping on one GPU (or a CPU): LoRA on the language model, projector trained in full.
DOMAIN=cuprite REAL_MODEL=Qwen/Qwen3-VL-8B-Instruct TINY_EPOCHS=6
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${LORA_R:=8}" "${LORA_ALPHA:=16}" "${LORA_DROPOUT:=0.05}" "${LR:=1e-5}" "${MM_PROJECTOR_LR:=1e-4}"
: "${MAX_PIXELS:=50176}" "${MIN_PIXELS:=12544}" "${EPOCHS:=3}" "${BATCH_SIZE:=4}" "${GRAD_ACCUM:=4}"
: "${OUTPUT_DIR:=outputs/cuprite}"
launch "$@"
