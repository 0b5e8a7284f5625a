"""Crops, flips and quarter turns of pictures and rasters, drawn by seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from overlays.data.media import Media
from overlays.errors import UserError

CROPS = (1.0, 0.8, 0.6)  # sides of a crop as shares of the image's


class Change(NamedTuple):
    """One way to change an image: what does not depend on its size, so that all images of a record change alike.

    Attributes:
        share: side of the crop as a share of the image's.
        top, left: where the crop lies, 0..1 of the room there is.
        mirrored: left and right are exchanged.
        turns: quarter turns, counter-clockwise, after that.
    """

    share: float
    top: float
    left: float
    mirrored: bool
    turns: int

    def __call__(self, image):
        """The changed image, of the size it had (turned: height and width exchanged), so tokens stay as many.

        Args:
            image: RGB picture, or a raster as a torch tensor (C, H, W).
        """
        return self._picture(image) if isinstance(image, Image.Image) else self._raster(image)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(row, column, height, width) of the crop."""
        inner = [max(1, round(side * self.share)) for side in (height, width)]
        row, column = (round(place * (side - own)) for place, side, own in
                       zip((self.top, self.left), (height, width), inner, strict=True))
        return row, column, *inner

    def _picture(self, picture: Image.Image) -> Image.Image:
        row, column, height, width = self.box(picture.height, picture.width)
        if self.share < 1:
            box = (column, row, column + width, row + height)
            picture = picture.crop(box).resize(picture.size, Image.Resampling.BICUBIC)
        if self.mirrored:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turn = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)[self.turns]
        return picture if turn is None else picture.transpose(turn)

    def _raster(self, raster):
        import torch

        if self.share < 1:
            row, column, height, width = self.box(*raster.shape[1:])
            crop = raster[:, row : row + height, column : column + width]
            if (crop != crop[:, :1, :1]).any():  # else there is nothing in it: no data, filled
                from torchvision.transforms.v2 import functional

                raster = functional.resize(crop, list(raster.shape[1:]), functional.InterpolationMode.BICUBIC,
                                           antialias=True)
        raster = raster.flip(2) if self.mirrored else raster
        return torch.rot90(raster, self.turns, dims=(1, 2)).contiguous()


def draw(rng: np.random.Generator) -> Change:
    """A change drawn from `rng`."""
    return Change(float(rng.choice(CROPS)), float(rng.random()), float(rng.random()), bool(rng.integers(2)),
                  int(rng.integers(4)))


@dataclass(frozen=True)
class Repeats:
    """How often an epoch takes each record, and whether the repetitions differ.

    Attributes:
        samples_per_file: samples an epoch takes of each record; the first is the record as it is.
        changed: whether the others are cropped, mirrored and turned.
        seed: of the changes; each depends on it, the record and the number of the repetition, and on nothing else.
    """

    samples_per_file: int = 1
    changed: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.samples_per_file < 1:
            raise UserError(f"--samples_per_file must be at least 1, not {self.samples_per_file}")

    def apply(self, media: Media, repetition: int, *record: int) -> Media:
        """The media as this repetition shows them; `record` are numbers that tell the record from all others."""
        if repetition == 0 or not self.changed or not media.images:
            return media
        change = draw(np.random.default_rng((self.seed, *record, repetition)))
        return Media([change(image) for image in media.images], media.videos)
