#!/usr/bin/env bash
# Questions about posed RGB-D scenes. METHOD: base | sin3d_pe | mlp_pe | a method of your own (model/spatial.py).
: "${METHOD:=sin3d_pe}"
case "$METHOD" in
    base) CONFIG=scripts/configs/qwen3vl_3d_lora_sft.yaml ;;
    mlp_pe) CONFIG=scripts/configs/qwen3vl_3d_mlp_lora_sft.yaml ;;
    *) CONFIG=scripts/configs/qwen3vl_3d_sin3dpe_lora_sft.yaml ;;
esac
DOMAIN=scenes TINY_EPOCHS=4 TINY_MAX_PIXELS=12288 TINY_ADDITIONS_LR=3e-3
if [[ "$METHOD" = sin3d_pe ]]; then TINY_ADDITIONS_LR=5e-2; fi  # one scale a channel, from 0, needs larger steps
: "${OUTPUT_DIR:=outputs/scenes-$METHOD}"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
variables+=(METHOD:feature_processing_method POSITION_ENCODING_DIM:position_encoding_dim VOXEL_SIZE_M:voxel_size_m
    MAX_DEPTH_M:max_depth_m ADDITIONS_LR:additions_lr)
start "$@"
launch "$@"
