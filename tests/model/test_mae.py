"""Masked autoencoder: the tower on visible patches, the decoder, and what counts in the loss."""

import importlib

import numpy as np
import pytest
import torch
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from overlays.data import tiles
from overlays.families import FAMILIES
from overlays.model import mae, reconstruction

CHANNELS = 5
GRID = torch.tensor([[1, 10, 14], [1, 4, 6]])  # in window blocks of Qwen2.5-VL: whole windows and cut ones


def tower(family: str, **changes):
    """A vision tower of a family with random weights and CHANNELS input channels."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    vision = next(value for name, value in vars(module).items()
                  if name.endswith(("VisionModel", "VisionTransformerPretrainedModel")))
    config = vision.config_class(**FAMILIES[family].tiny_vision | {"in_channels": CHANNELS} | changes)
    torch.manual_seed(0)
    return vision._from_config(config, attn_implementation="sdpa").eval()


def frames(model, generator=None) -> torch.Tensor:
    area = model.patch_embed.patch_size**2
    return torch.randn(int(GRID.prod(1).sum()), CHANNELS * area, generator=generator or torch.manual_seed(1))


def visible_patches() -> torch.Tensor:
    return torch.cat([tiles.random_masking(int(n), 0.75, np.random.default_rng(i)) for i, n in enumerate(GRID.prod(1))])


def plain_output(model, pixels: torch.Tensor) -> torch.Tensor:
    """Last block of the plain tower, in the processor's order."""
    copies = pixels.unflatten(1, (CHANNELS, 1, -1)).expand(-1, -1, 2, -1)  # a processor's temporal patch
    hidden = model(copies.flatten(1), GRID).last_hidden_state
    if not hasattr(model, "fullatt_block_indexes"):
        return hidden
    index, _ = get_vision_window_index(GRID, 2, model.window_size, model.patch_size)
    return hidden[torch.argsort((index[:, None] * 4 + torch.arange(4)).flatten())]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_with_nothing_hidden_the_tower_gives_what_the_plain_one_gives(family):
    model = tower(family)
    pixels = frames(model)
    everything = torch.ones(len(pixels), dtype=torch.bool)
    torch.testing.assert_close(mae.encode(model, pixels, GRID, everything), plain_output(model, pixels),
                               atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_visible_patches_keep_their_position_and_see_no_hidden_pixel(family):
    model = tower(family)
    pixels, visible = frames(model), visible_patches()
    encoded = mae.encode(model, pixels, GRID, visible)
    assert encoded.shape == (int(visible.sum()), 128)
    other = torch.where(visible[:, None], pixels, 7.0)
    assert torch.equal(mae.encode(model, other, GRID, visible), encoded)
    # Images are apart: the second is encoded alike beside another first one.
    other = torch.where((torch.arange(len(pixels)) < 140)[:, None], 0.0, pixels)
    last = int(visible[140:].sum())
    torch.testing.assert_close(mae.encode(model, other, GRID, visible)[-last:], encoded[-last:])
    # Position is the true one: the same pixels at other visible places give something else.
    moved = visible[:140].roll(1)
    order = torch.cat([torch.where(moved)[0], 140 + torch.where(visible[140:])[0]])
    shifted = pixels.clone()
    shifted[order] = pixels[visible]
    again = mae.encode(model, shifted, GRID, torch.cat([moved, visible[140:]]))
    assert (again[:-last] - encoded[:-last]).abs().max() > 2e-4


@torch.no_grad()
def test_windows_hold_the_visible_patches_that_lie_in_them():
    model = tower("qwen2_5_vl", fullatt_block_indexes=[])  # window blocks alone: nothing crosses a window
    pixels, visible = frames(model), visible_patches()
    encoded = mae.encode(model, pixels, GRID, visible)
    index, lengths = get_vision_window_index(GRID, 2, model.window_size, model.patch_size)
    first = (index[:, None] * 4 + torch.arange(4)).flatten()[: int(lengths[1])]
    inside = torch.zeros_like(visible).index_fill(0, first, True)
    other = torch.where(inside[:, None], pixels, -pixels)
    same = (mae.encode(model, other, GRID, visible) - encoded).abs().amax(1) < 1e-6
    assert torch.equal(same, inside[visible])


@pytest.mark.parametrize("ratio, kept", [(0.75, 25), (0.5, 50), (0.999, 1), (0.001, 99)])
def test_masks_have_the_asked_size_and_differ_by_seed_alone(ratio, kept):
    masks = [tiles.random_masking(100, ratio, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert [int(mask.sum()) for mask in masks] == [kept] * 3
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def small(family: str = "qwen3_vl", **settings) -> mae.MaskedAutoencoder:
    return mae.MaskedAutoencoder(tower(family), 32, 2, 4, **settings)


def batch(model) -> dict:
    return {"image_grid_thw": GRID, "pixel_values": frames(model.visual), "visible": visible_patches()}


def test_the_loss_is_the_error_on_hidden_patches_and_does_not_see_places_without_data():
    model = small().eval()
    inputs = batch(model)
    hidden = (~inputs["visible"]).nonzero().squeeze(1)
    prediction = model.reconstruct(**inputs)
    target = inputs["pixel_values"][hidden]
    target = (target - target.mean(1, keepdim=True)) / target.std(1, keepdim=True, correction=0)
    by_hand = (prediction - target).square().mean(1)
    torch.testing.assert_close(model(**inputs)["loss"], by_hand.mean(), atol=1e-4, rtol=1e-4)

    pixels = inputs["pixel_values"].clone()
    pixels[hidden[0]] = torch.nan  # a patch without data leaves the mean
    torch.testing.assert_close(model(**inputs | {"pixel_values": pixels})["loss"], by_hand[1:].mean(),
                               atol=1e-4, rtol=1e-4)
    pixels[hidden[1], :600] = torch.nan  # so do pixels, also from their patch's mean and spread
    rest = inputs["pixel_values"][hidden[1], 600:]
    rest = (rest - rest.mean()) / rest.std(correction=0)
    expected = torch.cat([(prediction[1, 600:] - rest).square().mean()[None], by_hand[2:]]).mean()
    torch.testing.assert_close(model(**inputs | {"pixel_values": pixels})["loss"], expected, atol=1e-4, rtol=1e-4)


def test_decoder_gives_an_image_the_same_alone_and_beside_a_larger_one():
    model = small("qwen2_vl").eval()
    inputs = batch(model)
    both = model.reconstruct(**inputs)
    alone = model.reconstruct(inputs["pixel_values"][140:], GRID[1:], inputs["visible"][140:])
    torch.testing.assert_close(both[-len(alone):], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("encoder", ["full", "patch_embed"])
def test_every_trained_weight_gets_a_gradient_with_and_without_checkpointing(family, encoder):
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = small(family, encoder=encoder).train()
        if checkpointed:
            model.activation_checkpointing_enable()
        inputs = batch(model)
        model(**inputs)["loss"].backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all(grad is not None for grad in trained.values())
        inside = {name.split(".")[1] for name in trained if name.startswith("visual.")}
        assert inside == ({"patch_embed"} if encoder == "patch_embed" else
                          {"patch_embed", "blocks"} | ({"pos_embed"} if family == "qwen3_vl" else set()))
        gradients.append(trained)
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, msg=name)


@torch.no_grad()
def test_held_out_errors_stand_beside_trivial_predictions_in_both_units():
    model = small().eval()
    inputs = batch(model)
    inputs["pixel_values"][:, :256] += 3  # the first channel differs from the others everywhere
    inputs["pixel_values"][(~inputs["visible"]).nonzero()[:3, 0]] = torch.nan
    found = reconstruction.errors(model, [inputs], std=[2.0] * CHANNELS)
    assert found["tiles"] == 2 and found["hidden_patches"] == int((~inputs["visible"]).sum()) - 3
    assert found["normalised"]["model"] == pytest.approx(float(model(**inputs)["loss"]), rel=1e-4)
    assert found["normalised"]["patch_mean"] == pytest.approx(1, abs=1e-4)
    # Knowing each channel's mean leaves the noise: 1 of 1 + the variance between channels, which is 9 * 0.2 * 0.8.
    assert found["raw"]["channel_means"] == pytest.approx(4, rel=0.05)
    assert found["raw"]["visible_means"] == pytest.approx(4, rel=0.05)
    assert found["raw"]["patch_mean"] == pytest.approx(4 * (1 + 9 * 0.16), rel=0.05)
    assert found["lower_by"]["raw"] == pytest.approx(1 - found["raw"]["model"] / found["raw"]["patch_mean"])


def test_picture_puts_patches_back_where_they_were(tmp_path):
    model = small().eval()
    image, grid = torch.randn(2, 32, 48), torch.tensor([1, 4, 6])
    row, column = get_vision_position_ids(grid[None], 2).unbind(1)
    cut = image.reshape(2, 4, 8, 6, 8).permute(1, 3, 0, 2, 4)[row, column].flatten(1)  # (24, 2 * 8 * 8)
    assert torch.equal(reconstruction._assemble(cut, grid, 2, 2), image)
    with torch.no_grad():
        reconstruction.draw(model, batch(model), CHANNELS, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_colours_show_what_there_is_where_no_pixel_has_all_channels():
    image = np.random.default_rng(0).normal(5, 1, (4, 8, 8))
    image[0, :, :4], image[1, :, 4:], image[3] = np.nan, np.nan, np.nan
    image[:, 0] = np.nan
    shown = reconstruction._colours([image])(image)
    assert shown.shape == (8, 8, 3) and np.isfinite(shown).all()
    assert (shown[0] == 0.85).all() and np.ptp(shown[1:].reshape(-1, 3), axis=0).min() > 0.5
    assert np.isfinite(reconstruction._colours([np.full((4, 8, 8), np.nan)])(image)).all()
