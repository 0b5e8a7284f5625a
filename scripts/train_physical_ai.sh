#!/usr/bin/env bash
# Driving: one second of video to the next second's velocity and curvature. Full fine-tuning under ZeRO-3.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR; see scripts/slurm_physical_ai.sh.
DOMAIN=driving PREPARE=scripts/prepare_physical_ai.py REAL_MODEL=Qwen/Qwen3-VL-2B-Instruct TINY_EPOCHS=12
: "${DEEPSPEED_CONFIG=scripts/zero3.json}" "${LORA_R:=0}" "${TUNE_LLM:=True}" "${TUNE_VISION:=True}"
OWN_BATCH="${BATCH_SIZE:-}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ "$MODEL_PATH" == data/models/tiny-* ]]; then  # ten frames, 16 samples a step however many processes
    : "${VIDEO_FPS:=10}"
    if [[ -z "$OWN_BATCH" ]]; then BATCH_SIZE=$((NPROC_PER_NODE < 16 ? 16 / NPROC_PER_NODE : 1)); fi
fi
: "${LR:=1e-5}" "${EPOCHS:=3}" "${BATCH_SIZE:=2}" "${GRAD_ACCUM:=4}"
: "${MAX_PIXELS:=200704}" "${MIN_PIXELS:=4096}" "${VIDEO_FPS:=30}" "${VIDEO_MIN_FRAMES:=2}" "${VIDEO_MAX_FRAMES:=30}"
: "${VIDEO_MIN_PIXELS:=4096}" "${VIDEO_MAX_PIXELS:=200704}" "${OUTPUT_DIR:=outputs/driving_full}"
launch ${VIDEO_CACHE:+--video_cache "$VIDEO_CACHE"} "$@"
