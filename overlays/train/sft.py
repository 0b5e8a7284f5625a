"""Supervised fine-tuning: what is trained, on which samples, and the run."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

from overlays import families, registry, runs
from overlays.data import augment, rasters, thinking
from overlays.data.collate import FlattenedCollator, PaddedCollator
from overlays.data.dataset import SupervisedDataset
from overlays.data.media import MediaOptions, apply_resolution
from overlays.data.packing import PackedDataset
from overlays.data.targets import Metrics, fit_targets, scores, target_values
from overlays.errors import UserError
from overlays.model import channels, extensions, heads, load, parts, spatial, vision_cache
from overlays.train import arguments, inherited
from overlays.train import run as shared
from overlays.train.callbacks import FreezeEncoder, VisionCheckpointing
from overlays.train.run import data_rows
from overlays.train.trainer import Trainer, log_once, to_fp32
from overlays.upstream import engine as engines


def weight_dtype(training: Any) -> torch.dtype:
    """Type the weights are loaded in; trainable ones go back to fp32 unless --pure_bf16 or DeepSpeed keeps masters."""
    return torch.bfloat16 if training.bf16 or training.pure_bf16 else torch.float32


def quantized(training: Any) -> dict[str, Any]:
    """What `load.load_base` is told about a quantised base; empty for one in full precision."""
    bits = 4 if training.load_in_4bit else 8 if training.load_in_8bit else None
    return {"bits": bits, "device": training.device} if bits else {}


def wanted_extensions(model_args, training, train_set) -> dict[str, dict]:
    """Settings of what the flags add to the model (see model/extensions.py), by the extension's name."""
    added = {}
    if model_args.head != "none":
        added["regression"] = regression_settings(model_args, train_set)
    own = spatial_settings(model_args, training)
    if own is not None:
        added["spatial"] = own
        if not any(train_set.record(i).get("scene") for i in range(len(train_set))):
            raise UserError("--use_3d_features: no training record has a \"scene\" with depth and poses")
    return added


def spatial_settings(model_args, training) -> dict | None:
    """Settings of the 3-D features that the flags ask for, in the form of the run that goes on; None for none."""
    method = model_args.feature_processing_method if model_args.use_3d_features else "base"
    wanted = spatial.settings(method, model_args.position_encoding_dim, model_args.voxel_size_m, model_args.max_depth_m)
    there = extensions.read(model_args.model_name_or_path).get("spatial")
    if there is not None and wanted is None:
        raise UserError(f"{model_args.model_name_or_path} has 3-D features ({there['method']}): give --use_3d_features "
                        f"True --feature_processing_method {there['method']}, or start from its base model")
    if wanted is None:
        return None
    run = training.output_dir if training.resume == "auto" else training.resume
    before = (runs.read_run(Path(run)) or {}).get("identity", {}) if training.resume != "never" else {}
    return spatial.as_stored(wanted, there or before.get("feature_processing"))


def regression_settings(model_args, train_set) -> dict:
    """Settings of the regression head: what its targets are like in the training split."""
    every = [train_set.record(i) for i in range(len(train_set))]
    if model_args.head == "vision":
        blind = next((row for row in every if not row.get("image") and not row.get("video")), None)
        if blind is not None:
            raise UserError(f"record {blind.get('id')} has neither image nor video, which --head vision reads")
    names = [name.strip() for name in model_args.targets.split(",") if name.strip()]
    settings, without = fit_targets(every, names)
    log_once(f"regression head on {model_args.head}: " + ", ".join(
        f"{name} (mean {mean:.4g}, standard deviation {std:.4g})"
        for name, mean, std in zip(*settings.values(), strict=True)
    ) + (f"; {without} of {len(every)} training records have no target and teach nothing" if without else ""))
    return settings | {"mode": model_args.head}


def load_model(model_args, training, added: dict[str, dict]):
    """Base model in its type of weights with extensions, and a fresh adapter where --lora_enable asks for one."""
    model = load.load_base(model_args.model_name_or_path, weight_dtype(training), model_args.attn_implementation,
                           training.cache_dir, **quantized(training))
    if heads.detach(model, added.get("regression")):
        log_once(f"the regression head of {model_args.model_name_or_path} is left out: another or none is asked for")
    extensions.attach(model, added)
    return add_adapter(model, training) if training.lora_enable else model


def add_adapter(model, training):
    """The model with a fresh adapter, as the flags want it."""
    from peft import LoraConfig, get_peft_model

    pattern = parts.lora_target_pattern(model.config, lora_modules(training))
    return get_peft_model(model, LoraConfig(
        r=training.lora_r, lora_alpha=training.lora_alpha, lora_dropout=training.lora_dropout,
        target_modules=pattern, bias="none", task_type="CAUSAL_LM",
    ))


def lora_modules(training) -> list[str]:
    """What --lora_target_modules names; empty for the family's own."""
    return [name.strip() for name in training.lora_target_modules.split(",") if name.strip()]


def check_lora_modules(config, training) -> None:
    """Refuse --lora_target_modules that PEFT cannot adapt, without loading weights.

    Raises:
        UserError: a name that the language model does not have, or of a module that is not a linear layer.
    """
    wanted = lora_modules(training) if training.lora_enable else []
    if not wanted:
        return
    with torch.device("meta"):
        modules = dict(transformers.AutoModelForImageTextToText.from_config(config).named_modules())
    usual = ", ".join(families.family_of(config).lora_targets)
    for name in wanted:
        pattern = re.compile(parts.lora_target_pattern(config, [name]))
        found = [module for path, module in modules.items() if pattern.fullmatch(path)]
        if not found:
            raise UserError(f"--lora_target_modules: the language model has no {name}; usual are {usual}")
        for module in found:
            if not isinstance(module, torch.nn.Linear):
                raise UserError(f"--lora_target_modules: {name} is a {type(module).__name__}, and an adapter needs a "
                                f"linear layer; usual are {usual}")


def set_parts(model, training, rates) -> None:
    """Let the parts of `rates` take gradients, in fp32 unless --pure_bf16 or DeepSpeed keeps masters."""
    parts.set_trainable(model, model.config, rates)
    if training.gradient_checkpointing:
        # Trainer switches it on; without this no gradient would reach an adapter through frozen embeddings.
        model.enable_input_require_grads()
    if not training.pure_bf16 and not training.deepspeed:
        to_fp32(model)


def media_options(data) -> MediaOptions:
    """How the flags want media read and resized."""
    return MediaOptions(
        min_pixels=data.min_pixels, max_pixels=data.max_pixels, video_fps=data.video_fps,
        video_min_frames=data.video_min_frames, video_max_frames=data.video_max_frames,
        video_min_pixels=data.video_min_pixels, video_max_pixels=data.video_max_pixels,
        video_backend=data.video_backend, video_cache=data.video_cache,
    )


def flattens(model_args, data, config) -> bool:
    """Whether a batch becomes one row: as asked, or where attention stays inside the samples without a mask.

    Raises:
        UserError: it is asked for, and the family's layers would mix the samples.
    """
    if families.family_of(config).packing:
        by_default = model_args.attn_implementation != "eager"
        return data.data_packing or (by_default if data.data_flatten is None else data.data_flatten)
    if data.data_packing or data.data_flatten:
        flag = "--data_packing" if data.data_packing else "--data_flatten"
        raise UserError(f"{flag} does not fit {config.model_type}: its recurrent layers would mix the samples")
    return False


def build_data(data, training, processor, config, max_depth_m: float | None = None):
    """(training set, validation set or None, collator); samples with coordinates where `max_depth_m` is given.

    Args:
        processor: already set to the resolution of the flags.
    """
    options = media_options(data)

    def build(names: str, repeats: augment.Repeats | None = None) -> SupervisedDataset:
        return SupervisedDataset(
            registry.resolve(names), processor, parts.position_function(config), options, seed=training.seed,
            model_max_length=training.model_max_length, on_bad_sample=data.on_bad_sample, max_depth_m=max_depth_m,
            repeats=repeats,
        )

    repeats = augment.Repeats(data.samples_per_file, not data.no_augment, training.seed)
    collator = (FlattenedCollator if data.data_flatten else PaddedCollator)(processor, training.cache_vision)
    return build(data.dataset_use, repeats), build(data.eval_dataset) if data.eval_dataset else None, collator


def fit_thinking(processor, data, train_set: SupervisedDataset) -> None:
    """Choose the form of the prompts that the run's checkpoints will have, and say which."""
    sentence = thinking.fit_thinking(processor, data.thinking, map(train_set.record, range(len(train_set))))
    if sentence:
        log_once(sentence)


def _data_identity(names: str) -> dict[str, str]:
    """Checksum and rate by data set; one that is named again counts again."""
    found: dict[str, str] = {}
    for row in data_rows(names):
        times = sum(name.split(" #")[0] == row["name"] for name in found)
        found[row["name"] + (f" #{times + 1}" if times else "")] = f"{row['sha256'][:16]} at {row['rate']:g}"
    return found


def identity(model_args, data, training, config, rates) -> dict:
    """What a resumed run must have in common with the one it continues."""
    own = json.dumps({k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "use_cache")},
                     sort_keys=True, default=str)
    lora = None if not training.lora_enable else {
        "r": training.lora_r, "alpha": training.lora_alpha, "targets": training.lora_target_modules
    }
    return {
        "model": {"name": model_args.model_name_or_path, "config": hashlib.sha256(own.encode()).hexdigest()[:16]},
        "data": _data_identity(data.dataset_use),
        "pixels": {flag: value for flag, value in vars(data).items() if flag.endswith(("_pixels", "_frames", "_fps"))},
        "parts": {part: rate > 0 for part, rate in rates.items()},
        "rates": rates,
        "adapter": lora,
        "quantization": quantized(training).get("bits"),
        "head": model_args.head,
        "feature_processing": spatial_settings(model_args, training),
        "samples_per_file": {"samples": data.samples_per_file, "augmented": not data.no_augment},
        "targets": model_args.targets,
        "seed": training.seed,
        **({} if training.metric_for_best_model is None else {"best model": {
            "metric": inherited.metric_name(training.metric_for_best_model),
            "eval_data": {row["name"]: row["sha256"][:16] for row in data_rows(data.eval_dataset)},
        }}),
        **runs.settings_identity(training, data.data_packing),
    }


@dataclass
class Run(shared.Run):
    """A fine-tuning run: the shared one, and what its model is made of."""

    config: transformers.PretrainedConfig
    learning_rates: dict[str, float]
    extensions: dict[str, dict]

    def load_model(self):
        """Base model with its adapter, if any."""
        return load_model(self.model_args, self.training, self.extensions)

    def set_parts(self, model) -> None:
        """Let the parts with a learning rate take gradients, in their precision."""
        set_parts(model, self.training, self.learning_rates)

    def part_rows(self, model) -> list[parts.PartRow]:
        """Parameters and learning rate of each part."""
        return parts.table(model, self.config, self.learning_rates)

    def make_trainer(self, model, callbacks: list) -> Trainer:
        """The Trainer, with the callbacks that the flags ask for."""
        if self.training.freeze_encoder_epochs:
            callbacks.append(FreezeEncoder(self.training.freeze_encoder_epochs))
            log_once(f"the vision tower is frozen for {self.training.freeze_encoder_epochs} epochs")
        callbacks.append(VisionCheckpointing(self.training.vision_gradient_checkpointing))
        if self.training.cache_vision:
            self.keep_vision(model)
        if self.training.early_stopping_patience:
            callbacks.append(transformers.EarlyStoppingCallback(self.training.early_stopping_patience))
        return self.new_trainer(model, callbacks)

    def keep_vision(self, model) -> None:
        """Let the vision tower keep its features on disk. Raises UserError where they do not fit."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        precision = [self.training.bf16, self.training.tf32, self.training.device.type]
        store = vision_cache.install(base, repr(precision))
        tokens = {}  # media of a record -> visual tokens
        for samples in filter(None, (self.train_set, self.eval_set)):
            samples = getattr(samples, "samples", samples)  # those of packed rows
            for number, count in enumerate(samples.visual.tolist()):
                record = samples.record(number)
                tokens[repr([record.get("image"), record.get("video")])] = count
        log_once(vision_cache.check_room(base, store, sum(tokens.values())))

    def new_trainer(self, model, callbacks: list) -> Trainer:
        """The Trainer itself; another kind of run makes its own."""
        return Trainer(
            model=model, args=self.training, processing_class=self.processor, callbacks=callbacks,
            rates=self.learning_rates, **self.data_module(),
            compute_metrics=Metrics(self.train_set.target_names) if self.train_set.target_names else None,
        )

    def media_roots(self) -> list[Path]:
        """Media roots of the training sets."""
        return [source.media_root for source in registry.resolve(self.data.dataset_use)]

    def data_summary(self) -> dict:
        """Checksums and counts of the data sets."""
        return {"train": data_rows(self.data.dataset_use), "eval": data_rows(self.data.eval_dataset),
                "train_report": self.train_set.report, "eval_report": self.eval_set.report if self.eval_set else None}


def check_trained(rates: dict[str, float], adds: bool) -> None:
    """Raise UserError where no part has a learning rate; that of extensions counts where the run `adds` one."""
    if not any(rate for part, rate in rates.items() if part != "additions" or adds):
        raise UserError("nothing is trained: set --lora_enable, --tune_mm_llm, --tune_mm_mlp or --tune_mm_vision True")


def prepare(model_args, data, training, engine: engines.Engine, config=None) -> Run:
    """Everything that can be wrong is looked at here, before weights are loaded and a folder is made.

    Args:
        config: of a model that is loaded already; None reads that of --model_name_or_path.

    Raises:
        UserError: model, data sets or processor cannot be had, or the run folder belongs to another run.
    """
    config = config or load.load_config(model_args.model_name_or_path, training.cache_dir)
    rates = parts.learning_rates(view(model_args, training))
    features = spatial_settings(model_args, training)
    adds = model_args.head != "none" or features is not None
    check_trained(rates, adds)
    new_channels = channels.wanted(config, model_args)
    if new_channels:
        count = new_channels["channels"]["in_channels"]
        rates["patch_embed"] = channels.patch_embed_rate(channels.channels_of(config), count, rates["vision"], training)
        channels.set_channels(config.vision_config, count)
    if training.cache_vision and rates.get("patch_embed"):
        raise UserError("--cache_vision keeps what a frozen vision tower computes, and --in_channels trains its patch "
                        "embedding: train that first, then start from its checkpoint, or set --patch_embed_lr 0")
    check_lora_modules(config, training)
    own = identity(model_args, data, training, config, rates) | channels.identity(new_channels)
    resume = runs.checkpoint_to_resume(Path(training.output_dir), training.resume, own)
    processor = load.load_processor(model_args.model_name_or_path, training.cache_dir)
    data.data_flatten = flattens(model_args, data, config)
    with training.main_process_first(desc="reading data"):
        max_depth_m = (features or {}).get("max_depth_m")
        unfitted = rasters.expect(processor, channels.channels_of(config), bool(model_args.in_channels))
        apply_resolution(processor, media_options(data))
        train_set, eval_set, collator = build_data(data, training, processor, config, max_depth_m)
        problem = "" if unfitted or not rasters.takes_rasters(processor) else rasters.misfit(processor, train_set)
        if problem:
            log_once(f"note: {problem}; they are fitted anew")
        if unfitted or problem:
            rasters.fit_processor(processor, train_set)
    fit_thinking(processor, data, train_set)
    added = new_channels | wanted_extensions(model_args, training, train_set)
    names = tuple(added.get("regression", {}).get("names", ()))
    for samples in filter(None, (train_set, eval_set)):
        samples.target_names = names
    if names and training.metric_for_best_model is not None:
        targets = torch.stack([target_values(eval_set.record(i), names) for i in range(len(eval_set))]).numpy()
        inherited.check_metric(training, {"loss", *scores(np.zeros_like(targets), targets, names)})
    if data.data_packing:
        train_set = PackedDataset(train_set, training.model_max_length, training.seed)
        log_once(f"packed into {len(train_set)} rows of at most {train_set.limit} tokens, {train_set.filled:.0%} full")
    runs.check_steps(resume, shared.count_steps(training, len(train_set)))
    return Run(model_args, data, training, engine, own, resume, processor, train_set, eval_set, collator, config, rates,
               added)


def train(model_args, data, training) -> None:
    """One run from flags to run folder, by the engine that the flags ask for."""
    engine = shared.choose_engine(training.engine, arguments.upstream_flags())
    transformers.set_seed(training.seed)
    with shared.exclusive(training):
        shared.drive(prepare(model_args, data, training, engine))


def view(*groups) -> SimpleNamespace:
    """One object that shows the flags of several groups."""
    return SimpleNamespace(**{name: value for group in groups for name, value in vars(group).items()})
