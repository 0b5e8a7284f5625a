"""Scores of answers about scenes, beside the majority answer of the training split. Pure.

Rules, the same for the model and the baseline:
- Answers are cleaned first: one form of each character (NFKC), lower case, digits up to twenty to words, no articles,
  no punctuation, single spaces.
- EM: the cleaned answer equals one of the true answers. EM-R: it equals one, or one contains the other with spaces
  left out, as published for SQA3D. An empty answer is wrong in both.
- CIDEr is CIDEr-D over the cleaned words (see cider.py), the mean over the rows.
- Type and task come from the words of the question (see question_files.py), or from the row.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import numpy as np

from overlays.domains.scenes.cider import cider
from overlays.domains.scenes.question_files import question_type, task_of
from overlays.errors import UserError

HEADLINES = ("em", "em_r", "where_em", "what_em", "cider")
TASKS_OF = {key: ("where", "what") for key in HEADLINES} | {"where_em": ("where",), "what_em": ("what",)}
_WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
          "seventeen eighteen nineteen twenty").split()


def clean(answer: str) -> str:
    """An answer as it is compared: "The 2 Chairs." -> "two chairs"."""
    lowered = unicodedata.normalize("NFKC", answer).lower()
    text = re.sub(r"[^\w\s]|_", " ", re.sub("['’‘]", "", lowered))
    words = [_WORDS[int(word)] if word.isascii() and word.isdigit() and int(word) < len(_WORDS) else word
             for word in text.split()]
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def matches(prediction: str, answers: Sequence[str]) -> tuple[bool, bool]:
    """(EM, EM-R) of a prediction against the true answers."""
    cleaned, targets = clean(prediction), [clean(answer) for answer in answers]
    if not cleaned:
        return False, False
    joined = cleaned.replace(" ", "")
    exact = cleaned in targets
    return exact, exact or any(joined in other or other in joined
                               for other in (text.replace(" ", "") for text in targets) if other)


def right(row: dict) -> bool:
    """Whether the answer of a prediction row counts as exactly right."""
    return matches(row["prediction"] or "", answers_of(row))[0]


def score(predictions: Sequence[dict], train: Sequence[dict] = ()) -> dict:
    """Metrics of prediction rows, and of the majority answer of each question type in training on the same rows.

    Args:
        predictions: rows of predictions.jsonl: "question_type" and "answers" where prepared here, else "question" and
            "answer".
        train: training records; only their questions' types and answers are used.

    Returns:
        `n`, `n_where`, `n_what`, HEADLINES (EM of all, where and what rows; None without a row), `by_type`: question
        type -> {task, n, em, em_r, cider}, and `baseline` with the same keys and its `answers` by type. Where training
        lacks a type, so does the baseline, and what is over several types, that one among them, is None.

    Raises:
        UserError: a row without a true answer.
    """
    rows = [_typed(row) for row in predictions]
    metrics = _measure(rows)
    majority_answers = majority(train)
    known = [(kind, majority_answers[kind], answers) for kind, _, answers in rows if kind in majority_answers]
    metrics["baseline"] = _measure(known) | {"answers": majority_answers} if known else None
    for key, tasks in () if len(known) == len(rows) or not known else TASKS_OF.items():
        if any(kind not in majority_answers and task_of(kind) in tasks for kind, _, _ in rows):
            metrics["baseline"][key] = None  # it would be of other questions than the model's
    return metrics


def majority(train: Sequence[dict]) -> dict[str, str]:
    """Question type -> its most frequent answer in training records; the first in the alphabet among equals."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for record in train:
        turns = record["conversations"]
        asked = [turn["value"] for turn in turns if turn["from"] in ("human", "user")]
        answers = [turn["value"] for turn in turns if turn["from"] in ("gpt", "assistant")]
        types = record.get("question_types") or [record.get("question_type")] * len(asked)
        for kind, question, answer in zip(types, asked, answers, strict=False):
            counts[kind or question_type(_bare(question))][answer] += 1
    return {kind: min(tally.items(), key=lambda item: (-item[1], item[0]))[0] for kind, tally in counts.items()}


def _bare(question: str) -> str:
    return re.sub(r"<(?:image|video)>", "", question).strip().split("\n")[-1]


def answers_of(row: dict) -> list[str]:
    """The true answers of a prediction row. Raises UserError where it has none."""
    given = row.get("answers")
    given = given if isinstance(given, list | tuple) else [given]
    answers = [answer for answer in given if isinstance(answer, str) and answer] or list(
        filter(None, [row.get("answer")]))
    if not answers:
        raise UserError(f"row {row.get('id')!r} has no true answer to score against; prepare the data again")
    return answers


def type_of(row: dict) -> str:
    """The question type of a prediction row, from its question's words where the row does not name it."""
    kind = row.get("question_type")
    return kind if isinstance(kind, str) and kind else question_type(_bare(row.get("question", "")))


def _typed(row: dict) -> tuple[str, str, list[str]]:
    """(question type, prediction, true answers)."""
    return type_of(row), row["prediction"] or "", answers_of(row)


def statistic(predictions: Sequence[dict]) -> Callable[[Iterable[int]], dict]:
    """Function: numbers of rows, which may repeat -> HEADLINES. CIDEr keeps the document frequencies of all rows."""
    table = _table([_typed(row) for row in predictions])
    values = np.array([row[2:] for row in table], float)
    where = np.array([row[0] == "where" for row in table])

    def measure(rows: Iterable[int]) -> dict:
        drawn, placed = values[rows], where[rows]
        exact, relaxed, agreement = drawn.mean(0)
        return {"em": exact, "em_r": relaxed, "cider": agreement,
                "where_em": drawn[placed, 0].mean() if placed.any() else None,
                "what_em": drawn[~placed, 0].mean() if not placed.all() else None}

    return measure


def _table(rows: Sequence[tuple[str, str, list[str]]]) -> list[tuple[str, str, bool, bool, float]]:
    """(task, question type, EM, EM-R, CIDEr-D) of every row."""
    found = [(kind, *matches(prediction, answers)) for kind, prediction, answers in rows]
    agreement = cider([clean(prediction).split() for _, prediction, _ in rows],
                      [[clean(answer).split() for answer in answers] for _, _, answers in rows])
    return [(task_of(kind), kind, exact, relaxed, value)
            for (kind, exact, relaxed), value in zip(found, agreement, strict=True)]


def _measure(rows: Sequence[tuple[str, str, list[str]]]) -> dict:
    table = _table(rows)

    def mean(column: int, task: str = "") -> float | None:
        values = [row[column] for row in table if task in ("", row[0])]
        return round(fmean(values), 6) if values else None

    by_type = {}
    for kind in sorted({row[1] for row in table}, key=lambda kind: (task_of(kind), kind)):
        of_kind = [row for row in table if row[1] == kind]
        by_type[kind] = {"task": task_of(kind), "n": len(of_kind), **{
            name: round(fmean(row[column] for row in of_kind), 6)
            for column, name in ((2, "em"), (3, "em_r"), (4, "cider"))}}
    tasks = Counter(row[0] for row in table)
    return {"n": len(table), "n_where": tasks["where"], "n_what": tasks["what"], "em": mean(2), "em_r": mean(3),
            "where_em": mean(2, "where"), "what_em": mean(2, "what"), "cider": mean(4), "by_type": by_type}
