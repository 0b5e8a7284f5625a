"""ZeRO-3 in two processes on a CPU: driving clips are trained on, in full, saved and resumed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from overlays import runs
from overlays.files import write_jsonl
from overlays.model import load

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
               "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
pytestmark = pytest.mark.slow  # tests/train/test_sft.py has the quick look at two processes


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Sixteen one-second segments of one video whose brightness tells the answer."""
    import av

    folder = tmp_path_factory.mktemp("clips")
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(16 * 6):
            picture = np.full((64, 64, 3), 16 * (number // 6), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    write_jsonl(folder / "train.jsonl", [
        {"id": str(n), "video": "a.mp4", "video_start": 6 * n, "video_end": 6 * n + 6, "conversations": [
            {"from": "human", "value": "<video>\nHow fast?"}, {"from": "gpt", "value": f"[({n}.0, 0.0)]"}]}
        for n in range(16)
    ])
    return folder / "train.jsonl"


def train(model, data, output, processes, batch, *flags):
    torchrun = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617", "-m"]
    words = [
        sys.executable, "-m", *(torchrun if processes == 2 else []), "overlays.train", "--model_name_or_path",
        str(model), "--dataset_use", str(data), "--output_dir", str(output), "--report_to", "none",
        "--logging_steps", "1", "--per_device_train_batch_size", str(batch), "--learning_rate", "1e-3",
        "--dataloader_num_workers", "0", "--lr_scheduler_type", "cosine", "--engine", "native", "--video_fps", "6",
        "--video_min_frames", "2", "--video_max_frames", "6", "--video_min_pixels", "1024", "--video_max_pixels",
        "4096", "--tune_mm_llm", "True", "--tune_mm_mlp", "True", "--tune_mm_vision", "True", *flags,
    ]
    if processes == 2:
        words += ["--deepspeed", "scripts/zero3.json"]
    done = subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(output):
    state = json.loads((Path(output) / "trainer_state.json").read_text())
    return {row["step"]: row["loss"] for row in state["log_history"] if "loss" in row}


def test_two_processes_train_in_full_and_save_a_model_that_loads(tiny_model_dir, clips, tmp_path):
    """Weights that each process holds half of are whole in the folder, and other than before."""
    train(tiny_model_dir("qwen3_vl"), clips, tmp_path / "run", 2, 2, "--max_steps", "2", "--save_strategy", "no")
    before = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32).state_dict()
    after = load.load_model(tmp_path / "run").state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    for part in ("visual.blocks", "visual.merger", "deepstack_merger_list", "language_model.layers"):
        assert any(part in name for name in changed), part
    assert load.load_processor(tmp_path / "run").video_processor.max_frames == 6


@pytest.mark.parametrize("kind", ("full", "lora"))
def test_two_processes_give_the_losses_of_one_and_go_on_where_they_stopped(tiny_model_dir, clips, tmp_path, kind):
    lora = ("--lora_enable", "True", "--lora_r", "4", "--train_embeddings", "True") if kind == "lora" else ()
    flags = (*lora, "--max_steps", "10", "--save_steps", "5")
    model = tiny_model_dir("qwen3_vl")
    train(model, clips, tmp_path / "one", 1, 4, *flags)
    train(model, clips, tmp_path / "two", 2, 2, *flags)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, 11))
    assert max(abs(one[step] - two[step]) for step in one) < 1e-3
    shutil.rmtree(tmp_path / "two" / "checkpoint-10")
    said = train(model, clips, tmp_path / "two", 2, 2, *flags)
    assert "resuming from" in said and runs.checkpoints(tmp_path / "two")[-1].name == "checkpoint-10"
    again = losses(tmp_path / "two")
    assert max(abs(again[step] - two[step]) for step in two) < 1e-5
