"""How well a masked autoencoder fills in held-out tiles: errors beside trivial predictions, and a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers.vision_utils import get_vision_position_ids

from overlays import plotting
from overlays.model.mae import MaskedAutoencoder, patch_errors, patch_moments

ROWS = 6  # tiles in the picture


def hidden_patches(model: MaskedAutoencoder, batch: dict) -> tuple[torch.Tensor, ...]:
    """(prediction, target, valid) of a batch's hidden patches, (H, values) each, in units of the channels' spread.

    A model of normalised patches gets each patch's own mean and spread back, which the error does not depend on in
    normalised units: it is the comparison with the patch's own mean that they make fair.
    """
    target = batch["pixel_values"][~batch["visible"]].float()
    valid = target.isfinite()
    target = target.nan_to_num(nan=0.0)
    prediction = model.reconstruct(**batch).float()
    if model.norm_pix:
        mean, scale = patch_moments(target, valid)
        prediction = prediction * scale + mean
    return prediction, target, valid


def errors(model: MaskedAutoencoder, batches: Iterable[dict], std) -> dict:
    """Mean squared error on hidden patches of the model and of what needs no model.

    `normalised` divides by each patch's own spread and is a mean over patches (the training loss where norm_pix is
    set); `raw` is in the data's squared units and a mean over values. The trivial predictions are the hidden
    patch's own mean over pixels and channels (`patch_mean`, 1 in normalised units by definition), its own mean in
    every channel (`channel_means`), and the mean in every channel of the tile's visible patches (`visible_means`).
    The first two look at what is hidden; the third does not.

    Args:
        batches: as `MaskedAutoencoder` takes them.
        std: (C,) spread of every channel in the data's units.

    Returns:
        {"tiles", "hidden_patches", "normalised": {name: error}, "raw": {name: error},
        "lower_by": {"normalised", "raw"}}: shares by which the model's error is below that of the patch mean.
    """
    totals = {unit: dict.fromkeys(("model", "patch_mean", "channel_means", "visible_means"), 0.0)
              for unit in ("normalised", "raw")}
    tiles = count = values = 0
    for batch in batches:
        prediction, target, valid = hidden_patches(model, batch)
        weight = torch.as_tensor(std, dtype=torch.float32, device=target.device).square()
        weight = weight.repeat_interleave(target.shape[1] // len(weight))
        guesses = {"model": prediction, **_trivial(batch, target, valid, len(std))}
        scale = patch_moments(target, valid)[1]
        used = valid.any(1)
        tiles += len(batch["image_grid_thw"])
        count += int(used.sum())
        values += int(valid.sum())
        for name, guess in guesses.items():
            squares = (guess - target).square() * valid
            totals["normalised"][name] += float(patch_errors(guess / scale, target / scale, valid).sum())
            totals["raw"][name] += float((squares * weight).sum(dtype=torch.float64))
    mean = {unit: {name: total / max(number, 1) for name, total in totals[unit].items()}
            for unit, number in (("normalised", count), ("raw", values))}
    return {
        "tiles": tiles, "hidden_patches": count, **mean,
        "lower_by": {unit: 1 - mean[unit]["model"] / max(mean[unit]["patch_mean"], 1e-12) for unit in mean},
    }


def _trivial(batch: dict, target: torch.Tensor, valid: torch.Tensor, channels: int) -> dict[str, torch.Tensor]:
    """name -> prediction (H, values) or what spreads to it."""
    def by_channel(pixels, mask):  # (..., values) -> (..., values), each value its channel's mean
        pixels, mask = (each.unflatten(-1, (channels, -1)) for each in (pixels, mask))
        mean = (pixels * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return mean.expand_as(pixels).flatten(-2)

    visible, lengths = batch["visible"], batch["image_grid_thw"].prod(1).tolist()
    rows = []
    for pixels, seen in zip(batch["pixel_values"].split(lengths), visible.split(lengths), strict=True):
        shown = pixels[seen].float()
        # (V, values) -> the values of each channel side by side, so that one mean goes over all visible patches
        side = shown.unflatten(1, (channels, -1)).transpose(0, 1).flatten(1)  # (C, V * area)
        mask = side.isfinite()
        mean = (side.nan_to_num(nan=0.0) * mask).sum(1) / mask.sum(1).clamp(min=1)  # (C,)
        rows.append(mean.repeat_interleave(target.shape[1] // channels).expand(int((~seen).sum()), -1))
    return {"patch_mean": patch_moments(target, valid)[0], "channel_means": by_channel(target, valid),
            "visible_means": torch.cat(rows)}


def _assemble(frames: torch.Tensor, grid: torch.Tensor, merge: int, channels: int) -> torch.Tensor:
    """(P, C * patch * patch) of one image in the processor's order -> (C, height, width)."""
    side = round((frames.shape[1] // channels) ** 0.5)
    height, width = int(grid[1]), int(grid[2])
    row, column = get_vision_position_ids(grid[None], merge).unbind(1)
    canvas = frames.new_empty(height, width, channels, side, side)
    canvas[row, column] = frames.unflatten(1, (channels, side, side))
    return canvas.permute(2, 0, 3, 1, 4).reshape(channels, height * side, width * side)


def draw(model: MaskedAutoencoder, batch: dict, channels: int, file: str | Path) -> None:
    """Picture of a batch's first tiles: input, what was visible, and the reconstruction of what was hidden.

    Colours are the first three principal components of the tiles' own pixels; the reconstruction keeps the visible
    patches as they are.
    """
    prediction, target, _ = hidden_patches(model, batch)
    visible = batch["visible"]
    filled = batch["pixel_values"].float().clone()
    filled[~visible] = torch.where(filled[~visible].isfinite(), prediction, torch.nan)
    shown = batch["pixel_values"].float().clone()
    shown[~visible] = torch.nan
    merge, grids = model.visual.spatial_merge_size, batch["image_grid_thw"].cpu()
    lengths = grids.prod(1).tolist()
    columns = [
        [_assemble(part, grid, merge, channels).numpy() for part, grid in zip(each.cpu().split(lengths), grids,
                                                                                strict=True)][:ROWS]
        for each in (batch["pixel_values"].float(), shown, filled)
    ]
    colour = _colours(columns[0])
    _draw_rows([[colour(image) for image in column] for column in columns], file)


def _colours(images: list[np.ndarray]):
    """Function: (C, H, W) -> (H, W, 3) in 0..1 by the principal components of all pixels of `images` that are whole.

    Where hardly any is, what is missing counts as the channel's mean.
    """
    pixels = np.concatenate([image.reshape(len(image), -1).T for image in images])
    known = np.isfinite(pixels)
    whole = known.all(1)
    usual = None
    if whole.sum() >= 2:
        pixels = pixels[whole]
    else:
        usual = np.where(known, pixels, 0).sum(0) / np.maximum(known.sum(0), 1)
        pixels = np.where(known, pixels, usual)
    mean = pixels.mean(0)
    axes = np.linalg.svd(np.cov((pixels - mean).T).reshape(len(mean), -1), hermitian=True)[0][:, :3]  # (C, 3)
    low, high = np.percentile((pixels - mean) @ axes, (1, 99), axis=0)

    def colour(image: np.ndarray) -> np.ndarray:
        image = np.moveaxis(image, 0, -1)
        if usual is not None:
            image = np.where(np.isfinite(image) | ~np.isfinite(image).any(-1, keepdims=True), image, usual)
        scores = (image - mean) @ axes
        scores = (scores - low) / np.maximum(high - low, 1e-9)
        scores = np.concatenate([scores, np.repeat(scores[..., -1:], 3 - scores.shape[-1], -1)], -1)
        return np.where(np.isfinite(scores), scores.clip(0, 1), 0.85)

    return colour


def _draw_rows(columns: list[list[np.ndarray]], file: str | Path) -> None:
    rows = len(columns[0])
    figure = plotting.figure(6.6, 2.2 * rows + 0.3)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, images) in enumerate(zip(("input", "visible", "reconstruction"), columns, strict=True)):
        axes[0][column].set_title(title)
        for row, image in enumerate(images):
            axes[row][column].imshow(image, interpolation="nearest")
            axes[row][column].set_axis_off()
    plotting.save(figure, file)
