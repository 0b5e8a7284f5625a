#!/usr/bin/env bash
# Questions about posed RGB-D scenes. METHOD: base | sin3d_pe | mlp_pe | a method of your own (model/spatial.py).
DOMAIN=scenes REAL_MODEL=Qwen/Qwen3-VL-8B-Instruct TINY_EPOCHS=4
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${METHOD:=sin3d_pe}" "${POSITION_ENCODING_DIM:=0}" "${VOXEL_SIZE_M:=0.1}" "${MAX_DEPTH_M:=10}"
if [[ -n "$TINY" ]]; then
    # One scale a channel, from 0, needs larger steps than an MLP.
    if [[ "$METHOD" = sin3d_pe ]]; then : "${ADDITIONS_LR:=5e-2}"; fi
    : "${MAX_PIXELS:=12288}" "${ADDITIONS_LR:=3e-3}"
fi
: "${LORA_R:=16}" "${LORA_ALPHA:=32}" "${LORA_DROPOUT:=0.05}" "${LR:=2e-5}" "${MM_PROJECTOR_LR:=1e-4}"
: "${MAX_PIXELS:=200704}" "${MIN_PIXELS:=12544}" "${EPOCHS:=1}" "${BATCH_SIZE:=1}" "${GRAD_ACCUM:=16}"
: "${MAX_LENGTH:=16384}" "${ADDITIONS_LR:=1e-3}" "${OUTPUT_DIR:=outputs/scenes-$METHOD}"
launch --use_3d_features True --feature_processing_method "$METHOD" --position_encoding_dim "$POSITION_ENCODING_DIM" \
    --voxel_size_m "$VOXEL_SIZE_M" --max_depth_m "$MAX_DEPTH_M" --additions_lr "$ADDITIONS_LR" "$@"
