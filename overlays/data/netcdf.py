"""Reflectance cubes in NetCDF (EMIT L2A, AVIRIS-3 and others), found by the names of variables and dimensions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from overlays.data.raster_file import Georeference, RasterFile, coefficients
from overlays.data.spectral_bands import spectral
from overlays.errors import UserError

SUFFIXES = (".nc", ".nc4", ".h5", ".hdf5")
_BAND = re.compile(r"band|wave|spectral|channel|^wl$|^nbands?$|lambda", re.IGNORECASE)
_COLUMN = re.compile(r"^(x|lon|longitude|easting|samples?|columns?|cols?|crosstrack|cross_track|pixel)$", re.IGNORECASE)
_CENTRES = re.compile(r"^(center_|central_|band_)?(wavelengths?|wl)(_nm|_um)?$", re.IGNORECASE)
_GOOD = re.compile(r"^(good_wavelengths|good_bands|bbl)$", re.IGNORECASE)


def open_netcdf(path: Path) -> RasterFile:
    """A reflectance cube in NetCDF: the variable is searched in all groups, its dimensions are told by their names.

    Raises:
        UserError: it cannot be read, or holds no reflectance cube.
    """
    with open_dataset(path) as data:
        variables = list(_variables(data))
        cube = _cube(path, variables)
        dimensions, shape = cube.dimensions, cube.shape
        lists = [each for each in variables if each.ndim == 1 and len(each) in shape]
        centres = next((each for each in lists if _CENTRES.match(each.name)), None)
        axis = _band_axis(path, dimensions, shape, centres)
        sides = [side for side in range(3) if side != axis]
        if _COLUMN.match(dimensions[sides[0]]) and not _COLUMN.match(dimensions[sides[1]]):
            sides.reverse()
        order = (*sides, axis)
        bands = shape[axis]
        lists = [each for each in lists if len(each) == bands]
        width = next((each for each in lists if re.match(r"^fwhm", each.name, re.IGNORECASE)), None)
        good = next((each for each in lists if _GOOD.match(each.name)), None)
        good = None if good is None else _plain(good) > 0
        centres, widths, note = spectral(*_length(centres), *_length(width), path)
        nodata = getattr(cube, "_FillValue", getattr(cube, "missing_value", None))
        if nodata is None and cube.dtype.kind == "f":
            nodata = -9999.0
        layout = {"path": path, "variable": f"{cube.group().path.rstrip('/')}/{cube.name}", "order": order,
                  "flip": _flip(variables, dimensions[order[0]]), "height": shape[order[0]]}
        scale, offset = (np.full(bands, float(getattr(cube, name, neutral)))
                         for name, neutral in (("scale_factor", 1.0), ("add_offset", 0.0)))
        tags = {name: str(getattr(cube, name)) for name in ("units", "long_name") if hasattr(cube, name)}
        return RasterFile(
            path, "netcdf", (path,), tuple(shape[side] for side in order), np.dtype(cube.dtype),
            partial(_stored, layout), coefficients(scale, 1.0), coefficients(offset, 0.0),
            None if nodata is None else float(nodata), centres, widths,
            None if good is None or not good.any() else good, tags=tags, notes=(note,) if note else (),
            locate=partial(_locate, path, layout["variable"], dimensions[order[0]], dimensions[order[1]],
                           layout["flip"]))


@contextmanager
def open_dataset(path: Path) -> Iterator:
    """An open `netCDF4.Dataset` of a NetCDF or HDF5 file; what goes wrong with it is a UserError."""
    try:
        import netCDF4
    except ImportError:
        raise UserError(f"reading {path} needs the netCDF4 package: pip install netCDF4") from None
    try:
        data = netCDF4.Dataset(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read as NetCDF or HDF5: {error}") from None
    try:
        with data:
            data.set_auto_maskandscale(False)
            yield data
    except (RuntimeError, OSError, IndexError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a reflectance cube, it may be damaged: {error}") from None


def _variables(group) -> Iterator:
    yield from group.variables.values()
    for inner in group.groups.values():
        yield from _variables(inner)


def _plain(variable) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(variable[:]).astype(float), np.nan)


def _length(variable) -> tuple[np.ndarray | None, str]:
    """(values, unit) of a variable; no unit where it is "1"."""
    if variable is None:
        return None, ""
    unit = str(getattr(variable, "units", ""))
    return _plain(variable), "" if unit == "1" else unit


def _cube(path: Path, variables: list):
    cubes = [each for each in variables if each.ndim == 3 and np.dtype(each.dtype).kind in "iuf"
             and min(each.shape) > 0 and not re.search("uncert|unc$", each.name, re.IGNORECASE)]
    named = [each for each in cubes if re.search(r"reflectance|rfl", each.name, re.IGNORECASE)]
    if not named and any("radiance" in each.name.lower() for each in cubes):
        raise UserError(f"{path} holds radiance, but reflectance is needed: download the L2A product")
    named = named or (cubes if len(cubes) == 1 else [])
    if not named:
        raise UserError(f"{path} is not a reflectance cube: none of its variables of three dimensions is called "
                        f"reflectance ({', '.join(each.name for each in cubes) or 'it has none'})")
    return max(named, key=lambda each: int(np.prod(each.shape, dtype=object)))


def _band_axis(path: Path, dimensions: tuple, shape: tuple, centres) -> int:
    for test in (lambda side: _BAND.search(dimensions[side]) is not None,
                 lambda side: centres is not None and shape[side] == len(centres)):
        axes = [side for side in range(3) if test(side)]
        if len(axes) == 1:
            return axes[0]
    raise UserError(f"{path}: its dimensions {', '.join(map(str, dimensions))} do not say which holds the bands")


def _flip(variables: list, name: str) -> bool:
    """Whether the coordinates of the rows go from south to north."""
    rows = next((each for each in variables if each.ndim == 1 and each.name == name and len(each) > 1), None)
    if rows is None or not re.match(r"^(y|lat|latitude|northing)$", name, re.IGNORECASE):
        return False
    return bool(rows[1] > rows[0])


def _stored(layout: dict, row: int, col: int, rows: int, cols: int, bands: np.ndarray) -> tuple[np.ndarray, None]:
    first = layout["height"] - row - rows if layout["flip"] else row
    picked: list = [None, None, None]
    for axis, part in zip(layout["order"], (slice(first, first + rows), slice(col, col + cols), slice(None)),
                          strict=True):
        picked[axis] = part
    with open_dataset(layout["path"]) as data:
        values = np.asarray(data[layout["variable"]][tuple(picked)]).transpose(layout["order"])
    return (values[::-1] if layout["flip"] else values)[:, :, bands], None


def _locate(path: Path, variable: str, row: str, column: str, flip: bool) -> Georeference | None:
    """The grid of an orthorectified cube, or that of the lookup table of a swath."""
    with open_dataset(path) as data:
        variables = {each.name: each for each in _variables(data)}
        cube = data[variable]
        grid = variables.get(str(getattr(cube, "grid_mapping", "")))
        wkt = next((str(getattr(source, name)) for source in (grid, data) if source is not None
                    for name in ("spatial_ref", "crs_wkt") if hasattr(source, name)), "")
        numbers = next((getattr(source, name) for source in (grid, data) if source is not None
                        for name in ("GeoTransform", "geotransform") if hasattr(source, name)), None)
        if isinstance(numbers, str):
            numbers = [float(word) for word in numbers.split()]
        gdal = None if numbers is None or len(numbers) != 6 else [float(value) for value in numbers]
        transform = None if gdal is None else (gdal[1], gdal[2], gdal[0], gdal[4], gdal[5], gdal[3])
        if "glt_x" in variables and "glt_y" in variables and row != "latitude":
            swath = variables["glt_x"].shape != tuple(size for size, name in zip(
                cube.shape, cube.dimensions, strict=True) if name in (row, column))
            if swath and wkt and transform:
                return Georeference(wkt, transform, path)
        y, x = variables.get(row), variables.get(column)
        if y is not None and x is not None and len(y) > 1 and len(x) > 1:
            dx, dy = float(x[1] - x[0]), -abs(float(y[1] - y[0]))
            top = float(max(y[0], y[-1]))
            transform = (dx, 0.0, float(x[0]) - dx / 2, 0.0, dy, top - dy / 2)
            if not wkt and re.match(r"lat", row, re.IGNORECASE):
                from rasterio.crs import CRS

                wkt = CRS.from_epsg(4326).to_wkt()
        return Georeference(wkt, transform) if wkt and transform else None


def lookup_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the swath by pixel of the map, counted from 1, 0 where there is none."""
    return _lookup_table(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _lookup_table(path: Path, _changed_ns: int) -> tuple[np.ndarray, np.ndarray]:
    with open_dataset(path) as data:
        found = {each.name: each for each in _variables(data)}
        return np.asarray(found["glt_y"][:]), np.asarray(found["glt_x"][:])
