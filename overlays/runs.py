"""The run folder: run.json, complete checkpoints, the final model and its swap, what a resumed run must share."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from overlays import files, manifest
from overlays.errors import UserError
from overlays.files import OWN_JSON_BYTES, atomic_path, read_json, write_json
from overlays.paths import ROOT

MODEL_MARKS = ("config.json", "adapter_config.json")
MODEL_FILES = ("model*.safetensors*", "adapter_model.*", "trained_parts.safetensors", "additions.json",
               manifest.NAME)
RUN = {  # what others read of run.json
    "base_model?": str, "identity?": dict, "arguments?": dict,
    "data?": {"train?": [{"name": str, "sha256?": str}]}, "parts?": [{"part": str, "trainable": int}],
}
COMPLETE = (manifest.NAME, "complete", "whole")  # a checkpoint's last file; the others are those of earlier versions
FINAL = ".final"  # the final model, until all of it is there
LOCK = ".lock"
STATE = "trainer_state.json"
_STATE_FORM = {"global_step": int, "log_history?": [dict], "best_model_checkpoint?": str,
               "stateful_callbacks?": {str: (dict, [dict])}}
# What no model is loaded from.
_BESIDE = re.compile("(optimizer|scheduler|scaler|rng_state|global_step|latest|trainer_state|training_args|zero_to_fp32"
                     r"|training_loss\.png|metrics\.json|reconstruction\.png|preferences\.json)")


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
            described = read_json(file, RUN, "restore it, or train again", OWN_JSON_BYTES)
            return {name: value for name, value in described.items() if value is not None}
    return None


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Be the only process that writes a run folder. Raises `files.InUse` where another one does."""
    is_new = not run.exists()
    try:
        with files.lock(run / LOCK, run):
            yield
    finally:
        if is_new:
            with suppress(OSError):
                run.rmdir()  # nothing was written


def _number(checkpoint: Path) -> int | None:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if checkpoint.name != number and re.fullmatch("[0-9]{1,18}", number) else None


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    return sorted((path for path in run.glob("checkpoint-*") if _number(path) is not None and is_complete(path)),
                  key=_number)


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    marks = [checkpoint / name for name in COMPLETE if (checkpoint / name).is_file()]
    return any(mark.name != manifest.NAME or mark.stat().st_size for mark in marks)  # empty after a loss of power


def is_cut_short(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run that ended while it was written or removed."""
    return _number(folder) is not None and is_run(folder) and not is_complete(folder)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder, or a checkpoint in one."""
    run = folder if _number(folder) is None else folder.parent
    return (run / "run.json").is_file()


def check_model(folder: Path) -> None:
    """Compare the files of a model or checkpoint with its manifest, but those that only training reads.

    Raises:
        UserError: it was not written to its end, or a file is missing or damaged.
    """
    if is_cut_short(folder):
        raise UserError(f"{folder} is not complete: the run ended while it was written; use another checkpoint")
    manifest.check(folder, skip=lambda name: _BESIDE.match(name) is not None, edited=_number(folder) is None)


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
        names = [row["name"] for row in (read_run(file.parent) or {}).get("data", {}).get("train") or []]
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
    """Whether a folder counts as a model or an adapter.

    A swap of models that a kill interrupted is completed first, by the first process and where the folder can be
    written.
    """
    if os.environ.get("RANK", "0") == "0" and (path / FINAL / manifest.NAME).is_file():
        with suppress(files.InUse, OSError), lock(path):
            complete_swap(path)
    return any((path / name).is_file() for name in MODEL_MARKS)


def _newest_in(run: Path) -> Path:
    complete = checkpoints(run)
    if not complete:
        raise UserError(f"{run} holds neither a model nor a complete checkpoint")
    return complete[-1]


def settings_identity(training, data_packing: bool = False) -> dict:
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
        **({"data_packing": True} if data_packing else {}),
    }
    if training.dataloader_drop_last or training.train_sampling_strategy == "group_by_length":
        order |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation,
                  "processes": training.world_size}
    return {
        "sample order": order,
        "optimizer": {"optim": training.optim.value.removesuffix("_fused"), "optim_args": training.optim_args},
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
        identity: what must be as it was: model, data, pixels, parameter groups, learning rates, adapter, and
            `settings_identity`; compared with run.json.

    Raises:
        UserError: run.json says otherwise, of a checkpoint or of the model in the run folder; or the checkpoint is not
            complete or damaged.
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
    before.get("sample order", {}).pop("data_flatten", None)  # of earlier versions; it changes no sample
    for name, value in identity.items():
        if name in before and before[name] != value:
            raise UserError(
                f"{found or run} was trained with another {name} ({_difference(before[name], value)}): "
                "use --resume never to start over, or another OUTPUT_DIR"
            )
    if found is not None:
        manifest.check(found)
    return found


def read_state(folder: Path) -> dict:
    """trainer_state.json of a checkpoint or final model. Raises UserError where it is damaged."""
    return read_json(folder / STATE, _STATE_FORM, "use --resume with an earlier checkpoint, or --resume never to start "
                     "over", OWN_JSON_BYTES)


def best_checkpoint(run: Path, state: dict) -> Path | None:
    """The best checkpoint by the trainer's state, in the run folder as it is called now; None where there is none yet.

    Raises:
        UserError: it is not there, or not complete.
    """
    if not state.get("best_model_checkpoint"):
        return None
    best = run / Path(state["best_model_checkpoint"]).name
    if not is_complete(best):
        raise UserError(f"{best}, the best checkpoint so far, is not there or not complete: copy it again, or use "
                        "--load_best_model_at_end False, or --resume never to start over")
    return best


def _steps_of(folder: Path) -> int:
    return read_state(folder)["global_step"]


def has_taken(run: Path, resume: Path | None, steps: int, wanted: str = "auto") -> bool:
    """Whether the model in a run folder has taken all of its `steps`.

    Args:
        resume: checkpoint that the run goes on from.
        wanted: what --resume asks for.
    """
    if wanted == "never" or not has_model(run):
        return False
    if resume is not None and _steps_of(resume) < steps:
        return False
    # A run of an earlier version has no manifest, and a state that may be younger than its model.
    return _steps_of(run) >= steps if STATE in (manifest.read(run) or {}) else resume is not None


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
    """Remove checkpoints and a final model that a killed run left half-written, or all of them; checkpoints' names."""
    files.sweep(run)
    complete = set(checkpoints(run))
    found = [path for path in sorted(run.glob("checkpoint-*")) if path.is_dir()]
    gone = [path for path in found if all_checkpoints or path not in complete]
    for path in gone:
        remove_checkpoint(path)
    shutil.rmtree(run / FINAL, ignore_errors=True)
    if all_checkpoints:
        _remove_model(run, keep=())
    return [path.name for path in gone]


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint; where that is interrupted, what is left does not count as one."""
    unmark(checkpoint)
    shutil.rmtree(checkpoint, ignore_errors=True)


def unmark(checkpoint: Path) -> None:
    """Say that a checkpoint is not complete, before its files change."""
    for name in COMPLETE:
        (checkpoint / name).unlink(missing_ok=True)


def rotate_before(run: Path, resume: Path | None, limit: int | None) -> None:
    """Remove the checkpoints that a kill kept `rotate` from removing, where a run goes on from its newest one."""
    if resume is not None and checkpoints(run)[-1:] == [resume]:
        rotate(run, limit, read_state(resume).get("best_model_checkpoint"))


def rotate(run: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest complete checkpoints but `limit`; the newest and the `best` stay."""
    found = checkpoints(run)
    if limit is None or limit < 1 or len(found) <= limit:
        return
    kept = {found[-1], *(path for path in found if best and path.name == Path(best).name)}
    others = [path for path in found if path not in kept]
    for path in others[:len(others) - max(0, limit - len(kept))]:
        remove_checkpoint(path)


# ---- the final model


def start_final(run: Path) -> Path:
    """The empty folder that the final model is written to; see `complete_swap`."""
    shutil.rmtree(run / FINAL, ignore_errors=True)
    (run / FINAL).mkdir(parents=True)
    return run / FINAL


def finish_final(run: Path) -> None:
    """Let the final model, all of which has been written, take its place in the run folder."""
    manifest.write(run / FINAL)
    complete_swap(run)


def complete_swap(run: Path) -> None:
    """Move a complete final model into the run folder, in the place of an earlier one.

    From its manifest on the new model counts. Until all its files are in place the folder does not count as a model,
    and a swap that is interrupted goes on with the next call. One whose manifest cannot be read is not begun.
    """
    new, rows = run / FINAL, None
    with suppress(UserError):
        rows = manifest.read(new)
    if rows is None:
        return
    moves = sorted((file for file in new.rglob("*") if file.is_file() and file.name != manifest.NAME),
                   key=lambda file: (file.name in MODEL_MARKS, file.name))
    _remove_model(run, keep=set(rows) - {file.name for file in moves if file.name in MODEL_MARKS})
    for file in moves:
        target = run / file.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    os.replace(new / manifest.NAME, run / manifest.NAME)
    shutil.rmtree(new)


def _remove_model(run: Path, keep) -> None:
    """Remove the model that lies in a run folder itself, but for the files named in `keep`."""
    listed = []
    with suppress(UserError):  # a damaged manifest goes as well
        listed = [run / name for name in manifest.read(run) or ()]
    found = [file for pattern in MODEL_FILES for file in run.glob(pattern)]
    for file in [*(run / name for name in MODEL_MARKS), *listed, *found]:  # the marks first
        if file.relative_to(run).as_posix() not in keep:
            file.unlink(missing_ok=True)


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
