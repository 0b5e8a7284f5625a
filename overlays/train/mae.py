"""Masked-autoencoder pretraining of the vision tower on rasters.

The language model is not loaded while the tower trains. The run folder gets the complete model with N input channels,
which `overlays.train` starts from and plain transformers loads, and beside it the decoder, which a later run continues.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from overlays import runs
from overlays.data import rasters, tiles
from overlays.data.media import MediaOptions, apply_resolution
from overlays.errors import UserError
from overlays.files import write_json
from overlays.model import channels, extensions, load, parts, reconstruction, unloaded
from overlays.model.mae import MaskedAutoencoder
from overlays.train import run as shared
from overlays.train.arguments import PretrainingDataArguments, PretrainingModelArguments
from overlays.train.trainer import Trainer, count_steps, draw_losses, log_once
from overlays.upstream import engine as engines

log = logging.getLogger(__name__)

DECODER = "decoder.safetensors"  # beside the complete model; plain transformers does not look at it
SHOWN = 200  # entries of a list of dropped files that are printed


class MaeTrainer(Trainer):
    """Checkpoints hold tower, decoder and processor, enough to go on; one learning rate for all that is trained."""

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


def build_data(mae: PretrainingModelArguments, data: PretrainingDataArguments, seed: int,
               cache_dir: str | None = None) -> Data:
    """Find and check the rasters, fit the channels' statistics on the training ones.

    A model that takes as many channels already and came with statistics keeps them: its weights belong to them.

    Raises:
        UserError: see `tiles.find` and `tiles.check`.
    """
    config = load.load_config(mae.model_name_or_path, cache_dir)
    added = extensions.read(load.locate(mae.model_name_or_path))
    if added:
        raise UserError(f"{mae.model_name_or_path} has extensions ({', '.join(added)}) that pretraining would lose: "
                        "start from the model that they were added to")
    model_channels = channels.channels_of(config)
    files = tiles.find(data.dataset_use, seed)
    if data.eval_dataset:
        held = tiles.find(data.eval_dataset, seed)
        both = sorted({*files} & {*held}, key=str)
        if both:
            raise UserError(f"{len(both)} tiles are in --dataset_use and in --eval_dataset, {both[0]} among them")
    else:
        files, held = tiles.hold_out(files, data.eval_share, seed)
    files, dropped, count = tiles.check(files, data.on_bad_sample, None if model_channels == 3 else model_channels)
    held, dropped_held, _ = tiles.check(held, data.on_bad_sample, count)
    processor = load.load_processor(mae.model_name_or_path, cache_dir)
    apply_resolution(processor, MediaOptions(min_pixels=data.min_pixels, max_pixels=data.max_pixels))
    known = model_channels == count and rasters.takes_rasters(processor)
    problem = rasters.misfit(processor, files) if known else ""
    if problem:
        log_once(f"note: {problem}; they are fitted anew")
    if not known or problem:
        rasters.set_statistics(processor, *rasters.fit_statistics(files))
    for row in (dropped + dropped_held)[:SHOWN]:
        log_once(f"dropped {row['file']}: {row['reason']}")
    log_once(f"{len(files)} rasters of {count} channels for training, {len(held)} held out, "
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


def build_model(mae: PretrainingModelArguments, count: int, training: Any) -> MaskedAutoencoder:
    """Tower of the base model, adapted to `count` channels, in fp32, with a decoder; the language model is let go.

    A base model that comes with a decoder of the same size continues it.
    """
    config = load.load_config(mae.model_name_or_path, training.cache_dir)
    attention = load.attention_implementation(
        mae.attn_implementation, torch.bfloat16 if training.bf16 else torch.float32, config
    )
    base = load.load_base(mae.model_name_or_path, _stored_type(config), attention, training.cache_dir)
    projection = channels.read_projection(mae.channel_projection) if mae.channel_projection else None
    channels.adapt_input_channels(base, count, mae.channel_init, projection)
    model = MaskedAutoencoder(
        base.model.visual.float(), mae.decoder_dim, mae.decoder_depth, mae.decoder_heads, mae.norm_pix, mae.encoder
    )
    file = Path(load.locate(mae.model_name_or_path)) / DECODER
    if file.is_file():
        stored, wanted = load_file(file), model.decoder.state_dict()
        same = {name: value.shape for name, value in stored.items()} == {n: v.shape for n, v in wanted.items()}
        if same:
            model.decoder.load_state_dict(stored)
        log_once(f"the decoder continues from {file}" if same else f"{file} has another size: a new decoder")
    return model


def part_rows(model: MaskedAutoencoder, learning_rate: float) -> list[parts.PartRow]:
    """Parameters of tower and decoder."""
    rows = []
    for part, module in (("vision tower", model.visual), ("decoder", model.decoder)):
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        trained = sum(size for size, trains in sizes if trains)
        rows.append(parts.PartRow(part, sum(size for size, _ in sizes), trained, learning_rate))
    return rows


def write_model(mae: PretrainingModelArguments, model: MaskedAutoencoder, data: Data, folder: Path,
                cache_dir: str | None = None) -> None:
    """The base model with the trained tower in it, its processor, and the decoder, into the empty `folder`.

    What was not trained keeps its values and its type.
    """
    dtype = _stored_type(load.load_config(mae.model_name_or_path, cache_dir))
    base = load.load_base(mae.model_name_or_path, dtype, "sdpa", cache_dir)
    # Zeros take the place of the embedding until the trained one is there.
    channels.adapt_input_channels(base, data.channels, "zero")
    base.model.visual.load_state_dict(model.visual.state_dict())
    base.save_pretrained(folder)
    unloaded.carry_over(base, folder)
    data.processor.save_pretrained(folder)
    save_file({name: value.detach().cpu().contiguous() for name, value in model.decoder.state_dict().items()},
              folder / DECODER, metadata={"format": "pt"})


def measure(model: MaskedAutoencoder, data: Data, training: Any, folder: Path) -> dict:
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


@dataclass
class Run(shared.Run):
    """A pretraining run: the shared one on tiles; its last step measures the reconstruction of the held-out ones."""

    tiles: Data
    metrics: dict | None = None

    def load_model(self) -> MaskedAutoencoder:
        """Tower and decoder."""
        return build_model(self.model_args, self.tiles.channels, self.training)

    def set_parts(self, model: MaskedAutoencoder) -> None:
        """Nothing: --encoder has said what is trained when the autoencoder was made."""

    def part_rows(self, model: MaskedAutoencoder) -> list[parts.PartRow]:
        """Parameters of tower and decoder."""
        return part_rows(model, self.training.learning_rate)

    def make_trainer(self, model: MaskedAutoencoder, callbacks: list) -> MaeTrainer:
        """The Trainer, which tells the tiles each epoch."""
        return MaeTrainer(model=model, args=self.training, processing_class=self.processor,
                          callbacks=[*callbacks, _Epochs(self.train_set)], **self.data_module())

    def data_summary(self) -> dict:
        """Counts and checksums of the rasters. No "train": the run answers no questions, so none is looked for here."""
        return {"pretraining": self.tiles.report}

    def write_final(self, trainer: MaeTrainer, folder: Path) -> None:
        """The complete model and the reconstruction of the held-out tiles, from the first process."""
        if self.training.process_index == 0:
            write_model(self.model_args, trainer.model, self.tiles, folder, self.training.cache_dir)
            draw_losses(trainer.state.log_history, folder / "training_loss.png", trainer.loss_name)
            self.metrics = measure(trainer.model, self.tiles, self.training, folder)

    def finish(self, trainer: MaeTrainer) -> None:
        """As for any run; says how well the held-out tiles are reconstructed."""
        super().finish(trainer)
        if self.metrics:
            error, by_mean = self.metrics["normalised"]["model"], self.metrics["normalised"]["patch_mean"]
            log.info("held-out reconstruction of %d tiles: error %.3f, predicting the patch mean %.3f, lower by %.1f%%",
                     self.metrics["tiles"], error, by_mean, 100 * self.metrics["lower_by"]["normalised"])


def identity(mae: PretrainingModelArguments, data: PretrainingDataArguments, training: Any, report: dict) -> dict:
    """What a resumed run must have in common with the one it continues."""
    return {
        "model": {"name": mae.model_name_or_path},
        "data": {name: report[name] for name in ("channels", "train_files", "held_out_files")},
        "pretraining": {name: value for name, value in vars(mae).items()
                        if name not in ("model_name_or_path", "attn_implementation")},
        "samples": {name: getattr(data, name)
                    for name in ("min_pixels", "max_pixels", "samples_per_file", "no_augment")},
        "rate": training.learning_rate,
        "seed": training.seed,
        **runs.settings_identity(training),
    }


def prepare(mae: PretrainingModelArguments, data: PretrainingDataArguments, training: Any) -> Run:
    """Everything that can be wrong is looked at here, before weights are loaded and a folder is made.

    Raises:
        UserError: see `build_data`, or the run folder belongs to another run.
    """
    made = build_data(mae, data, training.seed, training.cache_dir)
    own = identity(mae, data, training, made.report)
    resume = runs.checkpoint_to_resume(Path(training.output_dir), training.resume, own)
    runs.check_steps(resume, count_steps(training, len(made.train)))
    engine = engines.choose("native", {})
    return Run(mae, data, training, engine, own, resume, made.processor, made.train, made.held_out, tiles.collate, made)


def train(mae: PretrainingModelArguments, data: PretrainingDataArguments, training: Any) -> dict | None:
    """One run from flags to run folder.

    Returns:
        The held-out metrics; None on other ranks than the first, and where all steps are taken already.
    """
    transformers.set_seed(training.seed)
    with shared.exclusive(training):
        run = prepare(mae, data, training)
        shared.native(run)
    return run.metrics
