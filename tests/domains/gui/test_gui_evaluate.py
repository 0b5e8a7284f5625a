"""An evaluation asks what it has not asked before, and only that."""

import argparse

import pytest
import torch
from PIL import Image

from overlays import evaluate, predict, report
from overlays.domains.base import Evaluation
from overlays.domains.gui import personal
from overlays.domains.gui.domain import DOMAIN
from overlays.domains.gui.score import score
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.predict import last_turns, prediction_row


@pytest.fixture
def asked(monkeypatch):
    """Questions that a model was asked, in order; "kill" ends the run."""
    found = []

    def answer_batch(model, processor, questions, tokens):
        if "kill" in questions:
            raise KeyboardInterrupt
        found.extend(questions)
        return ["[5, 5]"] * len(questions)

    def prompt_loader(chosen, batches, *_):
        return ([last_turns(chosen[row])[0] for row in rows] for rows in batches)

    monkeypatch.setattr(predict, "answer_batch", answer_batch)
    monkeypatch.setattr(predict, "prompt_loader", prompt_loader)
    monkeypatch.setattr(predict, "thinking_of", lambda processor: None)
    monkeypatch.setattr(predict, "max_depth_m", lambda model: None)
    return found


def evaluation_of(chosen, root, out, personal=None):
    flags = argparse.Namespace(base_model=None, min_pixels=None, max_pixels=None, batch_size=2, max_new_tokens=8,
                               personal=personal)
    return Evaluation("checkpoint", root, root, "test", chosen, [], root, out, flags)


def record(name, user=1, text="open it"):
    return {"id": name, "user": user, "episode": "2024/01/02", "image": "a.png", "grid": [5, 5], "conversations": [
        {"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "[5, 5]"}]}


def test_only_what_is_new_or_changed_is_asked(asked, tmp_path, monkeypatch):
    """An evaluation that is interrupted, repeated or asked for more users goes on where it was."""
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")

    def answers(*chosen, identity="model", longest=1):
        asked.clear()
        monkeypatch.setattr(predict, "checkpoint_identity", lambda *_: identity)
        evaluation = evaluation_of(chosen, tmp_path, tmp_path / "out")
        image_processor = argparse.Namespace(size={"shortest_edge": 1, "longest_edge": longest}, patch_size=16,
                                             merge_size=2)
        evaluation.loaded = (argparse.Namespace(parameters=lambda: iter([torch.zeros(1)])),
                             argparse.Namespace(image_processor=image_processor))
        rows, _ = DOMAIN.predict(evaluation)
        assert [row["id"] for row in rows] == [row["id"] for row in chosen]
        return list(asked)

    a, b = record("a", text="打开\u2028设置"), record("b", 2, text="b")
    assert answers(a, b) == ["b", "打开\u2028设置"] and answers(a, b) == []
    c, d = record("c", 3, text="c"), record("d", "anna", text="d d d")
    with pytest.raises(KeyboardInterrupt):  # what is answered by then is kept, whoever is asked for next
        answers(c, record("x", 4, text="c"), record("k", 5, text="kill"))
    assert answers(a, b, c, d) == ["d d d"]
    assert answers(record("a", text="close it"), b) == ["close it"]
    assert answers(b, identity="another model") == ["b"] and answers(b, longest=2) == ["b"]
    Image.new("RGB", (60, 60), "red").save(tmp_path / "a.png")
    assert answers(b, longest=2) == ["b"]


def test_personal_folds_of_changed_records_are_left_out_and_what_is_missing_is_told(tmp_path, capsys):
    rows = [record("a"), record("b"), record("c")]
    for fold, own in enumerate((rows[:2], rows[2:])):
        folder = tmp_path / f"user_1/episode_fold_{fold}"
        write_jsonl(folder / personal.ROWS, [prediction_row(row, "[5, 5]") for row in own])
        write_json(folder / personal.DONE, {"identity": {"fold": fold}, "n": len(own)})
    write_json(tmp_path / personal.JOB, {"checkpoint": str(tmp_path / "global"), "folds": {
        f"user_1/episode_fold_{fold}": {"fold": fold} for fold in range(3)}})
    now = [record("a"), record("b", text="close it"), record("c"), record("z", 7)]
    kinds = personal.current_folds(tmp_path, now)
    assert [row["id"] for row in kinds["episode"]] == ["a", "c"]
    said = capsys.readouterr().err
    assert "1 folds are not finished: user_1/episode_fold_2" in said
    assert "2 of 4 taps are in no finished fold by episode: user 1, 7" in said

    assert personal.global_rows(tmp_path / "global" / "test", kinds["episode"]) == []
    write_jsonl(tmp_path / "global/test/predictions.jsonl",
                [prediction_row(row, "[9, 9]") | {"answered_by": "m", "asked": "x"} for row in rows])
    assert [row["prediction"] for row in personal.global_rows(tmp_path / "global" / "test", kinds["episode"])] == [
        "[9, 9]"] * 2
    evaluation = evaluation_of(now, tmp_path, tmp_path / "val", tmp_path)
    evaluation.checkpoint = tmp_path / "global"
    found, facts = DOMAIN.predict(evaluation)
    assert [row["id"] for row in found] == ["a", "c"] and (tmp_path / "val" / "predictions.jsonl").is_file()
    assert list(facts["stages"]) == ["global", "personal, folds by episode"] and facts["gain"]["click_accuracy"] == 0


def test_the_report_takes_episodes_of_any_name(tmp_path):
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    rows = [prediction_row(record("1-2024/01/02-000"), "[9, 9]")]
    page = report.page("t", "l", DOMAIN.sections(rows, score(rows, rows), tmp_path, tmp_path / "out"))
    assert "2024/01/02" in page and page.count("<img") == 2


def test_personal_folds_name_their_own_model(tmp_path):
    for words, sentence in ((["--checkpoint", str(tmp_path)], "exclude each other"),
                            (["--compare-base"], "does not go with --personal"), ([], "holds no finished fold")):
        with pytest.raises(UserError, match=sentence):
            evaluate.main(["--personal", str(tmp_path), *words], domain="gui")
