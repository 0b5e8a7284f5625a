"""The overlay around upstream's tree, shown with a stand-in for it: shadow, swaps, data sets, drift, both engines."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from overlays import registry
from overlays.errors import UserError
from overlays.files import write_jsonl
from overlays.train import arguments
from overlays.upstream import engine
from overlays.upstream import tree as upstream
from tests.commands import run_module

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).parents[1] / "upstream_stand_in"
ENTRY = upstream.ENTRY
FLAGS = arguments.upstream_flags()
SWAPS = {target.name for target in engine.TARGETS if target.kind == "swap"}


def forget():
    """Take what is imported of a tree out of sys.modules; returns it."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "qwenvl"}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the stand-in that $QWEN3VL_UPSTREAM names; nothing of it stays imported."""
    folder = tmp_path / "tree"
    shutil.copytree(STAND_IN, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv(upstream.VARIABLE, str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = forget()
    yield folder
    forget()
    sys.modules.update(before)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A repository without the submodule."""
    monkeypatch.delenv(upstream.VARIABLE, raising=False)
    return tmp_path


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# ---- shadow


def test_the_tree_is_imported_without_its_trainer(tree, monkeypatch):
    own = ModuleType("trainer")
    monkeypatch.setitem(sys.modules, "trainer", own)
    path = list(sys.path)
    module = upstream.load(tree, engine.shadows())
    assert module.replace_qwen2_vl_attention_class() is None
    assert sys.modules["trainer"] is own and sys.path == path


def test_an_import_that_fails_leaves_nothing_behind(tree):
    edit(tree / ENTRY, "import pathlib", "import pathlib, no_such_module")
    path = list(sys.path)
    with pytest.raises(ImportError):
        upstream.load(tree, engine.shadows())
    assert "trainer" not in sys.modules and sys.path == path


# ---- swaps


class Recorder:
    """A run that only notes which of its methods were called with what."""

    def __init__(self, folder, **flags):
        self.model_args, self.data, self.training = arguments.parse([
            "--model_name_or_path", "checkpoints/qwen3_a_lora", "--dataset_use", "pictures", "--report_to", "none",
            "--output_dir", str(folder), *(word for name, value in flags.items() for word in (f"--{name}", value)),
        ])
        self.processor, self.calls = object(), []

    def load_model(self):
        self.calls.append("load_model")
        return "model"

    def set_parts(self, model):
        self.calls.append(("set_parts", model))

    def data_module(self):
        self.calls.append("data_module")
        return {"train_dataset": 1, "eval_dataset": 2, "data_collator": 3}

    def build_trainer(self, model):
        self.calls.append(("build_trainer", model))
        return SimpleNamespace(save_state=lambda: None)

    def fit(self, trainer):
        self.calls.append("fit")

    def finish(self, trainer):
        self.calls.append("finish")


@pytest.fixture
def pictures(tree):
    """The stand-in's data set `pictures`, which lies where its table says."""
    folder = tree / upstream.PACKAGE / "pictures"
    folder.mkdir()
    (folder / "rows.json").write_text("[]")
    return folder


def test_train_calls_the_parts_of_the_run_and_nothing_of_its_own(tree, pictures, tmp_path):
    module = upstream.load(tree, engine.shadows())
    before = dict(vars(module))
    run = Recorder(tmp_path / "run", lora_enable="True", tune_mm_mlp="True")
    engine.drive(module, run, registry.resolve(run.data.dataset_use))
    assert run.calls == ["load_model", ("set_parts", "model"), "data_module", ("build_trainer", "model"), "fit",
                         "finish"]
    assert run.training.lora_enable and not hasattr(run.data, "model_type")
    assert vars(module) == before


def test_names_are_put_back_and_an_empty_folder_goes_when_a_run_fails(tree, pictures, tmp_path):
    module = upstream.load(tree, engine.shadows())
    before = dict(vars(module))
    run = Recorder(tmp_path / "run")

    def fails():
        raise UserError("no weights")

    run.load_model = fails
    with pytest.raises(UserError, match="no weights"):
        engine.drive(module, run, registry.resolve(run.data.dataset_use))
    assert vars(module) == before and not (tmp_path / "run").exists()


def test_swaps_are_seen_by_train_alone(tree, tmp_path):
    module = upstream.load(tree, engine.shadows())
    theirs = module.transformers
    parser, tokenizer = theirs.HfArgumentParser, theirs.AutoTokenizer
    before = engine.replace(module, engine.swaps(Recorder(tmp_path)))
    assert module.transformers.HfArgumentParser is not parser and theirs.HfArgumentParser is parser
    assert module.transformers.AutoTokenizer is not tokenizer and theirs.AutoTokenizer is tokenizer
    assert module.transformers.TrainingArguments is theirs.TrainingArguments
    assert module.torch.distributed.is_available is sys.modules["torch"].distributed.is_available
    vars(module).update(before)
    assert module.transformers is theirs


def test_every_target_has_its_swap(tmp_path):
    assert set(engine.swaps(Recorder(tmp_path))) == SWAPS


# ---- data sets


def test_names_of_upstreams_table_work_here(tree, pictures, tmp_path):
    found = registry.resolve("pictures%30", tmp_path)[0]
    assert (found.annotation, found.media_root, found.rate) == (pictures / "rows.json", pictures, 0.3)
    with pytest.raises(UserError, match="there is no annotation file .*PATH_TO_ANNOTATION"):
        registry.resolve("not_there", tmp_path)
    assert "pictures" in registry.known(tmp_path) and "not_there" not in registry.known(tmp_path)


def test_our_names_go_into_upstreams_table(tree, tmp_path, monkeypatch):
    prepared = tmp_path / "data" / "prepared" / "cuprite"
    prepared.mkdir(parents=True)
    (prepared / "train.jsonl").write_text("{}\n")
    upstream.load(tree, engine.shadows())
    engine.register(registry.available(tmp_path))
    table = sys.modules["qwenvl.data"].data_dict
    assert table["cuprite_train"] == {"annotation_path": str(prepared / "train.jsonl"), "data_path": str(prepared)}
    assert "cuprite_val" not in table and table["not_there"]["annotation_path"] == "PATH_TO_ANNOTATION"


def test_the_users_own_name_goes_before_upstreams(tree, pictures, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "own.json").write_text("[]")
    (tmp_path / "data" / "datasets.json").write_text(json.dumps({"pictures": {"annotation_path": "own.json"}}))
    assert registry.resolve("pictures", tmp_path)[0].annotation == tmp_path / "own.json"


def test_demo_files_know_where_their_media_are(tree):
    demo = tree / upstream.PACKAGE / "demo"
    demo.mkdir()
    (demo / "single_images.json").write_text("[]")
    assert registry.resolve(str(demo / "single_images.json"))[0].media_root == tree / upstream.PACKAGE


def test_a_broken_table_does_not_stop_other_data_sets(tree, tmp_path):
    (tree / upstream.PACKAGE / "qwenvl" / "data" / "__init__.py").write_text("data_dict = no_such_name\n")
    (tmp_path / "own.json").write_text("[]")
    assert registry.resolve(str(tmp_path / "own.json"), tmp_path)[0].annotation == tmp_path / "own.json"


# ---- drift and the choice of the engine


def test_all_targets_fit_the_stand_in(tree):
    _, rows = engine.check(tree, FLAGS)
    assert [row.target for row in rows] == list(engine.TARGETS)
    assert not any(row.problem for row in rows)
    assert engine.choose("auto", FLAGS).name == engine.choose("upstream", FLAGS).name == "upstream"


DRIFT = {
    "gone": ("def set_model(", "def set_parts(", "set_model", "is gone"),
    "not looked up": ("    set_model(model_args, model)", "    pass", "set_model", "no longer looks it up"),
    "attribute": ("torch.distributed.get_rank() == 0", "False", "torch.distributed.get_rank", "no longer looks"),
    "import": ("import pathlib", "import pathlib, no_such_module", "trainer", "import fails: ModuleNotFoundError"),
    "no train": ("def train(", "def run(", "ModelArguments", "there is no function train"),
    "own function": ("    set_model(model_args, model)", "    set_model(model_args, model)\n    freeze(model)\n\n\n"
                     "def freeze(model):\n    pass", "freeze", "the overlay does not know it"),
    "model class": ("Trainer,\n)", "Trainer,\n)\nfrom transformers import Qwen3_5ForConditionalGeneration as Newest",
                    None, None),
}


@pytest.mark.parametrize("old, new, name, problem", DRIFT.values(), ids=DRIFT)
def test_drift_is_named_auto_goes_native_and_upstream_refuses(tree, old, new, name, problem):
    edit(tree / ENTRY, old, new)
    if name is None:
        edit(tree / ENTRY, "    data_args.model_type", "    Newest.from_pretrained(name)\n    data_args.model_type")
        name, problem = "Newest", "the overlay does not know it"
    if name == "freeze":  # train() has to go on behind the helper that was put in
        text = (tree / ENTRY).read_text()
        body, helper = text.split("\n\n\ndef freeze(model):\n    pass")
        (tree / ENTRY).write_text(f"{body}{helper}\n\ndef freeze(model):\n    pass\n")
    _, rows = engine.check(tree, FLAGS)
    assert any(row.target.name == name and problem in row.problem for row in rows)
    chosen = engine.choose("auto", FLAGS)
    assert chosen.name == "native" and chosen.module is None and "has drifted: " in chosen.warning
    with pytest.raises(UserError) as error:
        engine.choose("upstream", FLAGS)
    assert str(error.value) in chosen.warning


def test_a_flag_that_upstream_adds_is_drift(tree):
    edit(tree / upstream.PACKAGE / "qwenvl" / "train" / "argument.py", "    tune_mm_mlp",
         "    tune_mm_router: bool = field(default=False)\n    tune_mm_mlp")
    assert "ModelArguments: has flags that overlays.train.arguments lacks: tune_mm_router" in (
        engine.choose("auto", FLAGS).warning
    )


def test_without_the_tree_auto_is_native_and_upstream_says_what_to_run(bare):
    chosen = engine.choose("auto", FLAGS, bare)
    assert chosen.name == "native" and chosen.warning is None and "setup.sh --upstream" in chosen.line
    with pytest.raises(UserError, match=r"not checked out: run ./scripts/setup.sh --upstream, or set QWEN3VL_UPSTREAM"):
        engine.choose("upstream", FLAGS, bare)
    assert engine.choose("native", FLAGS, bare).name == "native"


def test_an_empty_submodule_folder_is_no_tree(bare):
    (bare / upstream.SUBMODULE).mkdir()
    assert upstream.find(bare) is None


def test_a_variable_that_names_no_tree_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv(upstream.VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match="train_qwen.py is missing"):
        engine.choose("auto", FLAGS)


def test_native_does_not_touch_the_tree(tree):
    edit(tree / ENTRY, "import pathlib", "raise SystemExit(9)")
    assert engine.choose("native", FLAGS).name == "native"


def test_the_table_lists_every_target_and_what_does_not_fit(tree):
    _, rows = engine.check(tree, FLAGS)
    text = engine.report(tree, rows)
    assert all(target.name in text for target in engine.TARGETS) and f"{len(rows)} of {len(rows)} fit" in text
    rows[3] = replace(rows[3], problem="is gone")
    assert "NO: is gone" in engine.report(tree, rows) and f"{len(rows) - 1} of {len(rows)} fit" in (
        engine.report(tree, rows)
    )


def test_check_from_the_command_line(tree):
    done = run_module("overlays.upstream", "--check")
    assert done.returncode == 0 and "safe_save_model_for_hf_trainer" in done.stdout
    edit(tree / ENTRY, "def set_model(", "def set_parts(")
    forget()
    done = run_module("overlays.upstream", "--check")
    assert done.returncode == 1 and "set_model" in done.stdout and "NO: is gone" in done.stdout


# ---- scripts


def test_the_launchers_pass_the_engine_on(bare):
    done = subprocess.run(["scripts/train_cuprite_single_gpu.sh"], cwd=ROOT, capture_output=True, text=True, env={
        **os.environ, "DRY_RUN": "1", "ENGINE": "native", "PYTHON": sys.executable, "MODEL_PATH": "m",
        "DATASETS": "x.jsonl", "EVAL_DATASETS": "",
    })
    assert done.returncode == 0 and "--engine native" in done.stdout


def test_setup_says_in_one_sentence_what_to_run_where_the_tree_cannot_be_had(bare):
    (bare / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", bare / "scripts")
    done = subprocess.run([bare / "scripts" / "setup.sh", "--upstream"], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and "git submodule update --init Qwen3-VL" in last
    done = subprocess.run([ROOT / "scripts" / "setup.sh", "--upstream"], capture_output=True, text=True,
                          env={**os.environ, upstream.VARIABLE: str(bare)})
    assert done.returncode == 2 and f"error: QWEN3VL_UPSTREAM is {bare}" in done.stderr


# ---- both engines, from the command line


def losses(folder):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def test_the_stand_in_trains_what_the_native_engine_trains(tree, pictures, tiny_model_dir, tmp_path):
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": [
            {"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": colour}]})
    write_jsonl(pictures / "rows.jsonl", rows)
    edit(tree / upstream.PACKAGE / "qwenvl" / "data" / "__init__.py", "rows.json", "rows.jsonl")

    def train(engine, output, *flags):
        done = run_module(
            "overlays.train", "--engine", engine, "--model_name_or_path", tiny_model_dir("qwen3_vl"), "--dataset_use",
            "pictures", "--output_dir", output, "--report_to", "none", "--logging_steps", "1",
            "--per_device_train_batch_size", "2", "--max_steps", "3", "--save_steps", "2", "--learning_rate", "1e-3",
            "--dataloader_num_workers", "0", "--lora_enable", "True", "--lora_r", "4", "--lora_dropout", "0.1",
            "--tune_mm_mlp", "True", *flags,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "engine: upstream at " in train("upstream", tmp_path / "a")
    assert "engine: native at " in train("native", tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "checkpoint-3")
    assert "resuming from" in train("upstream", tmp_path / "a")  # one decision about resuming: ours
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["engine"]["name"] == "upstream" and "model_type" not in run["arguments"]
    assert run["arguments"]["lora_enable"] is True
