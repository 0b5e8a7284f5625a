"""An evaluation asks what it has not asked before, and only that."""

import argparse

import pytest
import torch
from PIL import Image

from overlays import evaluate, predict, report
from overlays.domains.base import Evaluation
from overlays.domains.gui import answered, personal
from overlays.domains.gui.domain import DOMAIN
from overlays.domains.gui.score import score
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.predict import prediction_row


@pytest.fixture
def asked(monkeypatch):
    """Ids that a model was asked, in order; asking for the id "kill" ends the run."""
    from overlays.model import load

    found = []
    image_processor = argparse.Namespace(size={"shortest_edge": 1, "longest_edge": 1}, patch_size=16, merge_size=2)

    def answer(model, processor, chosen, media_root, batch_size, tokens, out_path, identity, note):
        if any(record["id"] == "kill" for record in chosen):
            raise KeyboardInterrupt
        found.extend(record["id"] for record in chosen)
        rows = [prediction_row(record, "[5, 5]") for record in chosen]
        write_jsonl(out_path, rows)
        return rows

    monkeypatch.setattr(predict, "predict", answer)
    processor = argparse.Namespace(image_processor=image_processor)
    model = argparse.Namespace(parameters=lambda: iter([torch.zeros(1)]))
    monkeypatch.setattr(load, "load_for_inference", lambda *_: (model, processor))
    return found


def evaluation_of(chosen, root, out, personal=None):
    flags = argparse.Namespace(base_model=None, min_pixels=None, max_pixels=None, batch_size=2, max_new_tokens=8,
                               personal=personal)
    return Evaluation("checkpoint", root, root, "test", chosen, [], root, out, flags)


def record(name, user=1, text="open it"):
    return {"id": name, "user": user, "episode": "2024/01/02", "image": "a.png", "grid": [5, 5], "conversations": [
        {"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "[5, 5]"}]}


def test_only_what_is_new_or_changed_is_asked(asked, tmp_path, capsys, monkeypatch):
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")

    def answers(chosen, identity="model"):
        asked.clear()
        monkeypatch.setattr(predict, "checkpoint_identity", lambda *_: identity)
        rows = answered.answer_missing(evaluation_of(chosen, tmp_path, tmp_path / "out"))
        assert [row["id"] for row in rows] == [row["id"] for row in chosen]
        return list(asked)

    first = [record("a", text="打开\u2028设置"), record("b", 2)]
    assert answers(first) == ["a", "b"] and answers(first) == []
    with pytest.raises(KeyboardInterrupt):  # what is whole by then is kept, whoever is asked for next
        answers([record("c", 3), record("kill", 4)])
    assert answers([*first, record("c", 3), record("d", "anna")]) == ["d"]
    assert answers([record("a", text="close it"), record("b", 2)]) == ["a"]
    file = tmp_path / "out" / "predictions.jsonl"
    file.rename(tmp_path / "out" / "user_2.new.jsonl")  # as a kill leaves it before the answers are put together
    assert answers([record("b", 2)]) == [] and file.is_file()
    file.write_text(file.read_text()[:-30])  # cuts the last row, that of "a"
    assert answers([record("b", 2), record("c", 3)]) == [] and "1 damaged line of" in capsys.readouterr().out
    Image.new("RGB", (60, 60), "red").save(tmp_path / "a.png")
    assert answers([record("b", 2)]) == ["b"]
    assert answers([record("b", 2)], "another model") == ["b"]


def test_personal_folds_of_changed_records_are_left_out_and_what_is_missing_is_told(tmp_path, capsys):
    rows = [record("a"), record("b"), record("c")]
    for fold, own in enumerate((rows[:2], rows[2:])):
        folder = tmp_path / f"user_1/episode_fold_{fold}"
        write_jsonl(folder / personal.ROWS, [prediction_row(row, "[5, 5]") for row in own])
        write_json(folder / personal.DONE, {"identity": {"fold": fold}, "n": len(own)})
    write_json(tmp_path / personal.JOB, {"checkpoint": str(tmp_path / "global"), "folds": {
        f"user_1/episode_fold_{fold}": {"fold": fold} for fold in range(3)}})
    now = [record("a"), record("b", text="close it"), record("c"), record("z", 7)]
    kinds = answered.current_folds(tmp_path, now)
    assert [row["id"] for row in kinds["episode"]] == ["a", "c"]
    said = capsys.readouterr().out
    assert "1 folds are not finished: user_1/episode_fold_2" in said
    assert "2 of 4 taps are in no finished fold by episode: user 1, 7" in said

    assert answered.global_rows(tmp_path / "global" / "test", kinds["episode"]) == []
    write_jsonl(tmp_path / "global/test/predictions.jsonl",
                [prediction_row(row, "[9, 9]") | {"answered_by": "m", "asked": "x"} for row in rows])
    assert [row["prediction"] for row in answered.global_rows(tmp_path / "global" / "test", kinds["episode"])] == [
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
