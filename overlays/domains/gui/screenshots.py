"""Screenshots of prepared data: their names below the media root, and files that training will open."""

import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from overlays.data import media
from overlays.domains.gui.taps import Tap
from overlays.files import is_file, link, sha256


@dataclass(frozen=True)
class Stored:
    """A screenshot of prepared data. Sizes are (width, height), upright.

    Attributes:
        name: path below the media root.
        size: before any change, which a click in pixels is measured on.
        stored: as the file is now, which a model sees.
        digest: SHA-256 of the source file.
    """

    name: str
    size: tuple[int, int]
    stored: tuple[int, int]
    digest: str


def name_of(tap: Tap, digest: str) -> str:
    """Path of a tap's screenshot below the media root: one for each content, so that copies are one file."""
    return f"images/{tap.user}/{digest[:20]}{re.sub(r'[^.a-zA-Z0-9]', '', tap.screenshot.suffix)[:8].lower()}"


def store_all(taps: Sequence[Tap], folder: Path, pixels: int | None) -> dict[tuple[int, Path], Stored | str]:
    """`store` of every user's screenshots, each once; keys are `key_of` a tap."""
    wanted = {key_of(tap): tap for tap in taps}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda tap: store(tap, folder, pixels), wanted.values())
        bar = tqdm(results, total=len(wanted), desc="reading screenshots", unit="screen", file=sys.stderr,
                   disable=len(wanted) < 200)
        return dict(zip(wanted, bar, strict=True))


def key_of(tap: Tap) -> tuple[int, Path]:
    """What taps that share a stored screenshot have in common."""
    return tap.user, tap.screenshot


def store(tap: Tap, folder: Path, pixels: int | None) -> Stored | str:
    """Put a tap's screenshot below a folder, made smaller above `pixels`; a clause where it cannot be used.

    What is refused here would stop a training later: bytes that are not an image, one cut short, 16 bits a channel.
    """
    screenshot = tap.screenshot
    if not is_file(screenshot):
        return "screenshot is missing"
    if media.opener_of(screenshot) is not media.RGB:
        return "screenshot cannot be read: its suffix is that of a raster"
    try:
        digest = sha256(screenshot)
        name = name_of(tap, digest)
        found = _store(screenshot, name, folder / name, pixels, digest)
    except Exception as error:  # decoders raise what they like on bad bytes
        return f"screenshot cannot be read: {' '.join(str(error).replace(f'{screenshot} ', '').split())[:120]}"
    if max(found.stored) > media.MAX_ASPECT * min(found.stored):
        return f"screenshot is too narrow: {found.size[0]} x {found.size[1]}"
    return found


def _store(screenshot: Path, name: str, target: Path, pixels: int | None, digest: str) -> Stored:
    height, width = media.rgb_size(screenshot)
    target.parent.mkdir(parents=True, exist_ok=True)
    if pixels and width * height > pixels:
        return _store_smaller(screenshot, name, target, pixels, digest)
    size = media.open_rgb(screenshot).size  # a file cut short is noticed here and not in the middle of training
    with suppress(FileExistsError):  # the same content by another path
        link(screenshot, target)  # no second copy of a large data set
    return Stored(name, size, size, digest)


def _store_smaller(screenshot: Path, name: str, target: Path, pixels: int, digest: str) -> Stored:
    with Image.open(screenshot) as image:
        size = image.size
        shrink = (pixels / (size[0] * size[1])) ** 0.5
        # Also decodes at a lower resolution where the format can.
        image.thumbnail((round(size[0] * shrink), round(size[1] * shrink)), reducing_gap=2.0)
        upright = ImageOps.exif_transpose(image)
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        media.to_rgb(upright).save(target, quality=95)
    return Stored(name, size[::-1] if turned else size, upright.size, digest)
