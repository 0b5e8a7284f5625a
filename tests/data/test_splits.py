"""Splits keep groups together and follow their shares."""

import subprocess
import sys

import pytest

from overlays.data import splits
from overlays.errors import UserError


def rows_of_groups():
    return [{"id": i, "group": f"g{i % 23}"} for i in range(400)]


def test_splits_keep_groups_together_and_come_near_their_shares():
    split = splits.split_groups(rows_of_groups(), {"train": 0.7, "val": 0.1, "test": 0.2}, "group", seed=3)
    groups = {name: {row["group"] for row in rows} for name, rows in split.items()}
    assert not groups["train"] & groups["val"] and not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]
    assert sum(map(len, split.values())) == 400
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs(len(split[name]) / 400 - share) < 0.05
        assert [row["id"] for row in split[name]] == sorted(row["id"] for row in split[name])
    other = splits.split_groups(rows_of_groups(), {"train": 0.7, "val": 0.1, "test": 0.2}, "group", seed=4)
    assert other != split


def test_few_groups_still_reach_every_split():
    rows = [{"group": "big"}] * 90 + [{"group": "a"}] * 5 + [{"group": "b"}] * 5
    split = splits.split_groups(rows, {"train": 0.98, "val": 0.01, "test": 0.01})
    assert all(split.values())


def test_a_split_does_not_depend_on_the_hash_seed():
    code = ("from overlays.data.splits import split_groups as s;"
            "print(s([{'group': 'g%d' % (i % 9)} for i in range(50)], {'a': .5, 'b': .5}))")
    outputs = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
                       capture_output=True, text=True, check=True).stdout for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_splits_refuse_wrong_shares_and_records_without_group():
    with pytest.raises(UserError, match="add up to 1"):
        splits.split_groups([], {"train": 0.5})
    with pytest.raises(UserError, match="no 'group'"):
        splits.split_groups([{"id": "x"}], {"train": 1.0})
