"""What every raster format is opened as: one description, and windows of values with NaN where there is no data."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

ABSURD = 1e30  # no measurement is larger; fill values such as -3.4e38 are
FILL = -9999.0  # of floats, whether a tag names it or not
# What numpy raises on damaged .npy and .npz files.
NUMPY_ERRORS = (OSError, EOFError, ValueError, TypeError, SyntaxError, KeyError, OverflowError, tokenize.TokenError,
                zipfile.BadZipFile, zlib.error)


class Georeference(NamedTuple):
    """Where a raster lies.

    Attributes:
        crs: coordinate reference system as WKT.
        transform: (a, b, c, d, e, f): x = a * column + b * row + c, y = d * column + e * row + f of a pixel's corner.
        table: file whose geometry lookup table (GLT) maps a swath onto that grid; None where the raster lies on it.
    """

    crs: str
    transform: tuple[float, ...]
    table: Path | None = None


def nowhere() -> Georeference | None:
    """The georeference of a raster that has none."""
    return None


@dataclass(frozen=True)
class RasterFile:
    """A raster on disk; holds no pixels and can be sent to other processes.

    Value = stored value x scale + offset, each band its own.

    Attributes:
        path: the file the user named.
        kind: "envi", "geotiff", "netcdf", "prisma", "matlab" or "npy".
        files: every file that makes up the raster, for checksums.
        shape: (rows, columns, bands), the first row northernmost where the file says so.
        dtype: of the stored values.
        stored: function (row, col, rows, cols, bands) -> stored values (rows, cols, bands), and a bool mask of missing
            ones or None.
        scale, offset: (bands,) or None for 1 and 0.
        nodata: stored value that means "no data", or None.
        wavelength_nm, fwhm_nm: (bands,) in file order, or None.
        good: (bands,) the file's own good-band list, or None.
        names: of the bands, () where there are none; classes: of a classification's values.
        tags: text that may say what is measured.
        notes: what was assumed about the file.
        problem: why the centres cannot be read, though the file names some.
        decode: function of stored values that replaces scale and offset, or None.
        locate: function that reads the georeference.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    dtype: np.dtype
    stored: Callable[..., tuple[np.ndarray, np.ndarray | None]] = field(repr=False)
    scale: np.ndarray | None = None
    offset: np.ndarray | None = None
    nodata: float | None = None
    wavelength_nm: np.ndarray | None = None
    fwhm_nm: np.ndarray | None = None
    good: np.ndarray | None = None
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: str = ""
    decode: Callable[[np.ndarray], np.ndarray] | None = None
    locate: Callable[[], Georeference | None] = nowhere

    def read(self, row: int, col: int, rows: int, cols: int, bands: np.ndarray | None = None) -> np.ndarray:
        """Values of a window, (rows, cols, bands) float32, NaN where there is no data; 8-bit values of a file that
        needs no scale stay so where all are there.

        There is no data where a mask or the nodata value says so, where a value is not finite or above ABSURD,
        and where one of floats is FILL.
        """
        chosen = np.arange(self.shape[2]) if bands is None else np.asarray(bands)
        stored, missing = self.stored(row, col, rows, cols, chosen)
        if self.nodata is not None and np.isfinite(self.nodata):  # others are NaN below
            equal = _equal(stored, self.nodata)
            missing = equal if missing is None else missing | equal
        if missing is not None and not missing.any():
            missing = None
        if self.dtype == np.uint8 and self.scale is None and self.offset is None and missing is None:
            return stored
        with np.errstate(over="ignore"):
            values = stored.astype(np.float32) if self.decode is None else self.decode(stored)
        if stored.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                values[~(np.abs(values) < ABSURD) | (values == FILL)] = np.nan
        if self.decode is None and self.scale is not None:
            values *= self.scale[chosen].astype(np.float32)
        if self.decode is None and self.offset is not None:
            values += self.offset[chosen].astype(np.float32)
        if missing is not None:
            values[missing] = np.nan
        return values

    def georeference(self) -> Georeference | None:
        """Where the raster lies; None where the file does not say."""
        return self.locate()


def _equal(stored: np.ndarray, nodata: float) -> np.ndarray:
    """Which values are the nodata value: exactly for whole numbers, to 1e-6 of it for others."""
    if stored.dtype.kind in "iu":
        limits = np.iinfo(stored.dtype)
        if nodata != int(nodata) or not limits.min <= nodata <= limits.max:
            return np.zeros(stored.shape, bool)
        return stored == stored.dtype.type(int(nodata))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(stored - np.asarray(nodata).astype(stored.dtype)) <= 1e-6 * abs(nodata)


def file_state(path: Path) -> tuple[int, int]:
    """(size in bytes, time of change in ns) of a file, by which a changed one is told."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def coefficients(values: np.ndarray | None, neutral: float) -> np.ndarray | None:
    """Scales or offsets by band; None where all are neutral, 0 scales count as 1."""
    if values is None:
        return None
    values = np.asarray(values, float)
    if neutral == 1.0:
        values = np.where(values == 0, 1.0, values)
    values = np.where(np.isfinite(values), values, neutral)
    return None if (values == neutral).all() else values
