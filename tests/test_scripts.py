"""Launchers: defaults, overrides from the environment, flags that go through."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def dry_run(launcher, *flags, gpus=0, **variables):
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    environment |= {"DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))), **variables}
    done = subprocess.run(["bash", f"scripts/{launcher}", *flags], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=True)
    words = done.stdout.strip().split("\n")[-1].split()
    return dict(zip(words, [*words[1:], ""], strict=True)), words, done.stdout


def test_with_a_gpu_the_real_model_and_its_defaults():
    flags, words, _ = dry_run("train_cuprite_single_gpu.sh", gpus=1)
    expected = {
        "--model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct", "--lora_r": "8", "--lora_alpha": "16",
        "--lora_dropout": "0.05", "--mm_projector_lr": "1e-4", "--learning_rate": "1e-5", "--max_pixels": "50176",
        "--bf16": "True", "--gradient_checkpointing": "True", "--lr_scheduler_type": "cosine",
        "--tune_mm_vision": "False", "--tune_mm_mlp": "True", "--train_embeddings": "False",
    }
    assert {name: flags[name] for name in expected} == expected
    assert "--deepspeed" not in words and "torch.distributed.run" not in words


def test_several_gpus_are_used_under_zero3():
    flags, words, _ = dry_run("train_cuprite.sh", gpus=4)
    assert (flags["--nproc_per_node"], flags["--deepspeed"]) == ("4", "scripts/zero3.json")
    assert (flags["--lora_r"], flags["--lora_alpha"]) == ("16", "32")


def test_without_a_gpu_a_tiny_model_trains_all_parts_and_says_so():
    flags, _, output = dry_run("train_cuprite_single_gpu.sh")
    assert output.startswith("no GPU and no MODEL_PATH")
    assert flags["--model_name_or_path"].startswith("data/models/tiny-")
    assert flags["--tune_mm_vision"] == flags["--tune_mm_mlp"] == flags["--train_embeddings"] == "True"
    assert flags["--bf16"] == flags["--gradient_checkpointing"] == "False"


def test_variables_override_and_later_flags_come_last():
    flags, words, _ = dry_run(
        "train_cuprite_single_gpu.sh", "--max_steps", "3", "--learning_rate", "5e-6", gpus=1, LR="7e-6", LORA_R="2",
        OUTPUT_DIR="outputs/a b", DATASETS="mine%50", EPOCHS="1", MODEL_PATH="some/model", NPROC_PER_NODE="2",
    )
    assert flags["--lora_r"] == "2" and flags["--dataset_use"] == "mine%50" and flags["--nproc_per_node"] == "2"
    assert "outputs/a\\ b" in " ".join(words)
    assert words[-4:] == ["--max_steps", "3", "--learning_rate", "5e-6"]


def test_other_training_data_are_not_validated_on_the_domain():
    assert dry_run("train_cuprite_single_gpu.sh")[0]["--eval_dataset"] == "cuprite_val"
    assert "--eval_dataset" not in dry_run("train_cuprite_single_gpu.sh", DATASETS="mine")[0]
    both = dry_run("train_cuprite_single_gpu.sh", DATASETS="mine", EVAL_DATASETS="other")
    assert both[0]["--eval_dataset"] == "other"
    assert "--eval_dataset" not in dry_run("train_cuprite_single_gpu.sh", EVAL_DATASETS="")[0]


@pytest.mark.parametrize(("visible", "listed", "real"), [
    (None, 2, True), (None, 0, False), ("", 2, False), ("-1", 2, False), ("1", 2, True),
])
def test_gpus_are_found_by_the_driver_and_can_be_hidden(tmp_path, visible, listed, real):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\n" + "echo 'GPU 0: NVIDIA (UUID: GPU-1)'\n" * listed + ("" if listed else "exit 9\n"))
    driver.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRY_RUN": "1"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run(["bash", "scripts/train_cuprite.sh"], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=True)
    assert ("Qwen/Qwen3-VL-8B-Instruct" in done.stdout) == real
    assert f"--nproc_per_node {1 if visible == '1' else 2} " in done.stdout


def test_lora_off_by_rank_zero():
    _, words, _ = dry_run("train_cuprite_single_gpu.sh", gpus=1, LORA_R="0", TUNE_LLM="True")
    assert "--lora_enable" not in words


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.sh")))
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", f"scripts/{script}"], cwd=ROOT, check=True)


ENTRY_POINTS = [
    *sorted(path.name for path in (ROOT / "scripts").glob("*.py") if path.name != "_bootstrap.py"),
    "overlays.predict", "overlays.pretrain_mae", "overlays.train", "overlays.train_dpo", "overlays.upstream",
]


@pytest.fixture(scope="module")
def help_texts():
    """{entry point: (exit status, output)} for --help."""
    done = subprocess.run([sys.executable, "tests/help_texts.py", *ENTRY_POINTS], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_explains_itself(help_texts, name):
    status, output = help_texts[name]
    assert status == 0 and output.startswith("usage: "), output


def test_the_global_gui_stage_freezes_vision_and_merger_of_a_real_model():
    flags, words, _ = dry_run("train_gui_global.sh", gpus=1)
    expected = {"--tune_mm_vision": "False", "--tune_mm_mlp": "False", "--lora_r": "8", "--lora_alpha": "32",
                "--lora_target_modules": "q_proj\\,k_proj\\,v_proj\\,o_proj\\,gate_proj\\,up_proj\\,down_proj"}
    assert {name: flags[name] for name in expected} == expected
    flags, words, _ = dry_run("train_gui_global.sh", gpus=1, MODE="full")
    assert flags["--learning_rate"] == "1e-6" and flags["--tune_mm_llm"] == "True" and "--lora_enable" not in words
    assert flags["--tune_mm_vision"] == flags["--tune_mm_mlp"] == "False"
