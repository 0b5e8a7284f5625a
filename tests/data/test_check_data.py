"""scripts/check_data.py: every bad row printed, counts, and an exit status a script can use."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from overlays import check
from overlays.data import chat, media
from overlays.errors import UserError
from overlays.model import load
from tests.commands import run_script


def command(*arguments):
    return run_script("check_data.py", *arguments)


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:4000])
    return tmp_path


def row(name, image="a.png", answer="B"):
    return json.dumps({"id": name, "image": image, "task": "ask", "conversations": [
        {"from": "human", "value": "<image>\nA?"}, {"from": "gpt", "value": answer}]})


def test_sound_data_is_counted_and_ends_in_0(folder):
    (folder / "good.jsonl").write_text(row("x") + "\n" + row("y") + "\n")
    done = command("--dataset_use", folder / "good.jsonl")
    assert done.returncode == 0, done.stderr
    assert "2 records, 0 bad" in done.stdout and "by task: ask 2" in done.stdout


def test_with_a_model_long_samples_are_counted(folder, tiny_model_dir, capsys):
    (folder / "good.jsonl").write_text(row("x") + "\n" + row("y", answer="long " * 300) + "\n")
    check.main(["--dataset_use", str(folder / "good.jsonl"), "--model_max_length", "200",
                "--model_name_or_path", str(tiny_model_dir("qwen3_vl"))])
    printed = capsys.readouterr().out
    assert "1 records above 200" in printed and "row 2: " in printed


def test_tokens_of_a_clip_are_those_of_the_recipe(folder, tiny_model_dir, capsys):
    clip = folder / "clip"
    clip.mkdir()
    for number in range(30):
        Image.new("RGB", (96, 64)).save(clip / f"{number:02}.png")
    record = {"id": "x", "video": "clip", "fps": 30, "conversations": [
        {"from": "human", "value": "<video>\nA?"}, {"from": "gpt", "value": "B"}]}
    (folder / "clips.jsonl").write_text(json.dumps(record) + "\n")
    recipe, run = folder / "recipe.yaml", folder / "run"
    recipe.write_text(f"dataset_use: [{folder / 'clips.jsonl'}]\nmodel_name_or_path: {tiny_model_dir('qwen3_vl')}\n"
                      "video_fps: 30\nvideo_max_frames: 30\nvideo_min_pixels: 4096\nmodel_max_length: 50\n")
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"arguments": {
        "dataset_use": str(folder / "clips.jsonl"), "model_name_or_path": str(tiny_model_dir("qwen3_vl")),
        "video_fps": 30.0, "video_max_frames": 30, "video_min_pixels": 4096, "model_max_length": 50}}))

    def tokens(*words):
        check.main(list(map(str, words)))
        return int(re.search(r"tokens: (\d+) to", capsys.readouterr().out)[1])

    processor = load.load_processor(tiny_model_dir("qwen3_vl"))
    media.apply_resolution(processor, media.MediaOptions(video_fps=30, video_max_frames=30, video_min_pixels=4096))
    trained = len(chat.encode(record, processor, folder)["input_ids"])
    assert tokens("--config", recipe) == tokens("--run", run) == trained > 90
    assert tokens("--config", recipe, "--video_max_frames", 8) < trained
    recipe.write_text(f"stage: sft\ndataset: {folder / 'clips.jsonl'}\nmodel_name_or_path: "  # of LLaMA-Factory
                      f"{tiny_model_dir('qwen3_vl')}\nvideo_fps: 30\nvideo_maxlen: 30\nvideo_min_pixels: 4096\n")
    assert tokens("--config", recipe) == trained
    with pytest.raises(UserError, match="recipe.yaml: 'video_fps' must be a number"):
        recipe.write_text("video_fps: fast\n")
        check.main(["--config", str(recipe)])
    with pytest.raises(UserError, match="no data set is given"):
        check.main([])


def test_empty_answers_are_warnings_and_no_defects(folder, capsys):
    (folder / "empty.jsonl").write_text(row("x") + "\n" + row("y", answer="") + "\n")
    check.main(["--dataset_use", str(folder / "empty.jsonl")])
    printed = capsys.readouterr().out
    assert "row 2 (id y): the answer in turn 2 is empty" in printed and "empty answers: 1" in printed
    assert "2 records, 0 bad" in printed


def test_a_key_that_is_not_read_is_named_with_its_row_and_id(folder, capsys):
    line = json.dumps({**json.loads(row("y")), "history": [["a", "b"]]})
    (folder / "keys.jsonl").write_text(row("x") + "\n" + line + "\n")
    with pytest.raises(UserError, match="1 of 2 records are bad"):
        check.main(["--dataset_use", str(folder / "keys.jsonl")])
    assert "row 2 (id y): the key 'history' is not read" in capsys.readouterr().out


def test_every_bad_row_is_printed_and_the_status_is_2(folder):
    (folder / "bad.jsonl").write_text("\n".join([
        row("x"), "{oops", row("x"), row("y", image="gone.png"), row("z", image="cut.png"), row("w"),
    ]))
    done = command("--dataset_use", folder / "bad.jsonl")
    assert done.returncode == 2
    printed = done.stdout + done.stderr
    for said in ("row 2: not JSON", "row 3 (id x): its id is that of row 1", "row 4 (id y): image file",
                 "row 5 (id z): image", "damaged or cut short", "6 records, 4 bad", "error: 4 of 6 records are bad"):
        assert said in printed, said
    assert "Traceback" not in printed


def test_a_wrong_name_is_one_sentence(folder):
    done = command("--dataset_use", "cuprite_trian")
    assert done.returncode == 2 and "did you mean cuprite_train" in done.stderr and "Traceback" not in done.stderr


def test_typed_control_tokens_are_counted_alike_in_every_thread(folder, tiny_model_dir, capsys):
    rows = [{"messages": [{"role": "user", "content": "<|image_pad|>x"}, {"role": "assistant", "content": "yo"}]}] * 150
    (folder / "typed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check.main(["--dataset-use", str(folder / "typed.jsonl"), "--model-name-or-path", str(tiny_model_dir("qwen3_vl"))])
    assert "150 records, 0 bad" in capsys.readouterr().out


@pytest.mark.parametrize("window, reason", [([0, 0, 32, 32], "is not a raster"), ([-5, 0, 0, 32], "is not a raster")])
def test_a_window_of_a_picture_is_found_before_training(folder, tiny_model_dir, capsys, window, reason):
    (folder / "window.jsonl").write_text(json.dumps({**json.loads(row("x")), "window": window}))
    with pytest.raises(UserError, match="1 of 1 records are bad"):
        check.main(["--dataset-use", str(folder / "window.jsonl"), "--model-name-or-path",
                    str(tiny_model_dir("qwen3_vl"))])
    assert reason in capsys.readouterr().out
