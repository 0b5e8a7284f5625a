"""Entry: supervised fine-tuning. `python -m overlays.train --help` lists the flags."""

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from overlays import arguments, inherited, registry, runs, upstream
from overlays.data import augment, chat, rasters
from overlays.data.collate import FlattenedCollator, PaddedCollator
from overlays.data.dataset import SupervisedDataset
from overlays.data.media import MediaOptions, apply_resolution
from overlays.data.targets import Metrics, fit_targets, scores, target_values
from overlays.errors import UserError, run
from overlays.files import sha256
from overlays.model import additions, channels, heads, load, parts, spatial
from overlays.trainer import (
    FiniteLoss,
    FreezeEncoder,
    Trainer,
    check_finite,
    count_steps,
    draw_losses,
    print_once,
    to_fp32,
)


def weight_dtype(training: arguments.TrainingArguments) -> torch.dtype:
    """Type the weights are loaded in; trainable ones go back to fp32 unless --pure_bf16 or DeepSpeed keeps masters."""
    return torch.bfloat16 if training.bf16 or training.pure_bf16 else torch.float32


def wanted_additions(model_args, training, train_set) -> dict[str, dict]:
    """Settings of what the flags add to the model (see model/additions.py), by the addition's name."""
    added = {}
    if model_args.head != "none":
        added["regression"] = regression_settings(model_args, train_set)
    own = spatial_settings(model_args)
    if own is not None:
        added["spatial"] = own
        if not any(train_set.record(i).get("scene") for i in range(len(train_set))):
            raise UserError("--use_3d_features: no training record has a \"scene\" with depth and poses")
    return added


def spatial_settings(model_args) -> dict | None:
    """Settings of the 3-D features that the flags ask for; None for none."""
    method = model_args.feature_processing_method if model_args.use_3d_features else "base"
    wanted = spatial.settings(method, model_args.position_encoding_dim, model_args.voxel_size_m, model_args.max_depth_m)
    there = additions.read(model_args.model_name_or_path).get("spatial")
    if there is not None and wanted is None:
        raise UserError(f"{model_args.model_name_or_path} has 3-D features ({there['method']}): give --use_3d_features "
                        f"True --feature_processing_method {there['method']}, or start from its base model")
    return wanted


def regression_settings(model_args, train_set) -> dict:
    """Settings of the regression head: what its targets are like in the training split."""
    every = [train_set.record(i) for i in range(len(train_set))]
    if model_args.head == "vision":
        blind = next((row for row in every if not row.get("image") and not row.get("video")), None)
        if blind is not None:
            raise UserError(f"record {blind.get('id')} has neither image nor video, which --head vision reads")
    names = [name.strip() for name in model_args.targets.split(",") if name.strip()]
    settings, without = fit_targets(every, names)
    print_once(f"regression head on {model_args.head}: " + ", ".join(
        f"{name} (mean {mean:.4g}, standard deviation {std:.4g})"
        for name, mean, std in zip(*settings.values(), strict=True)
    ) + (f"; {without} of {len(every)} training records have no target and teach nothing" if without else ""))
    return settings | {"mode": model_args.head}


def load_model(model_args, training, added: dict[str, dict]):
    """Base model in its type of weights with additions, and a fresh adapter where --lora_enable asks for one."""
    model = load.load_base(
        model_args.model_name_or_path, weight_dtype(training), model_args.attn_implementation, training.cache_dir
    )
    if heads.detach(model, added.get("regression")):
        print_once(f"the regression head of {model_args.model_name_or_path} is left out: another or none is asked for")
    additions.attach(model, added)
    model.config.use_cache = False
    if training.lora_enable:
        from peft import LoraConfig, get_peft_model

        pattern = parts.lora_target_pattern(model.config, lora_modules(training))
        model = get_peft_model(model, LoraConfig(
            r=training.lora_r, lora_alpha=training.lora_alpha, lora_dropout=training.lora_dropout,
            target_modules=pattern, bias="none", task_type="CAUSAL_LM",
        ))
    return model


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
    usual = ", ".join(parts.family_of(config).lora_targets)
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
        options = {"use_reentrant": False, **(training.gradient_checkpointing_kwargs or {})}
        training.gradient_checkpointing_kwargs = training.activation_checkpointing_kwargs = options
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


def build_data(data, training, processor, config, max_depth_m: float | None = None):
    """(training set, validation set or None, collator); samples with coordinates where `max_depth_m` is given."""
    if data.data_flatten and not parts.family_of(config).packing:
        raise UserError(f"--data_flatten does not fit {config.model_type}: its recurrent layers would mix the samples")
    options = media_options(data)
    apply_resolution(processor, options)

    def build(names: str, repeats: augment.Repeats | None = None) -> SupervisedDataset:
        return SupervisedDataset(
            registry.resolve(names), processor, parts.position_function(config), options, seed=training.seed,
            model_max_length=training.model_max_length, on_bad_sample=data.on_bad_sample, max_depth_m=max_depth_m,
            repeats=repeats,
        )

    repeats = augment.Repeats(data.samples_per_file, not data.no_augment, training.seed)
    collator = (FlattenedCollator if data.data_flatten else PaddedCollator)(processor)
    return build(data.dataset_use, repeats), build(data.eval_dataset) if data.eval_dataset else None, collator


def fit_thinking(processor, data, train_set: SupervisedDataset) -> None:
    """Choose the form of the prompts that the run's checkpoints will have, and say which."""
    sentence = chat.fit_thinking(processor, data.thinking, map(train_set.record, range(len(train_set))))
    if sentence:
        print_once(sentence)


def _data_rows(names: str) -> list[dict]:
    return [
        {"name": source.name, "rate": source.rate, "sha256": sha256(source.annotation)}
        for source in registry.resolve(names)
    ] if names else []


def identity(model_args, data, training, config, rates) -> dict:
    """What a resumed run must have in common with the one it continues."""
    own = json.dumps({k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "use_cache")},
                     sort_keys=True, default=str)
    lora = None if not training.lora_enable else {
        "r": training.lora_r, "alpha": training.lora_alpha, "targets": training.lora_target_modules
    }
    return {
        "model": {"name": model_args.model_name_or_path, "config": hashlib.sha256(own.encode()).hexdigest()[:16]},
        "data": {row["name"]: f"{row['sha256'][:16]} at {row['rate']:g}" for row in _data_rows(data.dataset_use)},
        "pixels": {flag: value for flag, value in vars(data).items() if flag.endswith(("_pixels", "_frames", "_fps"))},
        "parts": {part: rate > 0 for part, rate in rates.items()},
        "rates": rates,
        "adapter": lora,
        "head": model_args.head,
        "feature_processing": spatial_settings(model_args),
        "samples_per_file": {"samples": data.samples_per_file, "augmented": not data.no_augment},
        "targets": model_args.targets,
        "seed": training.seed,
        **({} if training.metric_for_best_model is None else {"best model": {
            "metric": inherited.metric_name(training.metric_for_best_model),
            "eval_data": {row["name"]: row["sha256"][:16] for row in _data_rows(data.eval_dataset)},
        }}),
        **runs.settings_identity(training, data.data_flatten),
    }


@dataclass
class Run:
    """A training run up to its model: flags, data, processor, where to go on. Both engines work with one of these.

    The order of calls is load_model, set_parts, build_trainer, fit, finish; `native` makes them here, upstream's
    train() makes them in its own.
    """

    model_args: arguments.ModelArguments
    data: arguments.DataArguments
    training: arguments.TrainingArguments
    engine: upstream.Engine
    config: transformers.PretrainedConfig
    rates: dict[str, float]
    additions: dict[str, dict]
    identity: dict
    resume: Path | None
    processor: transformers.ProcessorMixin
    train_set: SupervisedDataset
    eval_set: SupervisedDataset | None
    collator: Callable

    def has_ended(self) -> bool:
        """Whether all steps are taken and saved already; says so."""
        folder, steps = Path(self.training.output_dir), count_steps(self.training, len(self.train_set))
        ended = runs.has_taken(folder, self.resume, steps)
        if ended:
            print_once(f"{folder} has taken its {steps} steps: nothing is left to do")
        return ended

    def load_model(self):
        """Base model with its adapter, if any; what is trained is not settled yet."""
        return load_model(self.model_args, self.training, self.additions)

    def set_parts(self, model) -> None:
        """Settle what is trained, and in which precision."""
        set_parts(model, self.training, self.rates)

    def data_module(self) -> dict:
        """Data sets and collator, as arguments of the Trainer."""
        return {"train_dataset": self.train_set, "eval_dataset": self.eval_set, "data_collator": self.collator}

    def build_trainer(self, model) -> Trainer:
        """The run folder made ready, the parts table printed, and a Trainer."""
        rows = parts.table(model, self.config, self.rates)
        print_once(parts.format_table(rows))
        validation = f", {len(self.eval_set)} validation samples" if self.eval_set else ""
        print_once(f"{len(self.train_set)} training samples{validation}")
        output = Path(self.training.output_dir)
        if self.training.process_index == 0:
            self._open_folder(output, rows)
        print_once(f"resuming from {self.resume}" if self.resume else f"training from the start into {output}")
        callbacks = [FiniteLoss()]
        if self.training.freeze_encoder_epochs:
            callbacks.append(FreezeEncoder(self.training.freeze_encoder_epochs))
            print_once(f"the vision tower rests for {self.training.freeze_encoder_epochs} epochs")
        if self.training.early_stopping_patience:
            callbacks.append(transformers.EarlyStoppingCallback(self.training.early_stopping_patience))
        return self.make_trainer(model, callbacks)

    def make_trainer(self, model, callbacks: list) -> Trainer:
        """The Trainer itself; another kind of run makes its own."""
        return Trainer(
            model=model, args=self.training, processing_class=self.processor, callbacks=callbacks, rates=self.rates,
            compute_metrics=Metrics(self.train_set.target_names) if self.train_set.target_names else None,
            **self.data_module(),
        )

    def _open_folder(self, output: Path, rows: list[parts.PartRow]) -> None:
        output.mkdir(parents=True, exist_ok=True)
        gone = runs.clean(output, all_checkpoints=self.training.resume == "never")
        if gone:
            why = "--resume never" if self.training.resume == "never" else "incomplete"
            print_once(f"removed {', '.join(gone)} ({why})")
        runs.copy_metadata(output, [source.media_root for source in registry.resolve(self.data.dataset_use)])
        runs.write_run(output, {
            "base_model": self.model_args.model_name_or_path,
            "engine": {"name": self.engine.name, "commit": self.engine.commit},
            "arguments": {**vars(self.model_args), **vars(self.data), **json.loads(self.training.to_json_string())},
            "versions": runs.versions(),
            "commit": runs.commit(),
            "identity": self.identity,
            "parts": parts.rows_as_dicts(rows),
            "data": {"train": _data_rows(self.data.dataset_use), "eval": _data_rows(self.data.eval_dataset),
                     "train_report": self.train_set.report,
                     "eval_report": self.eval_set.report if self.eval_set else None},
        })

    def fit(self, trainer: Trainer) -> None:
        """Train, from the checkpoint found when the run was prepared."""
        check_finite(Trainer.train(trainer, resume_from_checkpoint=str(self.resume) if self.resume else None))

    def finish(self, trainer: Trainer) -> None:
        """State, model and processor into the run folder, and the picture of the losses."""
        trainer.save_state()
        trainer.model.config.use_cache = True
        trainer.save_final()
        output = Path(self.training.output_dir)
        if self.training.process_index == 0:
            draw_losses(trainer.state.log_history, output / "training_loss.png", trainer.loss_name)
        print_once(f"saved {output}")


def prepare(model_args, data, training, engine: upstream.Engine) -> Run:
    """Everything that can be wrong is looked at here, before weights are loaded and a folder is made.

    Raises:
        UserError: model, data sets or processor cannot be had, or the run folder belongs to another run.
    """
    config = load.load_config(model_args.model_name_or_path, training.cache_dir)
    rates = parts.learning_rates(argparse_view(model_args, training))
    adds = model_args.head != "none" or spatial_settings(model_args) is not None
    if not any(rate for part, rate in rates.items() if part != "additions" or adds):
        raise UserError("nothing is trained: set --lora_enable, --tune_mm_llm, --tune_mm_mlp or --tune_mm_vision True")
    widened = channels.prepare(config, rates, model_args, training)
    check_lora_modules(config, training)
    own = identity(model_args, data, training, config, rates) | channels.identity(widened)
    resume = runs.checkpoint_to_resume(Path(training.output_dir), training.resume, own)
    processor = load.load_processor(model_args.model_name_or_path, training.cache_dir)
    with training.main_process_first(desc="reading data"):
        max_depth_m = (spatial_settings(model_args) or {}).get("max_depth_m")
        unfitted = rasters.expect(processor, channels.channels_of(config), bool(model_args.in_channels))
        train_set, eval_set, collator = build_data(data, training, processor, config, max_depth_m)
        if unfitted:
            rasters.fit_processor(processor, train_set)
    fit_thinking(processor, data, train_set)
    added = widened | wanted_additions(model_args, training, train_set)
    names = tuple(added.get("regression", {}).get("names", ()))
    for samples in filter(None, (train_set, eval_set)):
        samples.target_names = names
    if names and training.metric_for_best_model is not None:
        truth = torch.stack([target_values(eval_set.record(i), names) for i in range(len(eval_set))]).numpy()
        inherited.check_metric(training, {"loss", *scores(np.zeros_like(truth), truth, names)})
    runs.check_steps(resume, count_steps(training, len(train_set)))
    return Run(model_args, data, training, engine, config, rates, added, own, resume, processor, train_set, eval_set,
               collator)


def native(run: Run) -> None:
    """The run without upstream's code: what its train() would call, in the same order."""
    if run.has_ended():
        return
    model = run.load_model()
    run.set_parts(model)
    trainer = run.build_trainer(model)
    run.fit(trainer)
    run.finish(trainer)


def main() -> None:
    """Parse flags, prepare the run, let an engine do it."""
    warnings.filterwarnings("ignore", message=".*(pin_memory|is_gradient_checkpointing).*")
    model_args, data, training = arguments.parse()
    engine = upstream.choose(training.engine)
    if engine.warning and training.process_index == 0:
        print(engine.warning, file=sys.stderr)
    print_once(engine.line)
    transformers.set_seed(training.seed)
    run = prepare(model_args, data, training, engine)
    if engine.module is None:
        native(run)
    elif not run.has_ended():
        upstream.drive(engine.module, run)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def argparse_view(*groups):
    """One object that shows the flags of several groups."""
    from types import SimpleNamespace

    return SimpleNamespace(**{name: value for group in groups for name, value in vars(group).items()})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run(main)
