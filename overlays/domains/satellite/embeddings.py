"""AlphaEarth-like embeddings: the int8 code, and rasters of them read in windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from overlays.data.geotiff import open_tif
from overlays.errors import UserError

NODATA = -128
NORM_TOLERANCE = 0.05  # of a pixel's length after decoding; quantisation alone stays below 0.01
ROWS = 256  # of a window: a strip of a 64-band raster 10,000 pixels wide is 0.7 GB as float32


def dequantise(codes: np.ndarray) -> np.ndarray:
    """int8 codes -> float32 values, ((v / 127.5)^2) * sign(v); -128 means no data and becomes NaN.

    Source: the data catalogue of GOOGLE/SATELLITE_EMBEDDING/V1/ANNUAL. Vectors have unit length only after this map.
    """
    values = codes.astype(np.float32) / np.float32(127.5)
    values *= np.abs(values)
    values[codes == NODATA] = np.nan
    return values


@dataclass(frozen=True)
class Raster:
    """What the header of an embedding raster says.

    Attributes:
        path: the file.
        bands, height, width: its size.
        coded: int8 codes (True) or values that are decoded already (False).
        bottom_up: the first row stored is the southernmost.
        lonlat: (longitude, latitude) of the centre in degrees; None without a georeference that gives one.
    """

    path: Path
    bands: int
    height: int
    width: int
    coded: bool
    bottom_up: bool
    lonlat: tuple[float, float] | None


def open_raster(path: str | Path) -> Raster:
    """Header of a GeoTIFF of embeddings.

    Raises:
        UserError: no raster that can be read, or neither int8 nor floating point.
    """
    path = Path(path)
    with open_tif(path) as file:
        kinds = set(file.dtypes)
        bands, height, width, transform, crs = file.count, file.height, file.width, file.transform, file.crs
    if not kinds <= {"int8"} and not kinds <= {"float32", "float64", "float16"}:
        raise UserError(f"raster {path} holds {', '.join(sorted(kinds))}: embeddings are int8 codes as exported, or "
                        "floating point values of unit length; export it again without scaling")
    return Raster(path, bands, height, width, kinds == {"int8"}, transform.e > 0,
                  _centre(crs, transform, height, width))


def windows(raster: Raster, rows: int = ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """(first row counted from the north, values (bands, n, width) float32) of every window, at most `rows` rows each.

    No data is NaN in all bands; so is a pixel that is not finite in any band, and one of zeros alone, which no vector
    of unit length is but some exports fill with. Values are decoded where the file is coded.

    Raises:
        UserError: the file is cut short.
    """
    from rasterio.windows import Window

    with open_tif(raster.path) as file:
        for start in range(0, raster.height, rows):
            count = min(rows, raster.height - start)
            stored = file.read(window=Window(0, start, raster.width, count))
            if raster.coded:
                values = dequantise(stored)
            else:
                with np.errstate(over="ignore"):
                    values = stored.astype(np.float32)
                if file.nodata is not None and not np.isnan(file.nodata):
                    values[stored == file.nodata] = np.nan
            values[:, ~np.isfinite(values).all(0) | (values == 0).all(0)] = np.nan
            if raster.bottom_up:
                start, values = raster.height - start - count, values[:, ::-1]
            yield start, values


def _centre(crs, transform, height: int, width: int) -> tuple[float, float] | None:
    from rasterio.warp import transform as reproject

    if crs is None:
        return None
    x = transform.c + transform.a * width / 2 + transform.b * height / 2
    y = transform.f + transform.d * width / 2 + transform.e * height / 2
    try:
        (lon,), (lat,) = reproject(crs, "EPSG:4326", [x], [y])
    except Exception:  # GDAL's own errors, of a private class: a local grid, or a point outside of the projection
        return None
    return (round(lon, 5), round(lat, 5)) if abs(lon) <= 360 and abs(lat) <= 90 else None
