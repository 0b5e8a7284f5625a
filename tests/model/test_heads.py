"""A regression head learns numbers, alike in every kind of batch, and is there again after loading."""

import json

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file

from overlays.data.collate import FlattenedCollator, PaddedCollator
from overlays.data.dataset import SupervisedDataset
from overlays.data.media import MediaOptions, apply_resolution
from overlays.data.targets import scores
from overlays.errors import UserError
from overlays.files import write_jsonl
from overlays.model import extensions, heads, load, parts
from overlays.predict import predict_values
from overlays.registry import resolve
from overlays.train import arguments, sft
from overlays.train.trainer import Trainer
from overlays.upstream import engine

SETTINGS = {"names": ["level", "share"], "mean": [100.0, 0.5], "std": [50.0, 0.2]}


@pytest.fixture(scope="module")
def annotation(tmp_path_factory):
    """Sixteen grey pictures of two sizes whose level is their target; the words of the answer differ in length."""
    folder, rng, rows = tmp_path_factory.mktemp("levels"), np.random.default_rng(0), []
    for number in range(16):
        level = int(rng.integers(20, 220))
        size = (96, 64) if number % 2 else (64, 64)
        Image.new("L", size, level).convert("RGB").save(folder / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "target": {"level": level},
                     "conversations": [{"from": "human", "value": "<image>\nHow bright?" + " Say." * (number % 3)},
                                       {"from": "gpt", "value": "It is " + "very " * (number % 4) + "bright."}]})
    del rows[3]["target"]
    write_jsonl(folder / "train.jsonl", rows)
    return folder / "train.jsonl"


def make(tiny_model_dir, annotation, mode, family="qwen3_vl"):
    folder = tiny_model_dir(family)
    model = load.load_base(folder, torch.float32)
    extensions.attach(model, {"regression": SETTINGS | {"mode": mode}})
    torch.nn.init.normal_(model.regression.out.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    processor = load.load_processor(folder)
    options = MediaOptions(min_pixels=1024, max_pixels=8192)
    apply_resolution(processor, options)
    samples = SupervisedDataset(resolve(str(annotation)), processor, parts.position_function(model.config), options)
    samples.target_names = ("level", "share")
    return model.eval(), processor, samples


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("mode", heads.MODES)
def test_padding_and_concatenation_change_no_prediction(tiny_model_dir, annotation, mode, family):
    model, processor, samples = make(tiny_model_dir, annotation, mode, family)
    chosen = [samples[i] for i in range(4)]
    with torch.no_grad():
        alone = torch.cat([model(**PaddedCollator(processor)([sample])).logits for sample in chosen])
        padded = model(**PaddedCollator(processor)(chosen)).logits
        flat = model(**FlattenedCollator(processor)(chosen)).logits
        asked = predict_values(model, processor, [samples.record(i) for i in range(4)], annotation.parent, 3)
    assert alone.std(dim=0).min() > 1e-3  # they differ from one another
    assert torch.allclose(padded, alone, atol=1e-2) and torch.allclose(flat, alone, atol=1e-2)
    assert torch.allclose(torch.tensor([[row["level"], row["share"]] for row in asked]), alone, atol=1e-2)


def test_an_answer_does_not_show_in_the_prediction_that_precedes_it(tiny_model_dir, annotation):
    model, processor, samples = make(tiny_model_dir, annotation, "text")
    batch = PaddedCollator(processor)([samples[5], samples[6]])
    other = batch | {"input_ids": torch.where(batch["labels"] != -100, 9, batch["input_ids"])}
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**other).logits)


def test_the_vision_head_makes_one_call_of_the_tower_and_none_of_the_language_model(tiny_model_dir, annotation):
    model, processor, samples = make(tiny_model_dir, annotation, "vision")
    calls = []
    model.model.visual.register_forward_hook(lambda *_: calls.append("vision"))
    model.model.language_model.register_forward_hook(lambda *_: calls.append("language"))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(**PaddedCollator(processor)([samples[i] for i in range(4)])).loss.backward()
    assert calls == ["vision"]
    missing = [name for name, parameter in model.named_parameters()
               if parameter.grad is None and ("visual" in name or "regression" in name)]
    assert missing == []  # DeepStack's mergers take part, so DDP finds every gradient


def test_unknown_targets_are_left_out_of_the_loss(tiny_model_dir, annotation):
    model, processor, samples = make(tiny_model_dir, annotation, "vision")
    batch = PaddedCollator(processor)([samples[2], samples[3]])  # 3 has no target, none has a share
    assert batch["targets"].isnan().tolist() == [[False, True], [True, True]]
    with torch.no_grad():
        output = model(**batch)
        half = model(**batch, num_items_in_batch=2).loss
    wrong = (output.logits[0, 0] - batch["targets"][0, 0]) / 50.0
    assert output.loss == pytest.approx(float(wrong**2), rel=1e-4)
    assert half == pytest.approx(float(wrong**2) / 2, rel=1e-4)


@pytest.mark.parametrize("words, sentence", [
    (["--head", "vision", "--lora_enable", "True"], "does not run the language model"),
    (["--head", "number"], "--head: invalid choice: .* .choose from .none., .vision., .text."),
    (["--metric_for_best_model", "r2"], "needs --head"),
    (["--freeze_encoder_epochs", "1"], "is for a vision tower that is trained"),
])
def test_flags_that_make_no_sense_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence):
        arguments.parse(["--model_name_or_path", "m", "--dataset_use", "d", *words])


def fit(tiny_model_dir, annotation, output, *words):
    """A training run in this process; its trainer."""
    groups = arguments.parse([
        "--model_name_or_path", str(tiny_model_dir("qwen3_vl")), "--dataset_use", str(annotation),
        "--eval_dataset", str(annotation), "--output_dir", str(output), "--report_to", "none", "--engine", "native",
        "--min_pixels", "1024", "--max_pixels", "8192", "--learning_rate", "1e-3", "--dataloader_num_workers", "0",
        "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "8", "--logging_steps", "1",
        "--eval_strategy", "epoch", "--save_strategy", "epoch", "--lr_scheduler_type", "constant", *words,
    ])
    transformers.set_seed(0)
    run = sft.prepare(*groups, engine.choose("native", {}))
    model = run.load_model()
    run.set_parts(model)
    trainer = run.build_trainer(model)
    run.fit(trainer)
    run.finish(trainer)
    return trainer


def tower(folder):
    name = "model.visual.blocks.0.attn.qkv.weight"
    if (folder / "adapter_config.json").is_file():
        return load_file(folder / "adapter_model.safetensors")[f"base_model.model.{name}"]
    return load_file(folder / "model.safetensors")[name]


def test_a_frozen_encoder_rests_and_wakes_and_the_best_checkpoint_comes_back(tiny_model_dir, annotation, tmp_path):
    trainer = fit(
        tiny_model_dir, annotation, tmp_path / "run", "--head", "text", "--lora_enable", "True", "--lora_r", "4",
        "--tune_mm_vision", "True", "--tune_mm_mlp", "True", "--vision_tower_lr", "3e-4", "--num_train_epochs", "3",
        "--freeze_encoder_epochs", "1", "--load_best_model_at_end", "True", "--metric_for_best_model", "r2",
        "--save_total_limit", "3",
    )
    base = load_file(tiny_model_dir("qwen3_vl") / "model.safetensors")["model.visual.blocks.0.attn.qkv.weight"]
    first, second = (tower(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 4))
    assert torch.equal(first, base) and not torch.equal(second, base)
    log = [row for row in trainer.state.log_history if "eval_r2" in row]
    assert len(log) == 3 and all(row["eval_mae"] > 0 for row in log)
    best = max(log, key=lambda row: row["eval_r2"])
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best['step']}")
    assert torch.equal(tower(tmp_path / "run"), tower(tmp_path / "run" / f"checkpoint-{best['step']}"))
    assert set(extensions.read(tmp_path / "run")) == {"regression"}

    model, processor = load.load_for_inference(tmp_path / "run")
    records = [json.loads(line) for line in annotation.read_text().splitlines()]
    predicted = predict_values(model, processor, records, annotation.parent, 8)
    known = [i for i, record in enumerate(records) if "target" in record]
    found = scores(np.array([[predicted[i]["level"]] for i in known]),
                         np.array([[records[i]["target"]["level"]] for i in known]), ["level"])
    assert found["r2"] == pytest.approx(best["eval_r2"], abs=1e-3)


def test_the_vision_head_learns_a_level_that_the_picture_shows(tiny_model_dir, annotation, tmp_path):
    trainer = fit(tiny_model_dir, annotation, tmp_path / "run", "--head", "vision", "--tune_mm_vision", "True",
                  "--tune_mm_mlp", "True", "--num_train_epochs", "14", "--gradient_accumulation_steps", "2",
                  "--per_device_train_batch_size", "4", "--save_strategy", "no", "--eval_strategy", "steps",
                  "--eval_steps", "28")  # the last
    r2 = [row["eval_r2"] for row in trainer.state.log_history if "eval_r2" in row]
    assert r2[-1] > 0.8
    first = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    assert 0.3 < first < 3  # normalised targets, each counted once: the variance of 8 of them


def test_a_model_with_a_head_can_go_on_in_words(tiny_model_dir, annotation, tmp_path):
    model, processor, samples = make(tiny_model_dir, annotation, "vision")
    save(model, processor, tmp_path / "head", {"additions": 1e-3})
    assert not heads.detach(model, SETTINGS | {"mode": "vision"})
    assert heads.detach(model, None)
    assert extensions.settings(model) == {}
    batch = PaddedCollator(processor)([samples[0]])
    with torch.no_grad():
        assert 1 < model(**batch).loss < 20  # of words
    words = get_peft_model(model, LoraConfig(r=2, target_modules=parts.lora_target_pattern(model.config),
                                             base_model_name_or_path=str(tmp_path / "head")))
    save(words, processor, tmp_path / "words", {"adapter": 1e-3})
    assert "regression" in extensions.settings(load.load_model(tmp_path / "head"))
    assert "regression" not in extensions.settings(load.load_model(tmp_path / "words"))


def save(model, processor, folder, rates):
    Trainer(model=model, rates=dict.fromkeys(parts.PARTS, 0.0) | rates, processing_class=processor,
            args=transformers.TrainingArguments(str(folder), report_to="none", use_cpu=True)).save_model(str(folder))
