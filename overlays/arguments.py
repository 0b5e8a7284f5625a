"""Flags: upstream's names, and what the overlay adds; from the command line or one YAML file."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import transformers
import yaml

from overlays import inherited
from overlays.errors import UserError


@dataclass
class ModelArguments:
    """Which model, and which of its parts are trained."""

    model_name_or_path: str = field(default="", metadata={"help": "hub name or folder of a Qwen-VL model"})
    tune_mm_llm: bool = field(default=False, metadata={"help": "train the language model (with LoRA: its adapter)"})
    tune_mm_mlp: bool = field(default=False, metadata={"help": "train the merger, DeepStack mergers included"})
    tune_mm_vision: bool = field(default=False, metadata={"help": "train the vision tower"})
    train_embeddings: bool = field(default=False, metadata={"help": "train the token embeddings beside an adapter"})
    in_channels: int = field(default=0, metadata={"help": "channels of the input rasters; 0: the model's own"})
    channel_init: Literal["normal", "zero", "copy", "project"] = field(
        default="copy", metadata={"help": "how a patch embedding for other channels starts"}
    )
    channel_projection: str = field(default="", metadata={"help": ".npy of the 3 x N matrix for project: RGB from "
                                                          "normalised channels"})
    head: str = field(default="none", metadata={"help": "none: answers in words | vision | text: a regression head on "
                                                "the pooled vision tokens or on the prompt's last token"})
    targets: str = field(default="", metadata={"help": "targets the head learns, by comma; empty: all there are"})
    use_3d_features: bool = field(default=False, metadata={"help": "add 3-D features to the visual tokens of records "
                                                                   "with a scene"})
    feature_processing_method: str = field(default="sin3d_pe", metadata={"help": "base: none | sin3d_pe | mlp_pe | one "
                                                                                 "registered in model/spatial.py"})
    position_encoding_dim: int = field(default=0, metadata={"help": "channels of the encoding; 0: the hidden size"})
    voxel_size_m: float = field(default=0.1, metadata={"help": "metres that count as 1 in the encoding"})
    max_depth_m: float = field(default=10.0, metadata={"help": "depth beyond this is invalid, in metres"})
    attn_implementation: str = field(
        default="auto", metadata={"help": "auto | sdpa | flash_attention_2 | eager; auto: flash where usable"}
    )


@dataclass
class DataArguments:
    """Which records, at which resolution."""

    dataset_use: str = field(default="", metadata={"help": "names or files, by comma; name%%N takes N percent"})
    eval_dataset: str = field(default="", metadata={"help": "the same for the validation loss"})
    data_flatten: bool = field(default=False, metadata={"help": "concatenate a batch into one row without padding"})
    data_packing: bool = field(default=False, metadata={"help": "upstream's name for packed files: same as flatten"})
    base_interval: int = field(default=2, metadata={"help": "kept for upstream's scripts; nothing reads it"})
    max_pixels: int = field(default=28 * 28 * 576, metadata={"help": "pixels of one image at most"})
    min_pixels: int = field(default=28 * 28 * 16, metadata={"help": "pixels of one image at least"})
    video_max_frames: int = field(default=8, metadata={"help": "frames of one clip at most"})
    video_min_frames: int = field(default=4, metadata={"help": "frames of one clip at least"})
    video_max_pixels: int = field(default=1024 * 28 * 28, metadata={"help": "pixels of one frame at most"})
    video_min_pixels: int = field(default=256 * 28 * 28, metadata={"help": "pixels of one frame at least"})
    video_fps: float = field(default=2.0, metadata={"help": "frames taken a second of clip"})
    video_backend: Literal["pyav", "decord"] = field(default="pyav", metadata={"help": "what decodes clips"})
    video_cache: str | None = field(default=None, metadata={"help": "folder that keeps decoded, resized frames"})
    on_bad_sample: Literal["stop", "skip"] = field(default="stop", metadata={"help": "what a broken sample does"})
    samples_per_file: int = field(default=1, metadata={"help": "samples an epoch takes of each training record: "
                                                       "itself, above 1 also crops, flips and turns of its images"})
    no_augment: bool = field(default=False, metadata={"help": "repeat records unchanged"})
    thinking: Literal["auto", "on", "off"] = field(default="auto", metadata={
        "help": "prompts of the checkpoint leave room for reasoning or not; auto: as most training answers"})


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own, with upstream's additions and other defaults where those of the library do harm."""

    output_dir: str = field(default="outputs/run", metadata={"help": "run folder"})
    cache_dir: str | None = field(default=None, metadata={"help": "where downloaded models are kept"})
    optim: str = field(default="adamw_torch")
    model_max_length: int = field(default=8192, metadata={"help": "longer samples are dropped and counted"})
    mm_projector_lr: float | None = field(default=None, metadata={"help": "merger's rate; 0 freezes it"})
    vision_tower_lr: float | None = field(default=None, metadata={"help": "vision tower's rate; 0 freezes it"})
    patch_embed_lr: float | None = field(default=None, metadata={"help": "rate of a patch embedding for N new channels;"
                                                                 " empty: the vision tower's times 3 / N"})
    additions_lr: float | None = field(default=None, metadata={"help": "rate of what is added to the model; 0: frozen"})
    lora_enable: bool = field(default=False)
    lora_r: int = field(default=64)
    lora_alpha: int = field(default=128)
    lora_dropout: float = field(default=0.0)
    lora_target_modules: str = field(default="", metadata={"help": "projections by comma; empty: the family's own"})
    pure_bf16: bool = field(default=False, metadata={"help": "trainable weights in bf16 too (default fp32, autocast)"})
    resume: str = field(
        default="auto", metadata={"help": "auto | never | a checkpoint folder (also as --resume_from_checkpoint)"}
    )
    engine: Literal["auto", "upstream", "native"] = field(
        default="auto", metadata={"help": "whose train() drives; auto: upstream's if it fits"}
    )
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "kept for upstream's scripts: share of the steps, as --warmup_steps below 1"}
    )
    freeze_encoder_epochs: int = field(default=0, metadata={"help": "the vision tower rests for the first N epochs"})
    early_stopping_patience: int = field(default=0, metadata={"help": "evaluations without gain; 0: off"})
    # transformers would drop keys of a batch that a plain forward does not name.
    remove_unused_columns: bool = field(default=False)
    report_to: str | None = field(default="tensorboard")
    logging_steps: float = field(default=10)
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "True shows a loss that is no number as 0"})
    prediction_loss_only: bool = field(default=True)
    dataloader_num_workers: int = field(default=2)

    def __post_init__(self):
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise UserError(f"--warmup_ratio must be at least 0 and below 1, not {self.warmup_ratio}")
            if self.warmup_steps:
                raise UserError("--warmup_ratio and --warmup_steps are two names of one setting: give one of them")
            self.warmup_steps = self.warmup_ratio
        super().__post_init__()


FLAG_CLASSES = (ModelArguments, DataArguments, TrainingArguments)


class _Parser(transformers.HfArgumentParser):
    """Errors as one sentence; no abbreviations, so that a flag is what it says."""

    def __init__(self, classes: tuple, program: str):
        super().__init__(classes, allow_abbrev=False, prog=program)

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")

    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]


def _yaml_arguments(file: Path) -> list[str]:
    """A YAML mapping of flag names to values as command-line words."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"configuration {file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"configuration {file} must be a mapping of flag names to values")
    words = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
            text = json.dumps(value)
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [f"--{name}", text]
    return words


def parse(words: list[str] | None = None, classes: tuple = FLAG_CLASSES,
          program: str = "python -m overlays.train", check: Callable | None = None) -> tuple:
    """Flags of one training run; a first word without dashes is a YAML file, whose values later flags override.

    Args:
        classes: of model, data and training flags; an entry's own are subclasses of those above.
        program: how the entry is called.
        check: takes the groups of flags and raises UserError where they make no sense; None: that of training.

    Returns:
        One object of each class.

    Raises:
        UserError: an unknown flag (the nearest is named), a bad value, or combinations that make no sense.
    """
    words = list(sys.argv[1:] if words is None else words)
    parser = _Parser(classes, program)
    if words and words[0].endswith((".yaml", ".yml")):
        words = [*_yaml_arguments(Path(words[0])), *words[1:]]
    try:
        namespace, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if unknown:
        word = unknown[0].split("=")[0]
        now = inherited.RENAMED.get(word.removeprefix("--"))
        if now:
            raise UserError(f"unknown flag {word}: use {now}")
        near = difflib.get_close_matches(word, parser.flags(), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near and word.startswith("-") else ""
        raise UserError(f"unknown flag {word}{hint}" if word.startswith("-") else f"unexpected word {word!r}")
    values = vars(namespace)
    inherited.check(classes[-1], values, vars(parser.parse_known_args([])[0]))
    if namespace.deepspeed and check is None:
        _start_cpu_processes()
    if not torch.accelerator.is_available():
        values["use_cpu"] = True  # transformers refuses bf16 autocast on a CPU that is not asked for
    if values["report_to"] and "," in values["report_to"]:
        values["report_to"] = values["report_to"].split(",")
    parts = []
    for flag_class in classes:
        own = {name: values[name] for name in flag_class.__dataclass_fields__ if name in values}
        try:
            parts.append(flag_class(**own))
        except (ValueError, ImportError, FileNotFoundError) as error:
            raise UserError(" ".join(str(error).split())) from None
    inherited.check_together(parts[-1], values)
    (check or _check)(*parts)
    return tuple(parts)


def _start_cpu_processes() -> None:
    """DeepSpeed on a machine without GPU talks over gloo, and that has to be said before TrainingArguments."""
    if torch.cuda.is_available() or torch.distributed.is_initialized():
        return
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")


def _check(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    if not model.model_name_or_path:
        raise UserError("no model is given: use --model_name_or_path")
    if not data.dataset_use:
        raise UserError("no data set is given: use --dataset_use")
    if data.min_pixels > data.max_pixels or data.video_min_pixels > data.video_max_pixels:
        raise UserError("--min_pixels is above --max_pixels (or --video_min_pixels above --video_max_pixels)")
    if data.samples_per_file < 1:
        raise UserError(f"--samples_per_file must be at least 1, not {data.samples_per_file}")
    if training.lora_enable and training.lora_r < 1:
        raise UserError(f"--lora_r must be at least 1, not {training.lora_r}")
    if not 0 <= training.lora_dropout < 1:
        raise UserError(f"--lora_dropout must be at least 0 and below 1, not {training.lora_dropout:g}")
    if (training.eval_strategy != "no" or training.eval_on_start) and not data.eval_dataset:
        raise UserError(f"--{'eval_on_start' if training.eval_on_start else 'eval_strategy'} needs --eval_dataset")
    if training.early_stopping_patience and not training.load_best_model_at_end:
        raise UserError("--early_stopping_patience needs --load_best_model_at_end True")
    _check_head(model, training)
    training.label_names = ["labels"] if model.head == "none" else ["targets"]
    data.data_flatten = data.data_flatten or data.data_packing


def _check_head(model: ModelArguments, training: TrainingArguments) -> None:
    if model.head not in ("none", "vision", "text"):
        raise UserError(f"--head is none, vision or text, not {model.head!r}")
    if model.head == "vision" and (training.lora_enable or model.tune_mm_llm or model.train_embeddings):
        raise UserError("--head vision does not run the language model: set --lora_enable, --tune_mm_llm and "
                        "--train_embeddings False, or take --head text")
    if model.head != "none":
        training.prediction_loss_only = False  # R2 needs the predictions
        inherited.check_metric(training)
        if model.head == "text" and model.tune_mm_llm:
            _find_unused(training, "--head text")  # the head of words is not asked
    elif training.metric_for_best_model is not None:
        if inherited.metric_name(training.metric_for_best_model).startswith(("r2", "mae")):
            raise UserError(f"--metric_for_best_model {training.metric_for_best_model} needs --head vision or text")
        inherited.check_metric(training, ["loss"])
    if training.freeze_encoder_epochs < 0:
        raise UserError(f"--freeze_encoder_epochs must be at least 0, not {training.freeze_encoder_epochs}")
    if training.freeze_encoder_epochs:
        if not model.tune_mm_vision or training.vision_tower_lr == 0:
            raise UserError("--freeze_encoder_epochs is for a vision tower that is trained afterwards: set "
                            "--tune_mm_vision True and --vision_tower_lr above 0")
        if training.deepspeed:
            raise UserError("--freeze_encoder_epochs does not go with --deepspeed, which settles at start what is "
                            "trained: train with --vision_tower_lr 0 first, then again from that run")
        _find_unused(training, "--freeze_encoder_epochs")  # the frozen tower sends no gradients


def _find_unused(training: TrainingArguments, why: str) -> None:
    if training.ddp_find_unused_parameters is False:
        raise UserError(f"--ddp_find_unused_parameters False does not go with {why}: leave it out")
    training.ddp_find_unused_parameters = True
