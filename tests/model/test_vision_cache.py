"""Kept features of a frozen vision tower give the loss and the gradients that the tower gives."""

import pytest
import torch
import transformers

from overlays import families, paths
from overlays.data.collate import vision_keys
from overlays.errors import UserError
from overlays.model import channels, forward, heads, load, parts, spatial, vision_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "vision"


def build(folder, in_channels=3, scenes=False, head=False):
    """A model whose tower is frozen; everything else is trained."""
    config = load.load_config(folder)
    model_class = getattr(transformers, families.family_of(config).model_class)
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    forward.install(model.train())
    if in_channels != 3:
        channels.adapt_input_channels(model, in_channels, "copy")
    if scenes:
        spatial.attach(model, **spatial.settings("mlp_pe"))
        torch.nn.init.ones_(model.model.spatial.down.bias)
    if head:
        heads.attach(model, ["share"], "vision", [0.0], [1.0])
        torch.nn.init.ones_(model.regression.out.weight)
    rates = dict.fromkeys(parts.PARTS, 1e-4) | {"vision": 0.0}
    del rates["patch_embed"]
    parts.set_trainable(model, model.config, rates)
    return model


def batch(config, packed=False):
    """Two samples, one with an image of 4 x 4 patches, the other with an image of 4 x 6 and a clip of 2 x 4 x 4."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (2, 24), generator=generator)
    ids[0, 4:8] = ids[1, 2:8] = config.image_token_id
    ids[1, 10:14] = ids[1, 15:19] = config.video_token_id
    width = config.vision_config.in_channels * 2 * config.vision_config.patch_size ** 2
    labels = torch.full_like(ids, -100)
    labels[:, 20:] = ids[:, 20:]
    values = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "mm_token_type_ids": (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int(),
        "position_ids": torch.arange(24).expand(3, 2, 24),
        "pixel_values": torch.randn(40, width, generator=generator),
        "pixel_values_videos": torch.randn(32, width, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 6]]), "video_grid_thw": torch.tensor([[2, 4, 4]]),
    }
    if packed:
        del values["attention_mask"]
        values |= {key: values[key].reshape(1, -1) for key in ("input_ids", "labels", "mm_token_type_ids")}
        values["position_ids"] = torch.arange(24).repeat(2).expand(4, 1, 48)
    return values


def compute(model, values):
    model.zero_grad(set_to_none=True)
    loss = model(**values).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6 + 1e-5 * value.abs().max(), name


def blocks_run(model):
    """A list that grows with every call of the tower's first block."""
    calls = []
    model.model.visual.blocks[0].register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    return calls


@pytest.mark.parametrize(("family", "options"), [
    *((family, {}) for family in families.FAMILIES), ("qwen3_vl", {"in_channels": 5}), ("qwen2_5_vl", {"scenes": True}),
    ("qwen3_vl", {"packed": True}), ("qwen3_vl", {"head": True}),
])
def test_loss_and_gradients_are_those_of_the_tower(tiny_model_dir, family, options):
    packed = options.pop("packed", False)
    model = build(tiny_model_dir(family), **options)
    values = batch(model.config, packed)
    if options.get("scenes"):
        values["coordinates"] = torch.rand(18, 3)
    if options.get("head"):
        values["targets"] = torch.tensor([[1.0], [2.0]])
    expected = compute(model, values)
    vision_cache.install(model)
    calls = blocks_run(model)
    keys = vision_keys(values)
    # The second image is kept first, so that the batch finds one image and computes another and the clip.
    second = values["pixel_values"][16:], values["image_grid_thw"][1:]
    model.model.get_image_features(*second, vision_keys=keys[1:2])
    assert_equal(compute(model, values | {"vision_keys": keys}), expected)
    assert calls == [24, 16 + 32]
    assert_equal(compute(model, values | {"vision_keys": keys}), expected)
    assert_equal(compute(model.eval(), values | {"vision_keys": keys}), expected)
    assert len(calls) == 2


def test_another_process_reads_what_is_kept_in_bfloat16_too(tiny_model_dir):
    outputs = []
    for computed in (True, False):
        model = build(tiny_model_dir("qwen3_vl")).to(torch.bfloat16)
        values = batch(model.config)
        vision_cache.install(model)
        calls = blocks_run(model)
        outputs.append(compute(model, values | {"vision_keys": vision_keys(values)})["loss"])
        assert bool(calls) == computed
    assert outputs[0] == outputs[1] == compute(model, values)["loss"]


def test_text_only_batches_and_batches_without_keys_go_through_the_tower(tiny_model_dir, cache):
    model = build(tiny_model_dir("qwen3_vl"))
    values = batch(model.config)
    vision_cache.install(model)
    calls = blocks_run(model)
    compute(model, values)
    assert len(calls) == 1
    assert not list(cache.glob("*/*/*"))


def test_a_damaged_file_is_computed_anew(tiny_model_dir, cache):
    model = build(tiny_model_dir("qwen3_vl"))
    values = batch(model.config)
    values["vision_keys"] = vision_keys(values)
    vision_cache.install(model)
    expected = compute(model, values)
    file = sorted(cache.glob("*/*/*.npy"))[0]
    good = file.read_bytes()
    for bad in (good[:-100], b"", bytes(len(good)), good[:-50] + b"x" * 50, good[:20] + b"\xff" * 20 + good[40:]):
        file.write_bytes(bad)
        vision_cache.install(model)
        assert_equal(compute(model, values), expected)
        assert file.read_bytes() == good


def test_another_tower_config_or_precision_has_another_folder_and_another_merger_has_not(tiny_model_dir):
    model = build(tiny_model_dir("qwen3_vl"))
    digest = vision_cache.tower_digest(model)
    with torch.no_grad():
        model.model.visual.merger.linear_fc1.weight.add_(1)
        model.model.visual.deepstack_merger_list[0].linear_fc1.weight.add_(1)
    assert vision_cache.tower_digest(model) == digest
    found = {digest, vision_cache.tower_digest(model, "bf16")}
    with torch.no_grad():
        model.model.visual.blocks[3].mlp.linear_fc1.weight[0, 0] += 1e-3
    found.add(vision_cache.tower_digest(model))
    model.model.visual.config.deepstack_visual_indexes = [0, 2]
    found.add(vision_cache.tower_digest(model))
    found.add(vision_cache.tower_digest(model.to(torch.bfloat16)))
    assert len(found) == 5


def test_keys_tell_pixels_and_shapes_apart():
    pixels = torch.zeros(48, 6)
    pixels[0, 0] = 1
    grids = torch.tensor([[1, 4, 4], [1, 4, 4], [1, 2, 8]])
    keys = vision_keys({"pixel_values": pixels, "image_grid_thw": grids}).tolist()
    assert len({bytes(key) for key in keys}) == 3
    clip = {"pixel_values_videos": pixels[16:32], "video_grid_thw": grids[1:2]}
    assert vision_keys(clip).tolist() == keys[1:2]


def test_a_full_disk_is_refused_and_what_is_kept_needs_no_room(tiny_model_dir, monkeypatch):
    model = build(tiny_model_dir("qwen3_vl"))
    store = vision_cache.install(model)
    monkeypatch.setattr(vision_cache, "free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match="--cache_vision needs up to .* GB"):
        vision_cache.check_room(model, store, 18)
    monkeypatch.undo()
    values = batch(model.config)
    compute(model, values | {"vision_keys": vision_keys(values)})
    monkeypatch.setattr(vision_cache, "free_bytes", lambda _: 1000)
    assert "are there" in vision_cache.check_room(model, store, 18)
