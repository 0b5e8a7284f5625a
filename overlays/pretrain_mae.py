"""Entry: masked-autoencoder pretraining of the vision tower on rasters. `python -m overlays.pretrain_mae --help`

The language model is not loaded while the tower trains. The run folder gets the whole model with N input channels,
which `overlays.train` starts from and plain transformers loads, and beside it the decoder, for going on.
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import transformers
from safetensors.torch import load_file, save_file

from overlays import arguments, inherited, runs, trainer
from overlays.data import rasters, tiles
from overlays.data.media import MediaOptions, apply_resolution
from overlays.errors import UserError, run
from overlays.files import write_json
from overlays.model import additions, channels, load, parts, reconstruction, unloaded
from overlays.model.mae import MaskedAutoencoder
from overlays.trainer import print_once

DECODER = "decoder.safetensors"  # beside the whole model; plain transformers does not look at it
SHOWN = 200  # entries of a list of dropped files that are printed


@dataclass
class MaeArguments:
    """Which model, what is hidden from it, and how large the decoder is."""

    model_name_or_path: str = field(default="", metadata={"help": "hub name or folder of a Qwen-VL model"})
    encoder: str = field(default="full", metadata={"help": "full: the tower is trained | patch_embed: its first layer"})
    mask_ratio: float = field(default=0.75, metadata={"help": "share of the patches that is hidden"})
    norm_pix: bool = field(default=True, metadata={"help": "targets normalised patch by patch"})
    decoder_dim: int = field(default=512, metadata={"help": "width of the decoder"})
    decoder_depth: int = field(default=4, metadata={"help": "layers of the decoder"})
    decoder_heads: int = field(default=8, metadata={"help": "attention heads of the decoder"})
    channel_init: str = field(
        default="copy", metadata={"help": f"how an RGB tower gets its channels: {' | '.join(channels.INITS)}"}
    )
    channel_projection: str = field(default="", metadata={"help": "for project: .npy with a 3 x N matrix"})
    attn_implementation: str = field(default="auto", metadata={"help": "auto | sdpa | flash_attention_2 | eager"})


@dataclass
class DataArguments:
    """Which rasters, at which resolution."""

    dataset_use: str = field(default="", metadata={"help": "data sets, annotation files or folders, by comma"})
    eval_dataset: str = field(default="", metadata={"help": "held-out ones; empty: --eval_share of the files"})
    eval_share: float = field(default=0.1, metadata={"help": "share of the files held out without --eval_dataset"})
    max_pixels: int = field(default=28 * 28 * 576, metadata={"help": "pixels of one tile at most"})
    min_pixels: int = field(default=28 * 28 * 16, metadata={"help": "pixels of one tile at least"})
    no_augment: bool = field(default=False, metadata={"help": "tiles as they are: no crops, flips and quarter turns"})
    samples_per_file: int = field(default=1, metadata={"help": "samples that an epoch takes of each file"})
    on_bad_sample: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "what a raster that does not fit does"}
    )


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' own, with defaults of masked autoencoders where those of the library are for language."""

    output_dir: str = field(default="outputs/mae", metadata={"help": "run folder"})
    cache_dir: str | None = field(default=None, metadata={"help": "where downloaded models are kept"})
    resume: str = field(default="auto", metadata={"help": "auto | never | a checkpoint folder"})
    learning_rate: float = field(default=1.5e-4)
    weight_decay: float = field(default=0.05)
    adam_beta2: float = field(default=0.95)
    lr_scheduler_type: str = field(default="cosine")
    warmup_steps: float = field(default=0.05, metadata={"help": "steps; below 1: their share"})
    num_train_epochs: float = field(default=100)
    optim: str = field(default="adamw_torch")
    remove_unused_columns: bool = field(default=False)
    report_to: str | None = field(default="tensorboard")
    logging_steps: float = field(default=10)
    logging_nan_inf_filter: bool = field(default=False)
    save_strategy: str = field(default="epoch")
    save_total_limit: int | None = field(default=2)
    prediction_loss_only: bool = field(default=True)
    dataloader_num_workers: int = field(default=2)


FLAG_CLASSES = (MaeArguments, DataArguments, TrainingArguments)


def parse(words: list[str] | None = None) -> tuple[MaeArguments, DataArguments, TrainingArguments]:
    """Flags of one pretraining run; a first word without dashes is a YAML file, whose values later flags override.

    Raises:
        UserError: an unknown flag (the nearest is named), a bad value, or combinations that make no sense.
    """
    return arguments.parse(words, FLAG_CLASSES, "python -m overlays.pretrain_mae", _check)


def _check(mae: MaeArguments, data: DataArguments, training: TrainingArguments) -> None:
    if not mae.model_name_or_path:
        raise UserError("no model is given: use --model_name_or_path")
    if not data.dataset_use:
        raise UserError("no rasters are given: use --dataset_use with a data set, an annotation file or a folder")
    if mae.encoder not in ("full", "patch_embed"):
        raise UserError(f"--encoder is full or patch_embed, not {mae.encoder!r}")
    if not 0 < mae.mask_ratio < 1:
        raise UserError(f"--mask_ratio must be above 0 and below 1, not {mae.mask_ratio:g}")
    if mae.decoder_dim % 4 or mae.decoder_dim % mae.decoder_heads:
        raise UserError(f"--decoder_dim must be a multiple of 4 and of --decoder_heads {mae.decoder_heads}, "
                        f"not {mae.decoder_dim}")
    if not 0 < data.eval_share < 1:
        raise UserError(f"--eval_share must be above 0 and below 1, not {data.eval_share:g}")
    if data.min_pixels > data.max_pixels:
        raise UserError("--min_pixels is above --max_pixels")
    if data.samples_per_file < 1:
        raise UserError(f"--samples_per_file must be at least 1, not {data.samples_per_file}")
    if training.deepspeed:
        raise UserError("pretraining does not take --deepspeed: several processes each hold the whole tower")
    if not training.learning_rate:
        raise UserError("--learning_rate 0 would save a tower that has learned nothing")
    if training.train_sampling_strategy == "group_by_length":
        raise UserError("--train_sampling_strategy group_by_length: tiles are not padded, so nothing is gained; leave "
                        "it out")
    inherited.check_metric(training, ["loss"])
    if training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = False  # everything that is trained takes part in every step
    training.label_names = ["pixel_values"]  # the picture is its own label; without one evaluation computes no loss


class MaeTrainer(trainer.Trainer):
    """Checkpoints hold tower, decoder and processor, enough to go on; one rate for all that is trained."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, rates={}, **kwargs)
        self.model_accepts_loss_kwargs = False  # its loss is a mean over the batch
        self.loss_name = "squared error of hidden patches"

    def create_optimizer(self, model=None):
        """transformers' own."""
        transformers.Trainer.create_optimizer(self, *([] if model is None else [model]))
        self._remember_settings()
        return self.optimizer


class _Epochs(transformers.TrainerCallback):
    """Tells the tiles which epoch begins; transformers tells the sampler alone."""

    def __init__(self, train_set: tiles.Tiles):
        self.train_set = train_set

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.train_set.set_epoch(int(round(state.epoch or 0, 6)))


@dataclass
class Data:
    """Tiles for training and held-out ones, and the processor that fits them."""

    train: tiles.Tiles
    held_out: tiles.Tiles
    processor: transformers.ProcessorMixin
    channels: int
    report: dict


def build_data(mae: MaeArguments, data: DataArguments, seed: int, cache_dir: str | None = None) -> Data:
    """Find and check the rasters, fit the channels' statistics on the training ones.

    A model that takes as many channels already and came with statistics keeps them: its weights belong to them.

    Raises:
        UserError: see `tiles.find` and `tiles.check`.
    """
    config = load.load_config(mae.model_name_or_path, cache_dir)
    added = additions.read(load.locate(mae.model_name_or_path))
    if added:
        raise UserError(f"{mae.model_name_or_path} has additions ({', '.join(added)}) that pretraining would lose: "
                        "start from the model that they were added to")
    own = channels.channels_of(config)
    files = tiles.find(data.dataset_use, seed)
    if data.eval_dataset:
        held = tiles.find(data.eval_dataset, seed)
        both = sorted({*files} & {*held}, key=str)
        if both:
            raise UserError(f"{len(both)} tiles are in --dataset_use and in --eval_dataset, {both[0]} among them")
    else:
        files, held = tiles.hold_out(files, data.eval_share, seed)
    files, dropped, count = tiles.check(files, data.on_bad_sample, None if own == 3 else own)
    held, dropped_held, _ = tiles.check(held, data.on_bad_sample, count)
    processor = load.load_processor(mae.model_name_or_path, cache_dir)
    apply_resolution(processor, MediaOptions(min_pixels=data.min_pixels, max_pixels=data.max_pixels))
    if not (own == count and rasters.takes_rasters(processor)):
        rasters.set_statistics(processor, *rasters.fit_statistics(files))
    for row in (dropped + dropped_held)[:SHOWN]:
        print_once(f"dropped {row['file']}: {row['reason']}")
    print_once(f"{len(files)} rasters of {count} channels for training, {len(held)} held out, "
               f"{len(dropped) + len(dropped_held)} dropped")
    report = {"channels": count, "train": len(files), "held_out": len(held), "dropped": dropped + dropped_held,
              "train_files": _digest(files), "held_out_files": _digest(held)}
    return Data(
        tiles.Tiles(files, processor, mae.mask_ratio, seed, not data.no_augment, data.samples_per_file),
        tiles.Tiles(held, processor, mae.mask_ratio, seed), processor, count, report,
    )


def _digest(files: list[tiles.Source]) -> str:
    return hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:16]


def _stored_type(config) -> torch.dtype:
    """The type that a model's weights are stored in."""
    return getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32


def build_model(mae: MaeArguments, count: int, training: TrainingArguments) -> MaskedAutoencoder:
    """Tower of the base model, widened to `count` channels, in fp32, with a decoder; the language model is let go.

    A base model that comes with a decoder of the same size goes on with it.
    """
    config = load.load_config(mae.model_name_or_path, training.cache_dir)
    attention = load.attention_implementation(
        mae.attn_implementation, torch.bfloat16 if training.bf16 else torch.float32, config
    )
    base = load.load_base(mae.model_name_or_path, _stored_type(config), attention, training.cache_dir)
    projection = channels.read_projection(mae.channel_projection) if mae.channel_projection else None
    channels.widen(base, count, mae.channel_init, projection)
    model = MaskedAutoencoder(
        base.model.visual.float(), mae.decoder_dim, mae.decoder_depth, mae.decoder_heads, mae.norm_pix, mae.encoder
    )
    file = Path(load.locate(mae.model_name_or_path)) / DECODER
    if file.is_file():
        stored, wanted = load_file(file), model.decoder.state_dict()
        same = {name: value.shape for name, value in stored.items()} == {n: v.shape for n, v in wanted.items()}
        if same:
            model.decoder.load_state_dict(stored)
        print_once(f"the decoder goes on from {file}" if same else f"{file} has another size: a new decoder")
    return model


def _table(model: MaskedAutoencoder, rate: float) -> str:
    rows = []
    for part, module in (("vision tower", model.visual), ("decoder", model.decoder)):
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        trained = sum(size for size, trains in sizes if trains)
        rows.append(parts.PartRow(part, sum(size for size, _ in sizes), trained, rate))
    return parts.format_table(rows)


def save_whole(mae: MaeArguments, model: MaskedAutoencoder, data: Data, folder: Path,
               cache_dir: str | None = None) -> None:
    """The base model with the trained tower in it, its processor, and the decoder, into `folder`.

    What was not trained keeps its values and its type. The file that makes the folder a model comes last.
    """
    dtype = _stored_type(load.load_config(mae.model_name_or_path, cache_dir))
    base = load.load_base(mae.model_name_or_path, dtype, "sdpa", cache_dir)
    # Zeros take the place of the embedding until the trained one is there.
    channels.widen(base, data.channels, "zero")
    base.model.visual.load_state_dict(model.visual.state_dict())
    unfinished = folder / ".final"
    shutil.rmtree(unfinished, ignore_errors=True)
    base.save_pretrained(unfinished)
    unloaded.carry_over(base, unfinished)
    data.processor.save_pretrained(unfinished)
    save_file({name: value.detach().cpu().contiguous() for name, value in model.decoder.state_dict().items()},
              unfinished / DECODER, metadata={"format": "pt"})
    new = {file.name for file in unfinished.iterdir()}
    for file in sorted(unfinished.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
        os.replace(file, folder / file.name)
    runs.remove_model(folder, but=new)
    unfinished.rmdir()


def measure(model: MaskedAutoencoder, data: Data, training: TrainingArguments, folder: Path) -> dict:
    """metrics.json and reconstruction.png of the held-out tiles; returns the metrics."""
    model.eval()
    device = next(model.parameters()).device

    def batches():
        loader = torch.utils.data.DataLoader(
            data.held_out, training.per_device_eval_batch_size, collate_fn=tiles.collate,
            num_workers=training.dataloader_num_workers,
        )
        for batch in loader:
            yield {name: value.to(device) for name, value in batch.items()}

    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=training.bf16):
        found = reconstruction.errors(model, batches(), data.processor.image_processor.image_std)
        found = {"mask_ratio": data.held_out.mask_ratio, **found}
        reconstruction.draw(model, next(batches()), data.channels, folder / "reconstruction.png")
    write_json(folder / "metrics.json", found)
    return found


def _open_folder(mae, data_flags, training, identity: dict, data: Data) -> None:
    output = Path(training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    gone = runs.clean(output, all_checkpoints=training.resume == "never")
    if gone:
        print(f"removed {', '.join(gone)} ({'--resume never' if training.resume == 'never' else 'incomplete'})")
    runs.write_run(output, {
        "base_model": mae.model_name_or_path,
        "arguments": {**vars(mae), **vars(data_flags), **json.loads(training.to_json_string())},
        "versions": runs.versions(), "commit": runs.commit(), "identity": identity,
        "data": {"pretraining": data.report},  # no "train": such a run answers no questions, so none is looked for here
    })


def pretrain(mae: MaeArguments, data_flags: DataArguments, training: TrainingArguments) -> dict | None:
    """One run from flags to run folder; returns the held-out metrics, None on other ranks than the first.

    None as well where --max_steps are taken already.
    """
    transformers.set_seed(training.seed)
    data = build_data(mae, data_flags, training.seed, training.cache_dir)
    identity = {
        "model": {"name": mae.model_name_or_path},
        "data": {name: data.report[name] for name in ("channels", "train_files", "held_out_files")},
        "pretraining": {name: value for name, value in vars(mae).items()
                        if name not in ("model_name_or_path", "attn_implementation")},
        "samples": {name: getattr(data_flags, name)
                    for name in ("min_pixels", "max_pixels", "samples_per_file", "no_augment")},
        "rate": training.learning_rate,
        "seed": training.seed,
        **runs.settings_identity(training),
    }
    output, first = Path(training.output_dir), training.process_index == 0
    resume = runs.checkpoint_to_resume(output, training.resume, identity)
    steps = trainer.count_steps(training, len(data.train))
    runs.check_steps(resume, steps)
    if runs.has_taken(output, resume, steps):
        print_once(f"{output} has taken its {steps} steps: nothing is left to do")
        return None
    model = build_model(mae, data.channels, training)
    print_once(_table(model, training.learning_rate))
    if first:
        _open_folder(mae, data_flags, training, identity, data)
    print_once(f"resuming from {resume}" if resume else f"training from the start into {output}")
    own = MaeTrainer(
        model=model, args=training, train_dataset=data.train, eval_dataset=data.held_out, data_collator=tiles.collate,
        processing_class=data.processor, callbacks=[trainer.FiniteLoss(), _Epochs(data.train)],
    )
    trainer.check_finite(own.train(resume_from_checkpoint=str(resume) if resume else None))
    own.save_state()
    if not first:
        return None
    trainer.draw_losses(own.state.log_history, output / "training_loss.png", own.loss_name)
    save_whole(mae, model, data, output, training.cache_dir)
    found = measure(model, data, training, output)
    own_error, by_mean = found["normalised"]["model"], found["normalised"]["patch_mean"]
    print(f"held-out reconstruction of {found['tiles']} tiles: error {own_error:.3f}, predicting the patch mean "
          f"{by_mean:.3f}, lower by {found['lower_by']['normalised']:.1%}\nsaved {output}", flush=True)
    return found


def main() -> None:
    """Parse flags, pretrain, let the other processes wait for the last files."""
    warnings.filterwarnings("ignore", message=".*(pin_memory|gradient_checkpointing).*")
    pretrain(*parse())
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(main)
