"""Personal stage: for each user and fold a small adapter on the global model; which folds there are, and their answers.

`adapters` trains and tests them. A fold's folder <output>/user_<u>/<kind>_fold_<k> is a run folder with
predictions.jsonl and, written last, metrics.json. <output>/folds.json lists the folds.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from overlays.data import records
from overlays.domains.gui.folds import KINDS, make_folds
from overlays.errors import UserError
from overlays.files import read_json, write_json
from overlays.flags import option

log = logging.getLogger(__name__)

DONE = "metrics.json"  # the last file of a fold's folder
ROWS = "predictions.jsonl"
JOB = "folds.json"
_FOLD = re.compile(r"user_[^/]+/(?:episode|sample)_fold_[0-9]+")


@dataclass(frozen=True)
class Settings:
    """Train and test an adapter for each user and fold, from the global checkpoint. An interrupted run is resumed.

    Every other flag is one of `python -m overlays.train`; scripts/configs/gui_personal.yaml has the defaults.
    """

    folds: int = option(3, "K, of each user")
    kinds: tuple[Literal["episode", "sample"], ...] = option(KINDS, "what stays together in a fold", flag="folds-by",
                                                             listed=True)
    max_new_tokens: int = option(96, "of an answer")
    eval_batch_size: int = option(16, "of the test")

    def check(self) -> None:
        """Raise UserError where a value cannot be."""
        for name, least in (("folds", 2), ("max_new_tokens", 1), ("eval_batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, not {getattr(self, name)}")


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


def jobs(records: Sequence[dict], settings: Settings, note: Callable[[str], None] = log.info,
         seed: int = 42) -> list[Job]:
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
            folds_by_kind = [(kind, make_folds(records_of_user, settings.folds, kind, seed))
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


def identity(job: Job, settings: Settings, arguments: dict, checkpoint: str, media_root: Path) -> dict:
    """All that decides a fold's adapter and answers.

    Args:
        arguments: the training flags that differ from their defaults.
        checkpoint: `predict.checkpoint_identity` of the global model.
    """
    from overlays.predict import record_keys

    def digest(rows: list[dict]) -> str:
        return hashlib.sha256("".join(record_keys(rows, media_root)).encode()).hexdigest()[:20]

    decisive = {name: value for name, value in asdict(settings).items() if name != "eval_batch_size"}
    return {"checkpoint": checkpoint, "settings": json.loads(json.dumps(decisive | arguments)),
            "media_root": str(media_root.resolve()), "records": [digest(job.train), digest(job.test)]}


def begin(output: Path, checkpoint: Path, identities: dict[str, dict], note: Callable[[str], None]) -> None:
    """Write which folds there are, and remove those of other settings, records or checkpoints.

    Folds of other users stay, if they were made in the same way.
    """
    def common(identity: dict) -> list:
        return [identity.get(key) for key in ("checkpoint", "settings", "media_root")]

    users = {name.split("/")[0] for name in identities}
    before, wanted = _read_job(output)["folds"], common(next(iter(identities.values())))
    kept = {name: identity for name, identity in before.items()
            if name.split("/")[0] not in users and common(identity) == wanted} | identities
    names = [folder.relative_to(output).as_posix() for folder in sorted(output.glob("user_*/*_fold_*"))
             if folder.is_dir()]
    left = [name for name in names if _FOLD.fullmatch(name) and (name not in kept or before.get(name) != kept[name])]
    for name in left:
        shutil.rmtree(output / name)
    write_json(output / JOB, {"checkpoint": str(checkpoint), "folds": kept})
    if left:
        note(f"removed {len(left)} folds of an earlier run with other settings: {', '.join(left[:10])}")


def _read_job(output: Path) -> dict:
    """{"checkpoint", "folds": {name: identity}} of an output folder, by name; no folds where it has no sound one."""
    try:
        job = read_json(output / JOB, {"checkpoint": str, "folds": {str: dict}})
        return {"checkpoint": job["checkpoint"], "folds": dict(sorted(job["folds"].items()))}
    except UserError:
        return {"checkpoint": "", "folds": {}}


def finished(folder: Path, identity: dict) -> list[dict] | None:
    """The rows of a fold that was finished with the same settings, records and global checkpoint; else None."""
    try:
        metrics = read_json(folder / DONE, {"identity": dict, "n": int})
        if metrics["identity"] != identity:
            return None
        rows = read_rows(folder / ROWS)
        return rows if len(rows) == metrics["n"] else None
    except (OSError, UserError):
        return None


def read_rows(file: Path) -> list[dict]:
    """The rows of a predictions file that can be read; none where there is no file."""
    if not file.is_file():
        return []
    return [row for _, row in records.scan(file, convert=False) if isinstance(row, dict)]


def check_finished(output: Path) -> None:
    """Raises UserError where no fold of the last run is finished."""
    if all(finished(output / name, identity) is None for name, identity in _read_job(output)["folds"].items()):
        raise UserError(f"{output} holds no finished fold: run scripts/train_gui_personal.sh")


def read(output: Path) -> tuple[dict[str, list[dict]], list[str]]:
    """(predictions of every finished fold of the last run by kind of folds, folders of the folds that are not)."""
    rows_by_kind: dict[str, list[dict]] = {}
    unfinished = []
    for name, identity in _read_job(output)["folds"].items():
        rows = finished(output / name, identity)
        if rows is None:
            unfinished.append(name)
        else:
            rows_by_kind.setdefault(name.split("/")[-1].split("_fold_")[0], []).extend(rows)
    return rows_by_kind, unfinished


def checkpoint_of(output: Path) -> str:
    """The global checkpoint of the last run, as it was named."""
    return _read_job(Path(output))["checkpoint"]


# ---------------------------------------------------------------- evaluation

def current_folds(folder: Path, asked: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows of the records in the finished folds, by kind; folds and taps that are missing are reported.

    Args:
        asked: records of the prepared data; a row that asks something else is left out.

    Raises:
        UserError: there is none.
    """
    from overlays.predict import prediction_row

    wanted = {record["id"]: prediction_row(record, "") for record in asked}
    rows_by_kind, left = read(folder)
    kinds = {kind: [row for row in rows if row["id"] in wanted and _asks_the_same(row, wanted[row["id"]])]
             for kind, rows in rows_by_kind.items()}
    if not any(kinds.values()):
        raise UserError(f"{folder} holds no fold of these users' taps as they are now: run "
                        "scripts/train_gui_personal.sh")
    if left:
        log.warning("%d folds are not finished: %s", len(left), ", ".join(left[:10]))
    for kind, rows in kinds.items():
        present = {row["id"] for row in rows}
        missing = [record for record in asked if record["id"] not in present]
        if missing:
            users = ", ".join(dict.fromkeys(str(record["user"]) for record in missing))
            log.warning("%d of %d taps are in no finished fold by %s: user %s", len(missing), len(asked), kind, users)
    return kinds


def global_rows(folder: Path, rows: Sequence[dict]) -> list[dict]:
    """The global model's predictions of the same taps, from its own evaluation; empty where it has none."""
    file = folder / ROWS
    answered = {row.get("id"): row for row in read_rows(file)}
    if all(_asks_the_same(answered.get(row["id"], {}), row) for row in rows):
        return [answered[row["id"]] for row in rows]
    log.warning("no predictions of the global model for all these taps in %s: run python scripts/evaluate_gui.py "
                "--checkpoint %s --split %s first to see both side by side", file, folder.parent, folder.name)
    return []


def _asks_the_same(row: dict, other: dict) -> bool:
    """Whether a row has all keys of the other with the same values, whoever answered it."""
    return "prediction" in row and row | {"prediction": ""} == row | other | {"prediction": ""}
