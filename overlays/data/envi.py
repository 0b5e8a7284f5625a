"""ENVI files: header, layout, memory-mapped values, good bands. `spectral` reads the header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from overlays.errors import UserError

ORDERS = {"bil": ("row", "band", "column"), "bip": ("row", "column", "band"), "bsq": ("band", "row", "column")}


def header_of(path: Path) -> Path | None:
    """The header of an ENVI file that is named by header or data file; None where there is none."""
    if path.suffix.lower() == ".hdr":
        return path
    for candidate in (path.with_suffix(".hdr"), path.with_name(path.name + ".hdr")):
        if candidate.is_file():
            return candidate
    return None


def open_envi(path: Path):
    """The `spectral` image of an ENVI header or data file, and its header's path; the file's size is checked."""
    from spectral.io import envi

    found = header_of(path)
    if found is None or not found.is_file():
        raise UserError(f"{path} has no ENVI header beside it: a file {path.stem}.hdr is needed")
    try:
        image = envi.open(str(found), None if path == found else str(path))
    except envi.EnviDataFileNotFoundError:
        raise UserError(f"the data file of header {found} is missing: put {found.stem}.img beside it") from None
    except (envi.EnviException, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{found} cannot be read as an ENVI header: {' '.join(str(error).split())}") from None
    if not hasattr(image, "interleave"):
        raise UserError(f"{found} describes a spectral library, not an image cube")
    if str(image.metadata.get("file compression", "0")).strip() not in ("0", ""):
        raise UserError(f"{image.filename} is compressed, which is not supported: save it uncompressed")
    if (interleave := layout(image)["interleave"]) not in ORDERS:
        raise UserError(f"header {found} has the interleave {interleave!r}: {', '.join(ORDERS)} are known")
    rows, cols, bands = image.shape
    if min(image.shape) < 1 or image.offset < 0:
        raise UserError(f"header {found} asks for {rows} lines, {cols} samples, {bands} bands and a header offset of "
                        f"{image.offset}: correct it")
    needed = image.offset + rows * cols * bands * np.dtype(image.dtype).itemsize
    stored = Path(image.filename).stat().st_size
    if stored < needed:
        raise UserError(f"{image.filename} is truncated: its header asks for {needed} bytes ({rows} x {cols} x "
                        f"{bands} {np.dtype(image.dtype).name}), the file has {stored}; copy or download it again")
    return image, found


def layout(image) -> dict:
    """How the values of a `spectral` image lie in its file: what `mapped` takes, as plain values."""
    return {"file": image.filename, "offset": image.offset, "dtype": np.dtype(image.dtype).str,
            "interleave": str(image.metadata.get("interleave", "bsq")).strip().lower(),
            "shape": tuple(int(side) for side in image.shape)}


def mapped(layout: Mapping) -> np.ndarray:
    """The cube of `layout` as (rows, columns, bands), memory-mapped anew.

    A fresh map for every window: pages of earlier windows do not stay in memory.
    """
    height, width, bands = layout["shape"]
    sides = {"row": height, "column": width, "band": bands}
    order = ORDERS[layout["interleave"]]
    stored = np.memmap(layout["file"], np.dtype(layout["dtype"]), "r", layout["offset"],
                       tuple(sides[side] for side in order))
    return stored.transpose([order.index(side) for side in ("row", "column", "band")])


def good_marks(image, path: Path) -> np.ndarray | None:
    """(bands,) bool, False for the bands that the header's bbl marks bad; None where there is no list."""
    marks = image.metadata.get("bbl")
    if marks is None:
        return None
    try:
        good = np.array([float(mark) > 0 for mark in marks])
    except (TypeError, ValueError):
        raise UserError(f"header {path} has a 'bbl' list that is not numbers") from None
    if len(good) != image.shape[2]:
        raise UserError(f"header {path} lists {len(good)} values under 'bbl' for {image.shape[2]} bands")
    return good


def ignore_value(image, path: Path) -> float | None:
    """The stored value that means "no data"; None where the header names none."""
    value = image.metadata.get("data ignore value")
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise UserError(f"header {path} has a 'data ignore value' that is not a number, {value!r}: correct it or take "
                        "the line out") from None
