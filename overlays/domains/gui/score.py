"""Scores of GUI grounding: click accuracy within 140 grid units, L2 distance, parse rate, with bootstrap intervals."""

from collections.abc import Callable, Sequence

import numpy as np

from overlays.domains.base import intervals
from overlays.domains.gui.answers import parse_point
from overlays.domains.gui.coordinates import GRID, from_answer

RADIUS = 140  # grid units: a click within it counts
FARTHEST = GRID * 2**0.5  # the distance of an answer that names no point: the diagonal of the screen
MEASURED = ("click_accuracy", "mean_l2", "median_l2")  # have intervals


def predicted_point(row: dict) -> tuple[float, float] | None:
    """Grid point that a row's prediction names, None where it cannot be read."""
    point = parse_point(row["prediction"])
    return None if point is None else from_answer(point, row.get("seen"))


def distances(rows: Sequence[dict]) -> np.ndarray:
    """(n,) L2 distances on the grid; infinite where the prediction cannot be read."""
    found = []
    for row in rows:
        point = predicted_point(row)
        found.append(np.inf if point is None else np.hypot(point[0] - row["grid"][0], point[1] - row["grid"][1]))
    return np.array(found, dtype=np.float64)


def click_metrics(distance: np.ndarray) -> dict:
    """n, click_accuracy, mean_l2, median_l2, parse_rate of some distances.

    An unread answer is a miss; in the means of L2 it stands at the far end of the screen's diagonal, and so does a
    point farther off than that.
    """
    finite = np.minimum(distance, FARTHEST)
    return {
        "n": len(distance), "click_accuracy": float((distance <= RADIUS).mean()), "mean_l2": float(finite.mean()),
        "median_l2": float(np.median(finite)), "parse_rate": float(np.isfinite(distance).mean()),
    }


def statistic(distance: np.ndarray) -> Callable[[np.ndarray], dict]:
    """Function: numbers of rows, which may repeat -> their metrics."""
    return lambda rows: click_metrics(distance[rows])


def interval(distance: np.ndarray, groups: Sequence[str] | None = None, seed: int = 0) -> dict[str, list[float]]:
    """95 % bootstrap intervals of click_accuracy, mean_l2 and median_l2.

    Args:
        groups: what is drawn with replacement (episodes: their steps are not independent); None draws single rows.
    """
    return intervals(statistic(distance), range(len(distance)) if groups is None else groups, MEASURED, seed)


def episode_of(row: dict) -> str:
    """The episode of a row, which its user's name makes unique."""
    return f"{row.get('user')}/{row.get('episode', row['id'])}"


def best_constant(train: Sequence[dict]) -> tuple[float, float] | None:
    """The grid point within RADIUS of which most clicks of the training users lie; None without any."""
    clicks = np.array([row["grid"] for row in train if "grid" in row], dtype=np.float64)
    if not len(clicks):
        return None
    axis = np.arange(0, GRID + 1, 20, dtype=np.float64)
    centres = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    inside = [(np.hypot(*(clicks - centre).T) <= RADIUS).sum() for centre in centres]
    return tuple(float(value) for value in centres[int(np.argmax(inside))])


def score(predictions: Sequence[dict], train: Sequence[dict] = ()) -> dict:
    """Metrics of predictions.jsonl rows, each with "grid" (the true click), "user", "episode", "prediction".

    Returns:
        n, click_accuracy, mean_l2, median_l2, parse_rate; `interval`; `users`: the same of each user; and under
        `baseline.constant` the best constant point of the training users, measured on the same rows.
    """
    rows = list(predictions)
    distance = distances(rows)
    episodes = [episode_of(row) for row in rows]
    metrics = click_metrics(distance) | {"interval": interval(distance, episodes)}
    metrics["users"] = {}
    for user in sorted({row["user"] for row in rows if row.get("user") is not None}, key=_natural):
        members = [number for number, row in enumerate(rows) if row.get("user") == user]
        metrics["users"][str(user)] = click_metrics(distance[members]) | {
            "interval": interval(distance[members], [episodes[number] for number in members])}
    point = best_constant(train)
    metrics["baseline"] = {} if point is None else {"constant": click_metrics(np.array(
        [np.hypot(row["grid"][0] - point[0], row["grid"][1] - point[1]) for row in rows])) | {"point": list(point)}}
    return metrics


def _natural(user: object) -> tuple:
    text = str(user)
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def gain(before: Sequence[dict], after: Sequence[dict], seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Gain in click accuracy of `after` over `before` on the same taps, and its 95 % interval over episodes."""
    difference = (distances(after) <= RADIUS).astype(float) - (distances(before) <= RADIUS)
    low, high = intervals(lambda rows: {"gain": difference[rows].mean()}, [episode_of(row) for row in after], ["gain"],
                          seed)["gain"]
    return float(difference.mean()), (low, high)
