"""Rasters of embeddings of several kinds, read in windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from overlays.data import rasters
from overlays.data.encodings import LENGTHS, dequantise, lengths
from overlays.data.raster_file import Georeference, RasterFile
from overlays.errors import UserError

SCALES = "_scales"  # end of the name of a TESSERA tile's file of scales, one a pixel
ROWS = 256  # of a window: a strip of a 64-band raster 10,000 pixels wide is 0.7 GB as float32


@dataclass(frozen=True)
class Raster:
    """What the header of an embedding raster says.

    Attributes:
        file: the raster; AlphaEarth's int8 codes are decoded.
        coded: whether it holds int8 codes.
        unit: whether a pixel's vector has length 1, so that another length is no data.
        lonlat: (longitude, latitude) of the centre in degrees; None without a georeference that gives one.
        scales: of a TESSERA tile, one a pixel; None where its header has them.
    """

    file: RasterFile
    coded: bool
    unit: bool
    lonlat: tuple[float, float] | None
    scales: RasterFile | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(bands, height, width)."""
        return self.file.shape[2], *self.file.shape[:2]


def open_raster(path: str | Path, encoding: str = "auto") -> Raster:
    """Header of a GeoTIFF of embeddings.

    Args:
        encoding: "alphaearth": int8 codes or decoded values, of unit length; "float": values as they are, of any
            number and length (Clay, Prithvi, SatCLIP); "tessera": int8 times a scale, of the file's header or of the
            raster <name>_scales.tif or .npy beside it; "auto": int8 without a scale and floats as AlphaEarth's.

    Raises:
        UserError: no raster that can be read, or values of another type than the encoding has.
    """
    path = Path(path)
    file, scales = rasters.open_raster(path, decode=False), None
    coded = file.dtype == np.int8
    scaled = file.scale is not None
    if encoding == "tessera":
        scales = _scales(path, file.shape) if coded and not scaled else None
        if not coded or (scales is None and not scaled):
            what = "no scale: put its scales beside it as " + f"{path.stem}{SCALES}.tif or .npy"
            raise UserError(f"raster {path} holds {file.dtype if not coded else 'int8 codes'} and "
                            f"{what if coded else 'TESSERA tiles are int8; decoded ones are --encoding float'}")
    elif encoding == "float" and file.dtype.kind != "f" and not scaled:
        raise UserError(f"raster {path} holds {file.dtype}, not floating point values as --encoding float takes them")
    elif not coded and file.dtype.kind != "f" and not scaled:
        raise UserError(f"raster {path} holds {file.dtype}: embeddings are int8 codes as exported, or "
                        "floating point values of unit length; export it again without scaling")
    codes = coded and not scaled and encoding != "tessera"
    file = replace(file, decode=dequantise) if codes else file
    return Raster(file, coded, encoding in ("auto", "alphaearth"), _centre(file.georeference(), *file.shape[:2]),
                  scales)


def is_scales(path: Path) -> bool:
    """Whether a file holds the scales of a tile beside it."""
    return path.stem.endswith(SCALES)


def _scales(path: Path, shape: tuple[int, int, int]) -> RasterFile | None:
    for suffix in (".tif", ".tiff", ".npy"):
        file = path.with_name(f"{path.stem}{SCALES}{suffix}")
        if file.is_file():
            found = rasters.open_array(file, flat=True) if suffix == ".npy" else rasters.open_raster(file)
            if found.shape[:2] != shape[:2] or found.shape[2] not in (1, shape[2]):
                raise UserError(f"the scales {file} have the shape {found.shape}, the tile {path} has {shape}: rows, "
                                "columns, bands")
            return found
    return None


def windows(raster: Raster, rows: int = ROWS) -> Iterator[tuple[int, np.ndarray]]:
    """(first row counted from the north, values (bands, n, width) float32) of every window, at most `rows` rows each.

    No data is NaN in all bands; so is a pixel that is not finite in any band, or that holds one value in all bands,
    which no embedding does but exports fill with. Values are decoded.

    Raises:
        UserError: the file is cut short.
    """
    _, height, width = raster.shape
    for start in range(0, height, rows):
        count = min(rows, height - start)
        values = raster.file.read(start, 0, count, width).astype(np.float32, copy=False)
        if raster.scales is not None:
            values = values * raster.scales.read(start, 0, count, width)
        values = values.transpose(2, 0, 1)
        fill = (values == values[:1]).all(0) if len(values) > 2 else np.zeros(values.shape[1:], bool)
        values[:, ~np.isfinite(values).all(0) | fill] = np.nan
        yield start, values


def off_length(values: np.ndarray) -> np.ndarray:
    """(h, w) bool: pixels of (bands, h, w) that hold values of another length than an embedding's 1: fill."""
    found = lengths(values, 0)
    return np.isfinite(found) & ((found < LENGTHS[0]) | (found > LENGTHS[1]))


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
