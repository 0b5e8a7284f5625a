"""Trains the adapters of the personal stage by the code of fine-tuning, on a global model that is loaded once."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from overlays import paths, runs
from overlays.data.media import apply_resolution
from overlays.domains.gui import personal
from overlays.domains.gui.coordinates import check_seen
from overlays.domains.gui.score import click_metrics, distances
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.model import load
from overlays.predict import checkpoint_identity, predict
from overlays.train import arguments, sft
from overlays.train import run as shared
from overlays.upstream import engine as engines

RECIPE = paths.ROOT / "scripts" / "configs" / "gui_personal.yaml"
ON_CPU = ("--bf16", "False", "--gradient_checkpointing", "False", "--dataloader_num_workers", "0")
# What a fold decides itself: it adapts the language model alone, which leaves the global model as it is.
FIXED = {"lora_enable": True, "tune_mm_llm": False, "tune_mm_mlp": False, "tune_mm_vision": False,
         "train_embeddings": False, "head": "none", "in_channels": 0, "use_3d_features": False, "deepspeed": None,
         "dataset_use": "train.jsonl"}
IRRELEVANT = ("logging", "save", "report_to", "dataloader", "disable_tqdm", "resume", "engine", "eval", "log_level")


@dataclass
class FoldRun(sft.Run):
    """A fine-tuning run that puts its adapter on a model in memory. `checkpoint` is where that model lies."""

    base: torch.nn.Module
    checkpoint: str

    def load_model(self):
        transformers.set_seed(self.training.seed)
        self.adapted = sft.add_adapter(self.base, self.training)
        self.adapted.peft_config["default"].base_model_name_or_path = self.checkpoint
        return self.adapted

    def new_trainer(self, model, callbacks: list):
        trainer = super().new_trainer(model, callbacks)
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer


def read_flags(words: Sequence[str], checkpoint: Path) -> dict:
    """Checked values of the training flags. Raises UserError for one that a fold decides itself."""
    values = arguments.read(_words(words, checkpoint), arguments.SFT)
    for name, value in (FIXED | {"model_name_or_path": str(checkpoint)}).items():
        if values[name] != value:
            raise UserError(f"--{name} is not a flag of the personal stage: a fold trains an adapter on --checkpoint "
                            "with a user's own records, in one process")
    if values["resume"] not in ("auto", "never") or values["engine"] == "upstream":
        raise UserError("the personal stage takes --resume auto or never, and no --engine upstream")
    return values


def _words(words: Sequence[str], checkpoint: Path) -> list[str]:
    """Words of a command line of `overlays.train`: recipe, what the machine asks for, and over these the user's."""
    recipe = [] if any(word.split("=")[0] == "--config" for word in words) else [str(RECIPE)]
    return [*recipe, *(() if torch.cuda.is_available() else ON_CPU), "--model_name_or_path", str(checkpoint),
            "--dataset_use", FIXED["dataset_use"], *words]


def run(work: Sequence[personal.Job], checkpoint: Path, media_root: Path, output: Path, settings: personal.Settings,
        words: Sequence[str], note: Callable[[str], None]) -> None:
    """Train and test every job that is not finished.

    A fold that was interrupted goes on from its newest checkpoint, or with the answers that are missing. Its adapter's
    base is the global checkpoint, so `load.load_for_inference` takes it like any other.

    Args:
        words: flags of `overlays.train` over those of the recipe.

    Raises:
        UserError: a wrong flag, records that were prepared for other pixels, or a loss that is not finite.
    """
    values = read_flags(words, checkpoint)
    words = _words(words, checkpoint)
    defaults = arguments.read(["--model_name_or_path", "-", "--dataset_use", "-"], arguments.SFT)
    changed = {name: value for name, value in values.items() if value != defaults[name]
               and not name.startswith(IRRELEVANT) and name not in ("model_name_or_path", "dataset_use")}
    known = checkpoint_identity(checkpoint)
    identities = {job.name: personal.identity(job, settings, changed, known, media_root) for job in work}
    model_args, data, training = arguments.parse([*words, "--output_dir", str(output)])
    if training.world_size > 1:
        raise UserError("the personal stage runs in one process: start it without torchrun")
    base = load.load_model(checkpoint, None, model_args.attn_implementation, sft.weight_dtype(training),
                           training.cache_dir)
    if hasattr(base, "merge_and_unload"):
        base = base.merge_and_unload()
    base = base.to(training.device).eval()
    processor = load.load_processor(checkpoint, training.cache_dir)
    apply_resolution(processor, sft.media_options(data))
    check_seen((record for job in work for record in job.test), media_root, processor)
    personal.begin(output, checkpoint, identities, note)
    engine = engines.choose("native", {})
    for number, job in enumerate(work, start=1):
        folder, label = output / job.name, f"user {job.user}, {job.kind} fold {job.fold + 1} of {settings.folds}"
        if training.resume == "never":
            shutil.rmtree(folder, ignore_errors=True)
        if personal.finished(folder, identities[job.name]) is not None:
            note(f"{label} ({number}/{len(work)}): done before")
            continue
        file = folder / "train.jsonl"
        write_jsonl(file, job.train)
        flags = [*words, "--output_dir", str(folder), "--dataset_use", f"{file}@{media_root}"]
        try:
            fold = sft.prepare(*arguments.parse(flags), engine, base.config)
            fold = FoldRun(**vars(fold), base=base, checkpoint=load.locate(checkpoint))
            base, loss = _train(fold)
        except UserError as error:
            raise UserError(f"{label}: {error}") from None
        base, rows = _answer(fold, base, job, media_root, settings, json.dumps(identities[job.name]))
        metrics = click_metrics(distances(rows))
        for left in filter(Path.is_dir, folder.glob("checkpoint-*")):  # also one that a kill left half-removed
            runs.remove_checkpoint(left)
        write_json(folder / personal.DONE, {"identity": identities[job.name], "train_loss": loss, **metrics})
        note(f"{label} ({number}/{len(work)}): {len(job.train)} taps, loss {loss:.3f}, click accuracy "
             f"{metrics['click_accuracy']:.3f} on {metrics['n']}")


def _train(fold: FoldRun) -> tuple[torch.nn.Module, float]:
    """(the base without the adapter, mean loss of all steps): the adapter lies in the fold's folder."""
    shared.native(fold)
    adapted = getattr(fold, "adapted", None)  # None: it was trained before
    history = runs.read_state(fold.output)["log_history"]
    losses = [row["loss"] for row in history if "loss" in row] or [history[-1]["train_loss"]]
    return adapted.unload() if adapted else fold.base, sum(losses) / len(losses)


def _answer(fold: FoldRun, base, job: personal.Job, media_root: Path, settings: personal.Settings,
            identity: str) -> tuple[torch.nn.Module, list[dict]]:
    """(the base, rows of the held-out records), by the adapter as it lies in the fold's folder."""
    from peft import PeftModel

    runs.check_model(fold.output)
    adapted = PeftModel.from_pretrained(base, fold.output).eval()
    rows = predict(adapted, fold.processor, job.test, media_root, settings.eval_batch_size, settings.max_new_tokens,
                   fold.output / personal.ROWS, identity)
    return adapted.unload(), rows
