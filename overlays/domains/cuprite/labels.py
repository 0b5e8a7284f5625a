"""Mineral codes from a classification raster made by others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from overlays.data.raster_file import NUMPY_ERRORS, Georeference
from overlays.data.rasters import open_raster
from overlays.domains.cuprite.classes import BY_NAME, CLASSES
from overlays.domains.cuprite.labellers import LABELLERS
from overlays.domains.cuprite.questions import MINERAL_NAMES
from overlays.errors import UserError
from overlays.files import read_json


def read_label_raster(path: str | Path, shape: tuple[int, int], class_map: str | Path | None = None,
                      place: Georeference | None = None) -> np.ndarray:
    """Codes of `CLASSES`, (rows, cols) uint8, from an ENVI classification, GeoTIFF or .npy raster.

    Args:
        path: the raster, one band of whole numbers. Where it and the cube are georeferenced, the cube's part of it is
            cut out.
        shape: (rows, cols) of the cube.
        class_map: JSON object, raster value -> class name or code; without it an ENVI file's own class names must be
            ours, and values without names must be codes of `CLASSES`.
        place: where the cube lies.

    Raises:
        UserError: unreadable file, another size or grid than the cube, no class at all, or a value the map lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"label raster {path} does not exist: give {', '.join(LABELLERS)} or an ENVI, GeoTIFF or .npy "
                        "file")
    file = None
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except NUMPY_ERRORS as error:
            raise UserError(f"label raster {path} cannot be read: {error}") from None
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
            raise UserError(f"label raster {path} must hold one array of numbers")
        values = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
        if values.ndim != 2:
            raise UserError(f"label raster {path} must have one band, its shape is {tuple(values.shape)}")
        size, missing = values.shape, None
    else:
        file = open_raster(path)
        if file.shape[2] != 1:
            raise UserError(f"label raster {path} must have one band, its shape is {file.shape}")
        size = file.shape[:2]
    offset = None if file is None or place is None else _offset(path, file.georeference(), place, shape, size)
    if size != shape and offset is None:
        raise UserError(f"label raster {path} is {size[0]} x {size[1]} pixels, the cube is {shape[0]} x {shape[1]}: "
                        "cut or resample it to the cube's grid")
    if file is not None:
        values, missing = (None if part is None else part[:, :, 0] for part in
                           file.stored(*(offset or (0, 0)), *shape, np.array([0])))
    empty = ~np.isfinite(values) if missing is None else ~np.isfinite(values) | missing
    if file is not None and file.nodata is not None:
        empty |= values == file.nodata
    if empty.all():
        raise UserError(f"label raster {path} holds no class: every pixel is nodata or not a number")
    table = _class_table(path, class_map, () if file is None else file.classes)
    codes = np.zeros(shape, np.uint8)
    unknown = []
    for value in np.unique(values[~empty]):
        code = table.get(float(value))
        if isinstance(code, int):
            codes[(values == value) & ~empty] = code
        else:
            unknown.append(f"{value:g}" + (f" ({code})" if code else ""))
    if unknown:
        raise UserError(f"label raster {path} has values without a class: {', '.join(unknown[:10])}; list them in "
                        "--class-map, e.g. {\"3\": \"alunite\", \"7\": \"background\"}")
    return codes


def _offset(path: Path, own: Georeference | None, place: Georeference, shape: tuple[int, int],
            size: tuple[int, int]) -> tuple[int, int] | None:
    """First row and column of the cube in a label raster; None where one of them is not georeferenced.

    Raises:
        UserError: the grids differ, or the raster does not cover the cube.
    """
    if own is None or place.table is not None:
        return None
    from rasterio.crs import CRS
    from rasterio.transform import Affine

    ours, theirs = Affine(*place.transform), Affine(*own.transform)
    pixel = max(abs(ours.a), abs(ours.e))
    if CRS.from_wkt(own.crs) != CRS.from_wkt(place.crs) or max(
            abs(one - other) for one, other in zip(ours[:6], theirs[:6], strict=True)
            if (one, other) not in ((ours.c, theirs.c), (ours.f, theirs.f))) > 1e-4 * pixel:
        raise UserError(f"label raster {path} lies on another grid than the cube (other pixels or another coordinate "
                        "reference system): warp it to the cube's grid, for example with gdalwarp")
    col, row = ~theirs * (ours.c, ours.f)
    if max(abs(col - round(col)), abs(row - round(row))) > 0.1:
        raise UserError(f"label raster {path} is shifted by a part of a pixel against the cube: warp it to the cube's "
                        "grid, for example with gdalwarp")
    row, col = round(row), round(col)
    if min(row, col) < 0 or row + shape[0] > size[0] or col + shape[1] > size[1]:
        raise UserError(f"label raster {path} does not cover the cube: the cube's first pixel would be its row {row}, "
                        f"column {col} of {size[0]} x {size[1]} pixels")
    return row, col


def _class_table(path: Path, class_map: str | Path | None, names: Sequence[str]) -> dict[float, int | str]:
    """Raster value -> code; the file's own name where it is none of ours."""
    if class_map is None:
        if not names:
            return {float(mineral.code): mineral.code for mineral in CLASSES}
        known = {"unclassified": 0, "background": 0, **{name: BY_NAME[own].code for name, own in MINERAL_NAMES.items()}}
        return {float(value): known.get(name.lower(), name) for value, name in enumerate(names)}
    entries = read_json(class_map, {str: (str, int)}, "it must map a raster value to a class name")
    try:
        numbers = {float(key): value for key, value in entries.items()}
    except ValueError as error:
        raise UserError(f"class map {class_map} is not a JSON object of raster value -> class name: {error}") from None
    table = {}
    for number, name in numbers.items():
        code = BY_NAME[name].code if name in BY_NAME else name
        if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code < len(CLASSES):
            raise UserError(f"class map {class_map} names an unknown class {name!r}: use one of {', '.join(BY_NAME)}")
        table[number] = code
    return table
