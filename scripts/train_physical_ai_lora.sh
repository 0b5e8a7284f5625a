#!/usr/bin/env bash
# Driving: one second of video to the next second's velocity and curvature. LoRA; several processes run under ZeRO-3.
# MODEL_PATH=Qwen/Qwen3-VL-4B-Instruct takes the larger model, DEEPSPEED_CONFIG= (empty) plain data parallelism.
DOMAIN=driving PREPARE=scripts/prepare_physical_ai.py REAL_MODEL=Qwen/Qwen3-VL-2B-Instruct TINY_EPOCHS=12
PROCESSES="${NPROC_PER_NODE:-}"
OWN_BATCH="${BATCH_SIZE:-}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ -z "$PROCESSES" && "$GPUS" -gt 1 ]]; then NPROC_PER_NODE="$GPUS"; fi
if [[ "$NPROC_PER_NODE" -gt 1 || "$NNODES" -gt 1 ]]; then : "${DEEPSPEED_CONFIG=scripts/zero3.json}"; fi
if [[ "$MODEL_PATH" == data/models/tiny-* ]]; then  # ten frames, 16 samples a step however many processes
    : "${VIDEO_FPS:=10}"
    if [[ -z "$OWN_BATCH" ]]; then BATCH_SIZE=$((NPROC_PER_NODE < 16 ? 16 / NPROC_PER_NODE : 1)); fi
fi
: "${LORA_R:=64}" "${LORA_ALPHA:=128}" "${LORA_DROPOUT:=0.05}" "${LR:=2e-4}" "${EPOCHS:=5}"
: "${BATCH_SIZE:=4}" "${GRAD_ACCUM:=2}" "${MAX_PIXELS:=200704}" "${MIN_PIXELS:=4096}" "${VIDEO_FPS:=30}"
: "${VIDEO_MIN_FRAMES:=2}" "${VIDEO_MAX_FRAMES:=30}" "${VIDEO_MIN_PIXELS:=4096}" "${VIDEO_MAX_PIXELS:=200704}"
: "${OUTPUT_DIR:=outputs/driving_lora}"
launch ${VIDEO_CACHE:+--video_cache "$VIDEO_CACHE"} "$@"
