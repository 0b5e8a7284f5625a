"""Tiles of a scene, and the areas that keep training, validation and test ground apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from overlays.domains.base import SPLITS
from overlays.errors import UserError


@dataclass(frozen=True)
class Area:
    """A rectangle of the scene in pixels; `stop` values are exclusive."""

    row: int
    row_stop: int
    col: int
    col_stop: int

    def holds(self, row: int, col: int, tile: int) -> bool:
        """Whether the tile with this upper left corner lies wholly inside."""
        return self.row <= row and row + tile <= self.row_stop and self.col <= col and col + tile <= self.col_stop


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """First pixels of the tiles along one axis; the last tile is moved back to end at the edge."""
    if length < tile:
        raise UserError(f"the scene is {length} pixels wide or high, less than one tile of {tile}: "
                        f"give --tile-size {length // 3} or less")
    starts = list(range(0, length - tile + 1, stride))
    return starts if starts[-1] == length - tile else [*starts, length - tile]


def valid_shares(valid: np.ndarray, rows: list[int], cols: list[int], tile: int) -> np.ndarray:
    """Share of valid pixels of every tile, (len(rows), len(cols)), from a (height, width) mask."""
    total = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), np.int64)
    total[1:, 1:] = valid.cumsum(0).cumsum(1)
    top, left = np.array(rows)[:, None], np.array(cols)[None]
    inside = total[top + tile, left + tile] - total[top, left + tile] - total[top + tile, left] + total[top, left]
    return inside / tile**2


# Buffers tried one after the other, in tiles: beside the training area, between validation and test area.
BUFFERS = ((1.0, 1.0), (1.0, 0.75), (1.0, 0.5), (1.0, 0.25), (1.0, 0.0), (0.75, 0.0), (0.5, 0.0), (0.25, 0.0),
           (0.0, 0.0))


def split_areas(kept: np.ndarray, rows: list[int], cols: list[int], shape: tuple[int, int], tile: int,
                fractions: tuple[float, float, float]) -> dict[str, Area]:
    """Areas for train, val and test with at least one tile of unused ground between any two.

    The longer axis is cut once: train on one side, and across the other side val and test (a second cut along the
    shorter axis). A scene too narrow for that is cut into three stripes. Among all possible cuts the one is taken
    whose numbers of tiles come nearest to `fractions` and that loses few tiles to the buffer. Where the scene is too
    small, first the buffer between val and test shrinks, then the one beside train (`gap` tells); areas never overlap.

    Args:
        kept: (len(rows), len(cols)) bool, tiles with enough valid pixels.
        rows, cols: first pixels of the tiles.
        shape: (height, width) of the scene in pixels.
        tile: side of a tile in pixels.
        fractions: shares of train, val and test; 0 leaves a split empty.

    Raises:
        UserError: the scene is too small for the splits even without a buffer.
    """
    if min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"split fractions {fractions} must be three numbers that sum to 1, the first above 0")
    wanted = [name for name, share in zip(SPLITS, fractions, strict=True) if share > 0]
    if len(wanted) == 1:
        return {"train": Area(0, shape[0], 0, shape[1])}
    along_cols = shape[1] >= shape[0]
    table, across, along = (kept, rows, cols) if along_cols else (kept.T, cols, rows)
    for buffers in BUFFERS:
        gaps = [round(tile * share) for share in buffers]
        boxes = _best_cut(table, across, along, tile, gaps, fractions, wanted)
        if boxes:
            break
    else:
        raise UserError(
            f"the {shape[0]} x {shape[1]} scene is too small for tiles of {tile} pixels in separate areas for "
            f"{', '.join(wanted)}: give --tile-size {max(min(shape) // 3, 1)} or less, or check --min-valid")
    height, width = shape if along_cols else shape[::-1]
    areas = {}
    for name, (top, bottom, left, right) in boxes.items():
        area = (top, height if bottom is None else bottom, left, width if right is None else right)
        areas[name] = Area(*area) if along_cols else Area(area[2], area[3], area[0], area[1])
    return areas


def gap(one: Area, other: Area) -> int:
    """Pixels of unused ground between two areas."""
    return max(one.row - other.row_stop, other.row - one.row_stop, one.col - other.col_stop, other.col - one.col_stop)


def _best_cut(kept: np.ndarray, across: list[int], along: list[int], tile: int, gaps: list[int],
              fractions: tuple[float, ...], wanted: list[str]) -> dict[str, tuple] | None:
    """(top, bottom, left, right) per split for the best cut; `along` is the axis of the first cut."""
    share = dict(zip(SPLITS, fractions, strict=True))
    total = np.zeros((len(across) + 1, len(along) + 1), np.int64)
    total[1:, 1:] = kept.cumsum(0).cumsum(1)
    candidates = []

    def consider(**parts: tuple[int, tuple]) -> None:
        counts = {name: int(count) for name, (count, _) in parts.items()}
        number = sum(counts.values())
        if min(counts.values()) > 0:
            error = sum(abs(counts[name] / number - share[name]) for name in wanted)
            lost = 1 - number / total[-1, -1]
            boxes = {name: box for name, (_, box) in parts.items()}
            candidates.append((round(error + 0.5 * lost, 6), len(candidates), boxes))

    for i, j in enumerate(_next_start(along, tile, gaps[0])):
        if j is None:
            continue
        train = total[-1, i + 1], (0, None, 0, along[i] + tile)
        rest = total[-1, -1] - total[-1, j], (0, None, along[j], None)
        if len(wanted) == 2:
            consider(**{"train": train, wanted[1]: rest})
            continue
        for a, b in enumerate(_next_start(across, tile, gaps[1])):
            if b is not None:
                consider(train=train,
                         val=(total[a + 1, -1] - total[a + 1, j], (0, across[a] + tile, along[j], None)),
                         test=(total[-1, -1] - total[b, -1] - total[-1, j] + total[b, j],
                               (across[b], None, along[j], None)))
    if not candidates and len(wanted) == 3:
        after_train, after_val = _next_start(along, tile, gaps[0]), _next_start(along, tile, gaps[1])
        for i, j in enumerate(after_train):
            for k in range(j if j is not None else len(along), len(along)):
                m = after_val[k]
                if m is not None:
                    consider(train=(total[-1, i + 1], (0, None, 0, along[i] + tile)),
                             val=(total[-1, k + 1] - total[-1, j], (0, None, along[j], along[k] + tile)),
                             test=(total[-1, -1] - total[-1, m], (0, None, along[m], None)))
    return min(candidates)[2] if candidates else None


def _next_start(starts: list[int], tile: int, buffer: int) -> list[int | None]:
    """For each tile, the index of the first tile that leaves `buffer` pixels between the two."""
    return [next((j for j, start in enumerate(starts) if start >= first + tile + buffer), None) for first in starts]
