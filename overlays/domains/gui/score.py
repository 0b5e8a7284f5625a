"""Scores of GUI grounding: click accuracy within 140 grid units, L2 distance, parse rate, with bootstrap intervals."""

from collections.abc import Sequence

import numpy as np

from overlays.domains.gui.answers import parse_point
from overlays.domains.gui.coordinates import GRID, from_answer

RADIUS = 140  # grid units: a click within it counts
FARTHEST = GRID * 2**0.5  # the distance of an answer that names no point: the diagonal of the screen
DRAWS = 2000


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


def figures(distance: np.ndarray) -> dict:
    """n, click_accuracy, mean_l2, median_l2, parse_rate of some distances.

    An unread answer is a miss; in the means of L2 it stands at the far end of the screen's diagonal, and so does a
    point farther off than that.
    """
    finite = np.minimum(distance, FARTHEST)
    return {
        "n": len(distance), "click_accuracy": float((distance <= RADIUS).mean()), "mean_l2": float(finite.mean()),
        "median_l2": float(np.median(finite)), "parse_rate": float(np.isfinite(distance).mean()),
    }


def interval(distance: np.ndarray, groups: Sequence[str] | None = None, seed: int = 0) -> dict[str, list[float]]:
    """95 % bootstrap intervals of click_accuracy, mean_l2 and median_l2.

    Args:
        groups: what is drawn with replacement (episodes: their steps are not independent); None draws single rows.
    """
    generator = np.random.default_rng(seed)
    names = np.arange(len(distance)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    members = [np.flatnonzero(names == name) for name in range(names.max() + 1)]
    finite = np.minimum(distance, FARTHEST)
    drawn = np.empty((DRAWS, 3))
    for i in range(DRAWS):
        rows = np.concatenate([members[j] for j in generator.integers(len(members), size=len(members))])
        drawn[i] = (distance[rows] <= RADIUS).mean(), finite[rows].mean(), np.median(finite[rows])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {key: [float(a), float(b)] for key, a, b in
            zip(("click_accuracy", "mean_l2", "median_l2"), low, high, strict=True)}


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
    episodes = [f"{row.get('user')}/{row.get('episode', row['id'])}" for row in rows]
    metrics = figures(distance) | {"interval": interval(distance, episodes)}
    metrics["users"] = {}
    for user in sorted({row["user"] for row in rows if row.get("user") is not None}, key=_natural):
        own = np.array([row.get("user") == user for row in rows])
        metrics["users"][str(user)] = figures(distance[own]) | {
            "interval": interval(distance[own], [name for name, kept in zip(episodes, own, strict=True) if kept])}
    point = best_constant(train)
    metrics["baseline"] = {} if point is None else {"constant": figures(np.array(
        [np.hypot(row["grid"][0] - point[0], row["grid"][1] - point[1]) for row in rows])) | {"point": list(point)}}
    return metrics


def _natural(user: object) -> tuple:
    text = str(user)
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def gain(before: Sequence[dict], after: Sequence[dict], seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Gain in click accuracy of `after` over `before` on the same taps, and its 95 % interval over episodes."""
    difference = (distances(after) <= RADIUS).astype(float) - (distances(before) <= RADIUS)
    names = np.unique([f"{row.get('user')}/{row.get('episode', row['id'])}" for row in after], return_inverse=True)[1]
    members = [np.flatnonzero(names == name) for name in range(names.max() + 1)]
    generator = np.random.default_rng(seed)
    drawn = [difference[np.concatenate([members[j] for j in generator.integers(len(members), size=len(members))])]
             .mean() for _ in range(DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(difference.mean()), (float(low), float(high))
