"""Personal stage: for each user and fold a small adapter on the global model, trained and tested, resumable."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from overlays.domains.gui.folds import make_folds
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl

DONE = "metrics.json"  # the last file of a fold's folder
ROWS = "predictions.jsonl"


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained.

    Attributes:
        folds: K, of each user.
        kinds: how folds are dealt out, of folds.KINDS.
        lora_r, lora_alpha, lora_dropout, targets: the adapter; projections of the language model.
        lr, epochs, batch_size, grad_accum, warmup_steps, weight_decay: its training.
        max_new_tokens, eval_batch_size: its test.
    """

    folds: int = 3
    kinds: tuple[str, ...] = ("episode", "sample")
    lora_r: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    lr: float = 2e-5
    epochs: float = 3
    batch_size: int = 1
    grad_accum: int = 4
    warmup_steps: float = 5
    weight_decay: float = 0.01
    max_new_tokens: int = 96
    eval_batch_size: int = 16
    min_pixels: int = 28 * 28 * 16
    max_pixels: int = 28 * 28 * 1280
    seed: int = 42


@dataclass(frozen=True)
class Job:
    """One adapter: who, which fold is held out, and its records."""

    user: str
    kind: str
    fold: int
    train: list[dict]
    test: list[dict]

    def folder(self, output: Path) -> Path:
        return output / f"user_{self.user}" / f"{self.kind}_fold_{self.fold}"


def jobs(records: Sequence[dict], settings: Settings) -> Iterator[Job]:
    """Every user, way of dealing out and fold. Raises UserError where a user has too few episodes."""
    users: dict[str, list[dict]] = {}
    for record in records:
        users.setdefault(str(record["user"]), []).append(record)
    for user, own in users.items():
        for kind in settings.kinds:
            dealt = make_folds(own, settings.folds, kind, settings.seed)
            for fold, test in enumerate(dealt):
                yield Job(user, kind, fold, [row for i, part in enumerate(dealt) if i != fold for row in part], test)


def is_done(folder: Path, identity: dict) -> bool:
    """Whether a fold was finished with the same settings, records and global checkpoint."""
    try:
        return json.loads((folder / DONE).read_text(encoding="utf-8"))["identity"] == identity
    except (OSError, ValueError, KeyError):
        return False


def run(work: Sequence[Job], checkpoint: Path, media_root: Path, output: Path, settings: Settings, identity: str,
        note: Callable[[str], None]) -> None:
    """Train and test every job that is not done; the global model is loaded once.

    A fold's folder <output>/user_<u>/<kind>_fold_<k> holds adapter, predictions.jsonl and, last, metrics.json. Its
    adapter's base is the global checkpoint, so `load.load_for_inference` takes it like any other.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.domains.gui.score import distances, figures
    from overlays.model import load, parts
    from overlays.predict import predict

    model, processor = load.load_for_inference(checkpoint)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    apply_resolution(processor, MediaOptions(min_pixels=settings.min_pixels, max_pixels=settings.max_pixels))
    model.config.use_cache = False
    for number, job in enumerate(work, start=1):
        folder = job.folder(output)
        own = _identity(job, settings, identity)
        label = f"user {job.user}, {job.kind} fold {job.fold + 1} of {settings.folds} ({number}/{len(work)})"
        if is_done(folder, own):
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
        adapted.peft_config["default"].base_model_name_or_path = str(checkpoint)
        adapted.save_pretrained(folder, save_embedding_layers=False)
        processor.save_pretrained(folder)
        model = adapted.unload()
        metrics = figures(distances(rows))
        write_json(folder / DONE, {"identity": own, "train_loss": loss, **metrics})
        note(f"{label}: {len(job.train)} taps, loss {loss:.3f}, click accuracy {metrics['click_accuracy']:.3f} "
             f"on {metrics['n']}")


def _identity(job: Job, settings: Settings, checkpoint: str) -> dict:
    return {"checkpoint": checkpoint, "settings": json.loads(json.dumps(asdict(settings))),
            "train": [row["id"] for row in job.train], "test": [row["id"] for row in job.test]}


def _train(model, processor, job: Job, media_root: Path, folder: Path, settings: Settings) -> float:
    """Train the adapter on the job's records; the mean loss of the last epoch's steps."""
    from transformers import PrinterCallback

    from overlays import arguments, registry
    from overlays.data.collate import PaddedCollator
    from overlays.data.dataset import SupervisedDataset
    from overlays.data.media import MediaOptions
    from overlays.model import parts
    from overlays.trainer import FiniteLoss, Trainer, to_fp32

    annotation = folder / "train.jsonl"
    write_jsonl(annotation, job.train)
    cuda = torch.cuda.is_available()
    training = arguments.TrainingArguments(
        output_dir=str(folder), learning_rate=settings.lr, num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size, gradient_accumulation_steps=settings.grad_accum,
        warmup_steps=settings.warmup_steps, weight_decay=settings.weight_decay, lr_scheduler_type="cosine",
        save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True, bf16=cuda, use_cpu=not cuda,
        gradient_checkpointing=cuda, dataloader_num_workers=2 if cuda else 0, seed=settings.seed, lora_enable=True,
        gradient_checkpointing_kwargs={"use_reentrant": False} if cuda else None,
    )
    training.label_names = ["labels"]
    rates = dict.fromkeys(parts.PARTS, 0.0) | {"adapter": settings.lr}
    parts.set_trainable(model, model.config, rates)
    if cuda:
        model.enable_input_require_grads()
    to_fp32(model)
    dataset = SupervisedDataset(
        [registry.Dataset(f"user_{job.user}", annotation, media_root, 1.0)], processor,
        parts.position_function(model.config), MediaOptions(), seed=settings.seed,
    )
    trainer = Trainer(model=model, args=training, processing_class=processor, callbacks=[FiniteLoss()], rates=rates,
                      train_dataset=dataset, data_collator=PaddedCollator(processor))
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    annotation.unlink()
    return float(result.training_loss)


def read(output: Path) -> dict[str, list[dict]]:
    """Predictions of every finished fold, by kind of folds.

    Raises:
        UserError: the folder holds none.
    """
    found: dict[str, list[dict]] = {}
    for file in sorted(Path(output).glob(f"user_*/*_fold_*/{DONE}")):
        rows = [json.loads(line) for line in (file.parent / ROWS).read_text(encoding="utf-8").splitlines()]
        found.setdefault(file.parent.name.split("_fold_")[0], []).extend(rows)
    if not found:
        raise UserError(f"{output} holds no finished fold: run scripts/train_gui_personal.sh")
    return found
