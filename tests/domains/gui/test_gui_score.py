"""Scores, folds and what stands beside them."""

import numpy as np
import pytest

from overlays.domains.gui.folds import make_folds
from overlays.domains.gui.score import FARTHEST, best_constant, distances, gain, score
from overlays.errors import UserError


def row(i, prediction, grid=(500, 500), user=1, episode=None):
    return {"id": f"r{i}", "user": user, "episode": episode or f"e{i}", "grid": list(grid), "prediction": prediction}


def test_a_click_counts_up_to_140_units_and_an_unread_answer_is_a_miss():
    rows = [row(0, "[500, 640]"), row(1, "[500, 641]"), row(2, "nothing"), row(3, "[400, 400, 600, 600]")]
    metrics = score(rows)
    assert metrics["n"] == 4
    assert metrics["click_accuracy"] == 0.5
    assert metrics["parse_rate"] == 0.75
    assert metrics["mean_l2"] == pytest.approx((140 + 141 + FARTHEST + 0) / 4)
    assert distances([row(0, "[0, 0]", grid=(0, 0))])[0] == 0  # a point (0, 0) is a point


def test_an_answer_far_off_the_screen_is_no_worse_than_an_unread_one(tmp_path):
    from PIL import Image

    from overlays.domains.gui.plots import draw_tap

    metrics = score([row(0, "[99999999999, 5]"), row(1, "nothing")])
    assert metrics["mean_l2"] == metrics["median_l2"] == FARTHEST and metrics["parse_rate"] == 0.5
    assert max(metrics["interval"]["mean_l2"]) == FARTHEST
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (400, 200)).save(tmp_path / "a.jpg", exif=turned)
    drawn = draw_tap(tmp_path / "a.jpg", (500, 500), (1e60, 5))
    assert drawn.width < drawn.height  # upright, as the taps are measured


def test_pixels_of_the_seen_image_are_scored_on_the_grid():
    assert distances([row(0, "[56, 112]") | {"seen": [112, 224]}])[0] == 0


def test_users_and_intervals_add_up():
    rows = [row(i, "[500, 500]" if i % 2 else "[0, 0]", user=i % 3) for i in range(30)]
    metrics = score(rows)
    assert sum(part["n"] for part in metrics["users"].values()) == metrics["n"] == 30
    low, high = metrics["interval"]["click_accuracy"]
    assert low < metrics["click_accuracy"] < high


def test_the_constant_point_is_where_most_training_taps_lie():
    train = [row(i, "", grid=(100, 900)) for i in range(6)] + [row(9, "", grid=(800, 100))]
    point = best_constant(train)
    assert np.hypot(point[0] - 100, point[1] - 900) <= 140
    metrics = score([row(0, "", grid=(110, 890)), row(1, "", grid=(800, 100))], train)
    assert metrics["baseline"]["constant"]["click_accuracy"] == 0.5


def test_gain_is_paired():
    before = [row(i, "[0, 0]") for i in range(10)]
    after = [row(i, "[500, 500]" if i < 5 else "[0, 0]") for i in range(10)]
    value, (low, high) = gain(before, after)
    assert value == 0.5 and 0 < low < value < high


def records(episodes, steps, user=7):
    return [{"id": f"{e}-{s}", "user": user, "episode": f"e{e}"} for e in range(episodes) for s in range(steps)]


def test_folds_keep_episodes_together_and_take_every_record_once():
    rows = records(7, 4)
    folds = make_folds(rows, 3, "episode", seed=1)
    assert sorted(r["id"] for fold in folds for r in fold) == sorted(r["id"] for r in rows)
    where = {}
    for number, fold in enumerate(folds):
        for record in fold:
            assert where.setdefault(record["episode"], number) == number
    assert folds == make_folds(list(reversed(rows)), 3, "episode", seed=1)
    by_sample = make_folds(rows, 3, "sample", seed=1)
    assert {len(fold) for fold in by_sample} <= {9, 10}
    assert any(len({r["episode"] for r in fold}) > 3 for fold in by_sample)


def test_more_folds_than_episodes_is_one_sentence():
    with pytest.raises(UserError, match="user 7 has 2 episodes, which do not make 3 folds"):
        make_folds(records(2, 9), 3, "episode")
    with pytest.raises(UserError, match="too few"):
        make_folds(records(1, 9), 2, "episode")
