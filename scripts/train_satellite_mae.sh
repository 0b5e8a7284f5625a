#!/usr/bin/env bash
# Masked-autoencoder pretraining of the vision tower on 64-channel embeddings; train_satellite_sft.sh goes on from it.
DOMAIN=satellite REAL_MODEL=Qwen/Qwen3-VL-2B-Instruct TINY_EPOCHS=12
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ "$MODEL_PATH" == data/models/tiny-* ]] || grep -qs '"tiny_random": true' "$MODEL_PATH/config.json"; then
    : "${MAE_LR:=1e-3}" "${MAX_PIXELS:=16384}" "${DECODER_DIM:=128}" "${DECODER_DEPTH:=2}" "${DECODER_HEADS:=4}"
    MIN_PIXELS=16384
fi
: "${MAE_LR:=1.5e-4}" "${MAX_PIXELS:=65536}" "${MIN_PIXELS:=16384}" "${EPOCHS:=100}" "${BATCH_SIZE:=16}"
: "${GRAD_ACCUM:=4}" "${DECODER_DIM:=512}" "${DECODER_DEPTH:=4}" "${DECODER_HEADS:=8}" "${MASK_RATIO:=0.75}"
: "${ENCODER:=full}" "${SAMPLES_PER_FILE:=1}" "${OUTPUT_DIR:=outputs/satellite-mae}"
arguments=(
    --model_name_or_path "$MODEL_PATH" --dataset_use "$DATASETS" --output_dir "$OUTPUT_DIR"
    --encoder "$ENCODER" --mask_ratio "$MASK_RATIO" --max_pixels "$MAX_PIXELS" --min_pixels "$MIN_PIXELS"
    --decoder_dim "$DECODER_DIM" --decoder_depth "$DECODER_DEPTH" --decoder_heads "$DECODER_HEADS"
    --samples_per_file "$SAMPLES_PER_FILE" --learning_rate "$MAE_LR" --num_train_epochs "$EPOCHS"
    --per_device_train_batch_size "$BATCH_SIZE" --per_device_eval_batch_size "$BATCH_SIZE"
    --gradient_accumulation_steps "$GRAD_ACCUM" --bf16 "$BF16" --gradient_checkpointing "$GRADIENT_CHECKPOINTING"
    --attn_implementation "$ATTN" --warmup_steps "${WARMUP_STEPS:-0.05}" --weight_decay "${WEIGHT_DECAY:-0.05}"
    --logging_steps "${LOGGING_STEPS:-10}" --save_strategy "${SAVE_STRATEGY:-epoch}" --save_total_limit 2
    --seed "$SEED" --report_to "$REPORT_TO"
)
[[ -n "$EVAL_DATASETS" ]] && arguments+=(--eval_dataset "$EVAL_DATASETS")
[[ -n "${MAX_STEPS:-}" ]] && arguments+=(--max_steps "$MAX_STEPS")
command=("$PYTHON" -m overlays.pretrain_mae)
if [[ "$NPROC_PER_NODE" -gt 1 || "$NNODES" -gt 1 ]]; then
    command=(
        "$PYTHON" -m torch.distributed.run --nproc_per_node "$NPROC_PER_NODE" --nnodes "$NNODES"
        --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" -m overlays.pretrain_mae
    )
fi
if [[ "$DRY_RUN" = 1 ]]; then
    printf '%q ' "${command[@]}" "${arguments[@]}" "$@"
    echo
    exit 0
fi
exec "${command[@]}" "${arguments[@]}" "$@"
