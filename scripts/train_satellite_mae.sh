#!/usr/bin/env bash
# Masked-autoencoder pretraining of the vision tower on 64-channel embeddings; train_satellite_sft.sh goes on from it.
DOMAIN=satellite CONFIG=scripts/configs/satellite_mae.yaml ENTRY=overlays.pretrain_mae
TINY_EPOCHS=12 TINY_SAMPLES_PER_FILE=1 TINY_MAE_LR=1e-3 TINY_MAX_PIXELS=16384 TINY_MIN_PIXELS=16384
TINY_DECODER_DIM=128 TINY_DECODER_DEPTH=2 TINY_DECODER_HEADS=4
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
variables+=(MAE_LR:learning_rate ENCODER:encoder MASK_RATIO:mask_ratio SAMPLES_PER_FILE:samples_per_file
    DECODER_DIM:decoder_dim DECODER_DEPTH:decoder_depth DECODER_HEADS:decoder_heads)
start "$@"
launch "$@"
