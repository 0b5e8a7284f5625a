"""scripts/evaluate_satellite.py: what it writes, and how a user's mistakes end."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from overlays import evaluate as evaluation
from overlays import paths
from overlays.errors import UserError
from overlays.files import sha256, write_json


def evaluate(*words):
    """What metrics.json of the newest satellite run holds."""
    evaluation.main(words, domain="satellite")
    split = words[words.index("--split") + 1] if "--split" in words else "test"
    return json.loads((paths.OUTPUTS / "satellite-sft" / split / "metrics.json").read_text())


@pytest.fixture
def run_folder(tmp_path, prepared, monkeypatch):
    """A run trained on the prepared cities, the newest below outputs."""
    folder = tmp_path / "outputs" / "satellite-sft"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {})
    write_json(folder / "run.json", {"data": {"train": [
        {"name": "satellite_train", "sha256": sha256(prepared[0] / "train.jsonl")}]}})
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(paths, "PREPARED", prepared[0].parent)
    return folder


def model(monkeypatch, regression):
    """Let a stub be loaded whose head, if any, says the truth plus 0.5."""
    from overlays import predict
    from overlays.model import extensions, load

    stub = SimpleNamespace(parameters=lambda: iter([torch.zeros(1)]))
    monkeypatch.setattr(load, "load_for_inference", lambda *_: (stub, None))
    monkeypatch.setattr(extensions, "settings", lambda _: {"regression": regression} if regression else {})
    monkeypatch.setattr(predict, "predict_values", lambda model, processor, records, root, size: [
        {name: value + 0.5 for name, value in record["target"].items()} for record in records])


HEAD = {"names": ["population_growth"], "mode": "vision", "mean": [2.0], "std": [1.0]}


def test_the_head_is_scored_beside_both_baselines(run_folder, prepared, monkeypatch, capsys):
    model(monkeypatch, HEAD)
    found = evaluate()
    assert found["n"] == prepared[1]["counts"]["test"] and found["mae"] == pytest.approx(0.5)
    assert found["rmse"] == pytest.approx(0.5) and found["pearson"] == pytest.approx(1.0)
    for baseline in ("mean", "ridge"):
        assert {"n", "r2", "rmse", "mae", "pearson"} <= set(found["baseline"][baseline])
    assert found["ceiling"] == prepared[1]["ceiling"]["test"] and found["warning"] is None
    rows = [json.loads(line) for line in (run_folder / "test" / "predictions.jsonl").read_text().splitlines()]
    assert rows[0]["value"] == pytest.approx(rows[0]["target"]["population_growth"] + 0.5)
    assert float(rows[0]["prediction"]) == pytest.approx(rows[0]["value"], abs=0.005)
    page = (run_folder / "test" / "report.html").read_text()
    assert page.count("<img") == 2 and "ridge regression" in page and "Largest errors" in page
    assert "ridge" in capsys.readouterr().out


def test_answers_in_words_are_parsed_and_counted(run_folder, prepared, monkeypatch):
    from overlays import predict

    model(monkeypatch, HEAD)

    def answers(model, processor, chosen, root, batch, tokens, out, identity, note, keep=False):
        texts = ["no idea", *(str(record["target"]["population_growth"]) for record in chosen[1:])]
        return [predict.prediction_row(record, text) for record, text in zip(chosen, texts, strict=True)]

    monkeypatch.setattr(predict, "predict", answers)
    found = evaluate("--head", "none", "--split", "val")
    count = prepared[1]["counts"]["val"]
    assert found["parse_rate"] == pytest.approx(1 - 1 / count, abs=1e-6) and len(found["unparsed"]) == 1
    first = found["baseline"]["mean"]["mae"]
    assert 0 < found["mae"] < first and found["method"] == "text"
    assert (run_folder / "val" / "report.html").is_file()


def test_other_training_data_are_warned_of(run_folder, monkeypatch, capsys):
    model(monkeypatch, HEAD)
    write_json(run_folder / "run.json", {"data": {"train": [{"name": "satellite_train", "sha256": "other"}]}})
    found = evaluate()
    assert "may have seen cases" in found["warning"] and "may have seen cases" in capsys.readouterr().err


def test_mistakes_are_one_sentence(run_folder, tmp_path, monkeypatch):
    model(monkeypatch, HEAD | {"names": ["night_lights"]})
    with pytest.raises(UserError, match="predicts night_lights, but the records ask for population_growth"):
        evaluate()
    with pytest.raises(UserError, match="there is no train.jsonl"):
        evaluate("--data", str(tmp_path))
    with pytest.raises(UserError, match="no checkpoint folder"):
        evaluate("--checkpoint", str(tmp_path / "none"))
    for flag in ("--batch_size", "--max_new_tokens"):
        with pytest.raises(UserError, match="must be at least 1"):
            evaluate(flag, "0")


def test_damaged_or_foreign_data_are_one_sentence(run_folder, prepared, tmp_path, monkeypatch):
    model(monkeypatch, HEAD)
    data = shutil.copytree(prepared[0], tmp_path / "data")
    flags = ("--data", str(data))
    for size in (1000, 0):
        with (data / "means.npz").open("r+b") as file:
            file.truncate(size)
        with pytest.raises(UserError, match="means.npz cannot be read"):
            evaluate(*flags)
    np.savez(data / "means.npz", other=np.zeros(64))
    with pytest.raises(UserError, match="means.npz cannot be read or lacks a record"):
        evaluate(*flags)
    for text, words in (("{", "metadata.json is damaged"), ('{"domain": "cuprite"}', "holds other data"),
                        ('{"family": "gui"}', "holds other data"), ("[]", "metadata.json is damaged")):
        (data / "metadata.json").write_text(text)
        with pytest.raises(UserError, match=words):
            evaluate(*flags)
