"""Scripts and launchers of the domain: what they refuse, each in one sentence and with exit status 2."""

import os
import subprocess
from pathlib import Path

import pytest

from overlays.files import write_jsonl
from tests.commands import run_script

ROOT = Path(__file__).resolve().parents[3]


def run(*command, **variables):
    return subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "OVERLAYS_BOOTSTRAPPED": "1", **variables})


@pytest.mark.parametrize("launcher, words", [("train_satellite_sft.sh", "all or pca"),
                                             ("train_cuprite_single_gpu.sh", "composites or all")])
def test_unknown_channels_are_refused_by_the_launchers(launcher, words):
    done = run("bash", f"scripts/{launcher}", CHANNELS="PCA", DRY_RUN="1")
    assert done.returncode == 2 and done.stderr == f"error: CHANNELS is {words}, not 'PCA'\n"


def test_options_without_effect_on_arrays_that_are_there_are_refused(prepared):
    done = run_script("prepare_satellite.py", "--rgb-pca", "--output", prepared[0], "--seed", "3")
    assert done.returncode == 2 and "error: --seed would change nothing" in done.stderr
    assert not prepared[0].with_name(f"{prepared[0].name}_rgb").exists()


def test_preferences_are_checked_before_a_model_is_loaded(tmp_path):
    turns = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "2"}]
    write_jsonl(tmp_path / "ask.jsonl", [{"id": "a", "conversations": turns, "target": {"y": 2.0}}])
    write_jsonl(tmp_path / "tell.jsonl", [{"id": "b", "target": {"y": 2.0}, "conversations": [
        {"from": "system", "value": "You count."}]}])
    for words, sentence in ((["ask.jsonl", "--max_new_tokens", "0"], "--max_new_tokens at least 1"),
                            (["ask.jsonl", "--output", tmp_path / "none" / "pairs.jsonl"], "there is no folder"),
                            (["tell.jsonl"], "record b asks nothing")):
        done = run_script("make_preferences.py", "--checkpoint", tmp_path, "--dataset_use", tmp_path / words[0],
                          *words[1:])
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr
