"""ENVI files: header, layout, memory-mapped values, good bands. `spectral` reads the header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from overlays.errors import UserError


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
    except (envi.EnviException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{found} cannot be read as an ENVI header: {error}") from None
    if not hasattr(image, "interleave"):
        raise UserError(f"{found} describes a spectral library, not an image cube")
    if str(image.metadata.get("file compression", "0")).strip() not in ("0", ""):
        raise UserError(f"{image.filename} is compressed, which is not supported: save it uncompressed")
    rows, cols, bands = image.shape
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
    order = {"bil": (height, bands, width), "bip": (height, width, bands), "bsq": (bands, height, width)}
    to_bip = {"bil": (0, 2, 1), "bip": (0, 1, 2), "bsq": (1, 2, 0)}[layout["interleave"]]
    stored = np.memmap(layout["file"], np.dtype(layout["dtype"]), "r", layout["offset"], order[layout["interleave"]])
    return stored.transpose(to_bip)


def good_bands(image, path: Path) -> np.ndarray:
    """Indexes of the bands that the header's bbl does not mark bad; all where there is no list."""
    marks = image.metadata.get("bbl")
    if marks is None:
        return np.arange(image.shape[2])
    try:
        good = np.array([float(mark) > 0 for mark in marks])
    except (TypeError, ValueError):
        raise UserError(f"header {path} has a 'bbl' list that is not numbers") from None
    if len(good) != image.shape[2]:
        raise UserError(f"header {path} lists {len(good)} values under 'bbl' for {image.shape[2]} bands")
    return np.flatnonzero(good)
