"""Two conventions for a point on a screen: the 0-1000 grid, and pixels of the image as the model sees it.

Which one a model family uses stands in its row of `overlays.families`. Everything is scored on the grid.
"""

from collections.abc import Iterable
from pathlib import Path

from overlays.errors import UserError

GRID = 1000
RELATIVE, ABSOLUTE = "relative", "absolute"


def _row(family: str):
    from overlays.families import FAMILIES

    if family not in FAMILIES:
        raise UserError(f"model family {family!r} is unknown; known are {', '.join(FAMILIES)}")
    return FAMILIES[family]


def convention_of(family: str) -> str:
    """How a model family names points. Raises UserError where the family is unknown."""
    return ABSOLUTE if _row(family).absolute_points else RELATIVE


def resized(size: tuple[int, int], family: str, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(width, height) of the image that the model sees of a screenshot of `size` (width, height).

    Raises:
        UserError: the family is unknown, or its processor takes no image of that shape.
    """
    return _resized(size, _row(family).patch_factor, min_pixels, max_pixels)


def _resized(size: tuple[int, int], factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    try:
        height, width = smart_resize(size[1], size[0], factor, min_pixels, max_pixels)
    except ValueError as error:
        raise UserError(f"a screenshot of {size[0]} x {size[1]} pixels cannot be used: {error}") from None
    return width, height


def to_grid(point_px: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """A point in pixels of an image of `size` (width, height) on the 0-1000 grid."""
    return point_px[0] * GRID / size[0], point_px[1] * GRID / size[1]


def to_answer(grid: tuple[float, float], seen: tuple[int, int] | None) -> tuple[int, int]:
    """Whole numbers that an answer names. `seen`: (width, height) of the resized image, None for the grid itself."""
    if seen is None:
        return round(grid[0]), round(grid[1])
    return round(grid[0] * seen[0] / GRID), round(grid[1] * seen[1] / GRID)


def from_answer(point: tuple[float, float], seen: tuple[int, int] | None) -> tuple[float, float]:
    """The grid point that an answer's numbers name; the reverse of `to_answer` up to rounding."""
    return point if seen is None else to_grid(point, seen)


def check_seen(records: Iterable[dict], media_root: Path, processor) -> None:
    """Compare the size that records were prepared for ("seen") with what a processor makes of their screenshots.

    Raises:
        UserError: they differ, so an answer in pixels would mean another place.
    """
    from overlays.data import media

    image, checked = processor.image_processor, set()
    limits = image.size["shortest_edge"], image.size["longest_edge"]
    factor = image.patch_size * image.merge_size
    for record in records:
        seen, name = record.get("seen"), record.get("image")
        if not seen or (name, *seen) in checked:
            continue
        checked.add((name, *seen))
        # Sides by length: the header may leave out a quarter turn.
        made = _resized(media.rgb_size(media_root / name)[::-1], factor, *limits)
        if sorted(made) != sorted(seen):
            raise UserError(
                f"record {record['id']} was prepared for an image of {seen[0]} x {seen[1]} pixels, but this model sees "
                f"{made[0]} x {made[1]} of it: prepare with --min-pixels {limits[0]} --max-pixels {limits[1]} for its "
                "family, or run with --min_pixels and --max_pixels of the preparation")
