"""Cubes in MATLAB files, as (rows, columns, bands) or as a matrix of bands x pixels."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from overlays.data.netcdf import open_dataset
from overlays.data.raster_file import RasterFile
from overlays.errors import UserError

_CLASSES = ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


def parse_shape(text: str) -> tuple[int, int]:
    """(rows, columns) of "100,120"."""
    rows, columns = (int(word) for word in text.split(","))
    if min(rows, columns) < 1:
        raise ValueError
    return rows, columns


def open_matlab(path: Path, variable: str | None = None, shape: tuple[int, int] | None = None,
                bands: int | None = None) -> RasterFile:
    """A cube of a MATLAB file.

    Args:
        variable: its name; None takes the only array that can be the cube.
        shape: (rows, columns) of a matrix of bands x pixels, whose pixels run down the columns, as MATLAB counts;
            None takes the file's own nRow and nCol.
        bands: how many there are, which tells the axis of the bands; None takes the last.

    Raises:
        UserError: it cannot be read, or no array or several are meant.
    """
    shape = None if shape is None else tuple(map(int, shape))  # metadata.json gives a list
    array = _array(str(path), path.stat().st_mtime_ns, variable, shape, bands)
    return RasterFile(path, "matlab", (path,), array.shape, array.dtype,
                      partial(_stored, (str(path), path.stat().st_mtime_ns, variable, shape, bands)))


def _stored(key: tuple, row: int, col: int, rows: int, cols: int, bands: np.ndarray) -> tuple[np.ndarray, None]:
    return _array(*key)[row:row + rows, col:col + cols][:, :, bands], None


@lru_cache(maxsize=1)
def _array(path: str, _changed_ns: int, variable: str | None, shape: tuple[int, int] | None,
           bands: int | None) -> np.ndarray:
    shapes = _shapes(Path(path))
    listed = ", ".join(f"{name} {' x '.join(map(str, sides))}" for name, sides in shapes.items())
    if variable is not None:
        if variable not in shapes:
            raise UserError(f"{path} has no array {variable!r} (--mat-variable); it holds {listed or 'no numbers'}")
        cubes = [variable]
    else:
        cubes = [name for name, sides in shapes.items() if len(sides) == 3]
        if not cubes:
            cubes = [name for name, sides in shapes.items() if len(sides) == 2 and min(sides) > 1]
        if bands is not None and len(cubes) > 1:
            cubes = [name for name in cubes if bands in shapes[name]]
    if len(cubes) != 1:
        raise UserError(f"{path} does not say which array is the cube ({listed or 'it holds no numbers'}): name it "
                        "with --mat-variable")
    name, sides = cubes[0], [own for own in ("nRow", "nCol") if shapes.get(own) == (1, 1)]
    arrays = _load(Path(path), [name, *sides])
    array = arrays[name]
    if array.ndim == 2:
        shape = shape or (tuple(int(arrays[own].item()) for own in sides) if len(sides) == 2 else None)
        if shape is None:
            raise UserError(f"the array {name} of {path} is a matrix of {array.shape[0]} x {array.shape[1]}: give "
                            "--mat-shape ROWS,COLUMNS")
        if shape[0] * shape[1] not in array.shape:
            raise UserError(f"--mat-shape {shape[0]},{shape[1]} does not fit the array {name} of {path}, which is "
                            f"{array.shape[0]} x {array.shape[1]}")
        pixels = array.T if array.shape[1] == shape[0] * shape[1] else array
        return pixels.reshape((*shape, pixels.shape[1]), order="F")
    if array.ndim != 3:
        raise UserError(f"the array {name} of {path} has {array.ndim} dimensions; rows, columns and bands are needed")
    if bands is not None and array.shape[2] != bands and bands in array.shape:
        array = np.moveaxis(array, array.shape.index(bands), 2)
    return array


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of real numbers, by name."""
    if _is_hdf5(path):
        with open_dataset(path) as data:
            return {name: each.shape[::-1] for name, each in data.variables.items()
                    if getattr(each, "dtype", None) is not str and np.dtype(each.dtype).kind in "iuf"
                    and getattr(each, "MATLAB_class", "double") in _CLASSES}
    from scipy.io import whosmat

    return {name: shape for name, shape, kind in _guarded(path, lambda: whosmat(path)) if kind in _CLASSES}


def _load(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Arrays by name, (rows, columns, bands) as MATLAB shows them."""
    if _is_hdf5(path):
        with open_dataset(path) as data:
            arrays = {name: np.asarray(data.variables[name][:]).T for name in names}
    else:
        from scipy.io import loadmat

        arrays = _guarded(path, lambda: loadmat(path, variable_names=names))
    if wrong := [name for name in names if arrays[name].dtype.kind not in "iuf"]:
        raise UserError(f"the array {wrong[0]} of {path} does not hold real numbers")
    return arrays


def _is_hdf5(path: Path) -> bool:
    """Whether a file is of MATLAB 7.3, which is HDF5 behind 512 bytes of text."""
    with path.open("rb") as file:
        return b"MATLAB 7.3" in file.read(128)


def _guarded(path: Path, call: Callable):
    """What `call` returns. Raises UserError where the file is damaged."""
    from scipy.io.matlab import MatReadError

    try:
        return call()
    except (MatReadError, ValueError, OSError, TypeError, KeyError, NotImplementedError, MemoryError, zlib.error
            ) as error:
        raise UserError(f"{path} cannot be read as a MATLAB file: {error}") from None
