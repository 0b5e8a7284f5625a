# Sourced by the launchers, which name DOMAIN and REAL_MODEL before: set-up, model, data, and the one command.
# Any variable below can be set from outside; flags after a launcher go through to the trainer and win.
set -euo pipefail
export TOKENIZERS_PARALLELISM=false
unset PYTHONDONTWRITEBYTECODE  # with it every start would compile all packages anew: 15 seconds
export OMP_WAIT_POLICY=PASSIVE  # threads that wait do not spin: data workers need the cores too
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
: "${DRY_RUN:=0}"

if [[ "$DRY_RUN" = 1 ]]; then
    PYTHON="${PYTHON:-python}"
elif [[ -z "${PYTHON:-}" ]]; then
    PYTHON="$(scripts/setup.sh)" || exit 2
fi

: "${ENGINE:=auto}"  # auto | upstream | native: whose train() drives the run
if [[ "$ENGINE" = upstream && "$DRY_RUN" != 1 ]]; then scripts/setup.sh --upstream > /dev/null || exit 2; fi

gpu_count() {  # GPUs that this process may use
    case "${CUDA_VISIBLE_DEVICES-all}" in
        "" | -*) echo 0 ;;
        all) { nvidia-smi -L 2> /dev/null || true; } | grep -c '^GPU' || true ;;
        *) tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | wc -l ;;
    esac
}

step() {  # run a preparing command, or only show it
    if [[ "$DRY_RUN" = 1 ]]; then printf '%q ' "$@"; echo; else "$@" || exit $?; fi
}

GPUS="$(gpu_count)"
if [[ "$GPUS" = 0 ]]; then export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"; fi
if [[ -z "${MODEL_PATH:-}" ]]; then
    if [[ "$GPUS" -gt 0 ]]; then
        MODEL_PATH="$REAL_MODEL"
    else
        MODEL_PATH="data/models/tiny-qwen3_vl"
        echo "no GPU and no MODEL_PATH: training a tiny Qwen3-VL with random weights ($MODEL_PATH)"
        step "$PYTHON" scripts/make_tiny_model.py --family qwen3_vl --output "$MODEL_PATH"
    fi
fi

# Random weights have nothing to adapt, so such a model also trains vision, merger and embeddings, at rates that
# suit it. A launcher's own defaults come after and fill only what is left.
TINY=  # not empty for such a model
if [[ "$MODEL_PATH" == data/models/tiny-* ]] || grep -qs '"tiny_random": true' "$MODEL_PATH/config.json"; then
    TINY=1
    : "${LR:=${TINY_LR:-3e-3}}" "${MM_PROJECTOR_LR:=1e-3}" "${TUNE_VISION:=True}" "${VISION_LR:=1e-3}"
    : "${LORA_R:=64}" "${LORA_ALPHA:=128}" "${LORA_DROPOUT:=0.0}" "${EPOCHS:=$TINY_EPOCHS}" "${GRAD_ACCUM:=1}"
    : "${WARMUP_STEPS:=${TINY_WARMUP:-20}}" "${BATCH_SIZE:=${TINY_BATCH:-16}}" "${MIN_PIXELS:=4096}"
    : "${TRAIN_EMBEDDINGS:=True}"
fi

if [[ -n "${DEEPSPEED_CONFIG:-}" ]]; then : "${NPROC_PER_NODE:=$((GPUS > 0 ? GPUS : 2))}"; fi
: "${NPROC_PER_NODE:=1}" "${NNODES:=1}" "${NODE_RANK:=0}" "${MASTER_ADDR:=127.0.0.1}" "${MASTER_PORT:=29500}"
: "${ATTN:=auto}" "${SEED:=42}" "${REPORT_TO:=tensorboard}" "${TUNE_VISION:=False}" "${TRAIN_EMBEDDINGS:=False}"
if [[ "$GPUS" -gt 0 ]]; then : "${BF16:=True}" "${GRADIENT_CHECKPOINTING:=True}"; fi
: "${BF16:=False}" "${GRADIENT_CHECKPOINTING:=False}" "${DATASETS:=${DOMAIN}_train}"
if [[ "$DATASETS" == *"${DOMAIN}_train"* ]]; then : "${EVAL_DATASETS=${DOMAIN}_val}"; fi  # other data: name their own
: "${EVAL_DATASETS:=}"

if [[ "$DATASETS" == *"${DOMAIN}_train"* && ! -f "data/prepared/$DOMAIN/metadata.json" ]]; then
    echo "no data in data/prepared/$DOMAIN: preparing the sample"
    step "$PYTHON" "${PREPARE:-scripts/prepare_$DOMAIN.py}"
fi

launch() {  # launch "$@": the trainer in one process or under torchrun, with the variables above as flags
    local arguments=(
        --model_name_or_path "$MODEL_PATH" --dataset_use "$DATASETS" --output_dir "$OUTPUT_DIR"
        --tune_mm_vision "$TUNE_VISION" --tune_mm_mlp "${TUNE_MERGER:-True}" --tune_mm_llm "${TUNE_LLM:-False}"
        --train_embeddings "$TRAIN_EMBEDDINGS" --learning_rate "$LR"
        --max_pixels "$MAX_PIXELS" --min_pixels "$MIN_PIXELS"
        --num_train_epochs "$EPOCHS" --per_device_train_batch_size "$BATCH_SIZE"
        --per_device_eval_batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$GRAD_ACCUM"
        --bf16 "$BF16" --gradient_checkpointing "$GRADIENT_CHECKPOINTING" --attn_implementation "$ATTN"
        --lr_scheduler_type cosine --warmup_steps "${WARMUP_STEPS:-0.03}" --weight_decay "${WEIGHT_DECAY:-0.0}"
        --logging_steps "${LOGGING_STEPS:-10}" --save_strategy "${SAVE_STRATEGY:-epoch}" --save_total_limit 2
        --seed "$SEED" --report_to "$REPORT_TO" --engine "$ENGINE"
    )
    [[ -n "$EVAL_DATASETS" ]] && arguments+=(--eval_dataset "$EVAL_DATASETS" --eval_strategy "${EVAL_STRATEGY:-epoch}")
    [[ -n "${MM_PROJECTOR_LR:-}" ]] && arguments+=(--mm_projector_lr "$MM_PROJECTOR_LR")
    [[ -n "${VISION_LR:-}" ]] && arguments+=(--vision_tower_lr "$VISION_LR")
    local name
    for name in VIDEO_FPS VIDEO_MIN_FRAMES VIDEO_MAX_FRAMES VIDEO_MIN_PIXELS VIDEO_MAX_PIXELS MAX_STEPS; do
        [[ -n "${!name:-}" ]] && arguments+=("--${name,,}" "${!name}")
    done
    [[ -n "${MAX_LENGTH:-}" ]] && arguments+=(--model_max_length "$MAX_LENGTH")
    [[ "${LORA_R:-0}" != 0 ]] && arguments+=(
        --lora_enable True --lora_r "$LORA_R" --lora_alpha "$LORA_ALPHA" --lora_dropout "$LORA_DROPOUT"
    )
    [[ -n "${DEEPSPEED_CONFIG:-}" ]] && arguments+=(--deepspeed "$DEEPSPEED_CONFIG")
    local command=("$PYTHON" -m "${ENTRY:-overlays.train}")
    if [[ "$NPROC_PER_NODE" -gt 1 || "$NNODES" -gt 1 || -n "${DEEPSPEED_CONFIG:-}" ]]; then
        command=(
            "$PYTHON" -m torch.distributed.run --nproc_per_node "$NPROC_PER_NODE" --nnodes "$NNODES"
            --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" -m "${ENTRY:-overlays.train}"
        )
    fi
    if [[ "$DRY_RUN" = 1 ]]; then
        printf '%q ' "${command[@]}" "${arguments[@]}" "$@"
        echo
        exit 0
    fi
    exec "${command[@]}" "${arguments[@]}" "$@"
}
