import numpy as np
import pytest

from overlays.domains.satellite.questions import answer, parse_number, question
from overlays.domains.satellite.score import r2, regression_metrics, ridge, score
from overlays.errors import UserError


def rows(truth, said, kind="value"):
    return [{"id": f"c{i}", "target": {"growth": float(t)}, kind: s}
            for i, (t, s) in enumerate(zip(truth, said, strict=True))]


def test_metrics_by_hand():
    found = regression_metrics([1.0, 2.0, 3.0], [1.0, 2.0, 5.0])
    assert found == {"n": 3, "r2": -1.0, "rmse": pytest.approx(2 / 3**0.5, abs=1e-6),
                     "mae": pytest.approx(2 / 3, abs=1e-6), "pearson": pytest.approx(0.960769, abs=1e-6)}


def test_metrics_that_do_not_exist_are_none():
    found = regression_metrics([2.0, 2.0], [1.0, 3.0])
    assert found["r2"] is None and found["pearson"] is None and found["rmse"] == 1
    found = regression_metrics([0.1] * 3, [0.1, 0.2, 0.1])  # their squares about the mean are 1e-34
    assert found["r2"] is None and found["pearson"] is None
    assert regression_metrics([1e6 + 0.1] * 3, [1.0, 2.0, 3.0])["pearson"] is None


@pytest.mark.parametrize("text, value", [
    ("2.56", 2.56), ("about -0.4 percent", -0.4), ("−1,5", -1.5), ("It is 2.", 2.0), ("1.5 (1.5)", 1.5),
    ("between 1 and 2", None), ("many", None), ("", None), (None, None)])
def test_numbers_are_read_from_answers(text, value):
    assert parse_number(text) == value


def test_answers_have_fixed_decimals_and_read_back():
    assert [answer(value) for value in (1.005, -0.001, 12, -2.5)] == ["1.00", "0.00", "12.00", "-2.50"]
    assert parse_number(answer(-1.23456, 3)) == -1.235
    assert "night lights" in question("night_lights")


def test_an_answer_without_number_counts_with_the_training_mean():
    train = rows([1, 3], [0, 0])
    found = score(rows([1, 2, 4], ["1", "none at all", "4.0"], "prediction"), train)
    assert found["parse_rate"] == pytest.approx(2 / 3, abs=1e-6) and found["unparsed"] == ["c1"]
    assert found["r2"] == 1.0  # the training mean is right by chance
    worse = score(rows([1, 3, 4], ["1", "none at all", "4.0"], "prediction"), train)
    assert worse["mae"] == pytest.approx(1 / 3, abs=1e-6) and worse["n"] == 3


def test_the_mean_baseline_is_the_training_mean():
    found = score(rows([1, 2, 3], [1, 2, 3]), rows([2, 4, 6], [0, 0, 0]))
    assert found["baseline"]["mean"]["value"] == 4 and found["baseline"]["mean"]["mae"] == 2
    assert found["r2"] == 1 and found["baseline"]["ridge"] is None


def test_ridge_sees_training_labels_only():
    rng = np.random.default_rng(0)
    inputs, weights = rng.standard_normal((60, 5)), rng.standard_normal(5)
    values = inputs @ weights + 0.01 * rng.standard_normal(60)
    means = {f"t{i}": inputs[i] for i in range(60)}
    made = [{"id": f"t{i}", "target": {"y": float(values[i])}, "value": 0.0} for i in range(60)]
    found = score(made[40:], made[:40], means)
    assert found["baseline"]["ridge"]["r2"] > 0.99 and found["r2"] <= 0
    assert set(found["baseline"]["ridge"]) >= {"n", "r2", "rmse", "mae", "pearson"}
    shuffled = [row | {"target": {"y": float(value)}} for row, value in zip(made[40:], rng.permutation(values[40:]),
                                                                            strict=True)]
    assert score(shuffled, made[:40], means)["baseline"]["ridge"]["r2"] < 0.5


def test_ridge_is_blind_to_the_scale_of_a_channel():
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((40, 3))
    values = inputs @ np.array([1.0, 2.0, -1.0]) + rng.standard_normal(40)
    scaled = inputs * [1, 1000, 0.001]
    assert np.allclose(ridge(inputs, values, inputs)[0], ridge(scaled, values, scaled)[0])
    assert r2(values, values.mean() * np.ones(40)) == pytest.approx(0)


def test_rows_without_one_target_are_refused():
    with pytest.raises(UserError, match="needs one number as its target"):
        score([{"id": "a", "prediction": "1"}])
