"""scripts/evaluate_scenes.py: the page and the table, with a tiny model's processor and answers made up."""

import pytest

from overlays import evaluate, report
from overlays.data import records
from overlays.domains.scenes import compare
from overlays.domains.scenes import domain as scenes
from overlays.domains.scenes.domain import DOMAIN
from overlays.domains.scenes.score import score
from overlays.errors import UserError
from overlays.files import write_json
from overlays.predict import prediction_row


@pytest.fixture
def rows(prepared):
    """Predictions that are right for every second question."""
    chosen = list(records.read(prepared[0] / "test.jsonl"))
    return [prediction_row(row, row["answers"][0] if i % 2 else "") for i, row in enumerate(chosen)]


def metrics(rows, prepared, method, **more):
    return score(rows, list(records.read(prepared[0] / "train.jsonl"))) | {
        "method": method, "steps": 100, "checkpoint": "outputs/x", "split": "test", "questions_sha256": "q",
        "limit": None, "train": ["t"], "warning": None} | more


@pytest.fixture
def sections(monkeypatch, tmp_path):
    """Function: predictions, metrics, data -> the sections of the report as one page."""
    from overlays.model import load, tiny

    processor = tiny.build_processor("qwen3_vl")
    monkeypatch.setattr(load, "load_processor", lambda _: processor)

    def page(rows, found, data):
        shown = report.Section("", [report.Paragraph(" ".join(DOMAIN.notes(found)))])
        return report.page("t", "l", [shown, *DOMAIN.sections(rows, found, data, tmp_path / "test")])
    return page


def test_report_shows_frames_top_views_and_answers(sections, rows, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "SHOWN", 3)
    page = sections(rows, metrics(rows, prepared, "sin3d_pe"), prepared[0])
    assert page.count('<figure class="plot">') == 3 and len(list((tmp_path / "test" / "views").iterdir())) == 3
    shown = scenes.shown_rows(rows)
    assert len({row["question_type"] for row in shown}) == 3
    assert all(row["question"].split("\n")[-1] in page for row in shown)
    for text in ("sin3d_pe", "majority answer", "The model gets the coordinates"):
        assert text in page


def test_report_takes_rows_without_what_prepare_adds(sections, prepared, tmp_path, capsys, monkeypatch):
    """Text alone, no type, no group, no scene, frames without a place, one picture by name, broken depth, a raster."""
    folder = tmp_path / "data"
    whole = next(iter(records.read(prepared[0] / "test.jsonl")))
    folder.mkdir()
    monkeypatch.setenv("OVERLAYS_ALLOW_SYMLINKS", "1")
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
    scored = score(found) | {"method": "base", "steps": 1, "checkpoint": "outputs/x", "warning": None}
    page = sections(found, scored, folder)
    drawn = {path.stem for path in (tmp_path / "test" / "views").iterdir()}
    assert len(drawn) == page.count('<figure class="plot">') == 4 and page.count("No top view: ") == 1
    assert page.count("<article") == len(chosen)
    assert "10 questions" in "\n".join(compare.table([scored]))


def test_table_sets_methods_beside_base_and_the_majority(rows, prepared):
    base = metrics([{**row, "prediction": "?"} for row in rows], prepared, "base")
    text = "\n".join(compare.table([base, metrics(rows, prepared, "mlp_pe")]))
    assert [line.split()[0] for line in text.splitlines()[:4]] == ["method", "majority", "base", "mlp_pe"]
    assert "mlp_pe over base: where +0." in text and "warning" not in text
    text = "\n".join(compare.table([base, metrics(rows, prepared, "mlp_pe", steps=200, train=["u"])]))
    assert "warning: the runs have different numbers of steps" in text and "trained on different data" in text


def test_methods_beside_a_run_are_those_with_the_same_steps_data_and_questions(rows, prepared, tmp_path):
    scored = metrics(rows, prepared, "sin3d_pe", checkpoint=str(tmp_path / "run"))
    for name, more in {"a": {"method": "mlp_pe"}, "b": {"method": "base"}, "c": {"method": "base", "steps": 5},
                       "d": {"method": "x", "questions_sha256": "r"}, "e": {"method": "sin3d_pe"}}.items():
        write_json(tmp_path / name / "test" / "metrics.json", scored | more)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "run.json", {})
    assert [row["method"] for row in compare.siblings(scored)] == ["base", "mlp_pe"]
    assert list(DOMAIN.columns(scored)) == ["majority answer", "base", "mlp_pe"]


def test_the_table_of_scored_runs_is_printed_for_any_split(rows, prepared, tmp_path, capsys):
    write_json(tmp_path / "a" / "val" / "metrics.json", metrics(rows, prepared, "base"))
    evaluate.main(["--table", str(tmp_path / "a"), "--split", "val"], domain="scenes")
    assert "\nbase " in capsys.readouterr().out


def test_mistakes_end_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="run scripts/evaluate_scenes.py --checkpoint"):
        compare.read_metrics(tmp_path / "test")
    for name, content in {"list": "[]", "part": '{"em": 1}', "cut": "{", "other": '{"by_type": 3}'}.items():
        (tmp_path / name / "test").mkdir(parents=True)
        (tmp_path / name / "test" / "metrics.json").write_text(content)
        with pytest.raises(UserError, match="metrics.json (does not hold the metrics|is damaged)"):
            compare.read_metrics(tmp_path / name / "test")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="there is no .*metrics.json"):
        evaluate.main(["--table", str(tmp_path / "file")], domain="scenes")
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", {})
    words = ["--checkpoint", str(tmp_path / "run"), "--data", str(tmp_path)]
    with pytest.raises(UserError, match="--limit: must be at least 1"):
        evaluate.main([*words, "--limit", "0"], domain="scenes")
    with pytest.raises(UserError, match="there is no train.jsonl"):
        evaluate.main(words, domain="scenes")
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="holds no records"):
        evaluate.main(words, domain="scenes")
