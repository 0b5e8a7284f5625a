"""Tiles cover the scene to its edges, and areas keep a tile's distance."""

from itertools import combinations

import numpy as np
import pytest

from overlays.domains.cuprite.areas import gap, split_areas, tile_starts, valid_shares
from overlays.errors import UserError


def cut(rows, cols, tile, stride, fractions=(0.7, 0.15, 0.15)):
    starts = tile_starts(rows, tile, stride), tile_starts(cols, tile, stride)
    kept = np.ones([len(start) for start in starts], bool)
    areas = split_areas(kept, *starts, (rows, cols), tile, fractions)
    counts = {name: sum(area.holds(row, col, tile) for row in starts[0] for col in starts[1])
              for name, area in areas.items()}
    return areas, counts


def test_tiles_reach_both_edges():
    assert tile_starts(100, 32, 16) == [0, 16, 32, 48, 64, 68]
    assert tile_starts(32, 32, 16) == [0]
    with pytest.raises(UserError, match="less than one tile"):
        tile_starts(31, 32, 16)


@pytest.mark.parametrize("shape", [(51, 56), (56, 51), (400, 480), (900, 40), (40, 900)])
def test_areas_lie_a_tile_apart_and_none_is_empty(shape):
    areas, counts = cut(*shape, 12, 6)
    assert set(areas) == {"train", "val", "test"}
    assert min(counts.values()) > 0
    assert all(gap(areas[one], areas[other]) >= 12 for one, other in combinations(areas, 2))


def test_fractions_are_met_where_the_scene_is_large():
    _, counts = cut(800, 1000, 20, 10, (0.6, 0.1, 0.3))
    total = sum(counts.values())
    assert counts["train"] / total == pytest.approx(0.6, abs=0.05)
    assert counts["test"] / total == pytest.approx(0.3, abs=0.05)


def test_a_split_of_share_0_is_left_out():
    areas, counts = cut(100, 100, 10, 5, (0.8, 0, 0.2))
    assert set(areas) == {"train", "test"} and counts["test"] > 0


def test_the_full_cuprite_scene_takes_tiles_of_224():
    areas, counts = cut(972, 614, 224, 112)
    assert min(counts.values()) > 0
    assert gap(areas["train"], areas["test"]) >= 224 and gap(areas["train"], areas["val"]) >= 224
    assert gap(areas["val"], areas["test"]) >= 0


def test_too_small_a_scene_says_which_tile_would_fit():
    with pytest.raises(UserError, match="--tile-size 16 or less"):
        cut(50, 50, 40, 20)


def test_valid_shares_are_counted_per_tile():
    valid = np.zeros((8, 8), bool)
    valid[:4, :6] = True
    np.testing.assert_allclose(valid_shares(valid, [0, 4], [0, 4], 4), [[1, 0.5], [0, 0]])
