"""Targets, the numbers that a record has beside its words: fitted to the training records, read, and scored."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from overlays.errors import UserError


def fit_targets(records: Iterable[Mapping], names: Sequence[str] = ()) -> tuple[dict, int]:
    """Names, means and standard deviations of the targets in the training records.

    Args:
        names: which targets; none takes all there are, sorted.

    Returns:
        ({"names", "mean", "std"}, number of records that lack all of them).

    Raises:
        UserError: no record has a target, one has an unknown name, or a target is the same in every record.
    """
    found: dict[str, list[float]] = {}
    count = without = 0
    for record in records:
        target, count = record.get("target") or {}, count + 1
        for name, value in target.items():
            found.setdefault(name, []).append(float(value))
        without += not (set(names) & set(target) if names else target)
    unknown = sorted(set(names) - set(found))
    if unknown or not found:
        there = f"; there are {', '.join(sorted(found))}" if found else ""
        raise UserError(f"none of the {count} training records has a target"
                        f"{' ' + ', '.join(unknown) if unknown else ''}{there}: a head learns the numbers of a "
                        'record\'s "target" (--head none trains on the words)')
    chosen = list(names) or sorted(found)
    std = [float(np.std(found[name])) for name in chosen]
    for name, spread in zip(chosen, std, strict=True):
        if spread == 0 or np.ptp(found[name]) == 0:  # of equal values the deviation can be a rounding error
            raise UserError(f"target {name} is {found[name][0]:g} in every training record")
    return {"names": chosen, "mean": [float(np.mean(found[name])) for name in chosen], "std": std}, without


def target_values(record: Mapping, names: Sequence[str]) -> torch.Tensor:
    """(K,) float32 targets of a record; NaN where it has none of that name."""
    target = record.get("target") or {}
    return torch.tensor([float(target.get(name, math.nan)) for name in names])


def scores(predicted: np.ndarray, true: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """`r2` and `mae` (own units) over samples, means over the targets; `r2_NAME`, `mae_NAME` where there are several.

    R2 is 1 - sum of squared errors / sum of squares about the mean of these samples; NaN targets are left out, and a
    target that does not vary has none.
    """
    found: dict[str, dict[str, float]] = {"r2": {}, "mae": {}}
    for k, name in enumerate(names):
        known = np.isfinite(true[:, k])
        truth, error = true[known, k].astype(float), (predicted[known, k] - true[known, k]).astype(float)
        if len(truth):
            found["mae"][name] = float(np.abs(error).mean())
            spread = np.square(truth - truth.mean()).sum()
            if spread > 0 and np.ptp(truth) > 0:
                found["r2"][name] = float(1 - np.square(error).sum() / spread)
    figures = {key: float(np.mean(list(rows.values()))) for key, rows in found.items() if rows}
    if len(names) > 1:
        figures |= {f"{key}_{name}": value for key, rows in found.items() for name, value in rows.items()}
    return figures


class Metrics:
    """`compute_metrics` of a Trainer: `scores` over the validation split."""

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)

    def __call__(self, prediction) -> dict[str, float]:
        return scores(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), self.names)
