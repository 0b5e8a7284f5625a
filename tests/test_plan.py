"""Planned memory: the pass on the meta device against one on the CPU, what adds to it, and the command."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from overlays import plan
from overlays.errors import UserError
from overlays.model import dry_run
from overlays.model.dry_run import Shape
from tests.commands import run_module

FULL = ("--tune_mm_llm", "True", "--tune_mm_mlp", "True", "--tune_mm_vision", "True")
SHAPE = Shape(samples=2, tokens=192, visual=64, images=2, supervised=32)
# Published shapes of Qwen3-VL-8B; the sum of its parameters is that of the model card.
QWEN3_VL_8B = {
    "model_type": "qwen3_vl", "tie_word_embeddings": False,
    "text_config": {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20],
                                        "mrope_interleaved": True}},
    "vision_config": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16,
                      "out_hidden_size": 4096, "deepstack_visual_indexes": [8, 16, 24]},
}


def made(folder, *words):
    """(flags, config, learning rates, model on the meta device) for the words behind a model's folder."""
    flags = plan.read_flags([str(folder), *words])
    config, rates = plan.load_config(flags)
    return flags, config, rates, plan.make_model(config, flags, rates)


def peak(folder, *words, shape=SHAPE, **options):
    return dry_run.peak(made(folder, *words)[-1], shape, **options)


@pytest.mark.parametrize(("family", "words"), [
    ("qwen3_vl", FULL), ("qwen3_vl", ("--lora_enable", "True", "--gradient_checkpointing", "True")),
    ("qwen2_5_vl", ("--tune_mm_mlp", "True")), ("qwen3_5", (*FULL, "--gradient_checkpointing", "True")),
])
def test_the_pass_without_memory_counts_what_a_real_one_makes(tiny_model_dir, family, words):
    flags, config, rates, model = made(tiny_model_dir(family), *words)
    planned = dry_run.peak(model, SHAPE)
    real = plan.make_model(config, flags, rates, "cpu")
    memory = dry_run.Memory([*real.parameters(), *real.buffers()])
    with memory:
        total = real(**dry_run.make_batch(config, SHAPE, "cpu")).loss
        torch.autograd.backward([total])
    assert sum(planned.values()) == pytest.approx(memory.peak.total(), rel=0.03)


@pytest.mark.parametrize("words", [FULL, (*FULL, "--gradient_checkpointing", "True"), ("--lora_enable", "True")])
def test_autocast_on_the_meta_device_is_that_of_torch(tiny_model_dir, words):
    flags, config, rates, model = made(tiny_model_dir("qwen3_vl"), *words, "--bf16", "True")
    planned = dry_run.peak(model, SHAPE, bf16=True)
    real = plan.make_model(config, flags, rates, "cpu")
    memory = dry_run.Memory([*real.parameters(), *real.buffers()])
    with memory:
        with torch.autocast("cpu", torch.bfloat16):
            total = real(**dry_run.make_batch(config, SHAPE, "cpu")).loss
        torch.autograd.backward([total])
    # A GPU's autocast computes the tower's norms in fp32, a CPU's does not.
    assert sum(planned.values()) == pytest.approx(memory.peak.total(), rel=0.1)


def test_frozen_layers_keep_nothing_and_checkpointed_layers_little(tiny_model_dir):
    folder = tiny_model_dir("qwen3_vl")
    full = peak(folder, *FULL)["activations"]
    frozen_tower = peak(folder, "--tune_mm_llm", "True")["activations"]
    checkpointed = peak(folder, *FULL, "--gradient_checkpointing", "True")["activations"]
    assert frozen_tower < 0.9 * full and checkpointed < 0.6 * full


def test_activations_grow_with_the_batch_and_logits_stay_a_block(tiny_model_dir):
    folder = tiny_model_dir("qwen3_vl")
    small, large = (Shape(samples, 192, 64, 1, 64, packed=True) for samples in (2, 8))
    assert peak(folder, *FULL, shape=large)["activations"] == pytest.approx(
        4 * peak(folder, *FULL, shape=small)["activations"], rel=0.05)
    flags, config, rates, model = made(folder, "--tune_mm_mlp", "True")
    words = Shape(1, 120_000, 0, 0, 119_000, packed=True)
    logits = dry_run.peak(model, words)["logits"]
    # A block of logits, its log-softmax, and the gradient of both.
    assert logits < 4 * 4 * 2 ** 26 < 119_000 * config.text_config.vocab_size * 4


def test_gradients_are_those_of_the_trained_weights_and_stay_while_batches_accumulate(tiny_model_dir):
    model = made(tiny_model_dir("qwen3_vl"), "--tune_mm_llm", "True")[-1]
    size = sum(value.numel() * 4 for value in model.parameters() if value.requires_grad)
    assert dry_run.peak(model, SHAPE, accumulated=True)["gradients"] == size
    assert dry_run.peak(model, SHAPE, keep_gradients=False).get("gradients", 0) == 0
    assert all(value.grad is None for value in model.parameters())


def test_bf16_halves_what_passes_between_layers(tiny_model_dir):
    words = ("--lora_enable", "True", "--bf16", "True")
    half = peak(tiny_model_dir("qwen3_vl"), *words, bf16=True)["activations"]
    assert half < 0.75 * peak(tiny_model_dir("qwen3_vl"), *words[:2])["activations"]


@pytest.mark.parametrize(("optim", "state", "once"), [
    ("adamw_torch_fused", 8, 0), ("adamw_torch", 8, 4), ("adamw_8bit", 2, 0), ("adamw_torch_4bit", 1, 0),
    ("adafactor", 0, 0), ("lion_8bit", 1, 0), ("paged_lion_32bit", 4, 0),
])
def test_the_optimizer_takes_so_many_bytes_a_weight(optim, state, once):
    assert plan.optimizer_bytes(optim, 1000, 4) == (1000 * state, 1000 * once)


def test_zero_divides_among_the_processes():
    one, four = (plan._sharded({"stage": 3}, count, 16e9, 8_000_000_000, 8_000_000_000, 2) for count in (1, 4))
    assert four["optimizer"] < one["optimizer"] / 3 and four["gradients"] == one["gradients"] / 4
    assert four["weights"] == 16e9 / 4 + 2e9
    stage_2 = plan._sharded({"stage": 2, "offload_optimizer": {}}, 4, 16e9, 8_000_000_000, 8_000_000_000, 2)
    assert stage_2 == {"weights": 16e9, "gradients": 4e9, "optimizer": 0}


@pytest.mark.slow
def test_full_tuning_of_8b_does_not_fit_one_card_and_an_adapter_does(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_VL_8B))
    flags = plan.read_flags(["scripts/configs/gui_global.yaml", "--model_name_or_path", str(tmp_path)])
    planner = plan.Planner(*plan.load_config(flags), plan.Tokens(1236, 1236, 980, 1, ""))
    adapter = planner.estimate(flags)
    assert sum(row.parameters for row in adapter.rows if row.part != "adapter") == 8_767_123_696
    full = planner.estimate(SimpleNamespace(**vars(flags) | {"lora_enable": False, "tune_mm_llm": True}))
    assert adapter.total < 24 and 145 < full.total < 155


@pytest.fixture
def texts(tmp_path):
    """An annotation file of one short and one long sample."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"conversations": [
        {"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "word " * count}]}) + "\n"
        for count in (10, 500)))
    return file


def test_tokens_come_from_the_data_and_flags_that_fit_do_fit(tiny_model_dir, tmp_path, texts):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model_name_or_path: {tiny_model_dir('qwen3_vl')}\ndataset_use: {texts}\ntune_mm_llm: true\n"
                      "per_device_train_batch_size: 16\n")
    done = run_module("overlays.plan", recipe, "--gpu", "1.18")
    assert done.returncode == 0, done.stderr
    longest = int(re.search(r"max (\d+), of which 0 visual \(measured, 2 samples\)", done.stdout)[1])
    assert 500 < longest < 1100
    assert "--deepspeed scripts/zero3.json" in done.stdout
    size, changes = re.search(r"^ +([\d.]+) GB  (--gradient_checkpointing True .*)$", done.stdout, re.M).groups()
    again = run_module("overlays.plan", recipe, "--gpu", "1.18", *changes.split())
    assert float(re.search(r"^sum +([\d.]+)  fits", again.stdout, re.M)[1]) == float(size) <= 1.18


def test_a_run_is_planned_as_it_was_trained(tiny_model_dir, tmp_path):
    words = ("--lora_enable", "True", "--lora_r", "4", "--per_device_train_batch_size", "2")
    flags = plan.read_flags([str(tiny_model_dir("qwen3_vl")), *words])
    kept = {name: value for name, value in vars(flags).items() if value is not None} | {"n_gpu": 1, "use_cpu": True}
    (tmp_path / "run.json").write_text(json.dumps({"arguments": kept}))
    again = plan.read_flags([str(tmp_path)])
    assert {name: getattr(again, name) for name in plan.READ_OF_A_RUN if hasattr(again, name)} == {
        name: getattr(flags, name) for name in plan.READ_OF_A_RUN if hasattr(flags, name)}
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {"mask_ratio": 0.75}}))
    with pytest.raises(UserError, match="is not a run of overlays.train"):
        plan.read_flags([str(tmp_path)])


def test_a_four_bit_base_takes_a_quarter(tiny_model_dir):
    flags = plan.read_flags([str(tiny_model_dir("qwen3_vl")), "--lora_enable", "True"])
    planner = plan.Planner(*plan.load_config(flags), plan.Tokens(100, 100, 16, 1, ""))
    before = planner.estimate(flags).kinds["weights"]
    after = planner.estimate(SimpleNamespace(**vars(flags) | {"load_in_4bit": True})).kinds["weights"]
    assert 0 < after < before


@pytest.mark.parametrize(("words", "sentence"), [
    ((), "the first word is a YAML file of flags"), (("--gpu", "80"), "the first word is a YAML file of flags"),
    (("missing", "--gpu", "80"), "missing is not a YAML file of flags, a run folder or a folder"),
    (("missing.yaml", "--gpu", "80"), "missing.yaml"), (("scripts/configs/gui_global.yaml",), "--gpu"),
    (("scripts/configs/gui_global.yaml", "--gpu", "0"), "must be above 0"),
    (("scripts/configs/gui_global.yaml", "--gpu", "80", "--lora_rank", "8"), "unknown flag --lora_rank"),
    (("TINY", "--gpu", "80"), "nothing is trained"),
    (("TINY", "--gpu", "80", *FULL, "--attn_implementation", "eager"), "--attn_implementation eager"),
])
def test_mistakes_are_one_sentence(tiny_model_dir, words, sentence):
    words = [tiny_model_dir("qwen3_vl") if word == "TINY" else word for word in words]
    done = run_module("overlays.plan", *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sentence in done.stderr
