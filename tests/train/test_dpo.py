"""Preference optimisation starts from the SFT model as its own reference, and holds it only once."""

import json
import math
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file

from overlays.data.chat import IGNORE
from overlays.data.media import MediaOptions
from overlays.data.preferences import PreferenceCollator, PreferenceDataset, check_pair, choose_pairs, last_answers
from overlays.data.thinking import thinking_of
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.model import load, parts
from overlays.registry import resolve
from overlays.train import arguments, dpo
from overlays.train.trainer import Trainer
from tests.commands import run_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Eight pictures, bright or dark; the answer that says so is preferred."""
    folder, rows = tmp_path_factory.mktemp("pairs"), []
    for number in range(8):
        level = (230, 20)[number % 2]
        Image.new("RGB", (64, 64), (level + number,) * 3).save(folder / f"{number}.png")
        answers = ["7.25", "1.5"] if number % 2 else ["1.5", "7.25"]
        rows.append({"id": str(number), "image": f"{number}.png",
                     "conversations": [{"from": "human", "value": "<image>\nHow bright?"}],
                     "chosen": answers[0], "rejected": answers[1]})
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def adapter(tiny_model_dir, tmp_path_factory):
    """A LoRA checkpoint whose adapter and merger differ from the base."""
    folder, output = tiny_model_dir("qwen3_vl"), tmp_path_factory.mktemp("sft")
    model = load.load_base(folder, torch.float32)
    model = get_peft_model(model, LoraConfig(
        r=4, target_modules=parts.lora_target_pattern(model.config), base_model_name_or_path=str(folder)))
    rates = dict.fromkeys(parts.PARTS, 0.0) | {"adapter": 1e-3, "merger": 1e-3}
    parts.set_trainable(model, model.config, rates)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    Trainer(model=model, rates=rates, processing_class=load.load_processor(folder),
            args=transformers.TrainingArguments(str(output), report_to="none", use_cpu=True)).save_model(str(output))
    return output


def test_drawing_answers_goes_on_where_it_was_interrupted(adapter, pairs, tmp_path):
    rows = [{**json.loads(line), "target": {"level": number}} for number, line in enumerate(pairs.open())]
    for row in rows:
        row["conversations"].append({"from": "gpt", "value": "1"})
    data = pairs.with_name("rows.jsonl")
    write_jsonl(data, rows)
    words = ["--checkpoint", adapter, "--dataset_use", data, "--output", tmp_path / "out.jsonl", "--target", "level",
             "--samples", "2", "--batch_size", "3", "--max_new_tokens", "4", "--min_gap", "1e9"]
    partial = tmp_path / "out.jsonl.partial"
    kept = []
    for _ in range(2):
        done = run_script("make_preferences.py", *words)
        assert done.returncode == 2 and "no question gave a pair" in done.stderr, done.stderr
        kept.append(partial.read_bytes())
        partial.write_bytes(kept[0][:-9])  # the last batch cut short
    lines = [json.loads(line) for line in kept[0].splitlines()]
    assert kept[0] == kept[1] and [len(answers) for _, answers in lines[1:]] == [3, 3, 2]


def fit(model, data, output, *words):
    """A run in this process; (trainer, its run)."""
    groups = arguments.parse([
        "--model_name_or_path", str(model), "--dataset_use", str(data), "--eval_dataset", str(data),
        "--output_dir", str(output), "--report_to", "none", "--min_pixels", "1024", "--max_pixels", "4096",
        "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "4", "--gradient_accumulation_steps", "2",
        "--logging_steps", "1", "--dataloader_num_workers", "0", "--lr_scheduler_type", "constant", "--beta", "0.3",
        "--save_strategy", "epoch", *words,
    ], arguments.DPO)
    transformers.set_seed(0)
    run = dpo.prepare(*groups)
    model = run.load_model()
    run.set_parts(model)
    trainer = run.build_trainer(model)
    run.fit(trainer)
    run.finish(trainer)
    return trainer


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_only_the_last_answer_counts():
    labels = torch.tensor([[IGNORE, 5, 6, IGNORE, 7, 8, IGNORE], [IGNORE, IGNORE, 5, IGNORE, IGNORE, IGNORE, IGNORE]])
    assert last_answers(labels).tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0, 0]]


def test_a_batch_holds_the_chosen_sides_then_the_rejected_ones(tiny_model_dir, pairs):
    config, processor = (load.load_config(tiny_model_dir("qwen3_vl")), load.load_processor(tiny_model_dir("qwen3_vl")))
    made = PreferenceDataset(resolve(str(pairs)), processor, parts.position_function(config), MediaOptions())
    rows = [{"split": "train", "index": i, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0} for i in (0, 1)]
    batch = PreferenceCollator(processor, {"train": made})(rows)
    words = [processor.tokenizer.decode(ids[mask.bool()]).replace("<|im_end|>", "")
             for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    assert words == ["1.5", "7.25", "7.25", "1.5"]
    assert len(batch["image_grid_thw"]) == 4 and "labels" not in batch
    assert batch["ref_rejected_logps"].tolist() == [-2.0, -2.0]


def test_pairs_that_say_nothing_are_named(tmp_path, tiny_model_dir):
    turn = {"from": "human", "value": "?"}
    assert check_pair({"conversations": [turn], "chosen": "1", "rejected": "2"}) == []
    assert check_pair({"conversations": [turn], "chosen": "1", "rejected": " 1"}) == [
        "chosen and rejected are the same answer"]
    assert "rejected must be an answer" in check_pair({"conversations": [turn], "chosen": "1"})[0]
    assert "must end with the question" in check_pair(
        {"conversations": [turn, {"from": "gpt", "value": "1"}], "chosen": "1", "rejected": "2"})[0]
    write_jsonl(tmp_path / "bad.jsonl", [{"id": "a", "conversations": [turn], "chosen": "1", "rejected": "1"}])
    with pytest.raises(UserError, match=r"row 1 \(id a\): chosen and rejected are the same"):
        dpo.prepare(*arguments.parse([
            "--model_name_or_path", str(tiny_model_dir("qwen3_vl")), "--dataset_use", str(tmp_path / "bad.jsonl"),
            "--lora_enable", "True", "--output_dir", str(tmp_path / "run"), "--report_to", "none"], arguments.DPO))


def test_a_pair_of_which_one_side_reasons_is_refused(tmp_path, tiny_model_dir):
    """The template opens a block of reasoning before the one answer and closes it before the other."""
    pair = {"id": "a", "conversations": [{"from": "human", "value": "?"}], "chosen": "<think>so</think>1"}
    write_jsonl(tmp_path / "bad.jsonl", [{**pair, "rejected": "2"}])
    write_jsonl(tmp_path / "good.jsonl", [{**pair, "rejected": "<think>or</think>2"}])

    def prepare(name):
        return dpo.prepare(*arguments.parse([
            "--model_name_or_path", str(tiny_model_dir("qwen3_5")), "--dataset_use", str(tmp_path / name),
            "--lora_enable", "True", "--output_dir", str(tmp_path / "run"), "--report_to", "none"], arguments.DPO))

    with pytest.raises(UserError, match=r"\(id a\): one of chosen and rejected has reasoning"):
        prepare("bad.jsonl")
    assert thinking_of(prepare("good.jsonl").processor) is True


def test_an_adapter_is_trained_on_against_a_frozen_copy_of_itself(adapter, pairs, tmp_path):
    trainer = fit(adapter, pairs, tmp_path / "run", "--lora_enable", "True", "--learning_rate", "3e-3",
                  "--num_train_epochs", "3")
    assert trainer.ref_model is None and set(trainer.model.peft_config) == {"default", "ref"}
    found = losses(trainer)
    assert found[0] == pytest.approx(math.log(2), abs=1e-3)  # at first the model is its reference
    assert found[-1] < 0.5
    judged = json.loads((tmp_path / "run" / "preferences.json").read_text())
    assert judged["n"] == 8 and judged["accuracy"] == 1.0

    saved = [path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")]
    assert not any(name.split("/")[-1] == "ref" for name in saved)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "run"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before if ".lora_" in name)
    kept = {name for name in before if ".lora_" not in name}
    assert any("merger" in name for name in kept) and all(torch.equal(before[name], after[name]) for name in kept)
    load.load_model(tmp_path / "run")


def test_full_training_computes_the_reference_beforehand(adapter, pairs, tmp_path):
    trainer = fit(adapter, pairs, tmp_path / "run", "--tune_mm_llm", "True", "--learning_rate", "1e-4",
                  "--max_steps", "2")
    assert trainer.ref_model is None and trainer.precompute_ref_logps
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-3)
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert load.adapter_base(tmp_path / "run") is None


def test_what_would_move_the_reference_is_refused(adapter, pairs, tmp_path):
    words = ["--model_name_or_path", str(adapter), "--dataset_use", str(pairs), "--lora_enable", "True",
             "--tune_mm_mlp", "True", "--precompute_ref_log_probs", "False", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="merger would move in the reference"):
        dpo.prepare(*arguments.parse([*words, "--report_to", "none"], arguments.DPO))


def test_kept_vision_features_are_for_fine_tuning(adapter, pairs, tmp_path):
    words = ["--model_name_or_path", str(adapter), "--dataset_use", str(pairs), "--lora_enable", "True",
             "--cache_vision", "True", "--output_dir", str(tmp_path / "run"), "--report_to", "none"]
    with pytest.raises(UserError, match="--cache_vision is for python -m overlays.train"):
        dpo.prepare(*arguments.parse(words, arguments.DPO))


def test_a_model_with_a_head_is_refused(pairs, tmp_path):
    write_json(tmp_path / "config.json", {})
    write_json(tmp_path / "additions.json", {"regression": {"names": ["a"]}})
    with pytest.raises(UserError, match="answers with a regression head"):
        dpo.prepare(*arguments.parse([
            "--model_name_or_path", str(tmp_path), "--dataset_use", str(pairs), "--lora_enable", "True",
            "--output_dir", str(tmp_path / "run"), "--report_to", "none"], arguments.DPO))


def test_the_entry_hands_its_flags_to_the_stage(monkeypatch, tmp_path):
    handed = []
    monkeypatch.setattr(dpo, "train", lambda *groups: handed.extend(groups))
    monkeypatch.setattr(sys, "argv", ["train_dpo", "--config", str(ROOT / "scripts/configs/satellite_dpo.yaml"),
                                      "--output_dir", str(tmp_path), "--report_to", "none", "--bf16", "False"])
    runpy.run_module("overlays.train_dpo", run_name="__main__")
    model, data, training = handed
    assert model.model_name_or_path == "outputs/satellite-text" and data.max_pixels == 65536
    assert training.loss_type == ["sigmoid", "sft"] and training.output_dir == str(tmp_path)


def test_the_answer_nearer_to_the_truth_is_chosen():
    def number(text):
        return float(text) if text[0].isdigit() else None

    answers = ["3.0", "1.0", "none", "2.1", "9.0", "1.0"]
    assert choose_pairs(answers, 2.0, number, count=3) == ([("2.1", "9.0"), ("1.0", "3.0")][:1], "")
    assert choose_pairs(answers, 1.9, number, count=3) == ([("2.1", "9.0"), ("1.0", "3.0")], "")
    assert choose_pairs(answers, 1.9, number, count=3, min_gap=0.5) == ([("2.1", "9.0")], "")
    assert choose_pairs(["1.0", "1.00"], 2.0, number) == ([], "all answers are the same")
    assert choose_pairs(["none", "none"], 2.0, number) == ([], "no answer holds a number")
    assert choose_pairs(["1.0", "3.0"], 2.0, number)[1] == "no two answers differ by 0 in their error"


def dry_run(launcher, **variables):
    """(the words of each command that a launcher would run, its output)."""
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "PYTHON": "python", "CUDA_VISIBLE_DEVICES": "",
                   **variables}
    done = subprocess.run(["bash", f"scripts/{launcher}"], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=True)
    return [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("python ")], done.stdout


def test_the_sft_launcher_leaves_the_language_model_alone_where_the_head_reads_vision():
    for model in ("some/model", "data/models/tiny-qwen3_vl"):
        (*_, words), _ = dry_run("train_satellite_sft.sh", MODEL_PATH=model)
        settings = arguments.read(words[3:], arguments.SFT)
        assert (settings["head"], settings["in_channels"], settings["metric_for_best_model"]) == ("vision", 64, "r2")
        assert not settings["lora_enable"] and not settings["train_embeddings"]
        (*_, words), _ = dry_run("train_satellite_sft.sh", MODEL_PATH=model, HEAD="none")
        settings = arguments.read(words[3:], arguments.SFT)
        assert settings["lora_enable"] and settings["metric_for_best_model"] is None
        assert settings["output_dir"] == "outputs/satellite-text"
        (*_, words), _ = dry_run("train_satellite_sft.sh", MODEL_PATH=model, HEAD="text")
        settings = arguments.read(words[3:], arguments.SFT)
        assert settings["lora_enable"] and settings["head"] == "text"


def test_the_dpo_launcher_draws_pairs_trains_and_compares(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    commands, output = dry_run("train_satellite_dpo.sh", MODEL_PATH=str(tmp_path), BETA="0.4", OUTPUT_DIR="outputs/x")
    assert "training it first" not in output
    drawn = [words[words.index("--dataset_use") + 1] for words in commands[:3]]
    assert drawn == ["satellite_train", "satellite_val", "satellite_test"]
    words = next(words for words in commands if "overlays.train_dpo" in words)
    settings = arguments.read(words[3:], arguments.DPO)
    assert (settings["beta"], settings["model_name_or_path"]) == (0.4, str(tmp_path))
    assert settings["loss_type"] == ["sigmoid", "sft"] and settings["loss_weights"] == [1.0, 1.0]
    assert commands[-1][2:] == [f"SFT={tmp_path}", "DPO=outputs/x"]


def test_losses_from_outside_have_a_weight_each(tmp_path):
    commands, _ = dry_run("train_satellite_dpo.sh", MODEL_PATH=str(tmp_path), LOSS="hinge")
    words = next(words for words in commands if "overlays.train_dpo" in words)
    settings = arguments.read(words[3:], arguments.DPO)
    assert settings["loss_type"] == ["hinge"] and settings["loss_weights"] == [1.0]
