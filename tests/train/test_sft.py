"""Training from the command line: what is trained, what is saved, what a killed run leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from overlays import paths, runs
from overlays.data.dataset import SupervisedDataset
from overlays.errors import UserError
from overlays.families import FAMILIES
from overlays.files import write_jsonl
from overlays.model import load
from overlays.train import arguments, sft
from overlays.upstream import engine
from tests.commands import run_module, run_processes, run_script

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
               "HF_DATASETS_CACHE": ""}
TRAIN = (sys.executable, "-m", "overlays.train")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Twelve records: one coloured picture each, and every fourth of text only."""
    folder = tmp_path_factory.mktemp("colours")
    rows = []
    for number in range(12):
        name = list(COLOURS)[number % 3]
        Image.new("RGB", (64, 64), COLOURS[name]).save(folder / f"{number}.png")
        row = {"id": str(number), "image": f"{number}.png",
               "conversations": [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": name}]}
        if number % 4 == 3:
            del row["image"]
            row["conversations"][0]["value"] = "Name a colour."
        rows.append(row)
    write_jsonl(folder / "train.jsonl", rows)
    return folder / "train.jsonl"


def flags_of(model, data, output, *flags):
    return [
        "--model_name_or_path", str(model), "--dataset_use", str(data), "--output_dir", str(output),
        "--report_to", "none", "--logging_steps", "1", "--per_device_train_batch_size", "2", "--max_steps", "6",
        "--min_pixels", "1024", "--max_pixels", "4096", "--learning_rate", "1e-3", "--dataloader_num_workers", "0",
        "--lr_scheduler_type", "cosine", "--save_steps", "2", *flags,
    ]


def train(*words, fails=False):
    """The command that a user types, in this process."""
    done = run_module("overlays.train", *flags_of(*words))
    assert (done.returncode == 2) if fails else (done.returncode == 0), done.stderr[-3000:]
    return done


def here(*words, steps=True):
    """A run in this process; its trainer, without a step where `steps` is False."""
    training = arguments.parse(flags_of(*words))
    transformers.set_seed(training[2].seed)
    run = sft.prepare(*training, engine.choose("native", {}))
    model = run.load_model()
    run.set_parts(model)
    trainer = run.build_trainer(model)
    if steps:
        run.fit(trainer)
        run.finish(trainer)
    return trainer


def rates(trainer):
    return {row["step"]: row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row}


def losses(output):
    state = json.loads((Path(output) / "trainer_state.json").read_text())
    return {row["step"]: row["loss"] for row in state["log_history"] if "loss" in row}


LORA = ("--lora_enable", "True", "--lora_r", "4", "--lora_dropout", "0.1", "--tune_mm_mlp", "True",
        "--mm_projector_lr", "1e-3")


@pytest.fixture(scope="module")
def lora_run(tiny_model_dir, records, tmp_path_factory):
    output = tmp_path_factory.mktemp("lora") / "run"
    train(tiny_model_dir("qwen3_vl"), records, output, *LORA)
    return output


def test_lora_with_projector_trains_the_merger_and_leaves_vision_alone(tiny_model_dir, lora_run):
    before = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32).state_dict()
    after = load.load_model(lora_run).merge_and_unload().state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any("visual.merger." in name for name in changed)
    assert any("deepstack_merger_list" in name for name in changed)
    assert any("language_model.layers" in name for name in changed)
    assert not any("visual." in name and "merger" not in name for name in changed)


def test_the_run_folder_holds_what_the_design_says(lora_run):
    run = json.loads((lora_run / "run.json").read_text())
    assert {"arguments", "versions", "commit", "parts", "data", "base_model"} <= run.keys()
    assert {row["part"]: row["trainable"] > 0 for row in run["parts"]} == {
        "vision": False, "merger": True, "embeddings": False, "language_model": False, "adapter": True
    }
    assert (lora_run / "training_loss.png").stat().st_size > 1000
    for folder in (lora_run, *runs.checkpoints(lora_run)):
        load.load_processor(folder)
        assert (folder / "preprocessor_config.json").is_file() or (folder / "processor_config.json").is_file()
    assert len(runs.checkpoints(lora_run)) == 3


def test_resolution_reaches_the_saved_processor(lora_run):
    size = load.load_processor(lora_run).image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (1024, 4096)


def logits(model, processor):
    ids = torch.tensor([processor.tokenizer.encode("Which colour is it, red or green?")])
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_the_merged_model_answers_as_the_adapter_in_plain_transformers(lora_run, tmp_path):
    from transformers import AutoModelForImageTextToText

    done = run_script("merge_lora.py", "--checkpoint", lora_run, "--output", tmp_path / "merged", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    processor = load.load_processor(tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    expected = logits(load.load_model(lora_run), processor)
    assert (logits(merged, processor) - expected).abs().max() < 1e-4


@pytest.mark.slow  # tests/robustness kills runs of this kind in every test run
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tiny_model_dir, records, lora_run, tmp_path):
    output = tmp_path / "run"
    words = flags_of(tiny_model_dir("qwen3_vl"), records, output, *LORA)
    process = subprocess.Popen([*TRAIN, *words], env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    until = time.time() + 120
    while not runs.checkpoints(output) and process.poll() is None and time.time() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert runs.checkpoints(output)
    (output / "checkpoint-5").mkdir()  # what a kill in the middle of saving leaves
    done = train(tiny_model_dir("qwen3_vl"), records, output, *LORA)
    assert "resuming from" in done.stdout and "removed checkpoint-5" in done.stdout
    assert losses(output) == losses(lora_run)
    expected, found = (load_file(run / "adapter_model.safetensors") for run in (lora_run, output))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_resumed_run_refuses_other_data(tiny_model_dir, records, lora_run, tmp_path):
    other = tmp_path / "other.jsonl"
    write_jsonl(other, [{"id": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}])
    done = train(tiny_model_dir("qwen3_vl"), other, lora_run, *LORA, fails=True)
    assert "another data" in done.stderr and "Traceback" not in done.stderr


def test_a_finished_run_is_left_alone(tiny_model_dir, records, lora_run):
    before = (lora_run / "adapter_model.safetensors").stat().st_mtime_ns
    done = train(tiny_model_dir("qwen3_vl"), records, lora_run, *LORA)
    assert "has taken its 6 steps" in done.stdout
    for flags in (("--learning_rate", "0.5"), ("--max_pixels", "2048")):
        done = train(tiny_model_dir("qwen3_vl"), records, lora_run, *LORA, *flags, fails=True)
        assert "--resume never" in done.stderr and "Traceback" not in done.stderr
    assert (lora_run / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_loss_that_is_no_number_ends_the_run_and_saves_nothing(tiny_model_dir, records, tmp_path):
    for name, every in (("logged", "1"), ("unlogged", "100")):
        done = train(tiny_model_dir("qwen3_vl"), records, tmp_path / name, "--tune_mm_llm", "True", "--learning_rate",
                     "1e20", "--max_grad_norm", "0", "--save_steps", "100", "--logging_steps", every, fails=True)
        assert "lower the learning rate" in done.stderr and "Traceback" not in done.stderr
        assert not runs.has_model(tmp_path / name)


def test_another_kind_of_training_leaves_nothing_of_the_first_in_its_folder(tiny_model_dir, records, tmp_path):
    train(tiny_model_dir("qwen3_vl"), records, tmp_path / "run", *LORA, "--max_steps", "1")
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    train(tiny_model_dir("qwen3_vl"), records, tmp_path / "run", "--tune_mm_llm", "True", "--max_steps", "1",
          "--save_strategy", "no", "--resume", "never")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "model.safetensors" in names
    assert not names & {load.TRAINED_PARTS, "adapter_model.safetensors", "adapter_config.json"}


# Qwen4-Exp takes two minutes; tests/model covers its gradients, and every tiny model is saved and loaded.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("qwen3_vl", "qwen4_exp")])
def test_every_family_trains_in_full_and_loads_again(tiny_model_dir, records, tmp_path, family):
    train(tiny_model_dir(family), records, tmp_path / "run", "--tune_mm_llm", "True", "--tune_mm_mlp", "True",
          "--tune_mm_vision", "True", "--max_steps", "2")
    found = losses(tmp_path / "run")
    assert len(found) == 2 and all(0 < value < 20 for value in found.values())
    load.load_model(tmp_path / "run")


def test_validation_keeps_the_best_checkpoint(tiny_model_dir, records, tmp_path):
    output = tmp_path / "run"
    train(tiny_model_dir("qwen3_vl"), records, output, *LORA, "--eval_dataset", str(records), "--eval_strategy",
          "steps", "--eval_steps", "2", "--load_best_model_at_end", "True", "--save_total_limit", "1",
          "--early_stopping_patience", "3")
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert sum("eval_loss" in row for row in history) == 3


def test_gradient_checkpointing_changes_no_loss(tiny_model_dir, records, tmp_path):
    flags = ("--lora_enable", "True", "--tune_mm_mlp", "True", "--max_steps", "2")
    train(tiny_model_dir("qwen3_vl"), records, tmp_path / "a", *flags)
    train(tiny_model_dir("qwen3_vl"), records, tmp_path / "b", *flags, "--gradient_checkpointing", "True")
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert a.keys() == b.keys() and all(abs(a[step] - b[step]) < 1e-5 for step in a)


def patches_of_each_call(trainer):
    """A list that grows by the number of patches with every run of the tower's first block, recomputed or not."""
    model, patches = trainer.model, []
    visual = (model.get_base_model() if hasattr(model, "get_base_model") else model).model.visual
    visual.blocks[0].norm1.register_forward_pre_hook(lambda _, inputs: patches.append(len(inputs[0])))
    return patches


def test_a_frozen_tower_runs_once_for_each_image(tiny_model_dir, records, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    flags = (*LORA, "--data_packing", "True", "--model_max_length", "120", "--eval_dataset", str(records),
             "--eval_strategy", "epoch", "--save_strategy", "no",
             "--max_steps", "-1", "--num_train_epochs", "2", "--per_device_train_batch_size", "6",
             "--per_device_eval_batch_size", "12")
    history, patches = {}, {}
    for name, cached in (("tower", "False"), ("first run", "True"), ("second run", "True")):
        trainer = here(tiny_model_dir("qwen3_vl"), records, tmp_path / name, *flags, "--cache_vision", cached,
                       steps=False)
        calls = patches_of_each_call(trainer)
        trainer.train()
        history[name] = torch.tensor([row[key] for row in trainer.state.log_history for key in ("loss", "eval_loss")
                                      if key in row])
        patches[name] = sum(count for count in calls if count > 4)  # without the dummy images of text-only batches
    images = 3  # of twelve records: those of one colour are one image
    assert patches["tower"] == 4 * 9 * 16 and patches["first run"] == images * 16 and patches["second run"] == 0
    assert all((history[name] - history["tower"]).abs().max() < 1e-5 for name in ("first run", "second run"))


def test_a_patch_embedding_for_new_channels_is_trained_and_not_cached(tiny_model_dir, records, tmp_path):
    with pytest.raises(UserError, match="--cache_vision .* --in_channels trains its patch embedding"):
        here(tiny_model_dir("qwen3_vl"), records, tmp_path / "run", *LORA,
             "--cache_vision", "True", "--in_channels", "5")


@pytest.mark.parametrize(("flags", "calls"), [
    ("--tune_mm_mlp True --gradient_checkpointing True", 1),
    ("--tune_mm_vision True --gradient_checkpointing True", 2),
    ("--tune_mm_vision True --gradient_checkpointing True --vision_gradient_checkpointing False", 1),
    ("--tune_mm_vision True --vision_gradient_checkpointing True", 2),
])
def test_checkpointing_of_the_tower_is_apart_from_the_language_models(tiny_model_dir, records, tmp_path, flags, calls):
    trainer = here(tiny_model_dir("qwen2_5_vl"), records, tmp_path / "run", *flags.split(), "--max_steps", "1",
                   "--save_strategy", "no", steps=False)
    found = patches_of_each_call(trainer)
    outputs = []
    trainer.model.model.visual.blocks[3].register_forward_hook(lambda _, __, output: outputs.append(output))
    trainer.train()
    assert len(found) == calls
    assert outputs[0].requires_grad == ("vision True" in flags)


def test_trainable_weights_are_fp32_under_bf16_autocast(tiny_model_dir, records, tmp_path):
    train(tiny_model_dir("qwen3_vl"), records, tmp_path / "run", *LORA, "--bf16", "True", "--max_steps", "2")
    run = tmp_path / "run"
    stored = load_file(run / "adapter_model.safetensors")
    assert any("merger" in name for name in stored)
    assert {value.dtype for value in stored.values()} == {torch.float32}
    train(tiny_model_dir("qwen3_vl"), records, tmp_path / "pure", *LORA, "--pure_bf16", "True", "--max_steps", "2")
    full = [v for name, v in load_file(tmp_path / "pure" / "adapter_model.safetensors").items() if "lora_" not in name]
    assert {value.dtype for value in full} == {torch.bfloat16}


def test_two_cpu_processes_under_zero3_give_the_losses_of_one(tiny_model_dir, records, tmp_path):
    flags = (*LORA, "--lora_dropout", "0.0", "--max_steps", "3")
    train(tiny_model_dir("qwen3_vl"), records, tmp_path / "one", *flags, "--per_device_train_batch_size", "4")
    for done in run_processes(2, "overlays.train", *flags_of(
            tiny_model_dir("qwen3_vl"), records, tmp_path / "two", *flags, "--deepspeed", "scripts/zero3.json")):
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys() and all(abs(one[step] - two[step]) < 1e-3 for step in one)
    load.load_model(tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "Qwen/not-here"}, "Qwen/not-here is not on this machine"),
        ({"model": "./nowhere"}, "there is no model folder ./nowhere"),
        ({"data": "cuprite_trian"}, "cuprite_train"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(tiny_model_dir, records, tmp_path, changes, message):
    model, data = changes.get("model", tiny_model_dir("qwen3_vl")), changes.get("data", records)
    done = train(model, data, tmp_path / "run", *LORA, fails=True)
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_longer_run_continues_on_the_schedule_and_with_the_settings_of_the_new_start(tiny_model_dir, records,
                                                                                      tmp_path):
    model, output = tiny_model_dir("qwen3_vl"), tmp_path / "run"
    lora = ("--lora_enable", "True", "--lora_r", "2")
    expected = rates(here(model, records, tmp_path / "at_once", *lora, "--max_steps", "5"))
    here(model, records, output, *lora, "--max_steps", "2", "--weight_decay", "0.1")
    trainer = here(model, records, output, *lora, "--max_steps", "5", "--weight_decay", "0.3", "--adam_beta2", "0.9",
                   "--save_steps", "1", "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2")
    found = rates(trainer)
    assert [found[step] for step in (3, 4, 5)] == [expected[step] for step in (3, 4, 5)]
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.9, 0.9)}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.3}
    assert [path.name for path in runs.checkpoints(output)] == [f"checkpoint-{step}" for step in (2, 3, 4, 5)]
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # killed before the model was written
        shutil.move(output / name, tmp_path / name)
    trainer = here(model, records, output, *lora, "--max_steps", "5")
    assert trainer.state.global_step == 5
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, output))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_grouping_by_length_opens_no_sample_and_validation_keeps_all(tiny_model_dir, records, tmp_path, monkeypatch):
    trainer = here(tiny_model_dir("qwen3_vl"), records, tmp_path / "run", "--lora_enable", "True",
                   "--train_sampling_strategy", "group_by_length", "--eval_dataset", str(records), "--eval_strategy",
                   "epoch", "--dataloader_drop_last", "True", "--per_device_eval_batch_size", "16", steps=False)
    monkeypatch.setattr(SupervisedDataset, "__getitem__", None)
    batches = list(trainer.get_train_dataloader().batch_sampler)
    assert sorted(sum(batches, [])) == list(range(12))
    assert list(trainer.get_eval_dataloader().batch_sampler) == [list(range(12))]


@pytest.mark.parametrize(("words", "message"), [
    ("--per_device_train_batch_size 16 --dataloader_drop_last True", "leaves nothing of 12 samples"),
    ("--lora_target_modules q_proj,q_norm", "q_norm is a Qwen3VLTextRMSNorm"),
    ("--lora_target_modules q_proj,w_proj", "the language model has no w_proj"),
    ("--resume_from_checkpoint nowhere", "not the folder of a complete checkpoint"),
])
def test_what_fails_later_in_the_library_is_refused_before_a_folder_exists(tiny_model_dir, records, tmp_path, words,
                                                                           message):
    with pytest.raises(UserError, match=message):
        here(tiny_model_dir("qwen3_vl"), records, tmp_path / "run", "--lora_enable", "True", *words.split())
    assert not (tmp_path / "run").exists()


def test_a_data_set_named_twice_is_another_run_than_one_named_once(records):
    once, twice = (sft._data_identity(",".join([str(records)] * times)) for times in (1, 2))
    assert len(once) == 1 and len(twice) == 2 and once.items() <= twice.items()
