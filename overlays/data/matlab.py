"""Cubes in MATLAB files, as (rows, columns, bands) or as a matrix of bands x pixels."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from overlays.data.raster_file import RasterFile
from overlays.errors import UserError


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
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        arrays = {name: value for name, value in loadmat(path).items()
                  if isinstance(value, np.ndarray) and value.dtype.kind in "iuf"}
    except NotImplementedError:
        raise UserError(f"{path} is a MATLAB 7.3 (HDF5) file: save it with '-v7' or as ENVI") from None
    except (MatReadError, ValueError, OSError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a MATLAB file: {error}") from None
    listed = ", ".join(f"{name} {' x '.join(map(str, value.shape))}" for name, value in arrays.items())
    if variable is not None:
        if variable not in arrays:
            raise UserError(f"{path} has no array {variable!r} (--mat-variable); it holds {listed or 'no numbers'}")
        cubes = {variable: arrays[variable]}
    else:
        cubes = {name: value for name, value in arrays.items() if value.ndim == 3}
        if not cubes:
            cubes = {name: value for name, value in arrays.items() if value.ndim == 2 and min(value.shape) > 1}
        if bands is not None and len(cubes) > 1:
            cubes = {name: value for name, value in cubes.items() if bands in value.shape}
    if len(cubes) != 1:
        raise UserError(f"{path} does not say which array is the cube ({listed or 'it holds no numbers'}): name it "
                        "with --mat-variable")
    (name, array), = cubes.items()
    if array.ndim == 2:
        sides = [int(arrays[side].ravel()[0]) for side in ("nRow", "nCol") if side in arrays and arrays[side].size == 1]
        shape = shape or (tuple(sides) if len(sides) == 2 else None)
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
