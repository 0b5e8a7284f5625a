"""Folds of one user's records: by episode, so that the screens of one task stay together, or by sample."""

import random
from collections.abc import Sequence

from overlays.errors import UserError

KINDS = ("episode", "sample")


def make_folds(records: Sequence[dict], count: int, kind: str = "episode", seed: int = 0) -> list[list[dict]]:
    """Assign the records of one user to `count` folds of like size; the same for the same seed everywhere.

    Args:
        records: of one user, each with "user", "episode" and "id".
        kind: "episode" keeps an episode in one fold; "sample" assigns single records, those of one screenshot together.

    Raises:
        UserError: fewer than two folds, or more folds than there are episodes (samples).
    """
    if kind not in KINDS:
        raise UserError(f"folds are made by {' or '.join(KINDS)}, not by {kind!r}")
    user = records[0]["user"] if records else "?"
    groups: dict[str, list[dict]] = {}
    first_of: dict[object, str] = {}  # screenshot -> id of its first record
    for record in records:
        screenshot = str(record.get("image", record["id"]))
        key = record["episode"] if kind == "episode" else first_of.setdefault(screenshot, record["id"])
        groups.setdefault(str(key), []).append(record)
    if count < 2 or count > len(groups):
        noun = "episode" if kind == "episode" else "screenshot"
        raise UserError(f"user {user} has {len(groups)} {noun}s, which do not make {count} folds: "
                        f"choose 2 to {len(groups)}" if len(groups) > 1 else
                        f"user {user} has {len(groups)} {noun}{'' if len(groups) == 1 else 's'}, too few for folds")
    order = sorted(groups)
    random.Random(f"{seed}:{user}:{kind}").shuffle(order)
    order.sort(key=lambda name: -len(groups[name]))  # the largest first, each to the emptiest fold
    folds: list[list[dict]] = [[] for _ in range(count)]
    for name in order:
        min(folds, key=len).extend(groups[name])
    return [sorted(fold, key=lambda record: str(record["id"])) for fold in folds]
