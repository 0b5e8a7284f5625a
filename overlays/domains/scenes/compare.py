"""Scored runs of several methods side by side: base, others, and what each gains over base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from overlays import report
from overlays.domains.scenes.score import HEADLINES
from overlays.errors import UserError
from overlays.files import OWN_JSON_BYTES, read_json

COLUMNS = ("method", "steps", "n", "n_where", "n_what", *HEADLINES, "by_type", "baseline")  # of the table
SAME = {"steps": "the runs have different numbers of steps",
        "questions_sha256": "the runs were scored on different questions",
        "limit": "the runs were scored on different questions",
        "train": "the runs were trained on different data"}


def steps_of(folder: Path) -> int | None:
    """Optimisation steps of a run, from its trainer state."""
    for candidate in (folder, folder.parent):
        try:
            state = read_json(candidate / "trainer_state.json", {"global_step": int}, limit=OWN_JSON_BYTES)
            return state["global_step"]
        except UserError:
            continue
    return None


def read_metrics(folder: Path) -> dict:
    """metrics.json of a scored split, <run>/<split>. Raises UserError where there is none, or not all of it."""
    file = folder / "metrics.json"
    if not file.is_file():
        raise UserError(f"there is no {file}: run scripts/evaluate_scenes.py --checkpoint {folder.parent} first")
    metrics = read_json(file, hint="score the run again")
    if not is_complete(metrics):
        raise UserError(f"{file} does not hold the metrics of scenes; score the run again")
    return metrics


def is_complete(metrics: object) -> bool:
    """Whether a metrics file has all that the table shows."""
    if not isinstance(metrics, dict) or not set(COLUMNS) <= set(metrics):
        return False
    baseline = metrics["baseline"]
    sides = [metrics, *([] if baseline is None else [baseline])]
    return isinstance(metrics["method"], str) and all(
        isinstance(side, dict) and isinstance(side.get("by_type"), dict)
        and all(isinstance(row, dict) for row in side["by_type"].values())
        and all(isinstance(side.get(name), int | float | None) for name in HEADLINES) for side in sides)


def siblings(metrics: dict) -> list[dict]:
    """Metrics of other methods' runs beside this one, on the same questions; base first."""
    checkpoint, split = Path(metrics["checkpoint"]), metrics["split"]
    run = checkpoint if (checkpoint / "run.json").is_file() else checkpoint.parent
    by_method = {}
    for file in sorted(run.parent.glob(f"*/{split}/metrics.json")):
        try:
            other = read_metrics(file.parent)
        except (OSError, UserError):
            continue
        if file.parents[1] != run and other["method"] != metrics["method"] and all(
                other.get(key) == metrics[key] for key in SAME):
            by_method[other["method"]] = other
    return sorted(by_method.values(), key=lambda other: other["method"] != "base")


def differences(rows: Sequence[dict]) -> list[str]:
    """What makes runs hard to compare, each as a sentence."""
    return list(dict.fromkeys(text for key, text in SAME.items()
                              if len({json.dumps(row.get(key)) for row in rows}) > 1))


def table(rows: Sequence[dict]) -> list[str]:
    """Lines: the majority baseline and the runs, what each gains over base, and warnings."""
    types = list(dict.fromkeys(kind for row in rows for kind in row["by_type"]))
    lines = [f"{'method':<12}{'steps':>7}{'EM':>8}{'EM-R':>8}{'where':>8}{'what':>8}{'CIDEr':>8}"
             + "".join(f"{kind:>11}" for kind in types)]
    majority = [("majority", None, rows[0]["baseline"])] if rows[0]["baseline"] else []
    for name, steps, row in [*majority, *((row["method"], row["steps"], row) for row in rows)]:
        lines.append(f"{name:<12}{report.number(steps):>7}"
                     + "".join(f"{report.number(row[key]):>8}" for key in HEADLINES)
                     + "".join(f"{report.number(row['by_type'].get(kind, {}).get('em')):>11}" for kind in types))
    lines.append(f"{rows[0]['n']} questions on held-out scenes, {rows[0]['n_where']} where and {rows[0]['n_what']} "
                 "what; the columns of question types hold EM")
    base = next((row for row in rows if row["method"] == "base"), None)
    for row in rows:
        if base and row is not base:
            gains = ", ".join(f"{name} {row[key] - base[key]:+.3f}" for name, key in (("where", "where_em"),
                                                                                    ("what", "what_em"))
                              if row[key] is not None and base[key] is not None)
            lines.append(f"{row['method']} over base: {gains}")
    return lines + [f"warning: {text}" for text in
                    [*differences(rows), *(row["warning"] for row in rows if row.get("warning"))]]
