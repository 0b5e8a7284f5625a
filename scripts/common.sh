# Sourced by the launchers. `start "$@"` sets up Python, model and data; `launch "$@"` is the one command. Between the two
# and before them a launcher says what is its own: DOMAIN, CONFIG, TINY_* values, more `variables`.
# CONFIG is the stage's recipe, a YAML file. A variable of `variables` that is set overrides one of its settings; flags
# after a launcher go through to the trainer and win over both.
set -euo pipefail
export TOKENIZERS_PARALLELISM=false
unset PYTHONDONTWRITEBYTECODE  # with it every start would compile all packages anew: 15 seconds
export OMP_WAIT_POLICY=PASSIVE  # threads that wait do not spin: data workers need the cores too
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
: "${LAUNCHER_FILE:=$(readlink -f "$0")}"
cd "$ROOT"
: "${DRY_RUN:=0}"
export DRY_RUN

fail() { echo "error: $*" >&2; exit 2; }
[[ "$DRY_RUN" = [01] ]] || fail "DRY_RUN must be 0 or 1, not '$DRY_RUN'"

number() {  # number NAME LEAST [MOST]: checked by its text, because bash would run what stands in the brackets of a[$(...)]
    [[ "${!1}" =~ ^(0|[1-9][0-9]{0,8})$ ]] && (( ${!1} >= $2 && ${!1} <= ${3:-999999999} )) \
        || fail "$1 must be a whole number from $2 $([[ -n "${3:-}" ]] && echo "to $3" || echo on), not '${!1}'"
}

find_python() {
    if [[ "$DRY_RUN" = 1 ]]; then
        PYTHON="${PYTHON:-$(command -v .venv/bin/python || command -v python3 || echo python)}"
    elif [[ -z "${PYTHON:-}" ]]; then
        PYTHON="$(scripts/setup.sh)" || exit 2
    fi
    export PYTHON
}

explain() {  # explain "$@": --help prints what the launcher is, and its variables; nothing is set up
    local word name pair
    for word in "$@"; do
        [[ "$word" = --help || "$word" = -h ]] || continue
        echo "usage: [VARIABLE=value ...] $0 [flags]"
        echo
        sed -n '2,$ { /^#SBATCH/d; /^#/!q; s/^# \{0,1\}//p; }' "$LAUNCHER_FILE"
        echo
        echo "variables of this launcher, with their defaults:"
        { grep -oE '\$\{[A-Z][A-Z_]+:?[=-][^}]*' "$LAUNCHER_FILE" || true; } \
            | sed -E '/\{(BASH_SOURCE|GIVEN_|SLURM_|DRY_RUN|PYTHON)/d; s/^..([A-Z_]+):?[=-]/\1 /' | sort -u -k 1,1 | while read -r name word; do
                if [[ "$word" == *\$* ]]; then word=; fi  # made of other variables
                printf '    %-24s%s\n' "$name" "$word"
            done
        if [[ -n "${CONFIG:-}" ]]; then
            [[ "${ENTRY:-}" = overlays.pretrain_mae ]] || variables+=("${tuning_variables[@]}")
            echo "variables for flags of ${ENTRY:-overlays.train} (--help of it lists all); in brackets the value of $CONFIG:"
            for pair in "${variables[@]}"; do
                word="$(setting "${pair#*:}")"
                printf '    %-24s--%s%s\n' "${pair%%:*}" "${pair#*:}" "${word:+ [$word]}"
            done | sort -u
            echo "processes: NPROC_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT; validation data: EVAL_DATASETS"
        fi
        echo "DRY_RUN=1 prints the commands and touches nothing; PYTHON is the interpreter"
        exit 0
    done
}

has_torch() { "$PYTHON" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' 2> /dev/null; }

device_count() {  # accelerators that torch may use; a dry run takes the word of CUDA_VISIBLE_DEVICES, without torch the driver's
    local visible="${CUDA_VISIBLE_DEVICES-all}"
    if [[ -z "$visible" || "$visible" == -* ]]; then
        echo 0
    elif [[ "$DRY_RUN" = 1 && "$visible" != all ]]; then
        tr ',' '\n' <<< "$visible" | wc -l
    elif [[ "$DRY_RUN" = 1 ]] && ! has_torch; then
        { nvidia-smi -L 2> /dev/null || true; } | grep -c "^GPU" || true
    else
        "$PYTHON" scripts/_devices.py
    fi
}

step() {  # run a preparing command, or only show it
    if [[ "$DRY_RUN" = 1 ]]; then printf '%q ' "$@"; echo; else "$@" || exit $?; fi
}

setting() {  # the value of a key in CONFIG
    local line
    while IFS= read -r line || [[ -n "$line" ]]; do
        if [[ "$line" =~ ^$1:[[:space:]]*([^#]*[^#[:space:]]) ]]; then echo "${BASH_REMATCH[1]}"; fi
    done < "$CONFIG"
}

is_tiny() {  # whether a model, or the base of an adapter, is one with random weights
    local base
    base="$(sed -n 's/^ *"base_model_name_or_path": "\(.*\)",*$/\1/p' "$1/adapter_config.json" 2> /dev/null || true)"
    [[ "${base:-$1}" == data/models/tiny-* ]] || grep -qs '"tiny_random": true' "${base:-$1}/config.json"
}

# VARIABLE:flag; a launcher adds its own.
variables=(
    MODEL_PATH:model_name_or_path DATASETS:dataset_use OUTPUT_DIR:output_dir ATTN:attn_implementation
    MAX_PIXELS:max_pixels MIN_PIXELS:min_pixels EPOCHS:num_train_epochs MAX_STEPS:max_steps
    BATCH_SIZE:per_device_train_batch_size BATCH_SIZE:per_device_eval_batch_size GRAD_ACCUM:gradient_accumulation_steps
    WARMUP_STEPS:warmup_steps WEIGHT_DECAY:weight_decay BF16:bf16 GRADIENT_CHECKPOINTING:gradient_checkpointing
    LOGGING_STEPS:logging_steps EVAL_STRATEGY:eval_strategy SAVE_STRATEGY:save_strategy SEED:seed REPORT_TO:report_to
    DEEPSPEED_CONFIG:deepspeed
)
tuning_variables=(  # those that pretraining does not have
    LR:learning_rate MM_PROJECTOR_LR:mm_projector_lr VISION_LR:vision_tower_lr TUNE_VISION:tune_mm_vision
    TUNE_MERGER:tune_mm_mlp TUNE_LLM:tune_mm_llm TRAIN_EMBEDDINGS:train_embeddings LORA_R:lora_r LORA_ALPHA:lora_alpha
    LORA_DROPOUT:lora_dropout VIDEO_FPS:video_fps VIDEO_MIN_FRAMES:video_min_frames VIDEO_MAX_FRAMES:video_max_frames
    VIDEO_MIN_PIXELS:video_min_pixels VIDEO_MAX_PIXELS:video_max_pixels VIDEO_CACHE:video_cache
    MAX_LENGTH:model_max_length ENGINE:engine
)

start() {  # start "$@": Python, model, data and the number of processes
    local name tiny
    explain "$@"
    for name in NPROC_PER_NODE NNODES MASTER_PORT; do  # before anything is set up
        [[ -z "${!name:-}" ]] || number "$name" 1 $([[ $name = MASTER_PORT ]] && echo 65535)
    done
    [[ -z "${NODE_RANK:-}" ]] || number NODE_RANK 0 $((${NNODES:-1} - 1))
    find_python
    : "${ENGINE:=}"  # auto | upstream | native: whose train() drives the run
    if [[ "$ENGINE" = upstream && "$DRY_RUN" != 1 ]]; then scripts/setup.sh --upstream > /dev/null || exit 2; fi
    GPUS="$(device_count)" || exit 2
    number GPUS 0
    if [[ -n "${DEEPSPEED_CONFIG:-}" && "$GPUS" = 0 ]]; then : "${NPROC_PER_NODE:=2}"; fi
    : "${NPROC_PER_NODE:=$((GPUS > 1 ? GPUS : 1))}" "${NNODES:=1}" "${NODE_RANK:=0}"
    if [[ "$GPUS" = 0 ]]; then
        export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
        : "${BF16:=False}" "${GRADIENT_CHECKPOINTING:=False}"
        if [[ -z "${MODEL_PATH:-}" ]]; then
            MODEL_PATH="data/models/tiny-qwen3_vl"
            echo "no GPU and no MODEL_PATH: training a tiny Qwen3-VL with random weights ($MODEL_PATH)"
            step "$PYTHON" scripts/make_tiny_model.py --family qwen3_vl --output "$MODEL_PATH"
        fi
    fi
    : "${MODEL_PATH:=}"  # empty: that of CONFIG

    # Random weights have nothing to adapt, so such a model also trains vision, merger and embeddings, at learning rates
    # that suit it. TINY_NAME of a launcher is its own value of NAME for such a model; the others are below.
    TINY=  # not empty for such a model
    if [[ -n "$MODEL_PATH" ]] && is_tiny "$MODEL_PATH"; then
        TINY=1
        for tiny in "${!TINY_@}"; do
            name="${tiny#TINY_}"
            if [[ -z "${!name:-}" ]]; then printf -v "$name" %s "${!tiny}"; fi
        done
        : "${LR:=3e-3}" "${MM_PROJECTOR_LR:=1e-3}" "${TUNE_VISION:=True}" "${VISION_LR:=1e-3}" "${TRAIN_EMBEDDINGS:=True}"
        : "${LORA_R:=64}" "${LORA_ALPHA:=128}" "${LORA_DROPOUT:=0.0}" "${GRAD_ACCUM:=1}" "${WARMUP_STEPS:=20}"
        : "${BATCH_SIZE:=16}" "${MIN_PIXELS:=4096}"
    fi

    # Data that are not the recipe's are not validated on the domain: they name their own. EVAL_DATASETS= (empty): none.
    : "${DATASETS:=}"
    if [[ -n "$DATASETS" && "$DATASETS" != *"$(setting dataset_use)"* ]]; then : "${EVAL_DATASETS=}"; fi

    if [[ "${DATASETS:-$(setting dataset_use)}" == *"${DOMAIN}_train"* && ! -f "data/prepared/$DOMAIN/metadata.json" ]]; then
        echo "no data in data/prepared/$DOMAIN: preparing the sample"
        step "$PYTHON" "${PREPARE:-scripts/prepare_$DOMAIN.py}"
    fi
}

arguments=()
override() {  # override VARIABLE:flag ...: adds to `arguments` a flag for each variable that is set
    local pair name
    for pair in "$@"; do
        name="${pair%%:*}"
        if [[ -n "${!name:-}" ]]; then arguments+=("--${pair#*:}" "${!name}"); fi
    done
}

launch() {  # launch "$@": the trainer on CONFIG, in one process or under torchrun, with what overrides CONFIG as flags
    arguments=("$CONFIG")
    if [[ "${ENTRY:-}" != overlays.pretrain_mae ]]; then
        variables+=("${tuning_variables[@]}")
        case "${LORA_R:-}" in
            "") ;;
            0) LORA_R= LORA_ALPHA= LORA_DROPOUT= && arguments+=(--lora_enable False) ;;
            *) arguments+=(--lora_enable True) ;;
        esac
    fi
    override "${variables[@]}"
    if [[ -n "${EVAL_DATASETS:-}" ]]; then
        arguments+=(--eval_dataset "$EVAL_DATASETS")
    elif [[ -n "${EVAL_DATASETS+set}" ]]; then
        arguments+=(--eval_dataset "" --eval_strategy no)
        if [[ -n "$(setting load_best_model_at_end)" ]]; then
            arguments+=(--load_best_model_at_end False --metric_for_best_model "" --early_stopping_patience 0)
        fi
    fi
    local command=("$PYTHON" -m "${ENTRY:-overlays.train}")
    if [[ "$NPROC_PER_NODE" -gt 1 || "$NNODES" -gt 1 || -n "${DEEPSPEED_CONFIG:-}" ]]; then
        local place=(--standalone --local_addr 127.0.0.1)  # on a free port, so that jobs of one machine do not meet
        if [[ "$NNODES" -gt 1 || -n "${MASTER_ADDR:-}${MASTER_PORT:-}" ]]; then
            place=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "${MASTER_ADDR:-127.0.0.1}"
                --master_port "${MASTER_PORT:-29500}")
        fi
        command=(
            "$PYTHON" -m torch.distributed.run --nproc_per_node "$NPROC_PER_NODE" "${place[@]}" -m "${ENTRY:-overlays.train}"
        )
    fi
    if [[ "$DRY_RUN" = 1 ]]; then
        printf '%q ' "${command[@]}" "${arguments[@]}" "$@"
        echo
        exit 0
    fi
    exec "${command[@]}" "${arguments[@]}" "$@"
}
