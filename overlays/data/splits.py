"""Splits of records, made by groups that stay together."""

import hashlib
import math
from collections.abc import Iterable, Mapping

from overlays.errors import UserError


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test from "0.7,0.15,0.15". Raises UserError where it is not three numbers."""
    try:
        train, val, test = (float(share) for share in text.split(","))
        if not all(map(math.isfinite, (train, val, test))):
            raise ValueError
    except ValueError:
        raise UserError(f"--split-fractions takes three numbers such as 0.7,0.15,0.15, got {text!r}") from None
    return train, val, test


def split_groups(records: Iterable[dict], fractions: Mapping[str, float], key: str = "group",
                 seed: int = 0) -> dict[str, list[dict]]:
    """Assign records to splits so that all records of a group (area, clip, scene, user) are on one side.

    Groups are taken in an order that depends on the seed and their names alone; each goes to the split that lacks
    most of its share. Every split with a share gets a group as long as there are enough of them.

    Args:
        fractions: share of the records by split, e.g. {"train": 0.8, "test": 0.2}; they must add up to 1.
        key: the record's key that names its group.

    Returns:
        split -> its records, in their original order.

    Raises:
        UserError: the shares do not add up to 1, or a record has no group.
    """
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"the shares of the splits must add up to 1: {dict(fractions)}")
    records, groups = list(records), {}
    for number, record in enumerate(records, start=1):
        if record.get(key) is None:
            raise UserError(f"record {number} (id {record.get('id')}) has no {key!r}, which splits are made by")
        groups.setdefault(str(record[key]), []).append(number - 1)
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    rows_of: dict[str, list[int]] = {split: [] for split in fractions}
    for position, name in enumerate(order):
        empty = [split for split, share in fractions.items() if share > 0 and not rows_of[split]]
        candidates = empty if len(order) - position <= len(empty) else list(fractions)
        split = max(candidates, key=lambda s: fractions[s] * len(records) - len(rows_of[s]))
        rows_of[split] += groups[name]
    return {split: [records[i] for i in sorted(rows)] for split, rows in rows_of.items()}
