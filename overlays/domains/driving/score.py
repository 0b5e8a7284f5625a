"""Scores of predicted motion beside four baselines that need no model. Pure.

Rules, the same for the model and the baselines:
- Errors are taken over all pairs of all rows: MAE and RMSE of velocity (m/s) and curvature (1/m). The target is
  the record's `future`, not its text, which is rounded.
- Paths are integrated from velocity and curvature (see `integrate`); ADE is the mean distance in m over all pairs, FDE
  that at the last pair of each row.
- The replacement of an answer without a readable pair knows no more than the model did: the last known motion goes on
  where the question told the past (task past_motion), else the training mean holds. An answer with too few pairs goes
  on with its last. Neither is dropped, and both lower `parse_rate`, the share of rows with every pair readable. The
  rows that could be read in full are also scored alone, under `readable`.
- A turn is a row whose true mean curvature is at least TURN_PER_M; its sign is right where the predicted mean has the
  same. A prediction of exactly 0 and an answer without a readable pair are wrong.
- `speed_correlation` is that of the mean speeds, predicted and true, after the mean of each kind of road (the record's
  `road`) is taken away: it shows whether speed is read from the motion or from what the surroundings look like.
- Rows slower than 1 m/s at some pair (`low_speed`), where curvature is ill defined, are also scored apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from overlays.domains.driving.answers import read_answer
from overlays.domains.driving.egomotion import LOW_SPEED_MPS
from overlays.errors import UserError

TURN_PER_M = 0.005  # a radius of 200 m
HORIZONS_S = (0.25, 0.5, 1.0)
BASELINES = ("train_mean", "hold_v_zero_k", "hold_both", "linear_v_hold_k")
PAIRS = "as {'v': [...], 'k': [...]} of finite numbers"
REMEDY = "predict on a split that python -m overlays.prepare driving made"
MEASURED = ("mae_v", "mae_k", "rmse_v", "rmse_k", "ade", "fde", "turn_sign_accuracy", "speed_correlation")


@dataclass(frozen=True)
class Row:
    """One window: target, the known past and the prediction.

    times: (P,) seconds from the last frame seen. target, predicted: (P, 2) m/s and 1/m. past_times: (Q,), past: (Q, 2).
    status: of `answers.Answer`. told: whether the question told the past. road: the kind of road, "" where not known.
    """

    id: str
    times: np.ndarray
    target: np.ndarray
    past_times: np.ndarray
    past: np.ndarray
    predicted: np.ndarray
    status: str
    told: bool = False
    road: str = ""

    @property
    def answered(self) -> bool:
        """Whether a pair of the answer could be read: else `predicted` is a replacement."""
        return self.status != "unreadable"

    @property
    def turns(self) -> bool:
        """Whether the row is a turn."""
        return bool(abs(self.target[:, 1].mean()) >= TURN_PER_M)

    def has_sign_of(self, predicted: np.ndarray) -> bool:
        """Whether (P, 2) pairs turn to the side of the target."""
        return bool(np.sign(predicted[:, 1].mean()) == np.sign(self.target[:, 1].mean()))

    @property
    def low_speed(self) -> bool:
        """Whether the car is slower than 1 m/s at some pair."""
        return bool((np.abs(self.target[:, 0]) < LOW_SPEED_MPS).any())


def integrate(times: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Path of a car that starts at (0, 0) heading along x, at the given times.

    Kinematic unicycle, ds = v dt and dheading = k ds, as circular arcs: between two pairs their mean holds, before
    the first pair the first.

    Args:
        times: (P,) s, ascending, the start being 0.
        pairs: (P, 2) velocity in m/s and curvature in 1/m, + to the left.

    Returns:
        (P, 3): x forward and y left in m, heading in rad.
    """
    before = np.concatenate([pairs[:1], pairs[:-1]])
    v, k = ((before + pairs) / 2).T
    distance_m = v * np.diff(times, prepend=0.0)
    turn = distance_m * k
    heading = np.cumsum(turn)
    middle = heading - turn / 2
    chord = distance_m * np.sinc(turn / 2 / np.pi)
    return np.stack([np.cumsum(chord * np.cos(middle)), np.cumsum(chord * np.sin(middle)), heading], 1)


def train_mean(train: Iterable[dict]) -> np.ndarray | None:
    """(2,) mean velocity and curvature of the pairs of the training split; None without any.

    Raises:
        UserError: a record with a future that cannot be read.
    """
    pairs = []
    for record in train:
        if record.get("future"):
            try:
                pairs.append(_pairs(record["future"]))
            except (KeyError, TypeError, ValueError):
                raise UserError(f"training record {record.get('id')!r} has no future {PAIRS}; {REMEDY}") from None
    return np.concatenate(pairs).mean(0) if pairs else None


def read_row(row: dict, mean: np.ndarray | None = None) -> Row:
    """A prediction row as numbers; `mean` (2,) stands in for a past and an answer that the row does not have.

    Without `mean` that is a car that stands still.

    Raises:
        UserError: the row has no true future, or a past that cannot be read.
    """
    part, default = "true future", np.zeros(2) if mean is None else mean
    try:
        target = _pairs(row["future"])
        count = len(target)
        times = _ascending(row.get("times") or np.arange(1, count + 1) / count, count)
        if times[0] <= 0:
            raise ValueError
        part, past = "past", row.get("past")
        if past:
            known = _pairs(past)
            known_times = _ascending(past.get("times") or (np.arange(len(known)) + 1) / len(known) - 1, len(known))
        else:
            known, known_times = default[None], np.zeros(1)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"row {row.get('id')!r} has no {part} {PAIRS} with as many ascending times; {REMEDY}") from None
    answer = read_answer(str(row.get("prediction") or ""), count)
    told = bool(past) and row.get("task") == "past_motion"
    predicted = answer.pairs if answer.pairs is not None else np.repeat([known[-1] if told else default], count, 0)
    return Row(str(row.get("id")), times, target, known_times, known, predicted, answer.status, told,
               str(row.get("road") or ""))


def _pairs(motion: dict) -> np.ndarray:
    """(P, 2) float64 of {"v", "k"}. Raises KeyError, TypeError or ValueError where it is none, or not finite."""
    pairs = np.array([motion["v"], motion["k"]], dtype=np.float64)
    if pairs.ndim != 2 or not pairs.size or not np.isfinite(pairs).all():
        raise ValueError
    return pairs.T


def _ascending(times: Sequence[float], count: int) -> np.ndarray:
    """(count,) float64. Raises TypeError or ValueError where they are not so many or not ascending."""
    found = np.array(times, dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all() or (np.diff(found) <= 0).any():
        raise ValueError
    return found


def guess(name: str, row: Row, mean: np.ndarray) -> np.ndarray:
    """(P, 2) pairs of one of BASELINES.

    linear_v_hold_k: the least-squares slope of the past second's velocities goes on from its last velocity.
    """
    count, last = len(row.times), row.past[-1]
    if name == "train_mean":
        return np.repeat(mean[None], count, 0)
    if name == "hold_v_zero_k":
        return np.repeat([[last[0], 0.0]], count, 0)
    if name == "hold_both":
        return np.repeat(last[None], count, 0)
    if name != "linear_v_hold_k":
        raise ValueError(f"there is no baseline {name!r}")
    spread = row.past_times - row.past_times.mean()
    slope = float(spread @ row.past[:, 0] / (spread @ spread)) if len(spread) > 1 else 0.0
    velocity = last[0] + slope * (row.times - row.past_times[-1])
    return np.stack([velocity, np.full(count, last[1])], 1)


def score(predictions: Sequence[dict], train: Iterable[dict] = ()) -> dict:
    """Metrics of predictions (rows of predictions.jsonl) and of the baselines on the same rows.

    Returns:
        n, parse_rate, n_whole, n_extra, n_partial, n_unreadable, n_turns and MEASURED; the same metrics under
        `horizons` (by second: n, mae_v, mae_k, distance), `low_speed`, `moving`, `readable` and `roads` (by kind); and
        under `baseline` for each of BASELINES (train_mean is None without `train`).

    Raises:
        UserError: no rows, or a row without its true future.
    """
    if not predictions:
        raise UserError("there are no predictions to score")
    mean = train_mean(train)
    rows = [read_row(row, mean) for row in predictions]
    statuses = [row.status for row in rows]
    counts = {f"n_{name}": statuses.count(name) for name in ("whole", "extra", "partial", "unreadable")}
    readable = [row for row in rows if row.status in ("whole", "extra")]
    metrics = {"n": len(rows), "parse_rate": len(readable) / len(rows), **counts, **_measure(rows)}
    metrics["readable"] = _group(readable)
    metrics["turn_threshold_per_m"] = TURN_PER_M
    metrics["baseline"] = {
        name: None if name == "train_mean" and mean is None else
        {"n": len(rows), "parse_rate": 1.0, **_measure(rows, lambda row, name=name: guess(name, row, mean))}
        for name in BASELINES
    }
    return metrics


def statistic(predictions: Sequence[dict], train: Iterable[dict]) -> Callable[[Sequence[int]], dict]:
    """Function: numbers of rows, which may repeat -> MEASURED and the parse rate. From sums of each row: fast."""
    mean = train_mean(train)
    rows = [read_row(row, mean) for row in predictions]
    errors = [np.abs(row.predicted - row.target) for row in rows]
    apart = [_distances(row, row.predicted) for row in rows]
    sums = np.stack([[len(error), *error.sum(0), *(error**2).sum(0), distance.sum(), distance[-1], row.turns,
                      row.turns and row.answered and row.has_sign_of(row.predicted),
                      row.status in ("whole", "extra"), 1]
                     for row, error, distance in zip(rows, errors, apart, strict=True)])
    speeds, roads = _speeds(rows), np.array([row.road for row in rows])

    def measure(chosen: Sequence[int]) -> dict:
        pairs, v, k, v2, k2, distance, last, turn, sign, parsed, count = sums[chosen].sum(0)
        return {"mae_v": v / pairs, "mae_k": k / pairs, "rmse_v": math.sqrt(v2 / pairs),
                "rmse_k": math.sqrt(k2 / pairs), "ade": distance / pairs, "fde": last / count,
                "turn_sign_accuracy": sign / turn if turn else None, "parse_rate": parsed / count,
                "speed_correlation": _correlation(speeds[chosen], roads[chosen])}

    return measure


def _measure(rows: Sequence[Row], predict: Callable[[Row], np.ndarray] | None = None) -> dict:
    """Metrics over all rows, by horizon, by kind of road, and of slow and moving rows apart; see `_group`."""
    slow = [row for row in rows if row.low_speed]
    moving = [row for row in rows if not row.low_speed]
    roads = {road: [row for row in rows if row.road == road] for road in sorted({row.road for row in rows} - {""})}
    return {
        **{key: value for key, value in _group(rows, predict).items() if key != "n"},
        "horizons": {f"{second:g}": _at(rows, predict, second) for second in HORIZONS_S},
        "low_speed": _group(slow, predict), "moving": _group(moving, predict),
        "roads": {road: _group(members, predict) for road, members in roads.items()},
    }


def _group(rows: Sequence[Row], predict: Callable[[Row], np.ndarray] | None = None) -> dict:
    """Metrics of a baseline `predict`; of the model where there is none."""
    if not rows:
        return {"n": 0, "n_turns": 0} | dict.fromkeys(MEASURED)
    predicted = [predict(row) if predict else row.predicted for row in rows]
    errors = np.concatenate([pairs - row.target for row, pairs in zip(rows, predicted, strict=True)])
    apart = [_distances(row, pairs) for row, pairs in zip(rows, predicted, strict=True)]
    right = [row.has_sign_of(pairs) and (predict is not None or row.answered)
             for row, pairs in zip(rows, predicted, strict=True) if row.turns]
    mae, rmse = np.abs(errors).mean(0), np.sqrt((errors**2).mean(0))
    return {
        "n": len(rows), "n_turns": len(right), "mae_v": float(mae[0]), "mae_k": float(mae[1]),
        "rmse_v": float(rmse[0]), "rmse_k": float(rmse[1]), "ade": float(np.concatenate(apart).mean()),
        "fde": float(np.mean([row[-1] for row in apart])),
        "turn_sign_accuracy": float(np.mean(right)) if right else None,
        "speed_correlation": _correlation(_speeds(rows, predicted), np.array([row.road for row in rows])),
    }


def _speeds(rows: Sequence[Row], predicted: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """(rows, 2) mean speeds in m/s, true and predicted."""
    return np.array([[row.target[:, 0].mean(), pairs[:, 0].mean()] for row, pairs in zip(
        rows, predicted or [row.predicted for row in rows], strict=True)])


def _correlation(speeds: np.ndarray, roads: np.ndarray) -> float | None:
    """Pearson's of (rows, 2) speeds within the kinds of road; None where no road is known or nothing varies."""
    apart = [speeds[roads == road] - speeds[roads == road].mean(0) for road in np.unique(roads) if road]
    (a, b), (_, c) = (np.concatenate(apart).T @ np.concatenate(apart)) if apart else np.zeros((2, 2))
    return float(b / math.sqrt(a * c)) if min(a, c) > 1e-9 else None


def _distances(row: Row, predicted: np.ndarray) -> np.ndarray:
    """(P,) metres between the predicted and the true path."""
    return np.linalg.norm(integrate(row.times, predicted)[:, :2] - integrate(row.times, row.target)[:, :2], axis=1)


def _at(rows: Sequence[Row], predict: Callable[[Row], np.ndarray] | None, second: float) -> dict:
    """Mean errors at the pair nearest to `second`, over the rows that have one within 0.1 s."""
    errors = []
    for row in rows:
        nearest = int(np.abs(row.times - second).argmin())
        if abs(row.times[nearest] - second) <= 0.1:
            predicted = predict(row) if predict else row.predicted
            errors.append([*np.abs(predicted[nearest] - row.target[nearest]), _distances(row, predicted)[nearest]])
    means = np.mean(errors, 0) if errors else [None] * 3
    names = ("mae_v", "mae_k", "distance")
    return {"n": len(errors)} | {name: None if mean is None else float(mean)
                                for name, mean in zip(names, means, strict=True)}
