"""Both ways of asking are about the same clips, and their figures stand side by side."""

import json

import pytest

from overlays.domains.driving.compare import MEASURED, prepare_past, table
from overlays.domains.driving.prepare import Settings, prepare
from overlays.errors import UserError
from overlays.files import write_json


def parameters(folder):
    return json.loads((folder / "metadata.json").read_text())["parameters"]


def test_past_motion_is_prepared_from_the_same_clips_and_anew_when_they_change(sample_clips, tmp_path):
    video, past = tmp_path / "driving", tmp_path / "driving_past"
    for pairs in (2, 3):
        asked = Settings(raw=sample_clips, output=video, workers=1, limit=2, pairs=pairs, stride=15)
        prepare(asked)
        prepare_past(video, past, 1)
        assert parameters(past) == {**parameters(video), "past_motion": True}
        said = {folder: (folder / "train.jsonl").read_text() for folder in (video, past)}
        assert said[past].count("The last second was") == said[past].count("\n") == said[video].count("\n") > 0
    before = (past / "metadata.json").stat().st_mtime_ns
    prepare_past(video, past, 1)
    assert (past / "metadata.json").stat().st_mtime_ns == before
    metadata = json.loads((video / "metadata.json").read_text())
    write_json(video / "metadata.json", {**metadata, "counts": {**metadata["counts"], "train": 1}, "fps": [29]})
    with pytest.raises(UserError, match="differ in fps, train, so their scores cannot be compared"):
        prepare_past(video, past, 1)
    with pytest.raises(UserError, match="was prepared with --past-motion"):
        prepare_past(past, tmp_path / "other", 1)


def test_figures_that_are_not_there_are_a_dash(tmp_path):
    figures = {**dict.fromkeys(MEASURED, 0.5), "turn_sign_accuracy": None}
    for name in ("video", "past"):
        write_json(tmp_path / name / "test" / "metrics.json", {
            **figures, "baseline": {"train_mean": None, "hold_both": figures}})
    head, *rows = table(tmp_path).splitlines()
    assert head.split() == ["mae_v", "mae_k", "rmse_v", "rmse_k", "ade", "fde", "turn", "sign", "parse_rate"]
    assert [row[:24].strip() for row in rows] == ["video only", "video and past motion", "hold both"]
    assert all(row[24:].split() == ["0.50000"] * 6 + ["-", "0.50000"] for row in rows)
