#!/usr/bin/env bash
# The personal stage: K folds for each test user, a small adapter each, on the global model; resumable fold by fold.
# GLOBAL=outputs/gui-global FOLDS=3 FOLDS_BY="episode sample" USERS="1-10"
DOMAIN=gui REAL_MODEL=Qwen/Qwen3-VL-8B-Instruct TINY_EPOCHS=6 TINY_LR=1e-3 TINY_BATCH=8 TINY_WARMUP=2
: "${LORA_R:=8}" "${LORA_ALPHA:=32}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${GLOBAL:=outputs/gui-global}" "${OUTPUT_DIR:=outputs/gui-personal}" "${FOLDS:=3}"
: "${LORA_DROPOUT:=0.05}" "${LR:=2e-5}" "${EPOCHS:=3}" "${WARMUP_STEPS:=5}"
: "${BATCH_SIZE:=1}" "${GRAD_ACCUM:=4}" "${WEIGHT_DECAY:=0.01}" "${MIN_PIXELS:=12544}"
: "${MAX_PIXELS:=${TINY:+36864}}" "${MAX_PIXELS:=1003520}"
read -ra FOLDS_BY <<< "${FOLDS_BY:-episode sample}"
if [[ ! -f "$GLOBAL/adapter_config.json" && ! -f "$GLOBAL/config.json" ]]; then  # none, or one that was interrupted
    echo "no finished global model in $GLOBAL: training it first"
    step env -u LR -u EPOCHS -u BATCH_SIZE -u GRAD_ACCUM -u WARMUP_STEPS -u WEIGHT_DECAY -u LORA_R -u LORA_ALPHA \
        -u LORA_DROPOUT MODEL_PATH="$MODEL_PATH" OUTPUT_DIR="$GLOBAL" scripts/train_gui_global.sh
fi
step "$PYTHON" scripts/train_gui_personal.py --checkpoint "$GLOBAL" --output_dir "$OUTPUT_DIR" --folds "$FOLDS" \
    --folds_by "${FOLDS_BY[@]}" ${USERS:+--users $USERS} --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" \
    --lora_dropout "$LORA_DROPOUT" --learning_rate "$LR" --num_train_epochs "$EPOCHS" \
    --per_device_train_batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$GRAD_ACCUM" \
    --warmup_steps "$WARMUP_STEPS" --weight_decay "$WEIGHT_DECAY" --min_pixels "$MIN_PIXELS" \
    --max_pixels "$MAX_PIXELS" --seed "$SEED" "$@"
