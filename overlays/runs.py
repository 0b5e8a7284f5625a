"""The run folder: run.json, which checkpoint is complete, what a resumed run must have in common with it."""

import os
import platform
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from overlays.errors import UserError
from overlays.files import atomic_path, read_json, write_json
from overlays.paths import ROOT

MODEL_MARKS = ("config.json", "adapter_config.json")
MODEL_FILES = ("model*.safetensors*", "adapter_model.*", "trained_parts.safetensors", "additions.json")
RUN = {  # what others read of run.json
    "base_model?": str, "identity?": dict, "arguments?": dict,
    "data?": {"train?": [{"name": str, "sha256?": str}]},
}
COMPLETE = "complete"  # empty file written into a checkpoint after everything else
COMPLETE_BEFORE = "whole"  # its name in checkpoints of earlier versions


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "accelerate", "deepspeed", "datasets"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def commit(folder: Path = ROOT) -> str | None:
    """Commit of a git checkout, with "+changes" where files differ from it; None outside one."""
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def read_run(folder: Path) -> dict | None:
    """run.json of a run folder or of the run folder that a checkpoint lies in; None where there is none."""
    for place in (folder, folder.parent):
        file = place / "run.json"
        if file.exists():
            return read_json(file, RUN, "train again, or copy the run again")
    return None


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    complete = [path for path in run.glob("checkpoint-*")
                if path.name.rsplit("-", 1)[1].isdecimal() and is_complete(path)]
    return sorted(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return any((checkpoint / name).is_file() for name in (COMPLETE, COMPLETE_BEFORE))


def find_checkpoint(checkpoint: str | None, outputs: Path, domain: str | None = None) -> Path:
    """The checkpoint a user means: the one named, or the newest finished run below `outputs`.

    Args:
        domain: only runs trained on data sets whose name starts with it.

    Raises:
        UserError: there is none.
    """
    if checkpoint is not None:
        path = Path(checkpoint)
        if not path.is_dir():
            raise UserError(f"there is no checkpoint folder {checkpoint}")
        return path if has_model(path) else _newest_in(path)
    runs = []
    for file in outputs.glob("*/run.json"):
        names = [row["name"] for row in (read_run(file.parent) or {}).get("data", {}).get("train", [])]
        if domain is None or any(name.startswith(f"{domain}_") for name in names):
            runs.append(file.parent)
    runs = [run for run in runs if has_model(run) or checkpoints(run)]
    if not runs:
        what = f"{domain} run" if domain else "run"
        script = f"./scripts/train_{domain}_single_gpu.sh" if domain == "cuprite" else "a launcher in scripts/"
        raise UserError(f"there is no finished {what} below {outputs}: run {script} first, or give --checkpoint")
    newest = max(runs, key=lambda run: (run / "run.json").stat().st_mtime)
    return newest if has_model(newest) else _newest_in(newest)


def has_model(path: Path) -> bool:
    """Whether a folder counts as a model or an adapter."""
    return any((path / name).is_file() for name in MODEL_MARKS)


def _newest_in(run: Path) -> Path:
    complete = checkpoints(run)
    if not complete:
        raise UserError(f"{run} holds neither a model nor a complete checkpoint")
    return complete[-1]


def settings_identity(training, data_flatten: bool = False) -> dict:
    """What every kind of run must have in common with the one it continues; docs/training.md lists the rest.

    Batch size, accumulation and processes may change as long as a step sees as many samples: the order of the samples
    stays, and the loss is a mean over the step. `checkpoint_to_resume` skips what an older run.json does not have.

    Args:
        training: flags of transformers.TrainingArguments and of this project.
    """
    batch, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    order = {
        "samples_per_step": batch * accumulation * training.world_size,
        "data_seed": training.data_seed,
        "train_sampling_strategy": training.train_sampling_strategy,
        "dataloader_drop_last": training.dataloader_drop_last,
        "model_max_length": getattr(training, "model_max_length", None),
        "data_flatten": data_flatten,
    }
    if training.dataloader_drop_last or training.train_sampling_strategy == "group_by_length":
        order |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
                  "processes": training.world_size}
    return {
        "sample order": order,
        "optimizer": {"optim": training.optim.value, "optim_args": training.optim_args},
        "schedule": {"lr_scheduler_type": training.lr_scheduler_type.value,
                     "lr_scheduler_kwargs": training.lr_scheduler_kwargs},
        "precision": {"bf16": training.bf16, "pure_bf16": getattr(training, "pure_bf16", False)},
        "optimizer state": {"deepspeed": bool(training.deepspeed),
                            "processes": training.world_size if training.deepspeed else None},
    }


def checkpoint_to_resume(run: Path, resume: str, identity: dict) -> Path | None:
    """Where training goes on, or None for a start from the beginning.

    Args:
        resume: "auto" (newest complete checkpoint), "never" or a checkpoint folder.
        identity: what must be as it was: model, data, pixels, parts and rates, adapter, and `settings_identity`;
            compared with run.json.

    Raises:
        UserError: run.json says otherwise, of a checkpoint or of the model in the run folder; or the folder named is
            not complete.
    """
    if resume == "never":
        return None
    if resume == "auto":
        complete = checkpoints(run)
        found = complete[-1] if complete else None
    else:
        found = Path(resume)
        if not is_complete(found):
            raise UserError(f"--resume {resume}: this is not the folder of a complete checkpoint")
    if found is None and not has_model(run):
        return None
    before = (read_run(found or run) or {}).get("identity", {})
    for name, value in identity.items():
        if name in before and before[name] != value:
            raise UserError(
                f"{found or run} was trained with another {name} ({_difference(before[name], value)}): "
                "use --resume never to start over, or another OUTPUT_DIR"
            )
    return found


def _steps_of(checkpoint: Path) -> int:
    return read_json(checkpoint / "trainer_state.json", {"global_step": int},
                     f"delete {checkpoint}, and the run goes on from the checkpoint before")["global_step"]


def has_taken(run: Path, resume: Path | None, steps: int) -> bool:
    """Whether a run that is to take `steps` has taken them all and its model lies in the run folder."""
    return resume is not None and has_model(run) and _steps_of(resume) >= steps


def check_steps(resume: Path | None, steps: int) -> None:
    """Refuse a checkpoint that a run of `steps` steps cannot go on from.

    Raises:
        UserError: the checkpoint has taken more steps, or it holds no optimizer state and steps are left.
    """
    if resume is None:
        return
    taken = _steps_of(resume)
    if taken > steps:
        raise UserError(f"{resume} has taken {taken} steps, more than the {steps} that --max_steps or "
                        "--num_train_epochs asks for: use --resume never to start over, or another OUTPUT_DIR")
    if taken == steps or any(resume.glob("global_step*")):  # the second is DeepSpeed's own state
        return
    for name, what in (("optimizer", "optimizer state (--save_only_model)"), ("scheduler", "state of the schedule"),
                       ("rng_state", "state of the random numbers")):
        if not any(resume.glob(f"{name}*")):
            raise UserError(f"{resume} holds no {what}: use --resume never to start over, or another OUTPUT_DIR")


def _difference(old, new) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return f"{key}: {old.get(key)} then, {new.get(key)} now"
    return f"{old} then, {new} now"


def clean(run: Path, all_checkpoints: bool) -> list[str]:
    """Remove checkpoints that a killed run left half-written, or all of them; returns their names."""
    complete = set(checkpoints(run))
    found = [path for path in sorted(run.glob("checkpoint-*")) if path.is_dir()]
    gone = [path for path in found if all_checkpoints or path not in complete]
    for path in gone:
        shutil.rmtree(path)
    if all_checkpoints:
        remove_model(run)
    return [path.name for path in gone]


def remove_model(run: Path, but: Collection[str] = ()) -> None:
    """Remove the model that lies in a run folder itself, all files of it but those named."""
    first = [run / name for name in MODEL_MARKS]  # without these the folder no longer counts as a model
    for file in [*first, *(file for pattern in MODEL_FILES for file in run.glob(pattern))]:
        if file.name not in but:
            file.unlink(missing_ok=True)


def mark_complete(checkpoint: Path) -> None:
    """Say that a checkpoint is complete, once its files have reached the disk."""
    for file in checkpoint.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    (checkpoint / COMPLETE).touch()


def copy_metadata(run: Path, roots: list[Path]) -> None:
    """Keep how the data were prepared (metadata.json of the first media root that has one) with the run."""
    for root in roots:
        if (root / "metadata.json").is_file():
            with atomic_path(run / "metadata.json") as temporary:
                shutil.copyfile(root / "metadata.json", temporary)
            return


def write_run(run: Path, values: dict) -> None:
    """run.json, atomically."""
    write_json(run / "run.json", values)
