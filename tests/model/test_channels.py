"""N-channel vision: what the adapted model sees, what it is saved as, what it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from overlays import families
from overlays.data import rasters
from overlays.errors import UserError
from overlays.model import channels, extensions, load, parts
from overlays.model.forward import PatchProjection
from overlays.train.trainer import Trainer

N = 7


@pytest.fixture
def raster():
    return np.random.default_rng(0).normal(3, 2, (N, 70, 90)).astype(np.float32)


def statistics(raster):
    return raster.mean((1, 2)), raster.std((1, 2))


def logits(model, processor, pixels, grid):
    """Logits of an image and a question."""
    tokens = int(grid.prod()) // processor.image_processor.merge_size**2
    image = "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>What is this?"
    ids = processor.tokenizer(image, return_tensors="pt")["input_ids"]
    kinds = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels.to(model.dtype), image_grid_thw=grid,
                     mm_token_type_ids=kinds).logits


@pytest.mark.parametrize("family", families.FAMILIES)
def test_projected_the_n_channel_model_sees_what_the_rgb_model_sees_of_the_projected_image(
        tiny_model_dir, family, raster, tmp_path):
    rgb, processor = load.load_base(tiny_model_dir(family), torch.float32), load.load_processor(tiny_model_dir(family))
    image = processor.image_processor
    matrix = np.random.default_rng(1).normal(0, 0.7, (3, N)).astype(np.float32)
    mean, std = statistics(raster)
    normalised = (raster - mean[:, None, None]) / std[:, None, None]
    shown = np.array(image.image_mean)[:, None, None] + np.array(image.image_std)[:, None, None] * np.einsum(
        "cn,nhw->chw", matrix, normalised)
    # In double, so that models are compared and not their rounding; the expert kernels know only single.
    precise = torch.float32 if hasattr(rgb.config.text_config, "num_experts") else torch.float64
    expected = logits(rgb.to(precise), processor, *rasters.patches(255 * shown, processor))

    model = channels.adapt_input_channels(load.load_base(tiny_model_dir(family), torch.float32), N, "project",
                                          torch.tensor(matrix))
    rasters.set_statistics(processor, mean, std)
    found = logits(model.to(precise), processor, *rasters.patches(raster, processor))
    assert (found - expected).abs().max() < 1e-4
    assert not torch.allclose(found, logits(model, processor, *rasters.patches(raster[::-1], processor)), atol=1e-2)

    # A full checkpoint of it is a plain one, with the processor that normalises as training did.
    model.float().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain_class = getattr(transformers, families.FAMILIES[family].model_class)
    plain, notes = plain_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values())
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path)(
        images=[torch.from_numpy(raster)], input_data_format="channels_first", do_convert_rgb=False,
        return_tensors="pt")
    again = logits(plain.to(precise), processor, pixels["pixel_values"], pixels["image_grid_thw"])
    assert (again - found).abs().max() < 1e-4


@pytest.mark.parametrize("count", (4, 64))
def test_the_matrix_product_is_the_convolution(count):
    proj = torch.nn.Conv3d(3, 32, (2, 16, 16), (2, 16, 16))
    made = channels.adapt_input_conv(proj, "normal", count)
    plain = torch.nn.Conv3d(count, 32, (2, 16, 16), (2, 16, 16))
    plain.load_state_dict(made.state_dict())
    patches = torch.randn(9, count, 2, 16, 16)
    assert isinstance(made, PatchProjection)
    assert torch.allclose(made(patches), plain(patches), atol=1e-5)


def test_every_way_to_start_an_embedding():
    proj = torch.nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4), bias=False)
    same = torch.randn(5, 1, 2, 4, 4)
    grey, wide = proj(same.expand(-1, 3, -1, -1, -1)), same.expand(-1, 6, -1, -1, -1)
    # A grey image stays what it was.
    assert torch.allclose(channels.adapt_input_conv(proj, "copy", 6)(wide), grey, atol=1e-5)
    assert not channels.adapt_input_conv(proj, "zero", 6).weight.any()
    normal = channels.adapt_input_conv(proj, "normal", 300).weight
    assert normal.std().item() == pytest.approx(proj.weight.std().item() / 10, rel=0.1)
    assert channels.adapt_input_conv(proj, "copy", 6).bias is None
    for init, matrix, words in (("project", None, "belong together"), ("copy", torch.ones(3, 6), "belong together"),
                                ("project", torch.ones(6, 3), "3 x 6"), ("tiled", None, "is one of"),
                                ("project", torch.full((3, 6), torch.nan), "not finite")):
        with pytest.raises(UserError, match=words):
            channels.adapt_input_conv(proj, init, 6, matrix)


def test_adapted_input_channels_cannot_be_changed_again(tiny_model_dir):
    model = channels.adapt_input_channels(load.load_base(tiny_model_dir("qwen3_vl"), torch.float32), 4, "copy")
    assert channels.adapt_input_channels(model, 4) is model
    with pytest.raises(UserError, match="takes 4 channels and cannot be given 5"):
        channels.adapt_input_channels(model, 5)


def flags(**values):
    return SimpleNamespace(**{"in_channels": 0, "channel_init": "copy", "channel_projection": "", **values})


def test_flags_become_settings_and_a_rate(tiny_model_dir, tmp_path):
    config = load.load_config(tiny_model_dir("qwen3_vl"))
    np.save(tmp_path / "matrix.npy", np.ones((3, 5)))
    np.save(tmp_path / "flat.npy", np.ones(5))

    def wanted(**values):
        return channels.wanted(config, flags(**values))

    assert wanted() == {} and wanted(in_channels=3) == {}
    settings = wanted(channel_init="project", channel_projection=str(tmp_path / "matrix.npy"))["channels"]
    assert settings["in_channels"] == 5 and channels.channels_of(config) == 3  # nothing is written on the way
    training = SimpleNamespace(learning_rate=1e-3, vision_tower_lr=None, patch_embed_lr=None)
    assert channels.patch_embed_rate(3, 5, 0.0, training) == 1e-3 * 3 / 5  # trained though the tower is frozen
    assert channels.patch_embed_rate(3, 5, 2e-3, training) == 2e-3 * 3 / 5
    training.patch_embed_lr = 0.0
    assert channels.patch_embed_rate(3, 5, 2e-3, training) == 0.0
    for values, words in (({"in_channels": -2}, "at least 1"), ({"in_channels": 5, "channel_init": "x"}, "is one of"),
                          ({"channel_projection": str(tmp_path / "no.npy")}, "cannot be read"),
                          ({"channel_projection": str(tmp_path / "flat.npy")}, "3 x N matrix"),
                          ({"in_channels": 5, "channel_init": "project"}, "belong together")):
        with pytest.raises(UserError, match=words):
            wanted(**values)


def test_an_adapter_on_adapted_input_channels_is_saved_and_restored(tiny_model_dir, raster, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = tiny_model_dir("qwen3_vl")
    model, processor = load.load_base(base, torch.float32), load.load_processor(base)
    settings = {"in_channels": N, "init": "project", "projection": np.eye(3, N).tolist()}
    extensions.attach(model, {"channels": settings})
    model = get_peft_model(model, LoraConfig(
        r=2, target_modules=parts.lora_target_pattern(model.config), base_model_name_or_path=str(base)))
    rates = dict.fromkeys(parts.PARTS, 0.0) | {"adapter": 1e-2, "patch_embed": 1e-2}
    parts.set_trainable(model, model.config, rates)
    assert {row.part: row.trainable > 0 for row in parts.table(model, model.config, rates)} == {
        "patch_embed": True, "vision": False, "merger": False, "embeddings": False, "language_model": False,
        "adapter": True}
    with torch.no_grad():  # as if trained
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    rasters.set_statistics(processor, *statistics(raster))
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    Trainer(model=model, args=arguments, processing_class=processor, rates=rates).save_model(str(tmp_path))
    assert set(load_file(tmp_path / load.TRAINED_PARTS)) == {
        "model.visual.patch_embed.proj.weight", "model.visual.patch_embed.proj.bias"}

    restored, own = load.load_for_inference(tmp_path)
    assert channels.channels_of(restored.config) == N
    inputs = rasters.patches(raster, own)
    assert torch.equal(inputs[0], rasters.patches(raster, processor)[0])
    assert torch.allclose(logits(restored, own, *inputs), logits(model.eval(), processor, *inputs), atol=1e-5)


def test_a_run_on_rasters_trains_and_stores_what_prediction_needs(tiny_model_dir, tmp_path, monkeypatch):
    from overlays import paths
    from overlays.data import chat, records
    from overlays.train import arguments, sft
    from overlays.train.run import native
    from overlays.upstream.engine import Engine

    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    values = np.random.default_rng(0).normal(100, 20, (4, N, 64, 64))
    for number, raster in enumerate(values):
        np.save(tmp_path / f"{number}.npy", raster.astype(np.float32))
    rows = [{"id": str(i), "image": f"{i}.npy", "conversations": [
        {"from": "human", "value": "<image>\nWhich mineral?"}, {"from": "gpt", "value": "calcite"}]} for i in range(4)]
    records.write(tmp_path / "train.jsonl", rows)
    np.save(tmp_path / "matrix.npy", np.eye(3, N))

    def run(*words):
        flags = arguments.parse([
            "--model_name_or_path", str(tiny_model_dir("qwen3_vl")), "--dataset_use", str(tmp_path / "train.jsonl"),
            "--output_dir", str(tmp_path / "run"), "--lora_enable", "True", "--lora_r", "2", "--max_steps", "2",
            "--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--dataloader_num_workers", "0",
            "--report_to", "none", "--save_strategy", "steps", "--save_steps", "2", "--channel_init", "project",
            "--channel_projection", str(tmp_path / "matrix.npy"), *words])
        return sft.prepare(*flags, Engine("native", None, ""))

    prepared = run()
    assert np.allclose(prepared.processor.image_processor.image_mean, values.mean((0, 2, 3)))
    native(prepared)
    base = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    start = channels.adapt_input_conv(base.model.visual.patch_embed.proj, "project", N, torch.eye(3, N))
    model, processor = load.load_for_inference(tmp_path / "run")
    change = (model.get_base_model().model.visual.patch_embed.proj.weight - start.weight).abs().max().item()
    assert 0 < change < 0.1  # trained, from the projection
    prompt = chat.encode_prompt(rows[0], processor, tmp_path)
    seen = chat.encode_prompt(rows[0], prepared.processor, tmp_path)
    assert torch.equal(prompt["pixel_values"], seen["pixel_values"])
    with torch.no_grad():
        assert model(**{key: value[None] if value.ndim == 1 else value for key, value in prompt.items()}).logits.numel()
    np.save(tmp_path / "matrix.npy", np.eye(3, N)[::-1])
    with pytest.raises(UserError, match="trained with another channels .*--resume never"):
        run()
