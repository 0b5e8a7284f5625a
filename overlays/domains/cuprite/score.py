"""Scores of answers about tiles, beside the majority answer of the training split. Pure.

Rules, the same for the model and the baseline:
- An unreadable yes/no counts as the wrong verdict, in the accuracy and in the F1 of "yes".
- An unreadable share counts as the largest error a share could have there, max(t, 1 - t) for a true share t.
- An unreadable mineral list counts as an empty one, so every true mineral is missed; on a tile without minerals that
  costs nothing in F1, but it does in `mineral_exact` and in `parse_rate`.
- `mineral_macro_f1` is the mean over the minerals that occur in the targets of the scored rows (`mineral_macro_over`);
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
    """One row read: the target and the prediction; None, or a field that is None, where it could not be read."""

    task: str
    language: str
    target: object
    prediction: object


def _target(row: dict, answer: str) -> object:
    """True content of a row: (verdict, share), a set of minerals, or an analysis. UserError where it has none."""
    task, values = row.get("task"), row.get("target") or {}
    if task == "alteration":
        verdict, share = q.parse_alteration(answer)
        verdict = bool(values["alteration"]) if "alteration" in values else verdict
        share = float(values["copper_share"]) if "copper_share" in values else share
        content = None if verdict is None or share is None else (verdict, share)
    elif task == "minerals":
        content = q.parse_minerals(answer)
    elif task == "analysis":
        content = q.parse_analysis(answer)
        content = content if content and None not in content.values() else None
    else:
        raise UserError(f"row {row.get('id')!r} has task {task!r}, but Cuprite scores only {', '.join(q.TASKS)}; "
                        "predict on a Cuprite split")
    if content is None:
        raise UserError(f"the true answer of row {row.get('id')!r} cannot be read as {task!r}: {answer!r}; "
                        "prepare the data again or fix that row")
    return content


_PARSERS: dict[str, Callable[[str], object]] = {
    "alteration": q.parse_alteration, "minerals": q.parse_minerals, "analysis": q.parse_analysis}


def _read(row: dict) -> Reading:
    target = _target(row, row["answer"])
    return Reading(row["task"], row.get("language", "en"), target, _PARSERS[row["task"]](row["prediction"] or ""))


def _answer(record: dict) -> str:
    """The last answer of a record."""
    return next(turn["value"] for turn in reversed(record["conversations"]) if turn["from"] in ("gpt", "assistant"))


def right(row: dict) -> bool:
    """Whether an answer is right in all its parts: the verdict, the mineral list, or all of an analysis (zone, list of
    minerals, potential); shares do not count. Raises UserError as `score` does."""
    reading = _read(row)
    if reading.task == "alteration":
        return reading.prediction[0] == reading.target[0]
    if reading.task == "minerals" or not _parsed(reading):
        return reading.prediction == reading.target
    return all(reading.prediction[field] == reading.target[field] for field in ("zone", "potential")) and (
        set(reading.prediction["minerals"]) == set(reading.target["minerals"]))


def _parsed(reading: Reading) -> bool:
    if reading.prediction is None or reading.task == "minerals":
        return reading.prediction is not None
    fields = reading.prediction if reading.task == "alteration" else reading.prediction.values()
    return all(field is not None for field in fields)


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return round(fmean(values), 6) if values else None


def _prf(hit: int, wrong: int, missed: int) -> dict[str, float | int | None]:
    return {"precision": _ratio(hit, hit + wrong), "recall": _ratio(hit, hit + missed),
            "f1": _ratio(2 * hit, 2 * hit + wrong + missed), "support": hit + missed, "predicted": hit + wrong}


def _alteration(readings: Sequence[Reading]) -> dict:
    confusion = {target: dict.fromkeys(("yes", "no", "unparsed"), 0) for target in ("yes", "no")}
    errors = []
    for reading in readings:
        (target, target_share), (prediction, share) = reading.target, reading.prediction
        confusion["yes" if target else "no"]["unparsed" if prediction is None else "yes" if prediction else "no"] += 1
        errors.append(max(target_share, 1 - target_share) if share is None else abs(share - target_share))
    yes, no = confusion["yes"], confusion["no"]
    return {
        "alteration_accuracy": _ratio(yes["yes"] + no["no"], len(readings)),
        "alteration_f1": _prf(yes["yes"], no["yes"] + no["unparsed"], yes["no"] + yes["unparsed"])["f1"],
        "alteration_confusion": confusion,
        "share_mae": _mean(errors),
        "share_unparsed": sum(reading.prediction[1] is None for reading in readings),
    }


def _minerals(pairs: Sequence[tuple[set[str], set[str] | None]], prefix: str) -> dict:
    """F1 metrics of (target set, predicted set) pairs; keys begin with `prefix`."""
    rows = {}
    for name in q.MINERALS:
        counts = Counter((name in target, name in (prediction or ())) for target, prediction in pairs)
        if counts[True, True] + counts[True, False] + counts[False, True]:
            rows[name] = _prf(counts[True, True], counts[False, True], counts[True, False])
    occurring = [name for name, row in rows.items() if row["support"]]
    hits = sum(len(target & (prediction or set())) for target, prediction in pairs)
    size = sum(len(target) + len(prediction or ()) for target, prediction in pairs)
    return {
        f"{prefix}_macro_f1": _mean([rows[name]["f1"] for name in occurring]),
        f"{prefix}_micro_f1": _ratio(2 * hits, size),
        f"{prefix}_exact": _ratio(sum(target == prediction for target, prediction in pairs), len(pairs)),
        f"{prefix}_macro_over": occurring,
        f"per_{prefix}": rows,
    }


def _analysis(readings: Sequence[Reading]) -> dict:
    predictions = [reading.prediction or {"zone": None, "minerals": None, "potential": None} for reading in readings]
    pairs = [(set(reading.target["minerals"]), None if predicted["minerals"] is None else set(predicted["minerals"]))
             for reading, predicted in zip(readings, predictions, strict=True)]
    right = {field: sum(reading.target[field] == predicted[field]
                        for reading, predicted in zip(readings, predictions, strict=True))
             for field in ("zone", "potential")}
    return {f"analysis_{field}_accuracy": _ratio(count, len(readings)) for field, count in right.items()} | _minerals(
        pairs, "analysis_mineral")


def _measure(readings: Sequence[Reading]) -> dict:
    by_task = {task: [reading for reading in readings if reading.task == task] for task in q.TASKS}
    parsed = sum(map(_parsed, readings))
    return {
        "n": len(readings),
        "n_by_task": {task: len(rows) for task, rows in by_task.items()},
        **_alteration(by_task["alteration"]),
        **_minerals([(reading.target, reading.prediction) for reading in by_task["minerals"]], "mineral"),
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
    targets: dict[str, list] = {task: [] for task in q.TASKS}
    for record in train:
        if record.get("task") in targets:
            targets[record["task"]].append(_target(record, _answer(record)))
    answers: dict[str, object] = {}
    if rows := targets["alteration"]:
        verdicts, shares = zip(*rows, strict=True)
        answers["alteration"] = (2 * sum(verdicts) > len(rows), median(shares))
    if rows := targets["minerals"]:
        answers["minerals"] = _usual_minerals(rows)
    if rows := targets["analysis"]:
        answers["analysis"] = {field: _most_common(row[field] for row in rows) for field in ("zone", "potential")} | {
            "minerals": dict.fromkeys(sorted(_usual_minerals([set(row["minerals"]) for row in rows])))}
    return answers


def _readable(answer: object) -> object:
    """An answer of `majority` with sets as lists in class order, for JSON."""
    if isinstance(answer, dict):
        return answer | {"minerals": _readable(set(answer["minerals"]))}
    return [name for name in q.MINERALS if name in answer] if isinstance(answer, set) else answer


def score(predictions: Sequence[dict], train: Sequence[dict] = ()) -> dict:
    """Metrics of prediction rows, and of the majority answer of the training records on the same rows.

    Args:
        predictions: rows of predictions.jsonl ("id", "task", "language", "answer", "prediction", "target").
        train: records of the training split; only their targets are used.

    Returns:
        `n`, `n_by_task`, HEADLINES (each over the rows of its task; parse_rate over all n), `alteration_confusion`
        (target -> prediction), `per_mineral`, `analysis_*`, `share_mae` as a fraction of the tile; `languages` with the
        same per language where there are several; `baseline` with the same keys and its `answers` (None where `train`
        lacks a scored task), and `baseline_every_mineral`: mineral metrics of naming every mineral of the training
        split on every tile, the strongest constant answer for F1. A metric without a row is None.

    Raises:
        UserError: a row of another task, or a true answer that cannot be read.
    """
    readings = [_read(row) for row in predictions]
    languages = sorted({reading.language for reading in readings})
    answers = majority(train)
    metrics = _measure(readings)
    if len(languages) > 1:
        metrics["languages"] = {language: _measure([r for r in readings if r.language == language])
                                for language in languages}
    metrics["baseline"] = metrics["baseline_every_mineral"] = None
    if {reading.task for reading in readings} <= set(answers):
        usual = [replace(reading, prediction=answers[reading.task]) for reading in readings]
        metrics["baseline"] = _measure(usual) | {"answers": {task: _readable(a) for task, a in answers.items()}}
    if "minerals" in answers:
        seen = {name for record in train if record.get("task") == "minerals"
                for name in _target(record, _answer(record))}
        rows = [(reading.target, seen) for reading in readings if reading.task == "minerals"]
        metrics["baseline_every_mineral"] = _minerals(rows, "mineral")
    return metrics


def statistic(predictions: Sequence[dict]) -> Callable[[Iterable[int]], dict]:
    """Function: numbers of rows, which may repeat -> their metrics."""
    readings = [_read(row) for row in predictions]
    return lambda rows: _measure([readings[row] for row in rows])
