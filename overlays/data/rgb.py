"""Image files as upright RGB of 8 bits a channel, with white behind what is transparent."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from overlays.errors import UserError

MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own limit: what a small file may unpack to is bounded
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")  # formats in which several pictures are frames, and not pages or sizes
_ALPHA = {"La": "LA", "RGBa": "RGBA"}  # premultiplied -> straight
_DEEP = re.compile(r"\w+;16[BLN]S?")  # raw modes of 16 bits a channel; "BGR;16" has 16 bits a pixel


def open_rgb(path: Path) -> Image.Image:
    """An image file as upright RGB.

    Raises:
        UserError: no image, cut short, animated, more than MAX_IMAGE_PIXELS pixels, or more than 8 bits a channel.
    """
    with _opened(path) as image:
        try:
            return to_rgb(ImageOps.exif_transpose(image))
        except Exception as error:  # decoders raise what they like on bad bytes: OSError, struct.error, KeyError, ...
            raise UserError(f"image {path} is damaged or cut short: {error}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; transparent pixels are blended with white, as qwen-vl-utils does for RGBA."""
    if image.mode in _ALPHA:
        image = image.convert(_ALPHA[image.mode])
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def rgb_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as its header says: before a quarter turn by EXIF, which patches' number ignores.

    To ask a PNG for its EXIF is to decode it. Raises UserError as `open_rgb` does.
    """
    with _opened(path) as image:
        return image.height, image.width


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of what `open_rgb` gives, without decoding. Raises UserError as `open_rgb` does.

    Of the EXIF of a PNG that is what stands before its pixels, where programs write it.
    """
    with _opened(path) as image:
        try:
            turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except Exception as error:  # as in open_rgb
            raise UserError(f"image {path} is damaged or cut short: {error}") from None
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file whose header is sound; closed at the end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except FileNotFoundError:
        raise UserError(f"image file {path} is missing") from None
    except Image.DecompressionBombError:
        raise UserError(f"image {path} has more than {2 * MAX_IMAGE_PIXELS} pixels; make it smaller") from None
    except Exception as error:
        raise UserError(f"{path} is no image that can be read: {' '.join(str(error).split())}") from None
    with image:
        _check_header(path, image)
        yield image


def _check_header(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise UserError(f"image {path} has {image.width} x {image.height} pixels, above the limit of "
                        f"{MAX_IMAGE_PIXELS}; make it smaller")
    if image.mode.startswith(("I", "F")) or _is_deep(image):
        raise UserError(f"image {path} has more than 8 bits a channel (mode {image.mode}); scale it to 8 bits")
    if image.format in ANIMATED and _is_animated(image):
        raise UserError(f"image {path} is animated; save the frame that counts, or give the file under video")


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel where Pillow's mode hides it: RGB, RGBA or CMYK of 16 bits, or PPM."""
    for tile in image.tile:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(item, str) and _DEEP.fullmatch(item) for item in arguments):
            return True
        if image.format == "PPM" and len(arguments) == 2 and isinstance(arguments[1], int) and arguments[1] > 255:
            return True
    return False


def _is_animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "n_frames", 1) > 1 if image.format != "GIF" else image.is_animated
    except Exception:  # a file cut behind its first frame: the decoder names that when it is opened
        return False
