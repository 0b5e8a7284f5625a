"""What can be wrong with a prepared data set as a whole: its mark, splits, answers and what its splits share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from overlays import domains
from overlays.data import records
from overlays.domains.base import SPLITS, prepared_domain, read_metadata
from overlays.errors import UserError
from overlays.predict import prediction_row


def annotations(folder: Path) -> list[Path]:
    """The annotation files of a prepared folder. Raises UserError where it holds none."""
    if prepared_domain(folder) is None:
        raise UserError(f"{folder} holds no prepared data: name a folder that python -m overlays.prepare wrote")
    return [file for name in SPLITS if (file := folder / f"{name}.jsonl").is_file()]


def verify(folder: Path) -> Iterator[tuple[str, list[str], str]]:
    """(step, problems, what was found) of each step; `annotations` and the check of records and media come before."""
    domain = prepared_domain(folder)
    metadata = read_metadata(folder) or {}
    yield "metadata", [] if metadata.get("format", 1) == 1 else ["of another version"], f"domain {domain}"
    rows = {file.stem: list(records.read(file)) for file in annotations(folder)}
    wanted = [name for name in SPLITS if _is_counted(metadata.get("counts", {}).get(name))]
    missing = [f"metadata.json counts {name}, but {name}.jsonl has no record" for name in wanted if not rows.get(name)]
    yield "splits", missing, ", ".join(f"{name} {len(part)}" for name, part in rows.items())
    yield "separation", *_separation(rows)
    yield "answers", *_answers(domains.get(domain), rows, folder)
    yield "balance", *_balance(rows)


def _is_counted(count: int | dict | None) -> bool:
    """Whether a count, or one of several by what is counted ({"taps": 0, "users": 0}), is not 0."""
    return any(count.values()) if isinstance(count, dict) else bool(count)


def _separation(rows: dict[str, Sequence[dict]]) -> tuple[list[str], str]:
    """Groups, clips, and media with their windows, that are in two splits."""
    homes: dict[tuple, set[str]] = {}
    for split, part in rows.items():
        for row in part:
            images = zip(records.media_names(row, "image"), records.windows(row), strict=True)
            keys = [("medium", str(name), str(window)) for name, window in images]
            keys += [(kind, str(row[kind]), "") for kind in ("group", "clip") if row.get(kind)]
            for key in keys:
                homes.setdefault(key, set()).add(split)
    shared = [f"{kind} {name} is in {' and '.join(sorted(where))}" for (kind, name, _), where in homes.items()
              if len(where) > 1]
    return shared, f"{len(homes)} groups and media"


def _answers(domain, rows: dict[str, Sequence[dict]], folder: Path) -> tuple[list[str], str]:
    """True answers that the domain cannot read back."""
    problems, read = [], 0
    for split, part in rows.items():
        if split == "train" or not part:
            continue
        try:
            predictions = [prediction_row(row, "") for row in part]
            predictions = [{**row, "prediction": row["answer"]} for row in predictions]
            rate = domain.score(predictions, rows.get("train", []), folder).get("parse_rate")
        except UserError as error:
            problems.append(f"{split}: {error}")
            continue
        read += len(part)
        if rate is not None and rate < 1:
            problems.append(f"{split}: {1 - rate:.1%} of the true answers cannot be read back")
    return problems, f"{read} true answers read back"


def _balance(rows: dict[str, Sequence[dict]]) -> tuple[list[str], str]:
    """Tasks whose training answers are all the same."""
    problems, shown = [], []
    answers: dict[str, Counter] = {}
    for row in rows.get("train", []):
        answers.setdefault(str(row.get("task") or "-"), Counter())[prediction_row(row, "")["answer"]] += 1
    for task, counts in sorted(answers.items()):
        total, (_, most) = sum(counts.values()), counts.most_common(1)[0]
        shown.append(f"{task} {len(counts)} different answers, the most frequent {most / total:.0%}")
        if len(counts) == 1 and total > 1:
            problems.append(f"task {task}: all {total} training answers are the same")
    return problems, "; ".join(shown)
