#!/usr/bin/env bash
# Hyperspectral mineral mapping on several GPUs (torchrun, ZeRO-3); without a GPU, two CPU processes.
DOMAIN=cuprite CONFIG=scripts/configs/cuprite_zero3.yaml TINY_EPOCHS=6
: "${DEEPSPEED_CONFIG:=scripts/zero3.json}"
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
start "$@"
launch "$@"
