"""Reflectance cubes of PRISMA (L2C, L2D): an HDF5 file of two cubes (lines, bands, samples) that become one raster."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from overlays.data.netcdf import open_dataset
from overlays.data.raster_file import Georeference, RasterFile
from overlays.data.spectral_bands import spectral
from overlays.errors import UserError

SUFFIXES = (".he5",)
_RANGES = ("Vnir", "Swir")
_FULL = 65535  # stored value of the largest reflectance


def open_prisma(path: Path) -> RasterFile:
    """A cube of the visible and the short-wave infrared bands, in file order.

    Reflectance = minimum + stored value x (maximum - minimum) / 65535, of each range its own;
    a stored 0 marks missing data.
    Bands that were not measured have the centre 0.

    Raises:
        UserError: it cannot be read, holds no cube of PRISMA, or one of radiance.
    """
    with open_dataset(path) as data:
        swaths = data.groups["HDFEOS"].groups["SWATHS"].groups if "HDFEOS" in data.groups else {}
        name = next((own for own in swaths if own.endswith(("_HCO", "_HRC"))), None)
        if name is None or not name.startswith("PRS_L"):
            raise UserError(f"{path} is not a product of PRISMA: it has no swath such as PRS_L2D_HCO")
        if not name.startswith(("PRS_L2C", "PRS_L2D")):
            raise UserError(f"{path} holds radiance ({name}), but reflectance is needed: download the L2C or L2D "
                            "product")
        cubes = [f"/HDFEOS/SWATHS/{name}/Data Fields/{own.upper()}_Cube" for own in _RANGES]
        shapes = [data[cube].shape for cube in cubes]
        if any(len(shape) != 3 for shape in shapes) or shapes[0][::2] != shapes[1][::2]:
            raise UserError(f"{path}: its two cubes are not of the same lines and samples")

        def attributes(pattern: str) -> list[np.ndarray]:
            return [np.ravel(np.asarray(data.getncattr(pattern.format(own)), float)) for own in _RANGES]

        centres, widths = attributes("List_Cw_{}"), attributes("List_Fwhm_{}")
        counts = [shape[1] for shape in shapes]
        if [len(values) for values in centres] != counts or [len(values) for values in widths] != counts:
            raise UserError(f"{path} does not list one wavelength and width for each band of its cubes")
        low, high = (np.repeat(np.concatenate(attributes(f"L2Scale{{}}{end}")), counts) for end in ("Min", "Max"))
        found, known, note = spectral(np.concatenate(centres), "nm", np.concatenate(widths), "nm", path)
        layout = {"path": path, "cubes": tuple(cubes), "counts": tuple(counts)}
        return RasterFile(
            path, "prisma", (path,), (shapes[0][0], shapes[0][2], sum(counts)), np.dtype(np.uint16),
            partial(_stored, layout), (high - low) / _FULL, low, 0, found, known, notes=(note,) if note else (),
            locate=partial(_locate, path, shapes[0][::2]))


def _stored(layout: dict, row: int, col: int, rows: int, cols: int, bands: np.ndarray) -> tuple[np.ndarray, None]:
    values = np.empty((rows, cols, len(bands)), np.uint16)
    start = 0
    with open_dataset(layout["path"]) as data:
        for cube, count in zip(layout["cubes"], layout["counts"], strict=True):
            inside = (bands >= start) & (bands < start + count)
            if inside.any():
                window = np.asarray(data[cube][row:row + rows, :, col:col + cols])
                values[:, :, inside] = window[:, bands[inside] - start].transpose(0, 2, 1)
            start += count
    return values, None


def _locate(path: Path, shape: tuple[int, int]) -> Georeference | None:
    """The map grid of L2D, whose corners are the centres of pixels; L2C has none."""
    from rasterio.crs import CRS

    with open_dataset(path) as data:
        names = [f"Product_{corner}corner_{axis}" for corner in ("UL", "LR") for axis in ("easting", "northing")]
        if min(shape) < 2 or not {"Epsg_Code", *names} <= set(data.ncattrs()):
            return None
        west, north, east, south = (float(data.getncattr(name)) for name in names)
        code = int(data.getncattr("Epsg_Code"))
    dx, dy = (east - west) / (shape[1] - 1), (north - south) / (shape[0] - 1)
    return Georeference(CRS.from_epsg(code).to_wkt(), (dx, 0.0, west - dx / 2, 0.0, -dy, north + dy / 2))
