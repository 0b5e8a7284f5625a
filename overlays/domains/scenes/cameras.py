"""The two pictures of a frame and the intrinsics that belong to their sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from overlays.data.geometry import depth_problem, is_turned
from overlays.domains.scenes.infos import Frame
from overlays.errors import UserError

OFF_CENTRE = 0.02  # of the picture: a principal point farther from its middle belongs to another size
RESIZED = 0.1  # by which another size differs at least: with less the principal point may as well be off the middle
LEAST_PIXELS = 16  # of a size; smaller ones are those of normalised intrinsics
Size = tuple[int, int]  # height, width
# Sizes that the intrinsics of the colour and the depth camera belong to; None: what their middles say.
IntrinsicSizes = tuple[Size | None, Size | None]


def parse_size(text: str) -> Size:
    """(480, 640) of "640x480". Raises UserError."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"a size is written 640x480 (width x height), not {text!r}")
    return int(height), int(width)


def sizes(frame: Frame) -> tuple[Size, Size, str]:
    """(of the colour picture, of the depth picture, what is wrong or "")."""
    found = []
    for path, what in ((frame.image, "colour"), (frame.depth, "depth")):
        try:
            with Image.open(path) as picture:
                problem = depth_problem(picture) if what == "depth" else _color_problem(picture)
                if problem:
                    return (0, 0), (0, 0), f"{what} picture {problem}"
                found.append((picture.height, picture.width))
        except Exception:  # decoders raise what they like on bad bytes: OSError, SyntaxError, struct.error, ...
            return (0, 0), (0, 0), f"{what} picture cannot be read"
    return found[0], found[1], ""


def _color_problem(picture: Image.Image) -> str:
    if picture.mode.startswith(("I", "F")):
        return f"has more than 8 bits a channel (mode {picture.mode})"
    return "is turned by its EXIF orientation, unlike depth and intrinsics" if is_turned(picture) else ""


def fit(frame: Frame, color: Size, depth: Size, intrinsic_sizes: IntrinsicSizes = (None, None)) -> tuple[Frame, str]:
    """The frame with the intrinsics of its pictures' sizes, and why they cannot be had or ""."""
    color_k, problem = _fitted(frame.color_intrinsic, color, intrinsic_sizes[0], "colour", "color")
    if problem:
        return frame, problem
    if not frame.depth_like_color:
        depth_k, problem = _fitted(frame.depth_intrinsic, depth, intrinsic_sizes[1], "depth", "depth")
        return replace(frame, color_intrinsic=color_k, depth_intrinsic=depth_k), problem
    # Of the same proportions: less than a pixel off, as rounding leaves it. ScanNet's two cameras are two pixels apart.
    if abs(depth[0] - depth[1] * color[0] / color[1]) >= 1:
        return frame, f"no depth intrinsics, and depth is {depth[1]} x {depth[0]}, colour {color[1]} x {color[0]}"
    return replace(frame, color_intrinsic=color_k,
                   depth_intrinsic=_scaled(color_k, depth[1] / color[1], depth[0] / color[0])), ""


def _fitted(matrix: np.ndarray, size: Size, intrinsic_size: Size | None, what: str,
            flag: str) -> tuple[np.ndarray, str]:
    """(3, 3) intrinsics at the size of a picture, scaled where they are of another size of the same proportions."""
    told = intrinsic_size is not None
    if not told:
        middle = matrix[1, 2], matrix[0, 2]
        if all(abs(at - (pixels - 1) / 2) <= OFF_CENTRE * pixels for at, pixels in zip(middle, size, strict=True)):
            return matrix, ""
        intrinsic_size = 2 * middle[0] + 1, 2 * middle[1] + 1
    x, y = size[1] / intrinsic_size[1], size[0] / intrinsic_size[0]
    scaled = _scaled(matrix, x, y)
    doubtful = not told and max(1 / x, x) < 1 + RESIZED
    if doubtful or min(intrinsic_size) < LEAST_PIXELS or abs(x / y - 1) > OFF_CENTRE or not all(
            0.3 < scaled[axis, 2] / size[1 - axis] < 0.7 for axis in (0, 1)):
        return matrix, (f"{what} intrinsics do not fit a picture of {size[1]} x {size[0]} (principal point "
                        f"{matrix[0, 2]:.0f}, {matrix[1, 2]:.0f}); --{flag}-size WIDTHxHEIGHT says which they fit")
    return scaled, ""


def _scaled(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    """(3, 3) intrinsics of a picture resized by these factors. Pixel centres are at whole numbers."""
    matrix = matrix.copy()
    for axis, ratio in ((0, x), (1, y)):
        matrix[axis, axis] *= ratio
        matrix[axis, 2] = (matrix[axis, 2] + 0.5) * ratio - 0.5
    return matrix
