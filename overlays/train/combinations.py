"""What the flags of a stage must be together, and what follows from them; `inherited` has the libraries' own flags.

`model` and `data` are the stage's groups of flags, dataclasses of `arguments`.
"""

from types import SimpleNamespace
from typing import Any

from overlays.errors import UserError, need_package
from overlays.train import inherited

# ---- fine-tuning


def _check_data(data: Any) -> None:
    if data.min_pixels > data.max_pixels:
        raise UserError("--min_pixels is above --max_pixels")
    if data.samples_per_file < 1:
        raise UserError(f"--samples_per_file must be at least 1, not {data.samples_per_file}")


def check_training(model: Any, data: Any, training: SimpleNamespace) -> None:
    """Raise UserError for flags of fine-tuning that make no sense together."""
    if not model.model_name_or_path:
        raise UserError("no model is given: use --model_name_or_path")
    if not data.dataset_use:
        raise UserError("no data set is given: use --dataset_use")
    _check_data(data)
    if data.data_packing and data.data_flatten is False:
        raise UserError("--data_packing makes rows of several samples: leave --data_flatten False out")
    if data.data_packing and training.train_sampling_strategy == "group_by_length":
        raise UserError("--train_sampling_strategy group_by_length: the rows of --data_packing are about equally long; "
                        "leave one of both out")
    if data.video_min_pixels > data.video_max_pixels:
        raise UserError("--video_min_pixels is above --video_max_pixels")
    if training.lora_enable and training.lora_r < 1:
        raise UserError(f"--lora_r must be at least 1, not {training.lora_r}")
    if training.lora_enable and training.lora_alpha < 1:
        raise UserError(f"--lora_alpha must be at least 1, not {training.lora_alpha}")
    if not 0 <= training.lora_dropout < 1:
        raise UserError(f"--lora_dropout must be at least 0 and below 1, not {training.lora_dropout:g}")
    if training.warmup_ratio is not None:
        if not 0 <= training.warmup_ratio < 1:
            raise UserError(f"--warmup_ratio must be at least 0 and below 1, not {training.warmup_ratio}")
        if training.warmup_steps:
            raise UserError("--warmup_ratio and --warmup_steps are two names of one setting: give one of them")
    if (training.eval_strategy != "no" or training.eval_on_start) and not data.eval_dataset:
        raise UserError(f"--{'eval_on_start' if training.eval_on_start else 'eval_strategy'} needs --eval_dataset")
    if training.early_stopping_patience and not training.load_best_model_at_end:
        raise UserError("--early_stopping_patience needs --load_best_model_at_end True")
    _check_quantization(training)
    _check_head(model, training)
    _check_freezing(model, training)
    if training.cache_vision:
        _check_vision_cache(model, data, training)
    why = _leaves_unused(model, training)
    if why and training.ddp_find_unused_parameters is False:
        raise UserError(f"--ddp_find_unused_parameters False does not go with {why}: leave it out")


def _check_quantization(training: SimpleNamespace) -> None:
    flags = [flag for flag in ("load_in_4bit", "load_in_8bit") if getattr(training, flag)]
    if not flags:
        return
    if len(flags) > 1:
        raise UserError("--load_in_4bit and --load_in_8bit exclude each other: give one of them")
    if not training.lora_enable:
        raise UserError(f"--{flags[0]} keeps the language model in a form that cannot be trained: set --lora_enable "
                        "True")
    if training.deepspeed and inherited.zero_optimization(training.deepspeed).get("stage") == 3:
        raise UserError(f"--{flags[0]} does not go with ZeRO-3 (--deepspeed), which divides weights in full precision: "
                        "use scripts/zero2.json or leave one of both out")
    need_package("bitsandbytes", f"--{flags[0]}")


def _check_head(model: Any, training: SimpleNamespace) -> None:
    if model.head == "vision" and (training.lora_enable or model.tune_mm_llm or model.train_embeddings):
        raise UserError("--head vision does not run the language model: set --lora_enable, --tune_mm_llm and "
                        "--train_embeddings False, or take --head text")
    if model.head != "none":
        inherited.check_metric(training)
    elif training.metric_for_best_model is not None:
        if inherited.metric_name(training.metric_for_best_model).startswith(("r2", "mae")):
            raise UserError(f"--metric_for_best_model {training.metric_for_best_model} needs --head vision or text")
        inherited.check_metric(training, ["loss"])


def _check_freezing(model: Any, training: SimpleNamespace) -> None:
    if training.freeze_encoder_epochs < 0:
        raise UserError(f"--freeze_encoder_epochs must be at least 0, not {training.freeze_encoder_epochs}")
    if training.freeze_encoder_epochs:
        if not model.tune_mm_vision or training.vision_tower_lr == 0:
            raise UserError("--freeze_encoder_epochs is for a vision tower that is trained afterwards: set "
                            "--tune_mm_vision True and --vision_tower_lr above 0")
        if training.deepspeed:
            raise UserError("--freeze_encoder_epochs does not go with --deepspeed, which fixes at start what is "
                            "trained: train with --vision_tower_lr 0 first, then again from that run")


def _check_vision_cache(model: Any, data: Any, training: SimpleNamespace) -> None:
    if model.tune_mm_vision and training.vision_tower_lr != 0:
        raise UserError("--cache_vision keeps what a frozen vision tower computes: leave out --tune_mm_vision, or set "
                        "--vision_tower_lr 0")
    if data.samples_per_file > 1 and not data.no_augment:
        raise UserError("--cache_vision does not go with --samples_per_file above 1, whose changed images differ in "
                        "every epoch: set --no_augment True, or leave one of both out")
    if training.deepspeed:
        raise UserError("--cache_vision does not go with --deepspeed: with ZeRO-3 every process must run the tower at "
                        "every step")


def _leaves_unused(model: Any, training: Any) -> str | None:
    """The flag by which some trainable parameters get no gradient in some steps."""
    if training.freeze_encoder_epochs:
        return "--freeze_encoder_epochs"  # the frozen tower sends no gradients
    if model.head == "text" and model.tune_mm_llm:
        return "--head text"  # the language model's output layer is not used
    return None


def derive_training(model: Any, data: Any, training: Any) -> None:
    """Set what follows from flags of fine-tuning."""
    training.label_names = ["labels"] if model.head == "none" else ["targets"]
    training.prediction_loss_only = model.head == "none"  # R2 needs the predictions
    if _leaves_unused(model, training):
        training.ddp_find_unused_parameters = True
    if training.gradient_checkpointing:
        options = {"use_reentrant": False, **(training.gradient_checkpointing_kwargs or {})}
        training.gradient_checkpointing_kwargs = training.activation_checkpointing_kwargs = options


# ---- pretraining


def check_pretraining(model: Any, data: Any,
                       training: SimpleNamespace) -> None:
    """Raise UserError for flags of pretraining that make no sense together."""
    if not model.model_name_or_path:
        raise UserError("no model is given: use --model_name_or_path")
    if not data.dataset_use:
        raise UserError("no rasters are given: use --dataset_use with a data set, an annotation file or a folder")
    if not 0 < model.mask_ratio < 1:
        raise UserError(f"--mask_ratio must be above 0 and below 1, not {model.mask_ratio:g}")
    if model.decoder_dim % 4 or model.decoder_dim % model.decoder_heads:
        raise UserError(f"--decoder_dim must be a multiple of 4 and of --decoder_heads {model.decoder_heads}, "
                        f"not {model.decoder_dim}")
    if not 0 < data.eval_share < 1:
        raise UserError(f"--eval_share must be above 0 and below 1, not {data.eval_share:g}")
    _check_data(data)
    if training.deepspeed:
        raise UserError("pretraining does not take --deepspeed: several processes each hold the whole tower")
    if not training.learning_rate:
        raise UserError("--learning_rate 0 would save a tower that has learned nothing")
    if training.train_sampling_strategy == "group_by_length":
        raise UserError("--train_sampling_strategy group_by_length: tiles are not padded, so nothing is gained; leave "
                        "it out")
    inherited.check_metric(training, ["loss"])


def derive_pretraining(model: Any, data: Any, training: Any) -> None:
    """Set what follows from flags of pretraining."""
    if training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = False  # everything that is trained takes part in every step
    training.label_names = ["pixel_values"]  # the picture is its own label; without one evaluation computes no loss
