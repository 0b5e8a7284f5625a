"""Scores: figures worked out by hand, a failed parse that counts, baselines on the same rows."""

import numpy as np
import pytest

from overlays.domains.driving.answers import format_pairs
from overlays.domains.driving.score import BASELINES, MEASURED, guess, integrate, read_row, score, statistic
from overlays.errors import UserError

TIMES = [0.25, 0.5, 0.75, 1.0]


def row(v, k, said=None, past_v=(8.0, 9.0, 10.0), past_k=(0.0, 0.0, 0.01), **keys):
    count = len(past_v)
    return {
        "id": "a", "times": TIMES, "future": {"v": list(v), "k": list(k)},
        "past": {"times": [(i + 1) / count - 1 for i in range(count)], "v": list(past_v), "k": list(past_k)},
        "prediction": format_pairs(v, k) if said is None else said, **keys,
    }


def constant(v, k):
    return [v] * 4, [k] * 4


def test_a_circle_is_integrated_exactly():
    radius, times = 20.0, np.linspace(0.1, 3.0, 30)
    path = integrate(times, np.column_stack([np.full(30, 7.0), np.full(30, 1 / radius)]))
    angle = 7.0 * times / radius
    assert np.allclose(path, np.column_stack([radius * np.sin(angle), radius * (1 - np.cos(angle)), angle]))
    straight = integrate(np.array([0.5, 1.0]), np.array([[4.0, 0.0], [6.0, 0.0]]))
    assert np.allclose(straight[:, 0], [2.0, 4.5]) and not straight[:, 1:].any()
    assert integrate(np.array([1.0]), np.array([[-2.0, 0.1]]))[0, 0] < 0  # reversing


def test_a_perfect_answer_has_no_error_but_that_of_rounding():
    metrics = score([row([10.1234, 11, 12, 13], [0.012344, 0.01, 0.0, -0.01])])
    assert metrics["mae_v"] == pytest.approx(0.0034 / 4) and metrics["mae_k"] == pytest.approx(0.000004 / 4)
    assert metrics["ade"] < 0.002 and metrics["parse_rate"] == 1.0


def test_errors_by_hand():
    rows = [row(*constant(10.0, 0.01), said=format_pairs(*constant(12.0, 0.03))),
            row(*constant(10.0, 0.01), said=format_pairs(*constant(10.0, 0.01)))]
    metrics = score(rows)
    assert metrics["mae_v"] == pytest.approx(1.0) and metrics["rmse_v"] == pytest.approx(2**0.5)
    assert metrics["mae_k"] == pytest.approx(0.01) and metrics["rmse_k"] == pytest.approx(0.02 / 2**0.5)
    times = np.array(TIMES)
    apart = np.linalg.norm(integrate(times, np.array([[12.0, 0.03]] * 4))[:, :2]
                           - integrate(times, np.array([[10.0, 0.01]] * 4))[:, :2], axis=1)
    assert metrics["ade"] == pytest.approx(apart.mean() / 2) and metrics["fde"] == pytest.approx(apart[-1] / 2)
    half = metrics["horizons"]["0.5"]
    assert (half["n"], half["mae_v"]) == (2, pytest.approx(1.0)) and half["distance"] == pytest.approx(apart[1] / 2)


def test_the_baselines_are_those_of_the_field():
    found = read_row(row(*constant(10.0, 0.01), past_v=(8.0, 9.0, 10.0), past_k=(0.0, 0.0, 0.02)))
    mean = np.array([5.0, -0.001])
    assert guess("train_mean", found, mean).tolist() == [[5.0, -0.001]] * 4
    assert guess("hold_v_zero_k", found, mean).tolist() == [[10.0, 0.0]] * 4
    assert guess("hold_both", found, mean).tolist() == [[10.0, 0.02]] * 4
    assert np.allclose(guess("linear_v_hold_k", found, mean), [[10 + 3 * t, 0.02] for t in TIMES])  # 1 m/s a third
    metrics = score([row(*constant(10.0, 0.01))], [row(*constant(4.0, 0.0)), row(*constant(8.0, 0.002))])
    assert set(metrics["baseline"]) == set(BASELINES)
    assert metrics["baseline"]["train_mean"]["mae_v"] == pytest.approx(4.0)
    assert metrics["baseline"]["train_mean"]["mae_k"] == pytest.approx(0.009)
    assert all(set(MEASURED) <= set(found) for found in metrics["baseline"].values())
    assert score([row(*constant(10.0, 0.01))])["baseline"]["train_mean"] is None


def test_a_failed_answer_of_a_video_only_model_never_beats_an_honest_one():
    train = [row(*constant(4.0, 0.0))]
    failed = row(*constant(10.0, 0.02), said="sorry", past_v=(10.0, 10.0), past_k=(0.02, 0.02), task="video_only")
    honest = score([{**failed, "prediction": format_pairs(*constant(10.5, 0.02))}], train)
    metrics = score([failed], train)
    assert honest["mae_v"] == pytest.approx(0.5) and honest["turn_sign_accuracy"] == 1.0
    assert metrics["mae_v"] == pytest.approx(6.0) and metrics["mae_k"] == pytest.approx(0.02)  # the training mean
    assert metrics["turn_sign_accuracy"] == 0.0 and metrics["readable"]["n"] == 0
    assert score([failed])["mae_v"] == pytest.approx(10.0)  # without training data: a car that stands
    assert metrics["baseline"]["hold_both"]["turn_sign_accuracy"] == 1.0


def test_a_failed_parse_where_the_past_is_told_counts_as_the_last_motion_and_is_not_dropped():
    good = row(*constant(10.0, 0.01), task="past_motion")
    bad = row(*constant(13.0, 0.01), said="no idea", task="past_motion")
    metrics = score([good, bad], [row(*constant(4.0, 0.0))])
    assert (metrics["n"], metrics["parse_rate"], metrics["n_unreadable"]) == (2, 0.5, 1)
    assert metrics["mae_v"] == pytest.approx(1.5)  # 13 true, 10 held, over two rows
    assert metrics["turn_sign_accuracy"] == 0.5  # the held curvature has the right sign, but nobody answered
    assert (metrics["readable"]["n"], metrics["readable"]["mae_v"]) == (1, 0.0)
    partial = score([row([10.0, 11.0, 12.0, 13.0], [0.0] * 4, said="[(10.00, 0.0), (11.00, 0.0)")])
    assert (partial["parse_rate"], partial["n_partial"]) == (0.0, 1) and partial["mae_v"] == pytest.approx(0.75)
    lost = dict(bad, past=None)
    assert score([lost], [row(*constant(4.0, 0.0))])["mae_v"] == pytest.approx(9.0)  # no past: the train mean


def test_speed_is_correlated_within_a_kind_of_road():
    def driven(road, true, said):
        return row(*constant(true, 0.0), said=format_pairs(*constant(said, 0.0)), road=road)

    looks = [driven("town", v, 7.0) for v in (5.0, 9.0)] + [driven("motorway", v, 28.0) for v in (25.0, 31.0)]
    assert score(looks)["speed_correlation"] is None  # the road's own mean and nothing else
    flow = [driven("town", v, v + 2) for v in (5.0, 9.0)] + [driven("motorway", v, v - 9) for v in (25.0, 31.0)]
    rows = [*flow, driven("", 3.0, 30.0)]
    metrics, measure = score(rows), statistic(rows, [])
    assert metrics["speed_correlation"] == pytest.approx(1.0)
    assert measure(np.arange(5))["speed_correlation"] == pytest.approx(1.0)
    assert set(metrics["roads"]) == {"town", "motorway"} and metrics["roads"]["town"]["mae_v"] == pytest.approx(2.0)
    assert score(rows[-1:])["speed_correlation"] is None
    assert metrics["baseline"]["hold_both"]["speed_correlation"] is None


def test_the_sign_of_turns_is_counted_over_turns_alone():
    left, right, straight = constant(10.0, 0.02), constant(10.0, -0.02), constant(10.0, 0.001)
    metrics = score([row(*left), row(*right, said=format_pairs(*left)), row(*left, said=format_pairs(*constant(9, 0))),
                     row(*straight, said=format_pairs(*right))])
    assert metrics["n_turns"] == 3 and metrics["turn_sign_accuracy"] == pytest.approx(1 / 3)
    assert score([row(*straight)])["turn_sign_accuracy"] is None


def test_slow_windows_are_scored_apart():
    metrics = score([row(*constant(0.2, 0.3), said=format_pairs(*constant(0.2, 0.0))), row(*constant(10.0, 0.01))])
    assert (metrics["low_speed"]["n"], metrics["moving"]["n"]) == (1, 1)
    assert metrics["low_speed"]["mae_k"] == pytest.approx(0.3) and metrics["moving"]["mae_k"] == 0.0
    assert metrics["mae_k"] == pytest.approx(0.15)


def test_rows_that_cannot_be_scored_are_named():
    with pytest.raises(UserError, match="no predictions"):
        score([])
    for broken in ({"id": "b", "prediction": ""}, dict(row(*constant(1, 0)), future={"v": [1.0], "k": []}),
                   dict(row(*constant(1, 0)), times=[0.5]), dict(row(*constant(1, 0)), times=[0.1, 0.3, 0.2, 0.4]),
                   dict(row(*constant(1, 0)), times=[-0.1, 0.2, 0.3, 0.4]),
                   dict(row(*constant(1, 0)), future={"v": [1.0, float("nan")], "k": [0.0, 0.0]}),
                   dict(row(*constant(1, 0)), future=[1.0])):
        with pytest.raises(UserError, match="row '[ab]' has no true future"):
            score([broken])
    past = {"times": [-0.5, 0.0], "v": [1.0, 1.0], "k": [0.0, 0.0]}
    for change in ({"v": [], "k": [], "times": []}, {"times": [0.0, 0.0]}, {"k": [0.0, None]}, {"times": [0.0]}):
        with pytest.raises(UserError, match="row 'a' has no past"):
            score([dict(row(*constant(1, 0)), past={**past, **change})])
    for future in ({"v": [1.0]}, {"v": [1.0], "k": [0.0, 0.0]}, {"v": ["x"], "k": [0.0]}):
        with pytest.raises(UserError, match="training record 't' has no future"):
            score([row(*constant(1, 0))], [{"id": "t", "future": future}])
