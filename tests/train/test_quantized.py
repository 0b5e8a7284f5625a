"""A base in 4 or 8 bits under an adapter: what is quantised, what is trained, and the run's folder afterwards."""

import importlib.util
import json

import pytest
import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from overlays import families, predict, runs
from overlays.errors import UserError
from overlays.merge import merge
from overlays.model import adapters, load, parts
from overlays.train import arguments, llamafactory
from tests.model.test_load import logits
from tests.train.test_dpo import adapter, fit, pairs  # noqa: F401 (fixtures)
from tests.train.test_sft import LORA, flags_of, here, records  # noqa: F401 (a fixture)

needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None,
                                        reason="needs bitsandbytes: pip install bitsandbytes")
ERROR = {4: 0.11, 8: 0.015}  # of a quantised weight, relative to its norm


@needs_bitsandbytes
@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_linear_layers_of_the_language_model_are_quantised_and_nothing_else(tiny_model_dir, family, bits):
    import bitsandbytes

    full = load.load_base(tiny_model_dir(family), torch.float32)
    model = load.load_base(tiny_model_dir(family), torch.float32, bits=bits, device="cpu")
    kind = {4: bitsandbytes.nn.Linear4bit, 8: bitsandbytes.nn.Linear8bitLt}[bits]
    prefix = families.family_of(model.config).language_model[0]
    linear = {name for name, module in full.named_modules() if isinstance(module, nn.Linear)}
    found = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert found == {name for name in linear if name.startswith(prefix)}
    inside = tuple(f"{name}." for name in found)
    for name, value in model.named_parameters():
        assert name.startswith(inside) or torch.equal(value, full.get_parameter(name)), name
        assert parts.numel(value) == full.get_parameter(name).numel()
    for name in found:
        weight = full.get_submodule(name).weight
        assert 1e-3 < relative_error(dequantize_module_weight(model.get_submodule(name)), weight) < ERROR[bits], name
    assert 1e-3 < relative_error(logits_of(model), logits_of(full)) < 1


def relative_error(value, expected):
    return ((value - expected).norm() / expected.norm()).item()


def logits_of(model):
    """(L, vocabulary) for a short text."""
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 15)[None]).logits[0]


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_a_run_on_a_quantised_base(tiny_model_dir, records, tmp_path, bits):  # noqa: F811
    base, run = tiny_model_dir("qwen3_vl"), tmp_path / "run"
    trainer = here(base, records, run, *LORA, f"--load_in_{bits}bit", "True", "--gradient_checkpointing", "True",
                   "--max_steps", "4", "--learning_rate", "1e-2")
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert runs.read_run(run)["arguments"][f"load_in_{bits}bit"] is True
    trained = trainer.model.eval()

    model, _ = load.load_for_inference(run)  # in full precision
    plain = model.get_base_model().state_dict()
    for name, value in load.load_base(base, torch.float32).state_dict().items():
        if "visual" not in name:
            stored = name if name in plain else name.replace("_proj.weight", "_proj.base_layer.weight")
            assert torch.equal(plain[stored], value), name
    error = relative_error(logits_of(trained), logits_of(model))
    assert error < relative_error(logits_of(load.load_base(base, torch.float32)), logits_of(model))  # what was learned
    assert error < 5 * ERROR[bits]
    merge(run, tmp_path / "merged", None, "auto")
    assert (logits(load.load_base(tmp_path / "merged", torch.float32)) - logits(model)).abs().max() < 1e-4

    again, _ = load.load_for_inference(run, bits=bits)
    assert relative_error(logits_of(again), logits_of(trained)) < 1e-4

    with pytest.raises(UserError, match="trained with another quantization"):
        here(base, records, run, *LORA, "--max_steps", "6", "--learning_rate", "1e-2")
    longer = here(base, records, run, *LORA, f"--load_in_{bits}bit", "True", "--gradient_checkpointing", "True",
                  "--max_steps", "6", "--learning_rate", "1e-2")
    assert [row["step"] for row in longer.state.log_history if "loss" in row] == [1, 2, 3, 4, 5, 6]


@needs_bitsandbytes
def test_preferences_on_an_adapter_whose_base_is_quantised(tiny_model_dir, adapter, pairs, tmp_path):  # noqa: F811
    for start in (adapter, tiny_model_dir("qwen3_vl")):
        trainer = fit(start, pairs, tmp_path / start.name, "--lora_enable", "True", "--load_in_4bit", "True",
                      "--max_steps", "2")
        layer = trainer.model.get_base_model().model.language_model.layers[0].self_attn.q_proj
        assert type(layer).__name__ == "Linear4bit" and layer.lora_B.default.weight.abs().max() > 0
        load.load_model(tmp_path / start.name)
    config = json.loads((tmp_path / adapter.name / adapters.CONFIG).read_text())
    config["base_model_name_or_path"] = str(adapter)
    (tmp_path / adapter.name / adapters.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="is itself an adapter"):
        load.load_model(tmp_path / adapter.name, bits=4)


@needs_bitsandbytes
def test_a_base_that_is_quantised_already_is_refused(tiny_model_dir):
    config = load.load_config(tiny_model_dir("qwen3_vl"))
    config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(UserError, match="quantised already"):
        load.quantization(config, 4, torch.float32)


@pytest.mark.parametrize(("flags", "sentence"), [
    ("--load_in_4bit True", "cannot be trained: set --lora_enable True"),
    ("--load_in_8bit True --tune_mm_llm True", "cannot be trained: set --lora_enable True"),
    ("--lora_enable True --load_in_4bit True --load_in_8bit True", "exclude each other"),
    ("--lora_enable True --load_in_4bit True --deepspeed scripts/zero3.json", "does not go with ZeRO-3"),
    ("--lora_enable True --load_in_8bit True", "--load_in_8bit needs a package .* pip install bitsandbytes"),
])
def test_what_cannot_go_together_is_one_sentence(records, tmp_path, monkeypatch, flags, sentence):  # noqa: F811
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(UserError, match=sentence):
        arguments.read(flags_of("model", records, tmp_path, *flags.split()), arguments.SFT)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_key_of_llama_factory_is_the_flag(bits):
    values, lacking = llamafactory.translate({"stage": "sft", "quantization_bit": bits}, ())
    assert values[f"load_in_{bits}bit"] is True and not lacking


@needs_bitsandbytes
@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_a_step_with_an_optimizer_of_bitsandbytes(tiny_model_dir, records, tmp_path, name):  # noqa: F811
    trainer = here(tiny_model_dir("qwen3_vl"), records, tmp_path / "run", *LORA, "--optim", name, "--max_steps", "1")
    assert len(trainer.optimizer.state) and json.loads((tmp_path / "run" / "trainer_state.json").read_text())


@needs_bitsandbytes
def test_predict_quantises_the_base_where_it_is_asked_to(tiny_model_dir, records, tmp_path, monkeypatch):  # noqa: F811
    seen = []
    monkeypatch.setattr(predict, "predict", lambda model, *_, **__: seen.append(type(
        model.model.language_model.layers[0].mlp.up_proj).__name__))
    words = ["--checkpoint", str(tiny_model_dir("qwen3_vl")), "--dataset-use", str(records), "--output",
             str(tmp_path / "out.jsonl")]
    for flags in ([], ["--load-in-4bit"], ["--load-in-8bit"]):
        predict.main([*words, *flags])
    assert seen == ["Linear", "Linear4bit", "Linear8bitLt"]
