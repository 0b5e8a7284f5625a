#!/usr/bin/env bash
# The personal stage: K folds for each test user, a small adapter each, on the global model; resumable fold by fold.
# GLOBAL=outputs/gui-global FOLDS=3 FOLDS_BY="episode sample" USERS="1-10"; further flags are those of the trainer.
DOMAIN=gui CONFIG=scripts/configs/gui_global.yaml
TINY_EPOCHS=6 TINY_LR=1e-3 TINY_BATCH_SIZE=8 TINY_WARMUP_STEPS=2 TINY_LORA_R=8 TINY_LORA_ALPHA=32 TINY_MAX_PIXELS=36864
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
start "$@"
: "${GLOBAL:=outputs/gui-global}"
if [[ ! -f "$GLOBAL/adapter_config.json" && ! -f "$GLOBAL/config.json" ]]; then  # none, or one that was interrupted
    echo "no finished global model in $GLOBAL: training it first"
    step env -u LR -u EPOCHS -u BATCH_SIZE -u GRAD_ACCUM -u WARMUP_STEPS -u WEIGHT_DECAY -u LORA_R -u LORA_ALPHA \
        -u LORA_DROPOUT MODEL_PATH="$MODEL_PATH" OUTPUT_DIR="$GLOBAL" scripts/train_gui_global.sh
fi
override OUTPUT_DIR:output_dir FOLDS:folds LORA_R:lora_r LORA_ALPHA:lora_alpha LORA_DROPOUT:lora_dropout \
    LR:learning_rate EPOCHS:num_train_epochs BATCH_SIZE:per_device_train_batch_size WARMUP_STEPS:warmup_steps \
    GRAD_ACCUM:gradient_accumulation_steps WEIGHT_DECAY:weight_decay MIN_PIXELS:min_pixels MAX_PIXELS:max_pixels SEED:seed
read -ra users <<< "${USERS:+--users $USERS}"
read -ra kinds <<< "${FOLDS_BY:+--folds_by $FOLDS_BY}"
step "$PYTHON" scripts/train_gui_personal.py --checkpoint "$GLOBAL" \
    ${kinds[@]+"${kinds[@]}"} ${users[@]+"${users[@]}"} ${arguments[@]+"${arguments[@]}"} "$@"
