"""Scores of answers about tiles, beside the majority answer of the training split. Pure: rows in, figures out.

Rules, the same for the model and the baseline:
- An unreadable yes/no counts as the wrong verdict, in the accuracy and in the F1 of "yes".
- An unreadable share counts as the largest error a share could have there, max(t, 1 - t) for a true share t.
- An unreadable mineral list counts as an empty one, so every true mineral is missed; on a tile without minerals that
  costs nothing in F1, but it does in `mineral_exact` and in `parse_rate`.
- `mineral_macro_f1` is the mean over the minerals that occur in the truth of the scored rows (`mineral_macro_over`);
  a mineral that is only ever predicted has no F1 there and lowers `mineral_micro_f1`.
- Verdict and share are scored on the rows of task "alteration", `mineral_*` on "minerals", `analysis_*` on "analysis".
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from overlays.domains.cuprite import questions as q
from overlays.errors import UserError

HEADLINES = ("alteration_accuracy", "alteration_f1", "mineral_macro_f1", "mineral_micro_f1", "share_mae", "parse_rate")


@dataclass(frozen=True)
class Reading:
    """One row read: the truth, and what was said; None, or a field that is None, where it could not be read."""

    task: str
    language: str
    truth: object
    said: object


def _truth(row: dict, answer: str) -> object:
    """True content of a row: (verdict, share), a set of minerals, or an analysis. UserError where it has none."""
    task, target = row.get("task"), row.get("target") or {}
    if task == "alteration":
        verdict, share = q.parse_alteration(answer)
        verdict = bool(target["alteration"]) if "alteration" in target else verdict
        share = float(target["copper_share"]) if "copper_share" in target else share
        found = None if verdict is None or share is None else (verdict, share)
    elif task == "minerals":
        found = q.parse_minerals(answer)
    elif task == "analysis":
        found = q.parse_analysis(answer)
        found = found if found and None not in found.values() else None
    else:
        raise UserError(f"row {row.get('id')!r} has task {task!r}, but Cuprite scores only {', '.join(q.TASKS)}; "
                        "predict on a Cuprite split")
    if found is None:
        raise UserError(f"the true answer of row {row.get('id')!r} cannot be read as {task!r}: {answer!r}; "
                        "prepare the data again or mend that row")
    return found


_PARSERS: dict[str, Callable[[str], object]] = {
    "alteration": q.parse_alteration, "minerals": q.parse_minerals, "analysis": q.parse_analysis}


def _read(row: dict) -> Reading:
    truth = _truth(row, row["answer"])
    return Reading(row["task"], row.get("language", "en"), truth, _PARSERS[row["task"]](row["prediction"] or ""))


def _answer(record: dict) -> str:
    """The last answer of a record."""
    return next(turn["value"] for turn in reversed(record["conversations"]) if turn["from"] in ("gpt", "assistant"))


def right(row: dict) -> bool:
    """Whether an answer is right as a whole: the verdict (its share aside), the mineral list, or all of an analysis
    (zone, list of minerals, potential; shares aside). Raises UserError as `score` does."""
    reading = _read(row)
    if reading.task == "alteration":
        return reading.said[0] == reading.truth[0]
    if reading.task == "minerals" or not _parsed(reading):
        return reading.said == reading.truth
    return all(reading.said[field] == reading.truth[field] for field in ("zone", "potential")) and (
        set(reading.said["minerals"]) == set(reading.truth["minerals"]))


def _parsed(reading: Reading) -> bool:
    if reading.said is None or reading.task == "minerals":
        return reading.said is not None
    fields = reading.said if reading.task == "alteration" else reading.said.values()
    return all(field is not None for field in fields)


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 6) if values else None


def _prf(hit: int, wrong: int, missed: int) -> dict[str, float | int | None]:
    return {"precision": _ratio(hit, hit + wrong), "recall": _ratio(hit, hit + missed),
            "f1": _ratio(2 * hit, 2 * hit + wrong + missed), "support": hit + missed, "predicted": hit + wrong}


def _alteration(readings: Sequence[Reading]) -> dict:
    confusion = {truth: dict.fromkeys(("yes", "no", "unparsed"), 0) for truth in ("yes", "no")}
    errors = []
    for reading in readings:
        (truth, true_share), (said, share) = reading.truth, reading.said
        confusion["yes" if truth else "no"]["unparsed" if said is None else "yes" if said else "no"] += 1
        errors.append(max(true_share, 1 - true_share) if share is None else abs(share - true_share))
    yes, no = confusion["yes"], confusion["no"]
    return {
        "alteration_accuracy": _ratio(yes["yes"] + no["no"], len(readings)),
        "alteration_f1": _prf(yes["yes"], no["yes"] + no["unparsed"], yes["no"] + yes["unparsed"])["f1"],
        "alteration_confusion": confusion,
        "share_mae": _mean(errors),
        "share_unparsed": sum(reading.said[1] is None for reading in readings),
    }


def _minerals(pairs: Sequence[tuple[set[str], set[str] | None]], prefix: str) -> dict:
    """F1 figures of (true set, said set) pairs; keys begin with `prefix`."""
    rows = {}
    for name in q.MINERALS:
        counts = Counter((name in truth, name in (said or ())) for truth, said in pairs)
        if counts[True, True] + counts[True, False] + counts[False, True]:
            rows[name] = _prf(counts[True, True], counts[False, True], counts[True, False])
    over = [name for name, row in rows.items() if row["support"]]
    hits = sum(len(truth & (said or set())) for truth, said in pairs)
    size = sum(len(truth) + len(said or ()) for truth, said in pairs)
    return {
        f"{prefix}_macro_f1": _mean([rows[name]["f1"] for name in over]),
        f"{prefix}_micro_f1": _ratio(2 * hits, size),
        f"{prefix}_exact": _ratio(sum(truth == said for truth, said in pairs), len(pairs)),
        f"{prefix}_macro_over": over,
        f"per_{prefix}": rows,
    }


def _analysis(readings: Sequence[Reading]) -> dict:
    said = [reading.said or {"zone": None, "minerals": None, "potential": None} for reading in readings]
    pairs = [(set(reading.truth["minerals"]), None if found["minerals"] is None else set(found["minerals"]))
             for reading, found in zip(readings, said, strict=True)]
    right = {field: sum(reading.truth[field] == found[field] for reading, found in zip(readings, said, strict=True))
             for field in ("zone", "potential")}
    return {f"analysis_{field}_accuracy": _ratio(count, len(readings)) for field, count in right.items()} | _minerals(
        pairs, "analysis_mineral")


def _figures(readings: Sequence[Reading]) -> dict:
    by_task = {task: [reading for reading in readings if reading.task == task] for task in q.TASKS}
    parsed = sum(map(_parsed, readings))
    return {
        "n": len(readings),
        "n_by_task": {task: len(rows) for task, rows in by_task.items()},
        **_alteration(by_task["alteration"]),
        **_minerals([(reading.truth, reading.said) for reading in by_task["minerals"]], "mineral"),
        **_analysis(by_task["analysis"]),
        "parsed": parsed,
        "parse_rate": _ratio(parsed, len(readings)),
    }


def _most_common(values: Iterable) -> object:
    """The most frequent value; the smallest by its text among equally frequent ones."""
    return min(Counter(values).items(), key=lambda item: (-item[1], str(item[0])))[0]


def _usual_minerals(sets: Sequence[set[str]]) -> set[str]:
    """Minerals in more than half of the sets; where there are none, the most frequent set."""
    counts = Counter(name for names in sets for name in names)
    usual = {name for name, count in counts.items() if 2 * count > len(sets)}
    return usual or set(_most_common(tuple(sorted(names)) for names in sets))


def majority(train: Sequence[dict]) -> dict[str, object]:
    """The majority answer of training records, task by task; a task without records is left out.

    Returns:
        "alteration": (majority verdict, median share); "minerals": those in more than half of the tiles, or the most
        frequent list where no mineral is; "analysis": the most frequent zone and potential, minerals as before.
    """
    truths: dict[str, list] = {task: [] for task in q.TASKS}
    for record in train:
        if record.get("task") in truths:
            truths[record["task"]].append(_truth(record, _answer(record)))
    answers: dict[str, object] = {}
    if rows := truths["alteration"]:
        verdicts, shares = zip(*rows, strict=True)
        answers["alteration"] = (2 * sum(verdicts) > len(rows), median(shares))
    if rows := truths["minerals"]:
        answers["minerals"] = _usual_minerals(rows)
    if rows := truths["analysis"]:
        answers["analysis"] = {field: _most_common(row[field] for row in rows) for field in ("zone", "potential")} | {
            "minerals": dict.fromkeys(sorted(_usual_minerals([set(row["minerals"]) for row in rows])))}
    return answers


def _readable(answer: object) -> object:
    """An answer of `majority` with sets as lists in class order, for JSON."""
    if isinstance(answer, dict):
        return answer | {"minerals": _readable(set(answer["minerals"]))}
    return [name for name in q.MINERALS if name in answer] if isinstance(answer, set) else answer


def score(predictions: Sequence[dict], train: Sequence[dict] = ()) -> dict:
    """Figures of prediction rows, and of the majority answer of the training records on the same rows.

    Args:
        predictions: rows of predictions.jsonl ("id", "task", "language", "answer", "prediction", "target").
        train: records of the training split; only their truth is used.

    Returns:
        `n`, `n_by_task`, HEADLINES (each over the rows of its task; parse_rate over all n), `alteration_confusion`
        (truth -> said), `per_mineral`, `analysis_*`, `share_mae` as a fraction of the tile; `languages` with the same
        per language where there are several; `baseline` with the same keys and its `answers` (None where `train` lacks
        a scored task), and `baseline_every_mineral`: mineral figures of naming every mineral of the training split
        on every tile, the strongest constant answer for F1. A figure without a row is None.

    Raises:
        UserError: a row of another task, or a true answer that cannot be read.
    """
    readings = [_read(row) for row in predictions]
    languages = sorted({reading.language for reading in readings})
    answers = majority(train)
    metrics = _figures(readings)
    if len(languages) > 1:
        metrics["languages"] = {language: _figures([r for r in readings if r.language == language])
                                for language in languages}
    metrics["baseline"] = metrics["baseline_every_mineral"] = None
    if {reading.task for reading in readings} <= set(answers):
        usual = [replace(reading, said=answers[reading.task]) for reading in readings]
        metrics["baseline"] = _figures(usual) | {"answers": {task: _readable(a) for task, a in answers.items()}}
    if "minerals" in answers:
        seen = {name for record in train if record.get("task") == "minerals"
                for name in _truth(record, _answer(record))}
        rows = [(reading.truth, seen) for reading in readings if reading.task == "minerals"]
        metrics["baseline_every_mineral"] = _minerals(rows, "mineral")
    return metrics


def statistic(predictions: Sequence[dict]) -> Callable[[Iterable[int]], dict]:
    """Function: numbers of rows, which may repeat -> their metrics."""
    readings = [_read(row) for row in predictions]
    return lambda rows: _figures([readings[row] for row in rows])
