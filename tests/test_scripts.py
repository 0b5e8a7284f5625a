"""Launchers: their recipes, overrides from the environment, flags that go through."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from overlays.train import arguments
from tests.commands import run_module, run_script

ROOT = Path(__file__).resolve().parents[1]


STAGES = {"overlays.train": arguments.SFT, "overlays.train_dpo": arguments.DPO, "overlays.pretrain_mae": arguments.MAE}


def dry_run(launcher, *flags, gpus=0, **variables):
    """(settings of the trainer that a launcher would run, the words of its command, all that it printed)."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    environment |= {"DRY_RUN": "1", "PYTHON": "python", "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
                    **variables}
    done = subprocess.run(["bash", f"scripts/{launcher}", *flags], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=True)
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("python ")]
    words = next(words for words in commands if STAGES.keys() & set(words))
    start = next(number for number, word in enumerate(words) if word in STAGES)
    return SimpleNamespace(**read_flags(words[start + 1 :], STAGES[words[start]])), words, done.stdout


def read_flags(words, stage):
    """The settings of a command line, where it runs from the repository's root."""
    return arguments.read([str(ROOT / word) if word.endswith(".yaml") else word for word in words], stage)


RECIPES = [
    ("train_cuprite_single_gpu.sh", {}, "cuprite"), ("train_cuprite.sh", {}, "cuprite_zero3"),
    ("train_gui_global.sh", {}, "gui_global"), ("train_physical_ai.sh", {}, "driving_full"),
    ("train_physical_ai_lora.sh", {}, "driving_lora"), ("train_satellite_mae.sh", {}, "satellite_mae"),
    ("train_satellite_sft.sh", {}, "satellite_sft"), ("train_satellite_sft.sh", {"HEAD": "none"}, "satellite_text"),
    ("train_satellite_dpo.sh", {"MODEL_PATH": "outputs/satellite-text"}, "satellite_dpo"),
    ("train_scenes.sh", {"METHOD": "base"}, "qwen3vl_3d_lora_sft"),
    ("train_scenes.sh", {"METHOD": "mlp_pe"}, "qwen3vl_3d_mlp_lora_sft"),
    ("train_scenes.sh", {"METHOD": "sin3d_pe"}, "qwen3vl_3d_sin3dpe_lora_sft"),
]


@pytest.mark.parametrize(("launcher", "variables", "recipe"), RECIPES)
def test_a_launcher_with_a_gpu_runs_its_recipe_and_nothing_else(launcher, variables, recipe):
    settings, words, _ = dry_run(launcher, gpus=1, **variables)
    module = next(word for word in words if word in STAGES)
    expected = read_flags([f"scripts/configs/{recipe}.yaml"], STAGES[module])
    if "--deepspeed" in words:  # how processes are started is the launcher's
        expected["deepspeed"] = "scripts/zero3.json"
    assert vars(settings) == expected


def test_every_recipe_has_a_launcher():
    recipes = {path.stem for path in (ROOT / "scripts" / "configs").glob("*.yaml")}
    assert recipes - {"gui_personal"} == {name for *_, name in RECIPES}  # which its script reads
    trainers = {path.name for path in (ROOT / "scripts").glob("train_*.sh")}
    assert trainers - {"train_gui_personal.sh"} == {name for name, *_ in RECIPES}


def test_the_personal_stage_leaves_its_defaults_to_the_script(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": "0", "GLOBAL": str(tmp_path),
                   "LR": "1e-6", "FOLDS_BY": "episode"}
    done = subprocess.run(["bash", "scripts/train_gui_personal.sh"], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=True)
    assert shlex.split(done.stdout.splitlines()[-1])[2:] == [
        "--checkpoint", str(tmp_path), "--folds_by", "episode", "--learning_rate", "1e-6"]


def test_full_tuning_of_the_screens_is_offered_where_it_fits():
    settings, words, _ = dry_run("train_gui_global.sh", gpus=2, MODE="full")
    assert settings.deepspeed == "scripts/zero3.json" and settings.tune_mm_llm and not settings.lora_enable
    assert dry_run("train_gui_global.sh", gpus=1, MODE="full", MODEL_PATH="m/2b")[0].deepspeed is None
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": "0", "MODE": "full"}
    done = subprocess.run(["bash", "scripts/train_gui_global.sh"], cwd=ROOT, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 2 and "takes about 150 GB on one GPU" in done.stderr


def test_several_gpus_are_used_under_zero3():
    settings, words, _ = dry_run("train_cuprite.sh", gpus=4)
    assert words[words.index("--nproc_per_node") + 1] == "4" and settings.deepspeed == "scripts/zero3.json"
    assert "--standalone" in words and "--master_port" not in words
    for variables in ({"MASTER_PORT": "29501"}, {"NNODES": "2", "MASTER_ADDR": "a"}):
        words = dry_run("train_cuprite.sh", gpus=4, **variables)[1]
        assert words[words.index("--master_port") + 1] == variables.get("MASTER_PORT", "29500")
        assert words[words.index("--master_addr") + 1] == variables.get("MASTER_ADDR", "127.0.0.1")
        assert "--standalone" not in words


def test_one_process_starts_without_torchrun():
    settings, words, _ = dry_run("train_cuprite_single_gpu.sh", gpus=1)
    assert settings.deepspeed is None and "torch.distributed.run" not in words


def test_without_a_gpu_a_tiny_model_trains_all_parts_and_says_so():
    settings, _, output = dry_run("train_cuprite_single_gpu.sh")
    assert output.startswith("no GPU and no MODEL_PATH")
    assert settings.model_name_or_path.startswith("data/models/tiny-")
    assert settings.tune_mm_vision and settings.tune_mm_mlp and settings.train_embeddings
    assert not settings.bf16 and not settings.gradient_checkpointing


def test_a_tiny_model_has_the_values_of_its_launcher_and_variables_win():
    settings = dry_run("train_satellite_mae.sh")[0]
    assert (settings.decoder_dim, settings.learning_rate, settings.min_pixels) == (128, 1e-3, 16384)
    settings = dry_run("train_satellite_mae.sh", DECODER_DIM="64", MAE_LR="1e-4", MIN_PIXELS="4096")[0]
    assert (settings.decoder_dim, settings.learning_rate, settings.min_pixels) == (64, 1e-4, 4096)


def test_an_adapter_of_a_tiny_model_is_one_too(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"tiny_random": true}')
    (tmp_path / "adapter_config.json").write_text(f'{{\n  "base_model_name_or_path": "{tmp_path}/base",\n}}')
    assert dry_run("train_satellite_dpo.sh", MODEL_PATH=str(tmp_path))[0].learning_rate == 3e-4


def test_variables_override_the_recipe_and_flags_override_both():
    settings, words, _ = dry_run(
        "train_cuprite_single_gpu.sh", "--max_steps", "3", "--learning_rate", "5e-6", gpus=1, LR="7e-6", LORA_R="2",
        OUTPUT_DIR="outputs/a b", DATASETS="mine%50", EPOCHS="1", BATCH_SIZE="3", MODEL_PATH="some/model",
        NPROC_PER_NODE="2",
    )
    assert words[words.index("--nproc_per_node") + 1] == "2"
    assert (settings.lora_r, settings.dataset_use, settings.output_dir) == (2, "mine%50", "outputs/a b")
    assert settings.per_device_train_batch_size == settings.per_device_eval_batch_size == 3
    assert (settings.max_steps, settings.learning_rate) == (3, 5e-6)
    assert settings.lora_alpha == read_flags(["scripts/configs/cuprite.yaml"], arguments.SFT)["lora_alpha"]


def test_other_training_data_are_not_validated_on_the_domain():
    assert dry_run("train_cuprite_single_gpu.sh")[0].eval_dataset == "cuprite_val"
    assert dry_run("train_cuprite_single_gpu.sh", DATASETS="cuprite_train%5")[0].eval_dataset == "cuprite_val"
    assert dry_run("train_cuprite_single_gpu.sh", DATASETS="mine", EVAL_DATASETS="other")[0].eval_dataset == "other"
    for launcher, variables in (("train_cuprite_single_gpu.sh", {"DATASETS": "mine"}),
                                ("train_satellite_sft.sh", {"EVAL_DATASETS": ""})):
        settings = dry_run(launcher, gpus=1, **variables)[0]
        assert (settings.eval_dataset, settings.eval_strategy) == ("", "no") and not settings.load_best_model_at_end


LAUNCHERS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if path.name not in (
    "common.sh", "setup.sh", "test.sh"))


@pytest.fixture
def machine(tmp_path):
    """Function: launcher, accelerators of torch, GPUs of nvidia-smi, variables -> dry run in a copy of scripts."""
    folder = tmp_path / "scripts"
    shutil.copytree(ROOT / "scripts", folder, ignore=shutil.ignore_patterns("__pycache__", "*.py", "benches"))
    shutil.copy(ROOT / "scripts" / "_devices.py", folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)

    def files():
        return sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)

    def run(launcher, *flags, torch=0, driver=0, script=None, **variables):
        stub = tmp_path / "stub"
        stub.mkdir(exist_ok=True)
        (stub / "torch.py").write_text(
            "from types import SimpleNamespace\n__version__ = 'stub'\naccelerator = SimpleNamespace("
            f"is_available=lambda: {torch > 0}, device_count=lambda: {torch})\n")
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.write_text("#!/bin/sh\n" + "echo 'GPU 0: NVIDIA (UUID: GPU-1)'\n" * driver + ("" if driver else "exit 9\n"))
        smi.chmod(0o755)
        environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHONPATH": str(stub),
                       "DRY_RUN": "1", "PYTHON": "python", **variables}
        before = files()
        done = subprocess.run(["bash", script or f"scripts/{launcher}", *flags], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, check=False)
        assert files() == before
        return done

    run.folder = tmp_path
    return run


@pytest.mark.parametrize(("visible", "torch", "driver", "processes", "warned"), [
    (None, 2, 0, 2, False),  # ROCm, MPS, Ascend: no nvidia-smi
    (None, 1, 1, 1, False), (None, 0, 2, None, True), (None, 0, 0, None, False), ("", 0, 2, None, False),
    ("-1", 0, 2, None, False), ("1", 0, 0, 1, False), ("0,3", 0, 0, 2, False),
])
def test_the_devices_are_those_of_torch(machine, visible, torch, driver, processes, warned):
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = machine("train_gui_global.sh", torch=torch, driver=driver, **variables)
    assert ("no GPU and no MODEL_PATH" in done.stdout) == (processes is None), done.stderr
    assert (f"--nproc_per_node {processes} " in done.stdout) == ((processes or 0) > 1)
    assert ("cannot use CUDA" in done.stderr) == warned


def test_a_dry_run_without_torch_takes_the_word_of_the_driver(machine):
    done = machine("train_gui_global.sh", driver=2, PYTHON="/missing")
    assert "--nproc_per_node 2 " in done.stdout and not done.stderr
    assert machine("train_gui_global.sh", PYTHON="/missing").stdout.startswith("no GPU and no MODEL_PATH")


def test_a_dry_run_names_the_python_of_the_environment(machine):
    python = machine.folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert machine("train_gui_global.sh", torch=1, PYTHON="").stdout.splitlines()[-1].startswith(".venv/bin/python -m ")


def test_the_launcher_for_one_gpu_takes_one(machine):
    assert "torch.distributed" not in machine("train_cuprite_single_gpu.sh", torch=4).stdout


@pytest.mark.parametrize(("name", "value", "wanted"), [
    *(("NPROC_PER_NODE", value, "a whole number from 1 on") for value in (
        "2x", "08", "0", "abc", "-1", "1 + 1", "a[$(touch pwned)]", "9" * 30)),
    ("NNODES", "a[$(touch pwned)]", "a whole number from 1 on"), ("NODE_RANK", "1", "a whole number from 0 to 0"),
    *(("MASTER_PORT", value, "a whole number from 1 to 65535") for value in ("0x10", "65536")),
    ("DRY_RUN", "yes", "0 or 1"),
])
def test_numbers_of_processes_are_checked_by_their_text(machine, name, value, wanted):
    done = machine("train_physical_ai_lora.sh", torch=2, **{name: value})
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == f"error: {name} must be {wanted}, not '{value}'\n"


def test_a_link_to_a_launcher_works(machine):
    link = machine.folder / "go"
    link.symlink_to(machine.folder / "scripts" / "train_gui_global.sh")
    assert "overlays.train" in machine("", torch=1, script=str(link)).stdout


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if not name.startswith("slurm")])
def test_a_dry_run_touches_nothing(machine, launcher):
    done = machine(launcher)  # `machine` compares the folder
    assert done.returncode == 0 and done.stdout.startswith(("no ", "python ")), done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_help_names_the_variables_and_sets_nothing_up(machine, launcher):
    for variables in ({}, {"DRY_RUN": "0", "PYTHON": "/missing"}):
        done = machine(launcher, "--help", **variables)
        assert done.returncode == 0 and done.stdout.startswith("usage: [VARIABLE=value ...] "), done.stderr
    text = (ROOT / "scripts" / launcher).read_text()
    own = set(re.findall(r"\$\{([A-Z][A-Z_]+):[=-]", text)) - {"DRY_RUN", "PYTHON", "SLURM_SUBMIT_DIR", "SLURM_JOB_ID",
                                                            "SLURM_GPUS_ON_NODE", "BASH_SOURCE"}
    assert own <= set(re.findall(r"^    ([A-Z_]+)", done.stdout, re.MULTILINE))
    if "CONFIG=" in text:
        assert re.search("^    MODEL_PATH +--model_name_or_path", done.stdout, re.MULTILINE)


def test_lora_off_by_rank_zero():
    settings = dry_run("train_cuprite_single_gpu.sh", gpus=1, LORA_R="0", TUNE_LLM="True")[0]
    assert settings.tune_mm_llm and not settings.lora_enable


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.sh")))
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", f"scripts/{script}"], cwd=ROOT, check=True)


ENTRY_POINTS = [
    *sorted(path.name for path in (ROOT / "scripts").glob("*.py") if path.name[0] != "_"),
    "overlays.predict", "overlays.pretrain_mae", "overlays.train", "overlays.train_dpo", "overlays.upstream",
]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_explains_itself(name):
    done = (run_script if name.endswith(".py") else run_module)(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and not done.stderr, done.stderr


def test_the_global_gui_stage_freezes_vision_and_merger_of_a_real_model():
    settings = dry_run("train_gui_global.sh", gpus=1)[0]
    assert settings.lora_enable and not settings.tune_mm_vision and not settings.tune_mm_mlp
    settings = dry_run("train_gui_global.sh", gpus=1, MODE="full")[0]
    assert settings.tune_mm_llm and not settings.lora_enable and settings.learning_rate == 1e-6
    assert not settings.tune_mm_vision and not settings.tune_mm_mlp
