"""The package as a library, and its console command."""

import pickle

import pytest
from PIL import Image

import overlays
from overlays import cli
from overlays.errors import UserError
from overlays.files import write_jsonl


def test_a_model_is_trained_loaded_and_asked_from_python(tiny_model_dir, tmp_path, capsys):
    rows = []
    for number, name in enumerate(("red", "green", "blue", "red")):
        Image.new("RGB", (64, 64), name).save(tmp_path / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": [
            {"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": name}]})
    write_jsonl(tmp_path / "train.jsonl", rows)
    run = overlays.train(
        {"model_name_or_path": tiny_model_dir("qwen3_vl"), "dataset_use": tmp_path / "train.jsonl",
         "tune_mm_mlp": True, "report_to": "none", "max_steps": 9},
        output_dir=tmp_path / "run", max_steps=2, per_device_train_batch_size=2, engine="native")
    assert run == tmp_path / "run" and (run / "run.json").is_file()
    model, processor = overlays.load(run)
    answers = overlays.predict(model, processor, rows, tmp_path, max_new_tokens=3)
    assert [row["id"] for row in answers] == ["0", "1", "2", "3"]
    assert all(isinstance(row["prediction"], str) and row["answer"] for row in answers)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"{n}.png" for n in range(4)), "run", "train.jsonl"]
    assert pickle.dumps(model)


def test_data_are_prepared_from_python_with_paths_as_text(tmp_path):
    from tests.domains.hello.domain import HELLO

    raw, output = HELLO.sample(tmp_path / "raw"), tmp_path / "data"
    metadata = overlays.prepare("tests.domains.hello.domain:HELLO", raw=str(raw), output=str(output))
    assert metadata["domain"] == "hello" and (output / "train.jsonl").is_file()
    with pytest.raises(TypeError, match="no_such_setting"):
        overlays.prepare(HELLO, no_such_setting=1)


def test_a_wrong_flag_of_the_library_is_one_sentence():
    with pytest.raises(UserError, match="did you mean --learning_rate"):
        overlays.train(lerning_rate=1)


def test_names_of_the_package_are_its_entries():
    from overlays import evaluate, predict, prepare, train

    assert all(map(callable, (evaluate, predict, prepare, train))) and evaluate is overlays.evaluate
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        overlays.evalute  # noqa: B018


def test_the_command_lists_its_commands_and_runs_them(capsys, monkeypatch):
    cli.main([])
    out = capsys.readouterr().out
    assert all(word in out for word in cli.COMMANDS)
    cli.main(["--version"])
    assert capsys.readouterr().out == f"qwen-vl-overlays {overlays.__version__}\n"
    with pytest.raises(UserError, match="there is no command 'trane'"):
        cli.main(["trane"])
    monkeypatch.setattr("sys.argv", ["qwen-vl-overlays"])
    with pytest.raises(SystemExit) as end:
        cli.main(["check", "--help"])
    assert not end.value.code and "--dataset-use" in capsys.readouterr().out
