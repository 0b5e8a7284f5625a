"""Samples packed into rows of at most so many tokens (--data_packing), as full as they get."""

import random
from collections.abc import Sequence

import numpy as np
import torch

from overlays.data.dataset import SupervisedDataset

TRIES = 8  # rows looked at for a sample, the fullest that has room first
VISUAL_MARGIN = 1.25  # a row may have so many times the average share of tokens of images and videos


def pack(lengths: Sequence[int], visual: Sequence[int], limit: int, seed: int) -> list[list[int]]:
    """Numbers of samples by row: best fit, the longest samples first.

    Args:
        lengths: (samples,) tokens of each, none above `limit`.
        visual: (samples,) tokens of images and videos among them. Rows share them out, so that the vision tower has
            about as much to do for each row, and on each rank.
        limit: tokens of a row at most.
        seed: decides between samples of one length.
    """
    lengths, visual = np.asarray(lengths).tolist(), np.asarray(visual).tolist()
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    order.sort(key=lengths.__getitem__, reverse=True)
    most_visual = max(VISUAL_MARGIN * limit * sum(visual) / max(sum(lengths), 1), max(visual, default=0))
    rows: list[list[int]] = []
    room: list[float] = []  # of each row, for visual tokens
    by_room: list[list[int]] = [[] for _ in range(limit + 1)]  # rows by the tokens that they still take
    occupied = 0  # bit r: by_room[r] is not empty
    for sample in order:
        length, seen, row, left = lengths[sample], visual[sample], None, -1
        candidates = occupied >> length << length
        for _ in range(TRIES):
            if not candidates:
                break
            left = (candidates & -candidates).bit_length() - 1
            row = next((row for row in reversed(by_room[left][-TRIES:]) if room[row] >= seen), None)
            if row is not None:
                break
            candidates &= candidates - 1
        if row is None:
            row, left = len(rows), limit
            rows.append([])
            room.append(most_visual)
        else:
            by_room[left].remove(row)
            occupied &= ~(0 if by_room[left] else 1 << left)
        rows[row].append(sample)
        room[row] -= seen
        by_room[left - length].append(row)
        occupied |= 1 << (left - length)
    return rows


class PackedDataset(torch.utils.data.Dataset):
    """Rows of samples: {"id": that of the first, "samples": [sample, ...]}, opened where the row is asked for.

    Args:
        samples: what is packed; of `samples.lengths` none is above `limit`.

    Attributes:
        lengths: (len(self),) int64 tokens of each row.
    """

    def __init__(self, samples: SupervisedDataset, limit: int, seed: int):
        self.samples, self.limit = samples, limit
        self.rows = pack(samples.lengths, samples.visual, limit, seed)
        self.lengths = np.array([samples.lengths[row].sum() for row in self.rows], dtype=np.int64)
        self.report = samples.report | {"packed": {"rows": len(self), "tokens": limit, "filled": round(self.filled, 4)}}

    @property
    def filled(self) -> float:
        """Share of the rows' tokens that belong to a sample."""
        return float(self.lengths.mean() / self.limit)

    @property
    def target_names(self) -> tuple[str, ...]:
        """As of the samples."""
        return self.samples.target_names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        samples = [self.samples[number] for number in self.rows[i]]
        return {"id": samples[0]["id"], "samples": samples}
