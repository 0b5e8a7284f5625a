"""Flags of the three training stages: upstream's names, and what the overlay adds; from the command line or YAML.

Flags are read and checked with the fields of the libraries' classes alone (see `library`). The classes themselves,
`TrainingArguments`, `PretrainingArguments` and `PreferenceArguments`, are attributes of this module; the first use of
one imports its library, which takes seconds.
"""

import argparse
import difflib
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from overlays.errors import UserError
from overlays.paths import SYMLINKS_HELP, allow_symlinks
from overlays.train import combinations, inherited, library
from overlays.train.config_file import read_config

PATCH = 28 * 28  # pixels of one visual token of Qwen2-VL, in which upstream counts
LogLevel = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]


def option(default: Any, help: str) -> Any:
    """A field with a default and the help of its flag."""
    return field(default=default, metadata={"help": help.replace("%", "%%")})


@dataclass
class BaseModelArguments:
    """The model, for all stages."""

    model_name_or_path: str = option("", "hub name or folder of a Qwen-VL model")
    channel_init: Literal["normal", "zero", "copy", "project"] = option(
        "copy", "how a patch embedding for other channels starts")
    channel_projection: str = option("", ".npy of the 3 x N matrix for project: RGB from normalised channels")
    attn_implementation: Literal["auto", "sdpa", "flash_attention_2", "eager"] = option(
        "auto", "attention kernel; auto: flash_attention_2 where usable")


@dataclass
class ModelArguments(BaseModelArguments):
    """Which model, and which of its parts are trained."""

    tune_mm_llm: bool = option(False, "train the language model (with LoRA: its adapter)")
    tune_mm_mlp: bool = option(False, "train the merger, DeepStack mergers included")
    tune_mm_vision: bool = option(False, "train the vision tower")
    train_embeddings: bool = option(False, "train the token embeddings beside an adapter")
    in_channels: int = option(0, "channels of the input rasters; 0: the model's own")
    head: Literal["none", "vision", "text"] = option(
        "none", "none: answers in words; vision, text: a regression head on the pooled vision tokens or on the "
                "prompt's last token")
    targets: str = option("", "targets the head learns, by comma; empty: all there are")
    use_3d_features: bool = option(False, "add 3-D features to the visual tokens of records with a scene")
    feature_processing_method: str = option(
        "sin3d_pe", "base: none; sin3d_pe, mlp_pe, or one registered in model/spatial.py")
    position_encoding_dim: int = option(0, "channels of the encoding; 0: the hidden size")
    voxel_size_m: float = option(2.0, "metres that count as 1 in the encoding")
    max_depth_m: float = option(10.0, "depth beyond this is invalid, in metres")


@dataclass
class PretrainingModelArguments(BaseModelArguments):
    """Which model, what is hidden from it, and how large the decoder is."""

    encoder: Literal["full", "patch_embed"] = option("full", "full: the tower is trained; patch_embed: its first layer")
    mask_ratio: float = option(0.75, "share of the patches that is hidden")
    norm_pix: bool = option(True, "targets normalised patch by patch")
    decoder_dim: int = option(512, "width of the decoder")
    decoder_depth: int = option(4, "layers of the decoder")
    decoder_heads: int = option(8, "attention heads of the decoder")


@dataclass
class BaseDataArguments:
    """Data sets and image size, for all stages."""

    dataset_use: str = option("", "data sets, annotation files or (in pretraining) folders, by comma; name%N takes N "
                                  "percent")
    eval_dataset: str = option("", "the same for the validation loss")
    max_pixels: int = option(576 * PATCH, "pixels of one image at most")
    min_pixels: int = option(16 * PATCH, "pixels of one image at least")
    samples_per_file: int = option(1, "samples an epoch takes of each record or raster; crops, flips and quarter "
                                      "turns beyond a record itself, and of every raster")
    no_augment: bool = option(False, "repeat records unchanged")
    allow_symlinks: bool = option(False, SYMLINKS_HELP)
    on_bad_sample: Literal["stop", "skip"] = option("stop", "what a broken sample does")


@dataclass
class DataArguments(BaseDataArguments):
    """Which records, at which resolution."""

    data_flatten: bool | None = option(
        None, "concatenate a batch into one row without padding; by default where the model's attention allows it")
    data_packing: bool = option(False, "pack samples into rows of --model_max_length tokens; a batch counts rows")
    base_interval: int = option(2, "kept for upstream's scripts; nothing reads it")
    video_max_frames: int = option(8, "frames of one clip at most")
    video_min_frames: int = option(4, "frames of one clip at least")
    video_max_pixels: int = option(1024 * PATCH, "pixels of one frame at most")
    video_min_pixels: int = option(256 * PATCH, "pixels of one frame at least")
    video_fps: float = option(2.0, "frames taken a second of clip")
    video_backend: Literal["pyav", "decord"] = option("pyav", "what decodes clips")
    video_cache: str | None = option(None, "folder that keeps decoded, resized frames")
    thinking: Literal["auto", "on", "off"] = option(
        "auto", "prompts of the checkpoint leave room for reasoning or not; auto: as most training answers")


@dataclass
class PretrainingDataArguments(BaseDataArguments):
    """Which rasters, at which resolution; every sample is a random crop unless --no_augment."""

    eval_share: float = option(0.1, "share of the files held out without --eval_dataset")


@dataclass
class BaseFlags:
    """What every stage adds to the library's flags, and other defaults where those of the library do harm."""

    output_dir: str = option("outputs/run", "run folder")
    cache_dir: str | None = option(None, "where downloaded models are kept")
    resume: str = option("auto", "auto | never | a checkpoint folder (also as --resume_from_checkpoint)")
    optim: str = option("adamw_torch_fused", f"one of {', '.join(inherited.OPTIMIZERS)}")
    # transformers would drop keys of a batch that a plain forward does not name.
    remove_unused_columns: bool = option(False, "not supported")
    report_to: str | None = option("tensorboard", "trackers, by comma")
    log_level: LogLevel = option("passive", "logging level of the main process; passive: the library's own")
    log_level_replica: LogLevel = option("warning", "logging level of the other processes")
    logging_steps: float = option(10, "steps between two lines of the log; below 1: the share of all steps")
    logging_nan_inf_filter: bool = option(False, "True shows a loss that is not a number as 0")
    prediction_loss_only: bool = option(True, "not supported")
    dataloader_num_workers: int = option(2, "processes that load data")

    @property
    def n_gpu(self) -> int:
        """At most 1: where a process sees more, the library would split pixels regardless of their tokens."""
        return min(1, super().n_gpu)


@dataclass
class TrainingFlags(BaseFlags):
    """Flags of fine-tuning beside transformers' own, with upstream's additions."""

    model_max_length: int = option(8192, "longer samples are dropped and counted")
    mm_projector_lr: float | None = option(None, "learning rate of the merger; 0 freezes it")
    vision_tower_lr: float | None = option(None, "learning rate of the vision tower; 0 freezes it")
    patch_embed_lr: float | None = option(
        None, "learning rate of a patch embedding for N new channels; empty: the vision tower's times 3 / N")
    additions_lr: float | None = option(None, "learning rate of what is added to the model; 0 freezes it")
    lora_enable: bool = option(False, "train an adapter on the language model")
    lora_r: int = option(64, "rank of the adapter")
    lora_alpha: int = option(128, "the adapter's output is scaled by lora_alpha / lora_r")
    lora_dropout: float = option(0.0, "dropout before the adapter")
    lora_target_modules: str = option("", "projections by comma; empty: the family's own")
    load_in_4bit: bool = option(False, "keep the language model's linear layers in 4 bits (NF4) under the adapter")
    load_in_8bit: bool = option(False, "the same in 8 bits")
    pure_bf16: bool = option(False, "trainable weights in bf16 too (default fp32, autocast)")
    engine: Literal["auto", "upstream", "native"] = option(
        "auto", "whose train() drives; auto: upstream's if it fits")
    warmup_ratio: float | None = option(
        None, "kept for upstream's scripts: share of the steps, as --warmup_steps below 1")
    cache_vision: bool = option(False, "keep the features of a frozen vision tower on disk")
    vision_gradient_checkpointing: bool | None = option(
        None, "the same as --gradient_checkpointing for the vision tower alone; empty: as that")
    freeze_encoder_epochs: int = option(0, "the vision tower is frozen for the first N epochs")
    early_stopping_patience: int = option(0, "evaluations without gain; 0: off")

    def __post_init__(self):
        if self.warmup_ratio is not None:
            self.warmup_steps = self.warmup_ratio
        super().__post_init__()


@dataclass
class PretrainingFlags(BaseFlags):
    """Flags of pretraining beside transformers' own, with the defaults of masked autoencoders."""

    output_dir: str = option("outputs/mae", "run folder")
    learning_rate: float = option(1.5e-4, "learning rate of tower and decoder")
    weight_decay: float = option(0.05, "weight decay of matrices")
    adam_beta2: float = option(0.95, "beta2 of AdamW")
    lr_scheduler_type: library.enum_of("SchedulerType") = option("cosine", "learning rate schedule")
    warmup_steps: float = option(0.05, "steps; below 1: the share of all steps")
    num_train_epochs: float = option(100, "passes over the tiles")
    save_steps: float = option(0.1, "steps between two checkpoints; below 1: the share of all steps")
    save_total_limit: int | None = option(2, "checkpoints that are kept")


@dataclass
class PreferenceFlags:
    """Flags of preference optimisation: TRL's `--beta`, `--loss_type`, `--label_smoothing`, ... beside the others."""

    output_dir: str = option("outputs/dpo", "run folder")
    precompute_ref_log_probs: bool | None = option(
        None, "compute the reference's log-probabilities before training; by default where parts are trained in full")
    max_length: int | None = option(None, "nothing is cut; see --model_max_length")


CLASSES = {  # name -> (flags of this project, the library's class, the class of this module that it also extends)
    "TrainingArguments": (TrainingFlags, library.TRAINING_ARGUMENTS, None),
    "PretrainingArguments": (PretrainingFlags, library.TRAINING_ARGUMENTS, None),
    "PreferenceArguments": (PreferenceFlags, library.DPO_CONFIG, "TrainingArguments"),
}


def __getattr__(name: str) -> type:
    """The classes of CLASSES, made at their first use."""
    if name not in CLASSES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    flags, chain, extends = CLASSES[name]
    bases = (flags, *([__getattr__(extends)] if extends else []), library.import_class(chain))
    made = globals()[name] = dataclass(type(name, bases, {"__module__": __name__, "__doc__": flags.__doc__}))
    return made


@functools.cache
def flag_class(name: str) -> type:
    """The fields of a class of CLASSES, to parse with; importing no library."""
    flags, chain, extends = CLASSES[name]
    return dataclass(type(name, (flags, *([flag_class(extends)] if extends else []), library.fields_of(chain)), {}))


@dataclass(frozen=True)
class Stage:
    """The flags of one stage.

    Attributes:
        check: raises UserError where the given values make no sense together; changes nothing.
        derive: sets in the training arguments what follows from the flags.
    """

    program: str
    model: type
    data: type
    training: str
    check: Callable[[Any, Any, SimpleNamespace], None]
    derive: Callable[[Any, Any, Any], None]

    def classes(self) -> tuple[type, type, type]:
        """The classes to parse with."""
        return self.model, self.data, flag_class(self.training)


class _Parser(library.parser_class()):
    """Errors as one sentence; no abbreviations, so that a flag is what it says."""

    def __init__(self, stage: Stage):
        super().__init__(stage.classes(), allow_abbrev=False, prog=stage.program,
                         description="A YAML file of flags can come first, or behind --config; flags win over it.")
        self.add_argument("--config", metavar="FILE", help="YAML mapping of flag names to values")

    def error(self, message: str):
        raise UserError(f"{message} (see {self.prog} --help)")

    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]

    def takes_several(self, name: str) -> bool:
        """Whether a flag takes a list of words."""
        action = self._option_string_actions.get(f"--{name}")
        return action is not None and action.nargs == "+"


def _yaml_words(file: Path, parser: _Parser) -> list[str]:
    """A YAML mapping of flag names to values as command-line words."""
    flags = {name.removeprefix("--") for name in parser.flags()}
    values = read_config(file, flags)
    unknown = [str(name) for name in values if name not in flags]
    if len(unknown) > 1:
        raise UserError(f"configuration {file} has keys that are not flags: {', '.join(unknown)} (see {parser.prog} "
                        "--help)")
    words = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, list):
            texts = [str(item) for item in value]
            words += [f"--{name}", *(texts if parser.takes_several(name) else [",".join(texts)])]
        else:
            words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def _split_config(words: list[str]) -> tuple[Path | None, list[str]]:
    """(the YAML file of a first word without dashes or of --config, the other words)."""
    files, others = [], []
    if words and not words[0].startswith("-") and words[0].endswith((".yaml", ".yml")):
        files, words = [words[0]], words[1:]
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name == "--config":
            value = value if equals else next(waiting, None)
            if not value:
                raise UserError("--config needs the name of a YAML file")
            files.append(value)
        else:
            others.append(word)
    if len(files) > 1:
        raise UserError(f"one configuration file can be given, not {len(files)}: {', '.join(files)}")
    return (Path(files[0]) if files else None), others


def read(words: list[str], stage: "Stage") -> dict[str, Any]:
    """The checked value of every flag, without importing a library.

    Raises:
        UserError: an unknown flag (the nearest is named), a bad value, or values that make no sense together.
    """
    parser = _Parser(stage)
    file, words = _split_config(list(words))
    if file is not None:
        words = [*_yaml_words(file, parser), *words]
    try:
        namespace, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if unknown:
        raise UserError(_unknown(unknown[0].split("=")[0], parser.flags()))
    values, defaults = vars(namespace), vars(parser.parse_known_args([])[0])
    for name, default in defaults.items():
        if values[name] == "" and default is None:  # how a flag of the file is taken back
            values[name] = None
    del values["config"]
    if not values["output_dir"]:
        raise UserError("--output_dir (OUTPUT_DIR) must name the run's folder; it is empty")
    inherited.check(stage.classes()[-1], values, defaults)
    inherited.resume_of(values)
    stage.check(*(_group(group, values) for group in (stage.model, stage.data)), SimpleNamespace(**values))
    return values


def _group(group: type, values: dict) -> Any:
    return group(**{item.name: values[item.name] for item in fields(group) if item.init and item.name in values})


def _unknown(word: str, flags: list[str]) -> str:
    now = inherited.RENAMED.get(word.removeprefix("--"))
    if now:
        return f"unknown flag {word}: use {now}"
    near = difflib.get_close_matches(word, flags, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near and word.startswith("-") else ""
    return f"unknown flag {word}{hint}" if word.startswith("-") else f"unexpected word {word!r}"


def parse(words: list[str] | None = None, stage: "Stage | None" = None) -> tuple:
    """Flags of one training run; a first word without dashes or --config is a YAML file, over which flags win.

    Args:
        stage: whose flags; None: those of supervised fine-tuning.

    Returns:
        One object of model, data and training arguments each.

    Raises:
        UserError: an unknown flag (the nearest is named), a bad value, or combinations that make no sense.
    """
    stage = stage or SFT
    values = read(sys.argv[1:] if words is None else words, stage)
    allow_symlinks(values["allow_symlinks"])
    import torch

    if values["deepspeed"]:
        _start_cpu_processes()
    if not torch.accelerator.is_available():
        values["use_cpu"] = True  # transformers refuses bf16 autocast on a CPU that is not asked for
    if values["report_to"] and "," in values["report_to"]:
        values["report_to"] = values["report_to"].split(",")
    model, data = _group(stage.model, values), _group(stage.data, values)
    try:
        training = _group(getattr(sys.modules[__name__], stage.training), values)
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise UserError(" ".join(str(error).split())) from None
    training.greater_is_better = inherited.check_together(training, values)
    training.resume = inherited.resume_of(values)
    stage.derive(model, data, training)
    return model, data, training


def _start_cpu_processes() -> None:
    """DeepSpeed on a machine without GPU talks over gloo, and that has to be said before TrainingArguments."""
    import torch

    if torch.accelerator.is_available() or torch.distributed.is_initialized():
        return
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    import deepspeed

    # Not its kernels for shared memory: they need a compiler, and before 0.19 give NaN on a CPU without AVX-512.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")


SFT = Stage("python -m overlays.train", ModelArguments, DataArguments, "TrainingArguments", combinations.check_training,
            combinations.derive_training)
DPO = Stage("python -m overlays.train_dpo", ModelArguments, DataArguments, "PreferenceArguments",
            combinations.check_training, combinations.derive_training)
MAE = Stage("python -m overlays.pretrain_mae", PretrainingModelArguments, PretrainingDataArguments,
            "PretrainingArguments", combinations.check_pretraining, combinations.derive_pretraining)


def upstream_flags() -> dict[str, type]:
    """The classes of flags that take the place of upstream's, by the name of upstream's class."""
    return {"ModelArguments": ModelArguments, "DataArguments": DataArguments,
            "TrainingArguments": flag_class("TrainingArguments")}
