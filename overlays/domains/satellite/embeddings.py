"""Rasters of embeddings, read in windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from overlays.data import rasters
from overlays.data.encodings import dequantise
from overlays.data.raster_file import Georeference, RasterFile
from overlays.errors import UserError

NORM_TOLERANCE = 0.05  # of a pixel's length after decoding; quantisation alone stays below 0.01
ROWS = 256  # of a window: a strip of a 64-band raster 10,000 pixels wide is 0.7 GB as float32


@dataclass(frozen=True)
class Raster:
    """What the header of an embedding raster says.

    Attributes:
        file: the raster; int8 codes are decoded.
        coded: whether it holds int8 codes.
        lonlat: (longitude, latitude) of the centre in degrees; None without a georeference that gives one.
    """

    file: RasterFile
    coded: bool
    lonlat: tuple[float, float] | None

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bands, height, width)."""
        return self.file.shape[2], *self.file.shape[:2]


def open_raster(path: str | Path) -> Raster:
    """Header of a GeoTIFF of embeddings.

    Raises:
        UserError: no raster that can be read, or neither int8 nor floating point.
    """
    path = Path(path)
    file = rasters.open_raster(path)
    coded = file.dtype == np.int8
    if not coded and file.dtype.kind != "f":
        raise UserError(f"raster {path} holds {file.dtype}: embeddings are int8 codes as exported, or "
                        "floating point values of unit length; export it again without scaling")
    if coded:
        file = replace(file, decode=dequantise, nodata=None)
    return Raster(file, coded, _centre(file.georeference(), *file.shape[:2]))


def windows(raster: Raster, rows: int = ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """(first row counted from the north, values (bands, n, width) float32) of every window, at most `rows` rows each.

    No data is NaN in all bands; so is a pixel that is not finite in any band, and one of zeros alone, which no vector
    of unit length is but some exports fill with. Values are decoded where the file is coded.

    Raises:
        UserError: the file is cut short.
    """
    _, height, width = raster.shape
    for start in range(0, height, rows):
        values = raster.file.read(start, 0, min(rows, height - start), width).transpose(2, 0, 1)
        values[:, ~np.isfinite(values).all(0) | (values == 0).all(0)] = np.nan
        yield start, values


def _centre(place: Georeference | None, height: int, width: int) -> tuple[float, float] | None:
    from rasterio.warp import transform as reproject

    if place is None:
        return None
    a, b, c, d, e, f = place.transform
    x, y = c + a * width / 2 + b * height / 2, f + d * width / 2 + e * height / 2
    try:
        (lon,), (lat,) = reproject(place.crs, "EPSG:4326", [x], [y])
    except Exception:  # GDAL's own errors, of a private class: a local grid, or a point outside of the projection
        return None
    return (round(lon, 5), round(lat, 5)) if abs(lon) <= 360 and abs(lat) <= 90 else None
