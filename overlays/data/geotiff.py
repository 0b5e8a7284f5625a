"""GeoTIFF rasters: opening, which bands are channels and which are masks, values. `rasterio` is imported where used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from overlays.errors import UserError

_BLOCKS = 64  # stored blocks of an alpha band that are looked at


@contextmanager
def open_tif(path: Path) -> Iterator:
    """A `rasterio` dataset with a small block cache; a missing map grid gives no warning here.

    GDAL would take any format under this suffix, some of which name other files to read from.

    Raises:
        UserError: the file is not a GeoTIFF or is damaged; also from what is read inside the block.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=64):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path, driver="GTiff") as image:
                yield image
        except RasterioError as error:
            reason = " ".join(str(error.__cause__ or error).split())  # rasterio's own error may only point to GDAL's
            raise UserError(f"raster {path} cannot be read, it may be damaged or cut short: {reason}") from None


@contextmanager
def _tif(path: Path):
    """(dataset, numbers of its channels, of its masks)."""
    with open_tif(path) as image:
        masks = _masks(image)
        yield image, [band for band in image.indexes if band not in masks], masks


def _masks(image) -> list[int]:
    """Bands marked as alpha that hold nothing but 0 and the highest value.

    GDAL marks the fourth band of any 8-bit file so, e.g. the near infrared. Decided for the whole file, by blocks that
    are spread over it, so that all windows have the same channels.
    """
    from rasterio.enums import ColorInterp

    alpha = [band for band, kind in zip(image.indexes, image.colorinterp, strict=True) if kind == ColorInterp.alpha]
    if not alpha:
        return []
    state = Path(image.name).stat()
    return [band for band in alpha if _binary(image.name, band, state.st_size, state.st_mtime_ns)]


@lru_cache(maxsize=1 << 16)
def _binary(path: str, band: int, _size: int, _changed_ns: int) -> bool:
    with open_tif(Path(path)) as image:
        kind = np.dtype(image.dtypes[band - 1])
        full = [0, np.iinfo(kind).max] if kind.kind in "iu" else [0, 1, 255]
        blocks = [window for _, window in image.block_windows(band)]
        chosen = np.unique(np.linspace(0, len(blocks) - 1, min(len(blocks), _BLOCKS)).astype(int))
        return all(np.isin(image.read(band, window=blocks[number]), full).all() for number in chosen)


def note(path: str | Path) -> str:
    """" (band 4 is marked as alpha and not counted)" where that is so, else ""; for sentences about channels."""
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return ""
    with _tif(Path(path)) as (_, _, masks):
        return f" (band {', '.join(map(str, masks))} is marked as alpha and not counted)" if masks else ""


def header(path: Path) -> tuple[int, int, int, np.dtype]:
    """(channels, height, width, type of the values) of a GeoTIFF. Raises UserError where it cannot be read."""
    with _tif(path) as (image, bands, _):
        types = [np.dtype(image.dtypes[band - 1]) for band in bands]
        return len(bands), image.height, image.width, np.result_type(*types) if types else np.dtype(bool)


def read(path: Path, row: int, column: int, height: int, width: int) -> np.ndarray:
    """A window (channels, height, width) as it is stored; float32 with NaN where a mask or the nodata value says so.

    Raises:
        UserError: it cannot be read.
    """
    from rasterio.enums import MaskFlags
    from rasterio.windows import Window as Part

    with _tif(path) as (image, bands, masks):
        part = Part(column, row, width, height)
        by_alpha = any(MaskFlags.alpha in flags for flags in image.mask_flag_enums)  # GDAL's mask; here it is `masks`
        values = image.read(bands, window=part, masked=not by_alpha)
        missing = np.ma.getmaskarray(values)
        if masks:
            missing = missing | (image.read(masks, window=part) == 0).any(0)
    values = np.ma.getdata(values)
    return np.where(missing, np.float32(np.nan), values.astype(np.float32)) if missing.any() else values
