"""The parts table: every parameter has one owner, and flags decide exactly what is trained."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from overlays import families
from overlays.errors import UserError
from overlays.model import load, parts

FLAGS = dict(
    tune_mm_llm=False, tune_mm_mlp=False, tune_mm_vision=False, train_embeddings=False, lora_enable=False,
    learning_rate=1e-5, mm_projector_lr=None, vision_tower_lr=None, additions_lr=None,
)


def rates(**changes):
    return parts.learning_rates(SimpleNamespace(**{**FLAGS, **changes}))


def trained(model):
    family = families.family_of(model.config)
    return {parts.part_of(name, family) for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_part_of_every_family_is_found(tiny_model_dir, family):
    model = load.load_base(tiny_model_dir(family), torch.float32)
    rows = {row.part: row for row in parts.table(model, model.config, rates())}
    assert set(rows) == {"vision", "merger", "embeddings", "language_model"}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    merger = sum(p.numel() for name, p in model.named_parameters() if "merger" in name)
    assert rows["merger"].parameters == merger  # DeepStack mergers are the merger's, not the tower's


def test_an_untied_head_is_frozen_with_the_language_model():
    family = families.FAMILIES["qwen3_vl"]
    assert parts.part_of("lm_head.weight", family) == "language_model"
    assert parts.part_of("base_model.model.lm_head.weight", family) == "language_model"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"tune_mm_mlp": True}, {"merger"}),
        ({"tune_mm_vision": True}, {"vision"}),
        ({"tune_mm_llm": True}, {"language_model", "embeddings"}),
        ({"lora_enable": True}, {"adapter"}),
        ({"lora_enable": True, "tune_mm_llm": True}, {"adapter"}),
        ({"lora_enable": True, "tune_mm_mlp": True}, {"adapter", "merger"}),
        ({"lora_enable": True, "tune_mm_mlp": True, "tune_mm_vision": True, "train_embeddings": True},
         {"adapter", "merger", "vision", "embeddings"}),
        ({"tune_mm_mlp": True, "tune_mm_vision": True, "vision_tower_lr": 0.0}, {"merger"}),
        ({"tune_mm_mlp": True, "tune_mm_vision": True, "mm_projector_lr": 0.0}, {"vision"}),
    ],
)
def test_flags_combine_freely(tiny_model_dir, flags, expected):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    if flags.get("lora_enable"):
        model = get_peft_model(model, LoraConfig(r=2, target_modules=parts.lora_target_pattern(model.config)))
    parts.set_trainable(model, model.config, rates(**flags))
    assert trained(model) == expected


def test_each_part_has_its_own_learning_rate(tiny_model_dir):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    own = rates(tune_mm_llm=True, tune_mm_mlp=True, tune_mm_vision=True, vision_tower_lr=2e-6, mm_projector_lr=1e-4)
    parts.set_trainable(model, model.config, own)
    family = families.family_of(model.config)
    decayed = {name for name, p in model.named_parameters() if p.ndim > 1}
    groups = parts.optimizer_groups(model, model.config, own, 0.1, decayed)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups)
    for name, parameter in model.named_parameters():
        rate = {"vision": 2e-6, "merger": 1e-4}.get(parts.part_of(name, family), 1e-5)
        assert found[id(parameter)] == (rate, 0.1 if name in decayed else 0.0)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_lora_stays_in_the_language_model(tiny_model_dir, family):
    model = load.load_base(tiny_model_dir(family), torch.float32)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=parts.lora_target_pattern(model.config)))
    adapters = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapters and all(".language_model." in name for name in adapters)


def test_positions_equal_the_models_own_and_travel_to_workers(tiny_model_dir):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    ids = torch.randint(5, 50, (1, 30))
    ids[:, 3:7] = model.config.image_token_id
    types = (ids == model.config.image_token_id).int()
    grid = torch.tensor([[1, 4, 4]])
    positions = pickle.loads(pickle.dumps(parts.position_function(model.config)))
    expected, _ = model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=grid)
    assert torch.equal(positions(ids, types, grid), expected)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_auto_attention_is_one_that_the_family_has(tiny_model_dir, family, monkeypatch):
    """On a GPU with flash-attn installed, which this machine need not have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    config = load.load_config(tiny_model_dir(family))
    expected = "sdpa" if family == "qwen4_exp" else "flash_attention_2"
    assert load.attention_implementation("auto", torch.bfloat16, config) == expected
    assert load.attention_implementation("auto", torch.float32, config) == "sdpa"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_familys_facts_are_those_of_its_processor_and_template(tiny_model_dir, family):
    processor, row = load.load_processor(tiny_model_dir(family)), families.FAMILIES[family]
    image = processor.image_processor
    assert row.patch_factor == image.patch_size * image.merge_size
    assert row.thinking == ("<think>" in processor.chat_template)


def test_an_unknown_family_is_named():
    with pytest.raises(UserError, match="'llama' is not supported"):
        families.family_of(SimpleNamespace(model_type="llama"))
