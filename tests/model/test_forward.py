"""The installed forward computes what the plain one computes, with one vision call and a smaller head."""

import pytest
import torch

from overlays import families
from overlays.model import forward, load


def batch(config, text_only=False):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (2, 24), generator=generator)
    dim = 3 * 2 * config.vision_config.patch_size ** 2
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    if not text_only:
        ids[:, 4:8] = config.image_token_id
    types = (ids == config.image_token_id).int()
    labels = torch.full_like(ids, -100)
    labels[0, 15:20], labels[1, 18:] = ids[0, 15:20], ids[1, 18:]
    values = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "mm_token_type_ids": types,
        "position_ids": torch.arange(24).expand(3, 2, 24),
    }
    if not text_only:
        values |= {"pixel_values": torch.randn(32, dim, generator=generator), "image_grid_thw": grid}
    return values


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain(folder):
    import transformers

    config = load.load_config(folder)
    model_class = getattr(transformers, families.family_of(config).model_class)
    # The grouped expert kernels know only single precision, the eager ones know double.
    return model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", experts_implementation="eager")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_loss_and_every_gradient_equal_the_full_computation(tiny_model_dir, family):
    model = plain(tiny_model_dir(family)).train().double()  # so that computations are compared and not their rounding
    values = batch(model.config)
    values["pixel_values"] = values["pixel_values"].double()
    full = model(**values).loss
    full.backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    forward.install(model)
    loss = model(**values).loss
    loss.backward()
    assert abs(loss - full) < 1e-5
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-5, name


def test_the_loss_is_divided_by_the_tokens_of_the_whole_step(tiny_model_dir):
    model = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    values = batch(model.config)
    tokens = int((values["labels"][:, 1:] != -100).sum())
    assert torch.allclose(model(**values, num_items_in_batch=2 * tokens).loss * 2, model(**values).loss)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_text_only_batch_reaches_the_tower_once_and_changes_nothing(tiny_model_dir, family):
    model = load.load_base(tiny_model_dir(family), torch.float32).train()
    values = batch(model.config, text_only=True)
    calls = []
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    without = model(**values).loss
    assert not calls
    merge = model.config.vision_config.spatial_merge_size
    dummy = torch.zeros(merge**2, 3 * 2 * model.config.vision_config.patch_size ** 2)
    loss = model(**values, pixel_values=dummy, image_grid_thw=torch.tensor([[1, merge, merge]])).loss
    loss.backward()
    assert len(calls) == 1
    assert torch.allclose(loss, without, atol=1e-6)
    vision = [p for name, p in model.named_parameters() if ".visual." in name]
    assert all(p.grad is not None and not p.grad.any() for p in vision)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_image_and_video_share_one_vision_call(tiny_model_dir, family):
    model = plain(tiny_model_dir(family))
    values = batch(model.config)
    ids, types = values["input_ids"], values["mm_token_type_ids"]
    ids[1, 4:8] = model.config.video_token_id
    types[1, 4:8] = 2
    pixels, grid = values["pixel_values"], values["image_grid_thw"]
    values |= {"pixel_values": pixels[:16], "pixel_values_videos": pixels[16:], "image_grid_thw": grid[:1],
               "video_grid_thw": grid[1:]}
    expected = model(**values).loss
    forward.install(model)
    calls = []
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(model(**values).loss, expected, atol=1e-5)
    assert len(calls) == 1


def test_the_patch_projection_equals_the_convolution(tiny_model_dir):
    convolution = torch.nn.Conv3d(5, 7, (2, 4, 4), (2, 4, 4))
    patches = torch.randn(11, 5, 2, 4, 4)
    expected = convolution(patches)
    convolution.__class__ = forward.PatchProjection
    assert (convolution(patches) - expected).abs().max() < 1e-5
