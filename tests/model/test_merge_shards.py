"""A merge tensor by tensor gives what a merge of the whole model in memory gives, and needs little of it."""

import json
import shutil
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from overlays import families, runs
from overlays.errors import UserError
from overlays.merge import merge
from overlays.model import adapters, extensions, load, merge_shards, parts
from tests.model.test_load import adapter_run, trainer_of


def tensors(folder):
    return {name: value for file in folder.glob("model*.safetensors") for name, value in load_file(file).items()}


def without_types(file):
    """The values of a JSON file; in memory, the parts of config.json keep the type in which they were summed."""
    return json.loads(file.read_text(), object_hook=lambda values: {k: v for k, v in values.items() if k != "dtype"})


def assert_equal_merges(run, folder, monkeypatch, dtype="auto"):
    """Both merges of `run` hold equal tensors under equal names; the folder of the one by tensors."""
    with monkeypatch.context() as patch:
        patch.setattr("overlays.merge.merge_in_memory", None)  # not called
        merge(run, folder / "shards", None, dtype)
    with monkeypatch.context() as patch:
        def refuse(*_):
            raise merge_shards.Unsupported("of the test")
        patch.setattr(merge_shards, "write_merged", refuse)
        merge(run, folder / "memory", None, dtype)
    found, expected = tensors(folder / "shards"), tensors(folder / "memory")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    for file in (folder / "memory").glob("*.json"):
        if file.name not in ("manifest.json", "model.safetensors.index.json"):
            assert without_types(folder / "shards" / file.name) == without_types(file), file.name
    runs.check_model(folder / "shards")
    return folder / "shards"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_both_merges_are_equal_in_every_family(tiny_model_dir, tmp_path, monkeypatch, family):
    adapter_run(tiny_model_dir(family), tmp_path / "run")
    merged = assert_equal_merges(tmp_path / "run", tmp_path, monkeypatch, "bfloat16")
    assert not torch.equal(*(tensors(folder)[name].float() for folder in (merged, tiny_model_dir(family))
                             for name in [next(name for name in tensors(merged) if "o_proj" in name)]))


def peft_run(base, output, **options):
    """A folder that PEFT alone wrote, whose adapter is not zero."""
    model = load.load_base(base, torch.float32)
    options = {"target_modules": parts.lora_target_pattern(model.config)} | options
    model = get_peft_model(model, LoraConfig(r=4, **options))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(output)
    load.load_processor(base).save_pretrained(output)
    return output


@pytest.fixture
def sharded(tiny_model_dir, tmp_path):
    """A tiny base in bf16 and several shards, with a tensor that transformers does not load."""
    base = tmp_path / "base"
    model = load.load_base(tiny_model_dir("qwen3_5"), torch.bfloat16)
    model.save_pretrained(base, max_shard_size="800KB")
    load.load_processor(tiny_model_dir("qwen3_5")).save_pretrained(base)
    index = json.loads((base / "model.safetensors.index.json").read_text())
    save_file({"mtp.norm.weight": torch.arange(4.0)}, base / "model-mtp.safetensors", metadata={"format": "pt"})
    index["weight_map"]["mtp.norm.weight"] = "model-mtp.safetensors"
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    return base


@pytest.mark.parametrize("options", [
    {"use_dora": True}, {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"o_proj": 2}},
], ids=lambda options: next(iter(options)))
def test_shards_keep_their_names_and_peft_computes_the_sum(sharded, tmp_path, monkeypatch, options):
    merged = assert_equal_merges(peft_run(sharded, tmp_path / "run", **options), tmp_path, monkeypatch)
    before, after = (json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (sharded, merged))
    assert after["weight_map"].keys() == before["weight_map"].keys()
    assert len(set(after["weight_map"].values())) == len(set(before["weight_map"].values())) > 2
    assert after["metadata"]["total_size"] == sum(value.nbytes for value in tensors(merged).values())


def test_an_adapter_on_an_adapter_and_extensions(tiny_model_dir, tmp_path, monkeypatch):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    projection = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).tolist()
    added = {"regression": {"mode": "text", "names": ["a"], "mean": [1.0], "std": [2.0]},
             "channels": {"in_channels": 5, "init": "project", "projection": projection}}
    extensions.attach(model, added)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=parts.lora_target_pattern(model.config)))
    rates = dict.fromkeys(parts.PARTS, 0.0) | {"adapter": 1e-3, "patch_embed": 1e-3, "additions": 1e-3}
    trainer_of(model, tiny_model_dir("qwen3_vl"), tmp_path / "first", rates).save_model(str(tmp_path / "first"))
    run = peft_run(tiny_model_dir("qwen3_vl"), tmp_path / "second")
    config = json.loads((run / adapters.CONFIG).read_text()) | {"base_model_name_or_path": str(tmp_path / "first")}
    (run / adapters.CONFIG).write_text(json.dumps(config))
    for name in (extensions.FILE, load.TRAINED_PARTS):
        shutil.copy(tmp_path / "first" / name, run)
    merged = assert_equal_merges(run, tmp_path, monkeypatch)
    found, expected = (load_file(folder / load.TRAINED_PARTS) for folder in (merged, tmp_path / "memory"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_memory_holds_one_tensor_of_the_base(sharded, tmp_path, monkeypatch):
    read, values = merge_shards.read_tensor, []

    def watched(*words):
        assert not any(value() is not None for value in values)
        value = read(*words)
        values.append(weakref.ref(value))
        return value

    monkeypatch.setattr(merge_shards, "read_tensor", watched)
    merge(peft_run(sharded, tmp_path / "run"), tmp_path / "merged", None, "auto")
    assert len(values) == len(tensors(sharded)) - 1  # the one that transformers does not load is copied in blocks


def test_what_peft_has_beyond_linear_layers_is_merged_in_memory(tiny_model_dir, tmp_path, capsys):
    run = peft_run(tiny_model_dir("qwen3_vl"), tmp_path / "run", target_modules=["embed_tokens"])
    merge(run, tmp_path / "merged", None, "auto")
    assert "merged in memory: the adapter changes more than the weight of the linear layer model.language_model.embed" \
        in capsys.readouterr().out
    load.load_base(tmp_path / "merged", torch.float32)


def test_a_base_with_a_weight_that_is_not_finite_is_refused(tiny_model_dir, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir("qwen3_vl"), base)
    run = peft_run(base, tmp_path / "run")
    stored = load_file(base / "model.safetensors")
    stored["model.visual.pos_embed.weight"][0, 0] = torch.nan
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    (base / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="not finite numbers, the first is model.visual.pos_embed.weight"):
        merge(run, tmp_path / "merged", None, "auto")
    assert not (tmp_path / "merged").exists()
