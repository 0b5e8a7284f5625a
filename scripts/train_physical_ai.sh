#!/usr/bin/env bash
# Driving: one second of video to the next second's velocity and curvature. Full fine-tuning under ZeRO-3.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR; see scripts/slurm_physical_ai.sh.
DOMAIN=driving PREPARE=scripts/prepare_physical_ai.py CONFIG=scripts/configs/driving_full.yaml
TINY_EPOCHS=12 TINY_LORA_R=0 TINY_VIDEO_FPS=10
: "${DEEPSPEED_CONFIG=scripts/zero3.json}"
GIVEN_BATCH="${BATCH_SIZE:-}"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
start "$@"
if [[ -n "$TINY" && -z "$GIVEN_BATCH" ]]; then  # 16 samples a step however many processes
    BATCH_SIZE=$((NPROC_PER_NODE < 16 ? 16 / NPROC_PER_NODE : 1))
fi
launch "$@"
