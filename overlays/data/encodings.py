"""Codes of satellite embeddings: AlphaEarth's int8 map, recognised wherever such a raster is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from overlays.data.raster_file import RasterFile, file_state

NODATA = -128
ALPHAEARTH_BANDS = 64
LENGTHS = (0.9, 1.1)  # of a pixel that holds an embedding; quantisation alone moves it by less than 0.01
_ROWS = 5  # rows spread over a raster that tell whether it holds codes
_BLOCK = 64  # rows read at a time where these hold no data
_KNOWN: dict[tuple, bool] = {}  # whether a file, by size and time of change, holds codes


def dequantise(codes: np.ndarray) -> np.ndarray:
    """int8 codes -> float32 values, ((v / 127.5)^2) * sign(v); -128 means no data and becomes NaN.

    Source: the data catalogue of GOOGLE/SATELLITE_EMBEDDING/V1/ANNUAL. Vectors have unit length only after this map.
    """
    values = codes.astype(np.float32) / np.float32(127.5)
    values *= np.abs(values)
    values[codes == NODATA] = np.nan
    return values


def lengths(values: np.ndarray, axis: int) -> np.ndarray:
    """Length of every pixel's vector; NaN where a band has no data."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt((values.astype(np.float32) ** 2).sum(axis))


def decoded(file: RasterFile) -> RasterFile:
    """The raster with its codes decoded where it is a raw AlphaEarth tile: 64 bands of int8 that have unit length once
    they are decoded; any other raster as it is."""
    if file.dtype != np.int8 or file.shape[2] != ALPHAEARTH_BANDS or file.scale is not None:
        return file
    state = tuple((str(name), *file_state(name)) for name in file.files)
    if state not in _KNOWN:
        height = file.shape[0]
        rows = np.unique(np.linspace(0, height - 1, min(height, _ROWS)).astype(int))
        found = np.concatenate([_lengths_of_rows(file, int(row), 1) for row in rows])
        blocks = (_lengths_of_rows(file, row, min(_BLOCK, height - row)) for row in range(0, height, _BLOCK))
        found = found if found.size else next((block for block in blocks if block.size), found)
        if not found.size:
            return file
        _KNOWN[state] = LENGTHS[0] <= float(np.median(found)) <= LENGTHS[1]
    return replace(file, decode=dequantise) if _KNOWN[state] else file


def _lengths_of_rows(file: RasterFile, row: int, rows: int) -> np.ndarray:
    """(n,) lengths of the decoded pixels with data of some rows."""
    found = lengths(dequantise(file.stored(row, 0, rows, file.shape[1], np.arange(ALPHAEARTH_BANDS))[0]), -1)
    return found[np.isfinite(found) & (found > 0)]
