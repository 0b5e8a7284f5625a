#!/usr/bin/env bash
# Driving: one second of video to the next second's velocity and curvature. LoRA; several processes run under ZeRO-3.
# MODEL_PATH=Qwen/Qwen3-VL-4B-Instruct takes the larger model, DEEPSPEED_CONFIG= (empty) plain data parallelism.
DOMAIN=driving PREPARE=scripts/prepare_physical_ai.py CONFIG=scripts/configs/driving_lora.yaml
TINY_EPOCHS=12 TINY_VIDEO_FPS=10
GIVEN_BATCH="${BATCH_SIZE:-}"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
start "$@"
if [[ "$NPROC_PER_NODE" -gt 1 || "$NNODES" -gt 1 ]]; then : "${DEEPSPEED_CONFIG=scripts/zero3.json}"; fi
if [[ -n "$TINY" && -z "$GIVEN_BATCH" ]]; then  # 16 samples a step however many processes
    BATCH_SIZE=$((NPROC_PER_NODE < 16 ? 16 / NPROC_PER_NODE : 1))
fi
launch "$@"
