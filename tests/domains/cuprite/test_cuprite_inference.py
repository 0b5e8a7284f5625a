"""scripts/inference_cuprite.py: what it asks, what it writes, and how a user's mistakes end."""

import io
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from overlays import evaluate as evaluation
from overlays import paths
from overlays.domains.cuprite import ask
from overlays.domains.cuprite import questions as q
from overlays.errors import UserError
from overlays.files import sha256, write_json, write_jsonl
from overlays.model import load
from tests.commands import run_script

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "inference_cuprite.py"


@pytest.fixture
def prepared(tmp_path):
    """A prepared folder of 8 tiles in each of the splits train and test."""
    folder = tmp_path / "prepared"
    (folder / "tiles").mkdir(parents=True)
    for split in ("train", "test"):
        rows = []
        for number in range(8):
            tile = f"{split}{number}"
            names = [f"tiles/{tile}_{composite}.png" for composite in q.COMPOSITES]
            for name in names:
                Image.new("RGB", (32, 32), (30 * number, 80, 120)).save(folder / name)
            shares = {"alunite": 0.1 * number} | ({"calcite": 0.2} if number % 2 else {})
            rows += q.tile_records(tile, names, shares, "en", random.Random(number), split)
        write_jsonl(folder / f"{split}.jsonl", rows)
    write_json(folder / "metadata.json", {"domain": "cuprite", "parameters": {"alteration_threshold": 0.25,
                                                                              "min_share": 0.07}})
    return folder


@pytest.fixture
def run_folder(tmp_path, prepared):
    folder = tmp_path / "outputs" / "cuprite"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {})
    write_json(folder / "run.json", {"base_model": "some/base", "data": {"train": [
        {"name": "cuprite_train", "sha256": sha256(prepared / "train.jsonl")}]}})
    Image.new("RGB", (80, 60), "white").save(folder / "training_loss.png")
    return folder


@pytest.fixture
def asked(monkeypatch, tiny_model_dir):
    """The model replaced by one that says the truth where it is known; what is asked is kept."""
    seen = []

    def answer(model, processor, record, media_root, max_new_tokens):
        seen.append(record | {"files": [Path(media_root) / name for name in record["image"]]})
        return "calcite"

    def answer_batch(model, processor, batch, max_new_tokens):
        return ["Yes. Alteration minerals cover about 40 % of this tile."] * len(batch["input_ids"])

    processor = load.load_processor(tiny_model_dir("qwen3_vl"))
    monkeypatch.setattr(load, "load_for_inference", lambda *_: (torch.nn.Linear(1, 1), processor))
    monkeypatch.setattr("overlays.predict.answer", answer)
    monkeypatch.setattr("overlays.predict.answer_batch", answer_batch)
    return seen


@pytest.fixture
def flags(run_folder, prepared):
    def parse(*words: str):
        return ask.parse(["--checkpoint", str(run_folder), "--data", str(prepared), *words])
    return parse


def evaluate(run_folder, prepared, *words):
    evaluation.main(["--checkpoint", str(run_folder), "--data", str(prepared), *words], domain="cuprite")
    return json.loads((run_folder / "test" / "metrics.json").read_text(encoding="utf-8"))


def test_the_test_split_is_scored_and_reported(asked, run_folder, prepared, capsys):
    metrics = evaluate(run_folder, prepared)
    folder = run_folder / "test"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.jsonl", "report.html"]
    assert metrics["n"] == 24 and metrics["warning"] is None and metrics["baseline"]["n"] == 24
    assert (metrics["split"], metrics["data"], metrics["checkpoint"]) == ("test", str(prepared), str(run_folder))
    assert metrics["alteration_accuracy"] == pytest.approx(6 / 8)
    low, high = metrics["interval"]["alteration_accuracy"]
    assert low < 6 / 8 < high and metrics["n_groups"] == 8
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<article") == 8 and "some/base" in page and "Loss during training" in page
    assert "Mineral labels" not in page  # no such picture in this prepared folder
    out = capsys.readouterr().out
    assert "alteration accuracy" in out and "majority answer" in out and str(folder / "report.html") in out


def test_a_run_of_other_data_is_warned_about(asked, run_folder, prepared, capsys):
    with (prepared / "train.jsonl").open("a", encoding="utf-8") as out:
        out.write("\n")
    metrics = evaluate(run_folder, prepared, "--limit", "3")
    assert "warning: this run was trained on another file" in capsys.readouterr().err
    assert metrics["warning"] in (run_folder / "test" / "report.html").read_text(encoding="utf-8")


def test_a_tile_brings_its_other_composites(prepared, capsys):
    paths = ask.with_siblings([prepared / "tiles" / "test1_clay.png"])
    assert [path.name for path in paths] == ["test1_clay.png", "test1_iron.png", "test1_natural.png"]
    assert "all composites of test1" in capsys.readouterr().out
    (prepared / "tiles" / "test1_iron.png").unlink()
    assert ask.with_siblings([prepared / "tiles" / "test1_clay.png"]) == [prepared / "tiles" / "test1_clay.png"]


def test_default_questions_use_the_limits_of_the_data(flags, asked, prepared, capsys):
    options = flags("--image", str(prepared / "tiles" / "test1_clay.png"))
    ask.ask_all(ask.Answerer(options), options.image, options.question, options.language)
    values = [record["conversations"][0]["value"] for record in asked]
    assert len(values) == 3 and "25 %" in values[0] and "7 %" in values[1]
    assert all(value.startswith("<image>\nOne tile of a hyperspectral scene: clay") for value in values)
    assert asked[0]["files"] == options.image and "calcite" in capsys.readouterr().out


def test_images_of_different_folders_and_an_own_question(flags, asked, prepared, tmp_path):
    other = tmp_path / "elsewhere.png"
    Image.new("RGB", (32, 32)).save(other)
    options = flags("--image", str(prepared / "tiles" / "test1_clay.png"), str(other), "--question", "Any alunite?")
    ask.ask_all(ask.Answerer(options), options.image, options.question, options.language)
    assert [path.resolve() for path in asked[0]["files"]] == [path.resolve() for path in options.image]
    assert asked[0]["conversations"][0]["value"].endswith("Any alunite?") and len(asked) == 1


def test_a_window_of_a_cube_is_rendered_as_in_training(flags, asked, run_folder, monkeypatch):
    calls = []

    def render_window(cube, row, col, metadata, **options):
        assert options == {"wavelengths": None, "scale": 20000, "mat_variable": "Y", "mat_shape": (9, 8)}
        calls.append((cube.name, row, col, metadata))
        return {name: Image.new("RGB", (16, 16)) for name in ("natural", "clay")}

    monkeypatch.setattr("overlays.domains.cuprite.prepare.render_window", render_window)
    write_json(run_folder / "metadata.json", {"parameters": {"min_share": 0.33}})
    options = flags("--cube", "scene.mat", "--window", "5", "7", "--scale", "20000", "--mat-variable", "Y",
                    "--mat-shape", "9,8")
    ask.ask_about_window(ask.Answerer(options), options)
    assert calls == [("scene.mat", 5, 7, {"parameters": {"min_share": 0.33}})]  # the run's own copy comes first
    value = asked[1]["conversations"][0]["value"]
    assert value.count("<image>") == 2 and value.index("natural colour") < value.index("clay") and "33 %" in value


def test_the_dialogue_survives_mistakes_and_ends_with_its_input(flags, asked, prepared, monkeypatch, capsys):
    tile = prepared / "tiles" / "test1_clay.png"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"\nlost.png\n{tile}\nAny calcite?\n\nimage\n{tile}\n"))
    options = flags()
    ask.dialogue(ask.Answerer(options), options)
    out = capsys.readouterr().out
    assert "error: there is no image file lost.png" in out
    assert asked[0]["conversations"][0]["value"].endswith("Any calcite?") and len(asked) == 4
    assert out.endswith("\n")


def test_quit_ends_the_dialogue(flags, asked, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("quit\nnever.png\n"))
    options = flags()
    ask.dialogue(ask.Answerer(options), options)
    assert not asked


@pytest.mark.parametrize(("words", "sentence"), [
    (["--cube", "a.hdr", "--window", "1", "2", "--image", "a.png"], "exclude each other"),
    (["--cube", "a.hdr"], "--window"), (["--window", "1", "2"], "--cube"),
    (["--mat-shape", "9,8"], "--mat-shape belong to --cube")])
def test_flags_that_do_not_fit_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        ask.parse(words)
    with pytest.raises(UserError, match="unrecognized arguments: --image"):
        evaluation.main(["--image", "a.png"], domain="cuprite")


def test_without_a_run_the_launcher_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "OUTPUTS", tmp_path / "outputs")
    with pytest.raises(UserError, match="train_cuprite_single_gpu.sh"):
        ask.Answerer(ask.parse([]))


def test_without_prepared_data_the_command_is_named(run_folder, tmp_path):
    with pytest.raises(UserError, match="overlays.prepare cuprite"):
        evaluate(run_folder, tmp_path)


def test_a_missing_image_ends_in_one_sentence():
    done = run_script("inference_cuprite.py", "--image", "lost.png")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: there is no image file lost.png"
