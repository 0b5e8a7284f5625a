"""Personal stage: for each user and fold a small adapter on the global model, trained and tested, resumable."""

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from overlays.domains.gui import rows as prediction_rows
from overlays.domains.gui.coordinates import check_seen
from overlays.domains.gui.folds import KINDS, make_folds
from overlays.errors import UserError
from overlays.files import read_json, write_json, write_jsonl
from overlays.flags import option

DONE = "metrics.json"  # the last file of a fold's folder
ROWS = "predictions.jsonl"
JOB = "folds.json"  # beside the users: which folds there are, and what of
_FOLD = re.compile(r"user_[^/]+/(?:episode|sample)_fold_[0-9]+")


@dataclass(frozen=True)
class Settings:
    """Train and test an adapter for each user and fold, from the global checkpoint. An interrupted run is resumed."""

    folds: int = option(3, "K, of each user")
    kinds: tuple[Literal["episode", "sample"], ...] = option(KINDS, "what stays together in a fold", flag="folds-by",
                                                             listed=True)
    lora_r: int = option(8, "rank of the adapter")
    lora_alpha: int = option(32, "scale of the adapter")
    lora_dropout: float = option(0.05, "of the adapter")
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    lr: float = option(2e-5, "learning rate", flag="learning-rate")
    epochs: float = option(3, "of each fold", flag="num-train-epochs")
    batch_size: int = option(1, "of training", flag="per-device-train-batch-size")
    grad_accum: int = option(4, "batches of an optimisation step", flag="gradient-accumulation-steps")
    warmup_steps: float = option(5, "steps, or their share below 1")
    weight_decay: float = option(0.01, "of the adapter")
    max_new_tokens: int = option(96, "of an answer")
    eval_batch_size: int = option(16, "of the test")
    min_pixels: int = option(28 * 28 * 16, "of a screenshot")
    max_pixels: int = option(28 * 28 * 1280, "of a screenshot")
    seed: int = option(42, "of folds and training")

    def check(self) -> None:
        """Raise UserError where a value trains nothing or cannot be."""
        for name, flag, least in (
            ("folds", "folds", 2), ("lora_r", "lora_r", 1), ("lora_alpha", "lora_alpha", 1),
            ("batch_size", "per_device_train_batch_size", 1), ("grad_accum", "gradient_accumulation_steps", 1),
            ("warmup_steps", "warmup_steps", 0), ("weight_decay", "weight_decay", 0),
            ("max_new_tokens", "max_new_tokens", 1), ("eval_batch_size", "eval_batch_size", 1),
        ):
            if not getattr(self, name) >= least:
                raise UserError(f"--{flag} must be at least {least}, not {getattr(self, name)}")
        for value, flag in ((self.lr, "learning_rate"), (self.epochs, "num_train_epochs")):
            if not 0 < value < math.inf:
                raise UserError(f"--{flag} must be above 0, not {value}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout must be at least 0 and below 1, not {self.lora_dropout}")


@dataclass(frozen=True)
class Job:
    """One adapter: who, which fold is held out, and its records."""

    user: str
    kind: str
    fold: int
    train: list[dict]
    test: list[dict]

    @property
    def name(self) -> str:
        """Its folder below the output."""
        return f"user_{self.user}/{self.kind}_fold_{self.fold}"

    def folder(self, output: Path) -> Path:
        return output / self.name


def jobs(records: Sequence[dict], settings: Settings, note: Callable[[str], None] = print) -> list[Job]:
    """Every user, kind of folds and fold; a user with too few episodes is left out and told.

    Raises:
        UserError: no user is left, or a setting cannot be.
    """
    settings.check()
    users: dict[str, list[dict]] = {}
    for record in records:
        users.setdefault(str(record["user"]), []).append(record)
    work, problem = [], "there are no records"
    for user, records_of_user in users.items():
        try:
            folds_by_kind = [(kind, make_folds(records_of_user, settings.folds, kind, settings.seed))
                             for kind in settings.kinds]
        except UserError as error:
            problem = str(error)
            note(f"note: {problem}; left out")
            continue
        for kind, folds in folds_by_kind:
            for fold, test in enumerate(folds):
                train = [row for i, part in enumerate(folds) if i != fold for row in part]
                work.append(Job(user, kind, fold, train, test))
    if not work:
        raise UserError(f"no user can be divided into {settings.folds} folds: {problem}")
    return work


def finished(folder: Path, identity: dict) -> list[dict] | None:
    """The rows of a fold that was finished with the same settings, records and global checkpoint; else None."""
    try:
        metrics = read_json(folder / DONE, {"identity": dict, "n": int})
        if metrics["identity"] != identity:
            return None
        rows = prediction_rows.read(folder / ROWS)
        return rows if len(rows) == metrics["n"] else None
    except (OSError, UserError):
        return None


def _write_job(output: Path, checkpoint: Path, identities: dict[str, dict], users: set[str],
               note: Callable[[str], None]) -> None:
    """Write which folds there are, and remove those of other settings, records or checkpoints.

    Folds of other users stay, if they were made in the same way.
    """
    before, common = _read_job(output), _common(next(iter(identities.values())))
    kept = {name: identity for name, identity in before["folds"].items()
            if name.split("/")[0].removeprefix("user_") not in users and _common(identity) == common}
    write_json(output / JOB, {"checkpoint": str(checkpoint), "folds": kept | identities})
    left = [folder for folder in sorted(output.glob("user_*/*_fold_*")) if folder.is_dir()
            and _FOLD.fullmatch(name := folder.relative_to(output).as_posix()) and name not in kept | identities]
    for folder in left:
        shutil.rmtree(folder)
    if left:
        note(f"removed {len(left)} folds of an earlier run with other settings: "
             f"{', '.join(folder.relative_to(output).as_posix() for folder in left[:10])}")


def _common(identity: dict) -> dict:
    return {key: identity.get(key) for key in ("checkpoint", "settings", "media_root")}


def _read_job(output: Path) -> dict:
    """{"checkpoint", "folds": {name: identity}} of an output folder, by name; no folds where it has no sound one."""
    try:
        job = read_json(output / JOB, {"checkpoint": str, "folds": {str: dict}})
        return {"checkpoint": job["checkpoint"], "folds": dict(sorted(job["folds"].items()))}
    except UserError:
        return {"checkpoint": "", "folds": {}}


def run(work: Sequence[Job], checkpoint: Path, media_root: Path, output: Path, settings: Settings, identity: str,
        note: Callable[[str], None]) -> None:
    """Train and test every job that is not done; the global model is loaded once.

    A fold's folder <output>/user_<u>/<kind>_fold_<k> holds adapter, predictions.jsonl and, last, metrics.json. Its
    adapter's base is the global checkpoint, so `load.load_for_inference` takes it like any other. <output>/folds.json
    lists the folds; what an earlier run with other settings left is removed.

    Raises:
        UserError: the records were prepared for other pixels, or a loss is not finite.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.domains.gui.score import click_metrics, distances
    from overlays.model import card, load, parts
    from overlays.predict import predict

    model, processor = load.load_for_inference(checkpoint)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    apply_resolution(processor, MediaOptions(min_pixels=settings.min_pixels, max_pixels=settings.max_pixels))
    check_seen((record for job in work for record in job.test), media_root, processor)
    identities = {job.name: _identity(job, settings, identity, media_root) for job in work}
    _write_job(output, checkpoint, identities, {job.user for job in work}, note)
    for number, job in enumerate(work, start=1):
        folder = job.folder(output)
        own = identities[job.name]
        label = f"user {job.user}, {job.kind} fold {job.fold + 1} of {settings.folds} ({number}/{len(work)})"
        if finished(folder, own) is not None:
            note(f"{label}: done before")
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        set_seed(settings.seed)
        adapted = get_peft_model(model, LoraConfig(
            r=settings.lora_r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout, bias="none",
            task_type="CAUSAL_LM", target_modules=parts.lora_target_pattern(model.config, list(settings.targets)),
        ))
        loss = _train(adapted, processor, job, media_root, folder, settings)
        adapted.eval()
        rows = predict(adapted, processor, job.test, media_root, settings.eval_batch_size, settings.max_new_tokens,
                       folder / ROWS, json.dumps(own))
        adapted.peft_config["default"].base_model_name_or_path = load.locate(checkpoint)
        adapted.save_pretrained(folder, save_embedding_layers=False)
        card.write(folder, adapted, [])
        processor.save_pretrained(folder)
        model = adapted.unload()
        metrics = click_metrics(distances(rows))
        write_json(folder / DONE, {"identity": own, "train_loss": loss, **metrics})
        note(f"{label}: {len(job.train)} taps, loss {loss:.3f}, click accuracy {metrics['click_accuracy']:.3f} "
             f"on {metrics['n']}")


def _identity(job: Job, settings: Settings, checkpoint: str, media_root: Path) -> dict:
    """All that decides a fold's adapter and answers."""
    return {"checkpoint": checkpoint, "settings": json.loads(json.dumps(asdict(settings))),
            "media_root": str(media_root.resolve()),
            "records": [prediction_rows.digest([prediction_rows.content(row, media_root) for row in part])
                        for part in (job.train, job.test)]}


def _train(model, processor, job: Job, media_root: Path, folder: Path, settings: Settings) -> float:
    """Train the adapter on the job's records; the mean loss. Raises UserError where it is not finite."""
    from transformers import PrinterCallback

    from overlays import registry
    from overlays.data import chat
    from overlays.data.collate import PaddedCollator
    from overlays.data.dataset import SupervisedDataset
    from overlays.data.media import MediaOptions
    from overlays.model import parts
    from overlays.train import arguments
    from overlays.train.trainer import FiniteLoss, Trainer, to_fp32

    annotation = folder / "train.jsonl"
    write_jsonl(annotation, job.train)
    gpu = torch.accelerator.is_available()
    training = arguments.TrainingArguments(
        output_dir=str(folder), learning_rate=settings.lr, num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size, gradient_accumulation_steps=settings.grad_accum,
        warmup_steps=settings.warmup_steps, weight_decay=settings.weight_decay, lr_scheduler_type="cosine",
        save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True, bf16=gpu, use_cpu=not gpu,
        gradient_checkpointing=gpu, dataloader_num_workers=2 if gpu else 0, seed=settings.seed, lora_enable=True,
        logging_nan_inf_filter=False,  # a step without a finite loss must show in the mean
        gradient_checkpointing_kwargs={"use_reentrant": False} if gpu else None,
    )
    training.label_names = ["labels"]
    rates = dict.fromkeys(parts.PARTS, 0.0) | {"adapter": settings.lr}
    parts.set_trainable(model, model.config, rates)
    if gpu:
        model.enable_input_require_grads()
    to_fp32(model)
    dataset = SupervisedDataset(
        [registry.Dataset(f"user_{job.user}", annotation, media_root, 1.0)], processor,
        parts.position_function(model.config), MediaOptions(), seed=settings.seed,
    )
    chat.fit_thinking(processor, "auto", job.train)
    trainer = Trainer(model=model, args=training, processing_class=processor, callbacks=[FiniteLoss()], rates=rates,
                      train_dataset=dataset, data_collator=PaddedCollator(processor))
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    annotation.unlink()
    if not math.isfinite(result.training_loss):
        raise UserError(f"user {job.user}, {job.kind} fold {job.fold + 1}: the loss became {result.training_loss}; "
                        "lower --learning_rate")
    return float(result.training_loss)


def read(output: Path) -> dict[str, list[dict]]:
    """Predictions of every finished fold of the last run, by kind of folds.

    Raises:
        UserError: the folder holds none.
    """
    rows_by_kind: dict[str, list[dict]] = {}
    for name, identity in _read_job(Path(output))["folds"].items():
        rows = finished(Path(output) / name, identity)
        if rows is not None:
            rows_by_kind.setdefault(name.split("/")[-1].split("_fold_")[0], []).extend(rows)
    if not rows_by_kind:
        raise UserError(f"{output} holds no finished fold: run scripts/train_gui_personal.sh")
    return rows_by_kind


def unfinished(output: Path) -> list[str]:
    """Folds of the last run that are not finished, by their folder."""
    job = _read_job(Path(output))["folds"]
    return [name for name, identity in job.items() if finished(Path(output) / name, identity) is None]


def checkpoint_of(output: Path) -> str:
    """The global checkpoint of the last run, as it was named."""
    return _read_job(Path(output))["checkpoint"]
