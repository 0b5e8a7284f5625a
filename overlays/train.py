"""Entry: supervised fine-tuning. `python -m overlays.train --help` lists the flags."""

import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
import transformers

from overlays import arguments, registry, runs
from overlays.data.collate import FlattenedCollator, PaddedCollator
from overlays.data.dataset import SupervisedDataset
from overlays.data.media import MediaOptions, apply_resolution
from overlays.errors import UserError, run
from overlays.files import sha256
from overlays.model import load, parts
from overlays.trainer import LossPrinter, Trainer, draw_losses, print_once, to_fp32


def weight_dtype(training: arguments.TrainingArguments) -> torch.dtype:
    """Type the weights are loaded in; trainable ones go back to fp32 unless --pure_bf16 or DeepSpeed keeps masters."""
    return torch.bfloat16 if training.bf16 or training.pure_bf16 else torch.float32


def build_model(model_args, training, rates):
    """Model with the parts of `rates` trainable, and its adapter where --lora_enable asks for one."""
    dtype = weight_dtype(training)
    model = load.load_base(
        model_args.model_name_or_path, dtype, model_args.attn_implementation, training.cache_dir
    )
    model.config.use_cache = False
    if training.lora_enable:
        from peft import LoraConfig, get_peft_model

        wanted = [name.strip() for name in training.lora_target_modules.split(",") if name.strip()]
        model = get_peft_model(model, LoraConfig(
            r=training.lora_r, lora_alpha=training.lora_alpha, lora_dropout=training.lora_dropout,
            target_modules=parts.lora_target_pattern(model.config, wanted), bias="none", task_type="CAUSAL_LM",
            base_model_name_or_path=model_args.model_name_or_path,
        ))
    parts.set_trainable(model, model.config, rates)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing is trained: set --lora_enable, --tune_mm_llm, --tune_mm_mlp or --tune_mm_vision True")
    if training.gradient_checkpointing:
        # Trainer switches it on; without this no gradient would reach an adapter through frozen embeddings.
        model.enable_input_require_grads()
        training.gradient_checkpointing_kwargs = {
            "use_reentrant": False, **(training.gradient_checkpointing_kwargs or {})
        }
    if not training.pure_bf16 and not training.deepspeed:
        to_fp32(model)
    return model


def build_data(data, training, processor, config):
    """(training set, validation set or None, collator)."""
    if data.data_flatten and not parts.family_of(config).packing:
        raise UserError(f"--data_flatten does not fit {config.model_type}: its recurrent layers would mix the samples")
    options = MediaOptions(
        min_pixels=data.min_pixels, max_pixels=data.max_pixels, video_fps=data.video_fps,
        video_min_frames=data.video_min_frames, video_max_frames=data.video_max_frames,
        video_min_pixels=data.video_min_pixels, video_max_pixels=data.video_max_pixels,
        video_backend=data.video_backend,
    )
    apply_resolution(processor, options)

    def build(names: str) -> SupervisedDataset:
        return SupervisedDataset(
            registry.resolve(names), processor, parts.position_function(config), options, seed=training.seed,
            model_max_length=training.model_max_length, on_bad_sample=data.on_bad_sample,
        )

    collator = (FlattenedCollator if data.data_flatten else PaddedCollator)(processor)
    return build(data.dataset_use), build(data.eval_dataset) if data.eval_dataset else None, collator


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
        "parts": {part: rate > 0 for part, rate in rates.items()},
        "adapter": lora,
        "seed": training.seed,
    }


def main() -> None:
    """Parse flags, build the parts, train, save."""
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    model_args, data, training = arguments.parse()
    transformers.set_seed(training.seed)
    output = Path(training.output_dir)
    config = load.load_config(model_args.model_name_or_path, training.cache_dir)
    rates = parts.learning_rates(argparse_view(model_args, training))
    own = identity(model_args, data, training, config, rates)
    resume = runs.checkpoint_to_resume(output, training.resume, own)

    processor = load.load_processor(model_args.model_name_or_path, training.cache_dir)
    with training.main_process_first(desc="reading data"):
        train_set, eval_set, collator = build_data(data, training, processor, config)
    model = build_model(model_args, training, rates)
    rows = parts.table(model, config, rates)
    print_once(parts.format_table(rows))
    print_once(f"{len(train_set)} training samples" + (f", {len(eval_set)} validation samples" if eval_set else ""))

    if training.process_index == 0:
        output.mkdir(parents=True, exist_ok=True)
        gone = runs.clean(output, all_checkpoints=training.resume == "never")
        if gone:
            why = "--resume never" if training.resume == "never" else "incomplete"
            print_once(f"removed {', '.join(gone)} ({why})")
        runs.write_run(output, {
            "base_model": model_args.model_name_or_path,
            "arguments": {**vars(model_args), **vars(data), **json.loads(training.to_json_string())},
            "versions": runs.versions(),
            "commit": runs.commit(),
            "identity": own,
            "parts": parts.rows_as_dicts(rows),
            "data": {"train": _data_rows(data.dataset_use), "eval": _data_rows(data.eval_dataset),
                     "train_report": train_set.report, "eval_report": eval_set.report if eval_set else None},
        })
    print_once(f"resuming from {resume}" if resume else f"training from the start into {output}")

    callbacks = [LossPrinter()]
    if training.early_stopping_patience:
        callbacks.append(transformers.EarlyStoppingCallback(training.early_stopping_patience))
    trainer = Trainer(
        model=model, args=training, train_dataset=train_set, eval_dataset=eval_set, data_collator=collator,
        processing_class=processor, callbacks=callbacks, rates=rates,
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.save_state()
    model.config.use_cache = True
    trainer.save_final()
    if training.process_index == 0:
        draw_losses(trainer.state.log_history, output / "training_loss.png")
    print_once(f"saved {output}")
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
