"""What all stages share: the Run object, what a resumed run must have in common, the run folder, the two engines."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from overlays import registry, runs
from overlays.files import free_bytes, remove, sha256
from overlays.model import load, parts
from overlays.train.callbacks import FiniteLoss
from overlays.train.trainer import Trainer, check_finite, count_steps, draw_losses, log_once
from overlays.upstream import engine as engines

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A training run up to its model: flags, data, processor, where to resume. Both engines work with one of these.

    The order of calls is load_model, set_parts, build_trainer, fit, finish; `native` makes them here, upstream's
    train() makes them in its own. A stage defines load_model, set_parts, part_rows, make_trainer and data_summary.
    """

    model_args: Any
    data: Any
    training: Any
    engine: engines.Engine
    identity: dict
    resume: Path | None
    processor: transformers.ProcessorMixin
    train_set: torch.utils.data.Dataset
    eval_set: torch.utils.data.Dataset | None
    collator: Callable | None

    @property
    def output(self) -> Path:
        """The run folder."""
        return Path(self.training.output_dir)

    def has_ended(self) -> bool:
        """Whether all steps are taken and saved already; says so."""
        steps = count_steps(self.training, len(self.train_set))
        ended = runs.has_taken(self.output, self.resume, steps, self.training.resume)
        if ended:
            log_once(f"{self.output} has taken its {steps} steps: nothing is left to do")
        return ended

    def load_model(self) -> torch.nn.Module:
        """The model that training starts from; which parameters are trained is not decided yet."""
        raise NotImplementedError

    def set_parts(self, model: torch.nn.Module) -> None:
        """Let the parameters that are trained take gradients, in their precision."""
        raise NotImplementedError

    def part_rows(self, model: torch.nn.Module) -> list[parts.PartRow]:
        """The table of parts that is printed and kept in run.json."""
        raise NotImplementedError

    def make_trainer(self, model: torch.nn.Module, callbacks: list) -> Trainer:
        """The stage's Trainer."""
        raise NotImplementedError

    def data_summary(self) -> dict:
        """What run.json says about the data."""
        raise NotImplementedError

    def media_roots(self) -> list[Path]:
        """Folders of the training media, of which the first with a metadata.json gives the run's copy."""
        return []

    def data_module(self) -> dict:
        """Data sets and collator, as arguments of the Trainer."""
        return {"train_dataset": self.train_set, "eval_dataset": self.eval_set, "data_collator": self.collator}

    def build_trainer(self, model: torch.nn.Module) -> Trainer:
        """The run folder made ready, the parts table printed, and a Trainer."""
        if hasattr(model, "config"):  # a masked autoencoder has no vocabulary
            load.check_vocabulary(model, self.processor)
        rows = self.part_rows(model)
        log_once(parts.format_table(rows))
        validation = f", {len(self.eval_set)} validation samples" if self.eval_set else ""
        log_once(f"{self.train_set.report['kept'] if hasattr(self.train_set, 'report') else len(self.train_set)} "
                 f"training samples{validation}")
        if self.training.process_index == 0:
            self._open_folder(rows)
        log_once(f"resuming from {self.resume}" if self.resume else f"training from the start into {self.output}")
        trainer = self.make_trainer(model, [FiniteLoss()])
        self._tell_checkpoints(trainer)
        return trainer

    def _tell_checkpoints(self, trainer: Trainer) -> None:
        """Print when checkpoints are saved and how large they are. Raises UserError where there is room for none."""
        args, steps = self.training, count_steps(self.training, len(self.train_set))
        weights, size = trainer.checkpoint_bytes()
        every = math.ceil(args.save_steps * steps) if args.save_steps < 1 else int(args.save_steps)
        when = {"no": "none", "steps": f"every {every} of {steps} steps", "epoch": "after every epoch",
                "best": "at every better evaluation"}[args.save_strategy]
        kept = f", the newest {args.save_total_limit} are kept" if args.save_total_limit else ""
        free = free_bytes(self.output)
        room = "" if free is None else f"; {free / 1e9:.3g} GB are free"
        log_once(f"checkpoints: {when}" + ("" if args.save_strategy == "no" else f", about {size / 1e9:.3g} GB each"
                                             f"{kept}{room}"))
        if args.process_index == 0:
            trainer.check_room(self.output, weights)

    def _open_folder(self, rows: list[parts.PartRow]) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        removed = runs.clean(self.output, all_checkpoints=self.training.resume == "never")
        if removed:
            why = "--resume never" if self.training.resume == "never" else "incomplete"
            log_once(f"removed {', '.join(removed)} ({why})")
        runs.rotate_before(self.output, self.resume, self.training.save_total_limit)
        runs.copy_metadata(self.output, self.media_roots())
        runs.write_run(self.output, {
            "base_model": self.model_args.model_name_or_path,
            "engine": {"name": self.engine.name, "commit": self.engine.commit},
            "arguments": {**vars(self.model_args), **vars(self.data), **json.loads(self.training.to_json_string())},
            "versions": runs.versions(),
            "commit": runs.commit(),
            "identity": self.identity,
            "parts": parts.rows_as_dicts(rows),
            "data": self.data_summary(),
        })

    def fit(self, trainer: Trainer) -> None:
        """Train, from the checkpoint found when the run was prepared."""
        check_finite(Trainer.train(trainer, resume_from_checkpoint=str(self.resume) if self.resume else None))

    def finish(self, trainer: Trainer) -> None:
        """The final model, with all that describes it, into the run folder in one swap."""
        trainer.save_final(lambda folder: self.write_final(trainer, folder))
        log_once(f"saved {self.output}")

    def write_final(self, trainer: Trainer, folder: Path) -> None:
        """Model, processor and the plot of the losses into the empty `folder`; called on every process."""
        trainer.write_model(folder)
        if self.training.process_index == 0:
            draw_losses(trainer.state.log_history, folder / "training_loss.png", trainer.loss_name)


def data_rows(names: str) -> list[dict]:
    """Name, rate and checksum of each data set of a comma-separated list."""
    return [
        {"name": source.name, "rate": source.rate, "sha256": sha256(source.annotation)}
        for source in registry.resolve(names)
    ] if names else []


@contextmanager
def exclusive(training: Any) -> Iterator[None]:
    """Be the only run that writes the run folder. Raises `files.InUse` where there is another.

    A swap of models that a kill interrupted is completed before any process looks into the folder.
    """
    run, first = Path(training.output_dir), training.process_index == 0
    with runs.lock(run) if first else nullcontext():
        if first:
            runs.complete_swap(run)
            remove(run / runs.FINAL)  # what a kill left that is no model
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        yield


def choose_engine(wanted: str, flags: dict[str, type]) -> engines.Engine:
    """The engine for --engine, see `overlays.upstream.engine.choose`; says which, and why not another."""
    engine = engines.choose(wanted, flags)
    if engine.warning and (not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0):
        log.warning("%s", engine.warning)
    log_once(engine.line)
    return engine


def native(run: Run) -> None:
    """The run without upstream's code: what its train() would call, in the same order."""
    if run.has_ended():
        return
    model = run.load_model()
    run.set_parts(model)
    trainer = run.build_trainer(model)
    run.fit(trainer)
    run.finish(trainer)


def drive(run: Run) -> None:
    """The run by its engine."""
    if run.engine.module is None:
        native(run)
    elif not run.has_ended():
        engines.drive(run.engine.module, run, [*registry.available(), *registry.resolve(run.data.dataset_use)])
