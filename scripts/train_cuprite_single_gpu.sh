#!/usr/bin/env bash
# Hyperspectral mineral mapping on one GPU (or a CPU): LoRA on the language model, projector trained in full.
# CHANNELS=all shows the model every good band of a tile instead of three-band composites.
DOMAIN=cuprite CONFIG=scripts/configs/cuprite.yaml TINY_EPOCHS=6
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
explain "$@"
: "${CHANNELS:=composites}" "${PROJECTION:=data/prepared/cuprite_all/projection_clay.npy}" "${NPROC_PER_NODE:=1}"
if [[ "$CHANNELS" != composites && "$CHANNELS" != all ]]; then fail "CHANNELS is composites or all, not '$CHANNELS'"; fi
if [[ "$CHANNELS" = all ]]; then
    TINY_EPOCHS=4
    : "${DATASETS:=cuprite_all_train}" "${EVAL_DATASETS=cuprite_all_val}" "${OUTPUT_DIR:=outputs/cuprite_all}"
    set -- --channel_init project --channel_projection "$PROJECTION" "$@"
fi
start "$@"
if [[ "$DATASETS" == *cuprite_all_train* && ! -f data/prepared/cuprite_all/metadata.json ]]; then
    echo "no data in data/prepared/cuprite_all: preparing the sample with all good bands"
    step "$PYTHON" scripts/prepare_cuprite.py --channels all
fi
launch "$@"
