"""The question about a driving clip and its answer as text: pairs of velocity and curvature, written and read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

V_DECIMALS, K_DECIMALS = 2, 5  # three decimals of curvature would write every highway as zeros
MAX_SPEED_MPS, MAX_CURVATURE = 150.0, 5.0  # beyond these no car was meant: such a pair counts as unreadable

PROMPT = ("Given this 1-second, {fps:g} FPS driving clip, output exactly {n} pairs of (velocity in m/s, curvature) for "
          "the next second as [(xx.xx, 0.xxxxx), ...]. No prose, just the list.")
PAST = " The last second was {pairs}."  # after PROMPT, where past motion is given

_SIGN = r"[-+\u2212\u2013]?"  # also the minus and the en dash
_NUMBER = rf"{_SIGN}(?:\d+\.?\d*|\.\d+)(?:[eE]{_SIGN}\d+)?"
_GROUP = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
_BETWEEN = re.compile(r"[\s,;]*")  # what may stand between two pairs of a list
_NUMERIC = re.compile(r"\d|\b(?:nan|inf|infinity)\b", re.IGNORECASE)
_PAIR = re.compile(rf"\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,?\s*")


@dataclass(frozen=True)
class Answer:
    """What could be read of an answer.

    pairs: (n, 2) float64, velocity in m/s and curvature in 1/m; the last pair is held where too few were given.
        None where not one pair could be read.
    status: "whole" (n pairs), "extra" (more; the first n are taken), "partial" (fewer) or "unreadable".
    given: number of pairs that could be read.
    """

    pairs: np.ndarray | None
    status: str
    given: int

    @property
    def parsed(self) -> bool:
        """Whether every pair that was asked for could be read."""
        return self.status in ("whole", "extra")


def question(fps: float, n: int, past: tuple[Sequence[float], Sequence[float]] | None = None) -> str:
    """The question for `n` pairs; with past motion (velocities in m/s, curvatures in 1/m), that is told first."""
    return PROMPT.format(fps=fps, n=n) + (PAST.format(pairs=format_pairs(*past)) if past else "")


def format_pairs(v: Sequence[float], k: Sequence[float]) -> str:
    """Velocities (m/s) and signed curvatures (1/m) as "[(12.34, 0.00123), (12.40, -0.00120)]".

    Raises:
        ValueError: different lengths, no pair, or a number that is not finite.
    """
    pairs = np.array([v, k], dtype=np.float64)  # ragged input raises ValueError
    if pairs.ndim != 2 or not pairs.shape[1] or not np.isfinite(pairs).all():
        raise ValueError("velocities and curvatures must be finite, as many of one as of the other, at least one")
    return "[" + ", ".join(f"({_fixed(v, V_DECIMALS)}, {_fixed(k, K_DECIMALS)})" for v, k in pairs.T) + "]"


def _fixed(value: float, decimals: int) -> str:
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}"  # + 0.0: no "-0.00"


def read_answer(text: str, n: int) -> Answer:
    """Read an answer that should hold `n` pairs.

    Signs, exponents, square instead of round brackets and any text around the list are taken. The list is the first
    run of `n` groups in brackets with only commas, semicolons and space between them, else the longest run; groups of
    words alone do not count. Reading ends at the first group of the list that is not a pair, so that no pair moves to
    another time.
    """
    runs: list[list[str]] = []
    end = None
    for group in _GROUP.finditer(text):
        if not _NUMERIC.search(group[1]) and any(map(str.isalpha, group[1])):
            end = None
            continue
        if end is None or not _BETWEEN.fullmatch(text, end, group.start()):
            runs.append([])
        runs[-1].append(group[1])
        end = group.end()
    run_taken = next((run for run in runs if len(run) >= n), max(runs, key=len, default=[]))
    pairs = list(takewhile(bool, map(_pair, run_taken)))
    if not pairs:
        return Answer(None, "unreadable", 0)
    status = "whole" if len(pairs) == n else "extra" if len(pairs) > n else "partial"
    held = pairs[:n] + [pairs[-1]] * (n - len(pairs))
    return Answer(np.array(held), status, len(pairs))


def _pair(text: str) -> tuple[float, float] | None:
    match = _PAIR.fullmatch(text)
    if not match:
        return None
    v, k = (float(number.replace("\u2212", "-").replace("\u2013", "-")) for number in match.groups())
    return (v, k) if abs(v) <= MAX_SPEED_MPS and abs(k) <= MAX_CURVATURE else None
