"""Targets are fitted to the training records and scored by the definitions of R2 and MAE."""

import math

import numpy as np
import pytest

from overlays.data import targets
from overlays.errors import UserError


def test_scores_are_those_of_the_definition():
    true = np.array([[1.0, 5.0], [2.0, math.nan], [4.0, 7.0]])
    found = targets.scores(np.array([[1.0, 5.0], [3.0, 1.0], [4.0, 6.0]]), true, ("a", "b"))
    assert found["r2_a"] == pytest.approx(1 - 1 / (16 / 9 + 1 / 9 + 25 / 9))
    assert found["r2_b"] == pytest.approx(1 - 1 / 2) and found["mae_b"] == pytest.approx(0.5)
    assert found["r2"] == pytest.approx((found["r2_a"] + found["r2_b"]) / 2)
    assert targets.scores(np.zeros((2, 1)), np.full((2, 1), math.nan), ("a",)) == {}
    assert targets.scores(np.full((3, 1), 0.2), np.full((3, 1), 0.1), ("a",)).keys() == {"mae"}


def test_targets_that_cannot_be_learned_are_refused():
    with pytest.raises(UserError, match="has a target"):
        targets.fit_targets([{"id": "a"}])
    with pytest.raises(UserError, match="growth; there are other"):
        targets.fit_targets([{"target": {"other": 1.0}}], ["growth"])
    with pytest.raises(UserError, match="is 2 in every"):
        targets.fit_targets([{"target": {"a": 2.0}}, {"target": {"a": 2}}])
    with pytest.raises(UserError, match="target a is 0.1 in every"):  # their deviation is 1e-17
        targets.fit_targets([{"target": {"a": 0.1}}] * 50)
    fitted, without = targets.fit_targets([{"target": {"b": 1, "a": 2}}, {}, {"target": {"b": 3, "a": 3}}])
    assert fitted == {"names": ["a", "b"], "mean": [2.5, 2.0], "std": [0.5, 1.0]} and without == 1
