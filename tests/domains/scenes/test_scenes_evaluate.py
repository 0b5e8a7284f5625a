"""scripts/evaluate_scenes.py: the page and the table, with a tiny model's processor and answers made up."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from overlays.data import records
from overlays.domains.scenes.score import score
from overlays.errors import UserError
from overlays.files import write_json
from overlays.predict import prediction_row

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "evaluate_scenes.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("evaluate_scenes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows(prepared):
    """Predictions that are right for every second question."""
    chosen = list(records.read(prepared[0] / "test.jsonl"))
    return [prediction_row(row, row["answers"][0] if i % 2 else "") for i, row in enumerate(chosen)]


def metrics(rows, prepared, method, **more):
    return score(rows, list(records.read(prepared[0] / "train.jsonl"))) | {
        "method": method, "steps": 100, "checkpoint": "outputs/x", "questions_sha256": "q", "limit": None,
        "train": ["t"], "warning": None} | more


def test_report_shows_frames_top_views_answers_and_other_methods(script, rows, prepared, tmp_path):
    from overlays.model import tiny

    own, base = metrics(rows, prepared, "sin3d_pe"), metrics(rows[:5], prepared, "base")
    processor = tiny.build_processor("qwen3_vl")
    script.SHOWN = 3
    script.write_report(tmp_path / "test", own, [base], rows, prepared[0], processor, 10.0)
    page = (tmp_path / "test" / "report.html").read_text(encoding="utf-8")
    assert page.count('<figure class="plot">') == 3 and len(list((tmp_path / "test" / "views").iterdir())) == 3
    shown = script.chosen_rows(rows)
    assert len({row["question_type"] for row in shown}) == 3
    assert all(row["question"].split("\n")[-1] in page for row in shown)
    for text in ("sin3d_pe", ">base<", "majority answer", "The model gets the coordinates"):
        assert text in page


def test_report_takes_rows_without_what_prepare_adds(script, prepared, tmp_path, capsys, monkeypatch):
    """Text alone, no type, no group, no scene, frames without a place, one picture by name, broken depth, a raster."""
    from overlays.model import tiny

    monkeypatch.setattr(script, "SHOWN", 10)
    folder = tmp_path / "data"
    whole = next(iter(records.read(prepared[0] / "test.jsonl")))
    folder.mkdir()
    for name in ("scene_metadata.npz", "posed_images"):
        (folder / name).symlink_to(prepared[0] / name)
    bare = {key: whole[key] for key in ("id", "image", "conversations", "scene")}
    rows_of = bare["scene"]["frames"]
    chosen = [
        bare, {key: value for key, value in bare.items() if key != "scene"},
        {"conversations": bare["conversations"]}, bare | {"scene": bare["scene"] | {"frames": [None] * len(rows_of)}},
        bare | {"scene": bare["scene"] | {"frames": [None, *rows_of[1:]]}},
        bare | {"image": bare["image"][0], "scene": bare["scene"] | {"frames": rows_of[:1]}},
        bare | {"scene": bare["scene"] | {"frames": [9999] * len(rows_of)}}, bare | {"image": ["x.npy"]},
        bare | {"image": None, "video": "x.mp4", "scene": bare["scene"] | {"frames": [rows_of]}},
        bare | {"video": "x.mp4", "scene": bare["scene"] | {"frames": [*rows_of, rows_of]}},
    ]
    found = [prediction_row(record, "red") for record in chosen]
    own = score(found) | {"method": "base", "steps": 1, "checkpoint": "outputs/x", "warning": None}
    script.write_report(tmp_path / "test", own, [], found, folder, tiny.build_processor("qwen3_vl"), 10.0)
    page = (tmp_path / "test" / "report.html").read_text(encoding="utf-8")
    drawn = {path.stem for path in (tmp_path / "test" / "views").iterdir()}
    assert len(drawn) == page.count('<figure class="plot">') == 4 and page.count("No top view: ") == 1
    assert page.count("<article") == len(chosen) and "questions on held-out data" in page
    script.print_table([own])
    assert "10 questions" in capsys.readouterr().out


def test_table_sets_methods_beside_base_and_the_majority(script, rows, prepared, capsys):
    base = metrics([{**row, "prediction": "?"} for row in rows], prepared, "base")
    script.print_table([base, metrics(rows, prepared, "mlp_pe")])
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()[:4]] == ["method", "majority", "base", "mlp_pe"]
    assert "mlp_pe over base: where +0." in text and "warning" not in text
    script.print_table([base, metrics(rows, prepared, "mlp_pe", steps=200, train=["u"])])
    text = capsys.readouterr().out
    assert "warning: the runs have different numbers of steps" in text and "trained on different data" in text


def test_methods_beside_a_run_are_those_with_the_same_steps_data_and_questions(script, rows, prepared, tmp_path):
    own = metrics(rows, prepared, "sin3d_pe")
    for name, more in {"a": {"method": "mlp_pe"}, "b": {"method": "base"}, "c": {"method": "base", "steps": 5},
                       "d": {"method": "x", "questions_sha256": "r"}, "e": {"method": "sin3d_pe"}}.items():
        write_json(tmp_path / name / "test" / "metrics.json", own | more)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "run.json", {})
    assert [row["method"] for row in script.siblings(tmp_path / "run", own)] == ["base", "mlp_pe"]


def test_mistakes_end_in_a_sentence(script, tmp_path):
    with pytest.raises(UserError, match="run scripts/evaluate_scenes.py --checkpoint"):
        script.read_metrics(tmp_path)
    for name, content in {"list": "[]", "part": '{"em": 1}', "cut": "{", "other": '{"by_type": 3}'}.items():
        (tmp_path / name / "test").mkdir(parents=True)
        (tmp_path / name / "test" / "metrics.json").write_text(content)
        with pytest.raises(UserError, match="metrics.json is (not what this script writes|damaged)"):
            script.read_metrics(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="there is no .*metrics.json"):
        script.read_metrics(tmp_path / "file")
    with pytest.raises(UserError, match="--limit must be at least 1"):
        script.evaluate(argparse.Namespace(limit=0))
    flags = argparse.Namespace(data=tmp_path, split="test", checkpoint=None, limit=None)
    with pytest.raises(UserError, match="there is no train.jsonl"):
        script.evaluate(flags)
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="holds no questions"):
        script.evaluate(flags)
