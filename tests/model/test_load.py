"""Saved folders answer the same wherever they are loaded, and nothing of a base model is lost without a word."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from overlays import families, manifest
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.merge import merge
from overlays.model import adapters, load, parts
from overlays.train import arguments, sft
from overlays.train.trainer import Trainer
from overlays.upstream import engine

FULL = ("merger", "vision", "embeddings")


def trainer_of(model, base, output, rates):
    arguments_ = transformers.TrainingArguments(str(output), report_to="none", use_cpu=True)
    return Trainer(model=model, args=arguments_, rates=rates, processing_class=load.load_processor(base))


def adapter_run(base, output, full=FULL):
    """A saved run whose adapter and `full` parts differ from the base."""
    model = load.load_base(base, torch.float32)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=parts.lora_target_pattern(model.config)))
    rates = {part: 1e-3 * (part in ("adapter", *full)) for part in parts.PARTS if part != "patch_embed"}
    parts.set_trainable(model, model.config, rates)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    trainer = trainer_of(model, base, output, rates)
    trainer.save_model(str(output))
    return trainer


def logits(model):
    """(1, 9, vocabulary) for a prompt with an image, in fp64 where the model's kernels have it."""
    config = model.config
    dtype = torch.float32 if getattr(config.get_text_config(), "num_experts", None) else torch.float64
    merge_size, patch = config.vision_config.spatial_merge_size, config.vision_config.patch_size
    ids = torch.tensor([[5, 6, *[config.image_token_id] * 4, 7, 8, 9]])
    pixels = torch.randn(4 * merge_size**2, 6 * patch**2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.to(dtype).eval()(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels.to(dtype),
            mm_token_type_ids=(ids == config.image_token_id).int(),
            image_grid_thw=torch.tensor([[1, 2 * merge_size, 2 * merge_size]]),
        ).logits


def plain_base(base):
    """The base model as plain transformers loads it."""
    model_class = getattr(transformers, families.family_of(load.load_config(base)).model_class)
    return model_class.from_pretrained(base, dtype=torch.float32)


def with_tensors(source, target, **tensors):
    """A copy of the model folder `source` whose file also holds `tensors`; None takes one away."""
    shutil.copytree(source, target)
    stored = load_file(target / "model.safetensors") | {name.replace("__", "."): v for name, v in tensors.items()}
    save_file({name: v for name, v in stored.items() if v is not None}, target / "model.safetensors",
              metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(("family", "full"), [
    *((family, FULL) for family in families.FAMILIES), ("qwen3_vl", ("vision",)), ("qwen3_vl", ("merger",)),
])
def test_peft_alone_loads_what_was_trained_in_full(tiny_model_dir, tmp_path, family, full):
    base = tiny_model_dir(family)
    adapter_run(base, tmp_path / "run", full)
    own = logits(load.load_model(tmp_path / "run"))
    found = logits(PeftModel.from_pretrained(plain_base(base), tmp_path / "run"))
    bound = 1e-5 * (own.abs().max() if own.dtype == torch.float32 else 1)  # grouped experts have no fp64 kernel
    assert (found - own).abs().max() < bound
    assert (logits(plain_base(base)) - own).abs().max() > 0.1
    assert not (tmp_path / "run" / load.TRAINED_PARTS).exists()


def test_the_training_model_holds_no_second_copy_of_these_modules(tiny_model_dir, tmp_path):
    base = tiny_model_dir("qwen3_vl")
    model = adapter_run(base, tmp_path / "run").model
    for peft_model in (model, load.load_model(tmp_path / "run")):
        names = [name for name, _ in peft_model.named_parameters()]
        assert not any("modules_to_save" in name or "original_module" in name for name in names)
        assert sum("lora_" not in name for name in names) == len(list(plain_base(base).parameters()))


def test_a_folder_of_the_older_layout_loads(tiny_model_dir, tmp_path):
    base = tiny_model_dir("qwen3_vl")
    model = adapter_run(base, tmp_path / "run", ("merger",)).model
    expected = logits(model)
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "run", old)
    stored = load_file(old / adapters.WEIGHTS)
    save_file({name: v for name, v in stored.items() if ".lora_" in name}, old / adapters.WEIGHTS)
    save_file({parts.plain_name(name): v for name, v in stored.items() if ".lora_" not in name},
              old / load.TRAINED_PARTS)
    config = json.loads((old / adapters.CONFIG).read_text()) | {"modules_to_save": None}
    (old / adapters.CONFIG).write_text(json.dumps(config))
    assert (logits(load.load_model(old)) - expected).abs().max() < 1e-5
    assert load.full_parameter_names(old) == load.full_parameter_names(tmp_path / "run")


def test_a_resumed_run_reads_the_modules_from_the_adapter_file(tiny_model_dir, tmp_path):
    base = tiny_model_dir("qwen3_vl")
    trainer = adapter_run(base, tmp_path / "run")
    expected = {name: value.clone() for name, value in trainer.model.named_parameters()}
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "run"))
    frozen = ("base_layer", "language_model.layers", "language_model.norm")
    for name, value in trainer.model.named_parameters():
        if ".lora_" in name or not any(word in name for word in frozen):
            assert torch.equal(value, expected[name]), name


def test_a_module_of_another_shape_is_one_sentence(tiny_model_dir, tmp_path):
    adapter_run(tiny_model_dir("qwen3_vl"), tmp_path / "run", ("merger",))
    file = tmp_path / "run" / adapters.WEIGHTS
    stored = load_file(file)
    name = next(name for name in stored if "merger" in name)
    save_file(stored | {name: stored[name][:1].clone()}, file)
    with pytest.raises(UserError, match="which this base model has no place for"):
        load.load_model(tmp_path / "run")


def test_the_card_names_base_parts_and_how_to_load(tiny_model_dir, tmp_path):
    base = tiny_model_dir("qwen3_vl")
    adapter_run(base, tmp_path / "run", ("merger",))
    text = (tmp_path / "run" / "README.md").read_text()
    for words in (f"LoRA adapter of {base}", "Trained in full: merger.", "PeftModel.from_pretrained", "merge_lora.py"):
        assert words in text
    assert "More Information Needed" not in text and "**" not in text


def test_the_card_says_first_what_peft_leaves_out(tiny_model_dir, tmp_path):
    from overlays.model import extensions

    base = tiny_model_dir("qwen3_vl")
    model = load.load_base(base, torch.float32)
    extensions.attach(model, {"channels": {"in_channels": 5}})
    model = get_peft_model(model, LoraConfig(r=2, target_modules=parts.lora_target_pattern(model.config)))
    rates = dict.fromkeys(parts.PARTS, 0.0) | {"adapter": 1e-3, "patch_embed": 1e-3, "vision": 1e-3, "merger": 1e-3}
    trainer_of(model, base, tmp_path / "run", rates).save_model(str(tmp_path / "run"))
    text = (tmp_path / "run" / "README.md").read_text().split("---\n")[2].strip()
    assert text.startswith("**Plain transformers and PEFT load this folder without other input channels")
    assert {name.split(".")[2] for name in load_file(tmp_path / "run" / load.TRAINED_PARTS)} == {"patch_embed"}
    assert load.load_model(tmp_path / "run").config.vision_config.in_channels == 5


# ---- the base model's name


def test_the_base_is_stored_by_its_absolute_path(tiny_model_dir, tmp_path, monkeypatch):
    base = tiny_model_dir("qwen3_vl")
    monkeypatch.chdir(base.parent)
    adapter_run(base.name, tmp_path / "run", ())
    monkeypatch.chdir(tmp_path)
    assert json.loads((tmp_path / "run" / adapters.CONFIG).read_text())["base_model_name_or_path"] == str(base)
    load.load_model(tmp_path / "run")


@pytest.mark.parametrize("where", ["working folder", "repository", "adapter"])
def test_an_older_relative_base_is_found(tiny_model_dir, tmp_path, monkeypatch, where):
    run = tmp_path / "run"
    adapter_run(tiny_model_dir("qwen3_vl"), run, ())
    config = json.loads((run / adapters.CONFIG).read_text()) | {"base_model_name_or_path": "models/base"}
    (run / adapters.CONFIG).write_text(json.dumps(config))
    root = {"working folder": tmp_path / "cwd", "repository": tmp_path / "repository", "adapter": run}[where]
    (root / "models").mkdir(parents=True)
    (root / "models" / "base").symlink_to(tiny_model_dir("qwen3_vl"))
    (tmp_path / "cwd").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(adapters, "ROOT", tmp_path / "repository")
    assert load.adapter_base(run) == str(root / "models" / "base")
    load.load_model(run)


def test_a_base_that_has_gone_is_one_sentence(tiny_model_dir, tmp_path):
    base = shutil.copytree(tiny_model_dir("qwen3_vl"), tmp_path / "base")
    adapter_run(base, tmp_path / "run", ())
    shutil.rmtree(base)
    with pytest.raises(UserError, match="base as its base model, and there is no such folder: give --base_model"):
        load.load_model(tmp_path / "run")
    load.load_model(tmp_path / "run", base_model=str(tiny_model_dir("qwen3_vl")))


# ---- what is not a base model


def prepare(model, tmp_path):
    data = tmp_path / "rows.jsonl"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    write_jsonl(data, [{"id": str(number), "conversations": turns} for number in range(4)])
    flags = ["--model_name_or_path", str(model), "--dataset_use", str(data), "--output_dir", str(tmp_path / "new"),
             "--report_to", "none", "--dataloader_num_workers", "0", "--lora_enable", "True"]
    return sft.prepare(*arguments.parse(flags), engine.Engine("native", None, ""))


def test_an_adapter_as_base_names_the_merge_command(tiny_model_dir, tmp_path):
    run = tmp_path / "run"
    adapter_run(tiny_model_dir("qwen3_vl"), run, ("merger",))
    expected = logits(load.load_model(run))
    with pytest.raises(UserError) as caught:
        prepare(run, tmp_path)
    assert f"`python scripts/merge_lora.py --checkpoint {run} --output {run}-merged`" in str(caught.value)
    assert not (tmp_path / "new").exists()
    merge(run, tmp_path / "run-merged", None, "auto")
    assert (logits(load.load_model(tmp_path / "run-merged")) - expected).abs().max() < 1e-4
    prepare(tmp_path / "run-merged", tmp_path)


def test_a_run_without_a_final_model_names_its_checkpoint(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    manifest.write(checkpoint)
    with pytest.raises(UserError, match=f"run without a final model: give its newest checkpoint, {checkpoint}"):
        prepare(tmp_path / "run", tmp_path)


# ---- tensors that transformers does not load

MTP = {"mtp__layers__0__mlp__weight": torch.randn(6, 4).bfloat16(), "mtp__norm__weight": torch.arange(4.0),
       "mtp__flag": torch.tensor([1, 2, 3], dtype=torch.uint8)}


def assert_carried(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert not (folder / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(
        value.nbytes for file in set(index["weight_map"].values()) for value in load_file(folder / file).values())
    for name, value in MTP.items():
        with safe_open(folder / index["weight_map"][name.replace("__", ".")], framework="pt") as tensors:
            found = tensors.get_tensor(name.replace("__", "."))
        assert found.dtype == value.dtype and torch.equal(found, value)


def test_a_merged_model_keeps_the_tensors_that_transformers_does_not_load(tiny_model_dir, tmp_path, capsys):
    base = with_tensors(tiny_model_dir("qwen3_5"), tmp_path / "base", **MTP)
    adapter_run(base, tmp_path / "run", ())
    merge(tmp_path / "run", tmp_path / "merged", None, "float32")
    assert "carried over 3 tensors" in capsys.readouterr().out
    assert_carried(tmp_path / "merged")
    assert torch.allclose(logits(plain_base(tmp_path / "merged")), logits(load.load_model(tmp_path / "run")), atol=1e-4)
    # The base of a second adapter is now the folder with several shards.
    adapter_run(tmp_path / "merged", tmp_path / "second", ())
    merge(tmp_path / "second", tmp_path / "again", None, "float32")
    assert_carried(tmp_path / "again")


def test_a_fully_trained_model_keeps_them_too(tiny_model_dir, tmp_path):
    base = with_tensors(tiny_model_dir("qwen3_5"), tmp_path / "base", **MTP)
    rates = dict.fromkeys(parts.PARTS, 1e-3)
    trainer = trainer_of(load.load_base(base, torch.float32), base, tmp_path / "run", rates)
    trainer.save_final()
    assert_carried(tmp_path / "run")
    load.load_base(tmp_path / "run", torch.float32)
    shutil.rmtree(base)  # as where the base is moved during training
    trainer.save_final()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "model.safetensors.index.json").exists()


def test_unknown_tensors_of_a_base_are_one_line(tiny_model_dir, tmp_path, capsys, caplog):
    base = with_tensors(tiny_model_dir("qwen3_vl"), tmp_path / "base", b__weight=torch.ones(1), a__weight=torch.ones(1))
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(caplog.handler)
    try:
        load.load_base(base, torch.float32)
    finally:
        logger.removeHandler(caplog.handler)
    assert "LOAD REPORT" not in caplog.text
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1 and "2 tensors" in lines[0] and lines[0].endswith("the first is a.weight")
    load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(("value", "message"), [
    (None, "lacks 1 weights of Qwen3VLForConditionalGeneration, the first is model.language_model.norm.weight"),
    (torch.ones(3), r"holds model.language_model.norm.weight with shape \(3,\), but its config.json makes it \(128,\)"),
])
def test_missing_or_misshapen_weights_are_refused(tiny_model_dir, tmp_path, value, message):
    base = with_tensors(tiny_model_dir("qwen3_vl"), tmp_path / "base", model__language_model__norm__weight=value)
    with pytest.raises(UserError, match=message):
        load.load_base(base, torch.float32)


# ---- incomplete and damaged folders


def stored_without(file, drops=lambda name: False, renames=lambda name: name, changes=lambda value: value):
    """Write a safetensors file again without some tensors, under other names, or with other values."""
    values = {renames(name): changes(value) for name, value in load_file(file).items() if not drops(name)}
    save_file(values, file, metadata={"format": "pt"})


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def to_nan(value):
    value.view(-1)[0] = float("nan")
    return value


DAMAGES = {
    "merger gone": (lambda run: stored_without(run / adapters.WEIGHTS, lambda name: "merger" in name),
                    "lacks the merger that its run trained"),
    "half the adapter": (lambda run: stored_without(run / adapters.WEIGHTS, lambda name: ".layers.0." in name),
                         "lacks 8 tensors of the adapter"),
    "renamed tensors": (lambda run: stored_without(run / adapters.WEIGHTS, renames=lambda name: name.replace(
        ".layers.0.self_attn", ".layers.9.self_attn")), "tensors of the adapter"),
    "one NaN": (lambda run: stored_without(run / adapters.WEIGHTS, changes=to_nan), "not finite numbers"),
    "cut file": (lambda run: cut(run / adapters.WEIGHTS), "damaged or cut short"),
    "no adapter": (lambda run: (run / adapters.WEIGHTS).unlink(), "lacks adapter_model.safetensors"),
    "no tokenizer": (lambda run: (run / "tokenizer.json").unlink(), "lacks tokenizer.json or vocab.json"),
    "no tokenizer_config": (lambda run: (run / "tokenizer_config.json").unlink(), "lacks tokenizer_config.json"),
    "no image processor": (lambda run: (run / "processor_config.json").unlink(), "processor_config.json"),
}


@pytest.fixture(scope="module")
def saved_run(tiny_model_dir, tmp_path_factory):
    """A finished run with an adapter and a trained merger."""
    base, run = tiny_model_dir("qwen3_vl"), tmp_path_factory.mktemp("saved") / "run"
    trainer = adapter_run(base, run / "other", ("merger",))
    trainer.args.output_dir = str(run)
    trainer.save_final()
    shutil.rmtree(run / "other")
    write_json(run / "run.json", {"parts": parts.rows_as_dicts(parts.table(trainer.model, trainer.model.config,
                                                                           trainer.rates))})
    load.load_for_inference(run)
    return run


@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_one_sentence_with_and_without_a_manifest(saved_run, tmp_path, name, has_manifest, recwarn):
    run, (damage, message) = shutil.copytree(saved_run, tmp_path / "run"), DAMAGES[name]
    if not has_manifest:  # as in runs of earlier versions
        (run / manifest.NAME).unlink()
        load.locate(run)
    damage(run)
    with pytest.raises(UserError, match=f"is damaged: it has|is incomplete|{message}" if has_manifest else message):
        load.load_for_inference(run)
    assert not any("missing adapter keys" in str(warning.message) for warning in recwarn)


def test_an_adapter_of_dora_loads_as_safetensors_and_as_a_pickle(tiny_model_dir, tmp_path):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    target = parts.lora_target_pattern(model.config, ["q_proj"])
    get_peft_model(model, LoraConfig(r=2, target_modules=target, use_dora=True)).save_pretrained(tmp_path)
    stored = load_file(tmp_path / adapters.WEIGHTS)
    assert any(name.endswith("lora_magnitude_vector") for name in stored)
    adapters.check_tensors(tmp_path, load.load_model(tmp_path))
    (tmp_path / adapters.WEIGHTS).unlink()
    torch.save(stored, tmp_path / adapters.PICKLED)
    adapters.check_tensors(tmp_path, load.load_model(tmp_path))
    (tmp_path / adapters.PICKLED).write_bytes(b"PK")
    with pytest.raises(UserError, match="adapter_model.bin is damaged"):
        load.load_model(tmp_path)


def test_a_resumed_run_refuses_half_an_adapter(tiny_model_dir, saved_run, tmp_path):
    run = shutil.copytree(saved_run, tmp_path / "run")
    DAMAGES["half the adapter"][0](run)
    trainer = adapter_run(tiny_model_dir("qwen3_vl"), tmp_path / "other", ("merger",))
    with pytest.raises(UserError, match="lacks 8 tensors of the adapter"):
        trainer._load_from_checkpoint(str(run))


def test_a_resumed_full_run_refuses_a_checkpoint_without_a_tensor(tiny_model_dir, tmp_path):
    base = tiny_model_dir("qwen3_vl")
    trainer = trainer_of(load.load_base(base, torch.float32), base, tmp_path, dict.fromkeys(parts.PARTS, 1e-3))
    trainer._load_from_checkpoint(str(base))  # tied weights are in the file once
    broken = with_tensors(base, tmp_path / "broken", model__language_model__norm__weight=None)
    with pytest.raises(UserError, match="lacks .* tensors of the model, the first is model.language_model.norm.weight"):
        trainer._load_from_checkpoint(str(broken))


def test_a_base_with_nan_a_cut_shard_or_no_tokenizer_is_one_sentence(tiny_model_dir, tmp_path):
    base = tiny_model_dir("qwen3_vl")
    norm = load_file(base / "model.safetensors")["model.language_model.norm.weight"]
    with pytest.raises(UserError, match="not finite numbers, the first is model.language_model.norm.weight"):
        load.load_base(with_tensors(base, tmp_path / "nan", model__language_model__norm__weight=to_nan(norm)),
                       torch.float32)
    model = load.load_base(base, torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="4MB")
    load.load_base(tmp_path / "shards", torch.float32)
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    content = shards[0].read_bytes()
    cut(shards[0])
    with pytest.raises(UserError, match="cannot be loaded"):
        load.load_base(tmp_path / "shards", torch.float32)
    shards[0].write_bytes(content)
    shards[1].unlink()
    with pytest.raises(UserError, match="cannot be loaded|lacks"):
        load.load_base(tmp_path / "shards", torch.float32)
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="lacks tokenizer.json or vocab.json"):
        load.load_processor(folder)
