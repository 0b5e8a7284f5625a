"""N-channel rasters (.npy, .tif, .hdr): files -> arrays with NaN where there is no data -> patches of a processor.

A raster is (channels, height, width); 8-bit values stay 8-bit, everything else becomes float32. Everything is done by
the family's own image processor, so three 8-bit channels give what an RGB picture of them gives. A processor that was
given statistics (`set_statistics`) normalises rasters by them and refuses RGB pictures.

torch is imported where they are used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from overlays.data import encodings, envi, geotiff, matlab, netcdf, prisma, records, sidecar
from overlays.data.raster_file import NUMPY_ERRORS, RasterFile, file_state
from overlays.errors import UserError
from overlays.files import read_json, write_json
from overlays.paths import cache_folder

if TYPE_CHECKING:
    import torch

SUFFIXES = (".npy", ".tif", ".tiff", ".hdr")
MAX_VALUES = 1 << 28  # of one raster or window: 1 GiB as float32
_BLOCK = 1 << 22  # values that are looked at together where statistics are fitted
_READER = 2  # raised where the values that a file is read as change
_LOOKED_AT, _MISFIT = 16, 10.0  # rasters, and how many times apart statistics are another unit's
Window = Sequence[int]  # row, column, height, width


class Header(NamedTuple):
    """Size of a raster and the type of its stored values."""

    channels: int
    height: int
    width: int
    dtype: np.dtype


def is_raster(path: str | Path) -> bool:
    """Whether a file is taken for a raster, by its suffix."""
    return Path(path).suffix.lower() in SUFFIXES


def header(path: str | Path) -> Header:
    """What a raster holds, without its values; bad bands and masks (see `geotiff.note`) are not counted.

    Raises:
        UserError: no raster, cut short, not (channels, height, width), or values that are not real numbers.
    """
    return _header(_open(path))


def _open(path: str | Path) -> RasterFile:
    """A raster whose bad bands are left out."""
    file = open_raster(path)
    if file.dtype.kind not in "uif":
        raise UserError(f"raster {path} holds values of type {file.dtype}; integers or real numbers are needed")
    if min(file.shape) < 1:
        raise UserError(f"raster {path} is empty: {file.shape[2]} channels, {file.shape[0]} x {file.shape[1]} pixels")
    return file


def _bands(file: RasterFile) -> np.ndarray:
    return np.arange(file.shape[2]) if file.good is None else np.flatnonzero(file.good)


def _header(file: RasterFile) -> Header:
    converted = file.decode is not None or file.scale is not None or file.offset is not None
    return Header(len(_bands(file)), *file.shape[:2], np.dtype(np.float32) if converted else file.dtype)


def shape(path: str | Path) -> tuple[int, int, int]:
    """(channels, height, width) of a raster. Raises UserError as `header` does."""
    return header(path)[:3]


def size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a raster. Raises UserError as `header` does."""
    return header(path)[1:3]


def read(path: str | Path, window: Window | None = None) -> np.ndarray:
    """A raster, or a window of it: (C, H, W) uint8, or float32 with NaN where there is no data.

    Values are those of `RasterFile.read`: scaled as the file says, decoded where they are AlphaEarth's codes, NaN where
    the file's mask or nodata value says so. Bands that the file's bad-band list (bbl) marks are left out.

    Args:
        window: (row, column, height, width); only that part of the file is read.

    Raises:
        UserError: as `header`; a window beyond the raster, or more than MAX_VALUES values.
    """
    file = _open(path)
    found = _header(file)
    row, column, height, width = (0, 0, *found[1:3]) if window is None else (int(value) for value in window)
    if min(row, column) < 0 or min(height, width) < 1 or row + height > found.height or column + width > found.width:
        raise UserError(f"window {[row, column, height, width]} (row, column, height, width) leaves raster {path} of "
                        f"{found.height} x {found.width} pixels")
    if found.channels * height * width > MAX_VALUES:
        raise UserError(f"raster {path} has {found.channels} x {height} x {width} values, above the limit of "
                        f"{MAX_VALUES}: cut it into tiles, or give its record a \"window\"")
    return np.ascontiguousarray(file.read(row, column, height, width, _bands(file)).transpose(2, 0, 1))


# ---- formats


def open_raster(path: str | Path, *, mat_variable: str | None = None, mat_shape: tuple[int, int] | None = None,
                bands: int | None = None, decode: bool = True) -> RasterFile:
    """A raster of any format, described by its header: ENVI (header or data file), GeoTIFF, NetCDF, HDF5, MATLAB, .npy.

    Args:
        mat_variable, mat_shape, bands: of a MATLAB file, see `matlab.open_matlab`.
        decode: whether raw AlphaEarth tiles are decoded (see `encodings.decoded`).

    Raises:
        UserError: no such file, no known format, damaged, or a header that makes no sense.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"raster file {path} is missing")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        file = open_array(path)
    elif suffix in geotiff.SUFFIXES:
        file = sidecar.completed(geotiff.open_geotiff(path))
    elif suffix in netcdf.SUFFIXES:
        file = netcdf.open_netcdf(path)
    elif suffix in prisma.SUFFIXES:
        file = prisma.open_prisma(path)
    elif suffix == ".mat":
        file = matlab.open_matlab(path, mat_variable, mat_shape, bands)
    elif suffix in (".hdr", *envi.DATA_SUFFIXES) or envi.header_of(path) is not None:
        file = envi.open_envi(path)
    else:
        raise UserError(f"{path} is of no known format: give an ENVI header, GeoTIFF, NetCDF, HDF5, MATLAB or .npy "
                        "file")
    return encodings.decoded(file) if decode else file


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that make up a raster: for ENVI header and data. Raises UserError where there are none."""
    if not path.is_file():
        raise UserError(f"raster file {path} is missing")
    suffixes = (".npy", *geotiff.SUFFIXES, *netcdf.SUFFIXES, *prisma.SUFFIXES, ".mat")
    return (path,) if path.suffix.lower() in suffixes else envi.files_of(path)


def open_npy(path: Path, flat: bool = False) -> np.ndarray:
    """The (channels, height, width) array of a .npy file, memory-mapped; `flat` takes (height, width) as one channel.
    Raises UserError where it holds none."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except NUMPY_ERRORS as error:
        reason = "it holds Python objects, not numbers" if "Python objects" in str(error) else error
        raise UserError(f"{path} is no raster that can be read: {reason}") from None
    array = array[None] if flat and array.ndim == 2 else array
    if array.ndim != 3:
        raise UserError(f"raster {path} has the shape {array.shape}; (channels, height, width) is needed")
    return array


def open_array(path: Path, flat: bool = False) -> RasterFile:
    """The raster of a .npy file; arguments and errors as of `open_npy`."""
    array = open_npy(path, flat)
    return RasterFile(path, "npy", (path,), (*array.shape[1:], len(array)), array.dtype,
                      partial(_npy_stored, path, flat))


def _npy_stored(path: Path, flat: bool, row: int, col: int, rows: int, cols: int, bands: np.ndarray
                ) -> tuple[np.ndarray, None]:
    return np.array(open_npy(path, flat)[bands, row : row + rows, col : col + cols]).transpose(1, 2, 0), None


# ---- statistics


def _image_processor(processor):
    return getattr(processor, "image_processor", processor)


def takes_rasters(processor) -> bool:
    """Whether a processor (or image processor) was given the statistics of rasters."""
    return hasattr(_image_processor(processor), "in_channels")


def set_statistics(processor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a processor (or image processor) take rasters of len(mean) channels, normalised as (x - mean) / std.

    Saved with the processor as image_mean, image_std, do_rescale False and in_channels. A channel that never varies
    (std 0) is divided by 1.
    """
    image = _image_processor(processor)
    mean, std = np.asarray(mean, dtype=np.float64), np.asarray(std, dtype=np.float64)
    if mean.ndim != 1 or mean.shape != std.shape or not np.isfinite([mean, std]).all() or (std < 0).any():
        raise UserError("statistics of rasters are one finite mean and one deviation of at least 0 for each channel")
    image.in_channels = len(mean)
    image.image_mean, image.image_std = mean.tolist(), np.where(std > 0, std, 1.0).tolist()
    image.do_rescale, image.do_normalize = False, True


def fit_statistics(paths: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """(mean (C,), standard deviation (C,)) float64 over the valid values of all rasters, read in blocks.

    Args:
        paths: files, or (file, window) pairs; of the training split only. A window of None is the whole raster.

    Raises:
        UserError: rasters of different channel counts, one without a valid value, or a channel without any.
    """
    from tqdm import tqdm

    items = [item if isinstance(item, tuple) else (Path(item), None) for item in paths]
    if not items:
        raise UserError("there is no raster to fit statistics on")
    first, total = shape(items[0][0])[0], None
    for path, window in tqdm(items, desc="statistics of rasters", unit="raster", disable=len(items) < 200):
        channels = shape(path)[0]
        if channels != first:
            raise UserError(f"raster {path} has {channels} channels{geotiff.note(path)}, but {items[0][0]} has {first}"
                            f"{geotiff.note(items[0][0])}: all rasters of a data set need the same channels")
        own = None
        for block in _blocks(Path(path), window):
            own = _merge(own, _moments(block))
        if not own[0].any():
            raise _all_invalid(path)
        total = _merge(total, own)
    count, mean, squares = total
    if not count.all():
        raise UserError(f"channel {int(np.flatnonzero(count == 0)[0])} (from 0) has no valid value in any of "
                        f"{len(items)} rasters: leave it out")
    return mean, np.sqrt(squares / count)


def expect(processor, channels: int, asked: bool) -> bool:
    """Get a processor ready for a model of so many channels; whether `fit_processor` has to follow.

    Args:
        asked: whether rasters are expected though the model takes 3 channels.

    Raises:
        UserError: the processor was given statistics of another number of channels.
    """
    image = _image_processor(processor)
    if takes_rasters(image):
        if image.in_channels != channels:
            raise UserError(f"the processor was made for rasters of {image.in_channels} channels, but the model takes "
                            f"{channels}: start from the RGB base model")
        return False
    if channels != 3 or asked:
        set_statistics(image, np.zeros(channels), np.ones(channels))  # sizes can be computed until they are fitted
        return True
    return False


def fit_processor(processor, dataset) -> None:
    """Fit statistics on the rasters of a training set and set them; kept in data/cache for later runs and ranks.

    Args:
        dataset: `SupervisedDataset`; what it dropped does not count.
    """
    items = _items(dataset)
    rows = [(str(path.resolve()), *_state(path), window) for path, window in items]
    file = cache_folder() / f"statistics-{hashlib.sha256(json.dumps([_READER, rows]).encode()).hexdigest()[:24]}.json"
    try:
        found = read_json(file, {"mean": [float], "std": [float]})
    except UserError:  # not there yet, or damaged
        mean, std = fit_statistics(items)
        found = {"mean": mean.tolist(), "std": std.tolist()}
        write_json(file, found)
    set_statistics(processor, found["mean"], found["std"])


def _items(dataset) -> list[tuple[Path, tuple | None]]:
    return unique_windows((dataset.record(i), dataset.media_root(i)) for i in range(len(dataset)))


def unique_windows(rows: Iterable[tuple[Mapping, Path]]) -> list[tuple[Path, tuple | None]]:
    """(file, window) of the rasters of records, each once; `rows` holds (record, its media root)."""
    return list(dict.fromkeys(
        (records.media_file(media_root, name), None if window is None else tuple(window)) for record, media_root in rows
        for name, window in zip(records.media_names(record, "image"), records.windows(record), strict=True)
    ))


def misfit(processor, data) -> str:
    """What is wrong where a processor's statistics are those of other values than these rasters hold, such as of codes
    that are decoded now; "" where they fit.

    Args:
        data: a data set, or a list of (file, window) pairs; a few rasters are looked at.
    """
    items = data if isinstance(data, list) else _items(data)
    mean, std = fit_statistics(items[:: max(1, len(items) // _LOOKED_AT)][:_LOOKED_AT])
    image = _image_processor(processor)
    known = np.asarray(image.image_std)
    contrast = float(np.median(std[std > 0] / known[std > 0])) if (std > 0).any() else 1.0
    shift = float(np.median(np.abs(mean - np.asarray(image.image_mean)) / known))
    if 1 / _MISFIT < contrast < _MISFIT and shift < _MISFIT:
        return ""
    return (f"the processor's statistics are those of other values (deviation {np.median(known):.3g}) than these "
            f"rasters hold ({np.median(std):.3g})")


def _state(path: Path) -> tuple[int, ...]:
    """(size, time of change) of a raster's file; for ENVI of the header and of the data file."""
    return tuple(number for file in files_of(path) for number in file_state(file))


def _blocks(path: Path, window: Window | None) -> Iterator[np.ndarray]:
    """A raster as blocks of whole rows with at most _BLOCK values (or one row)."""
    found = header(path)
    row, column, height, width = (0, 0, *found[1:3]) if window is None else window
    step = max(1, _BLOCK // (found.channels * width))
    for start in range(row, row + height, step):
        yield read(path, (start, column, min(step, row + height - start), width))


def _moments(block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of valid values, their mean and their summed squared deviation, each (C,)."""
    values = block.reshape(len(block), -1).astype(np.float64)
    valid = np.isfinite(values)
    count = valid.sum(1)
    mean = np.where(valid, values, 0).sum(1) / np.maximum(count, 1)
    return count, mean, (np.where(valid, values - mean[:, None], 0) ** 2).sum(1)


def _merge(a: tuple | None, b: tuple) -> tuple:
    """Moments of two sets together (Chan, Golub & LeVeque 1979, the parallel form of Welford's update)."""
    if a is None:
        return b
    count = a[0] + b[0]
    weight = np.maximum(count, 1)
    delta = b[1] - a[1]
    return count, a[1] + delta * b[0] / weight, a[2] + b[2] + delta**2 * a[0] * b[0] / weight


def _all_invalid(path: str | Path) -> UserError:
    return UserError(f"raster {path} holds no valid value: every pixel is nodata or not a number")


# ---- into a model


def check(path: str | Path, image_processor) -> None:
    """Look at a file's header: is it what the model behind this image processor takes?

    Raises:
        UserError: another number of channels, an RGB picture for a raster model, or values that an RGB model would
            misread; and as `header`.
    """
    channels = getattr(image_processor, "in_channels", 3)
    if not is_raster(path):
        if takes_rasters(image_processor):
            raise UserError(f"image {path} is an RGB picture, but the model takes rasters of {channels} channels "
                            f"({', '.join(SUFFIXES)}); a data set cannot mix the two")
        return
    found = header(path)
    if found.channels != channels:
        hint = "" if takes_rasters(image_processor) else f"; train one with --in_channels {found.channels}"
        raise UserError(f"raster {path} has {found.channels} channel{'s' * (found.channels != 1)}{geotiff.note(path)}, "
                        f"but the model takes {channels}{hint}")
    if not takes_rasters(image_processor) and found.dtype != np.uint8:
        raise UserError(f"raster {path} holds {found.dtype} values, which the RGB processor would take for 0 to 255: "
                        "give --in_channels 3, so that its statistics are fitted")


def as_image(values: np.ndarray, image_processor, name: str | Path = "") -> torch.Tensor:
    """A raster (C, H, W) as the image processor takes it: invalid values become their channel's mean.

    Raises:
        UserError: no value is valid, or the number of channels is not the processor's.
    """
    import torch

    if values.ndim != 3 or len(values) != len(image_processor.image_mean):
        raise UserError(f"raster {name} has the shape {values.shape}; ({len(image_processor.image_mean)}, height, "
                        "width) is needed")
    if values.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(values))
    values = np.array(values, dtype=np.float32)
    invalid = ~np.isfinite(values)
    if invalid.any():
        if invalid.all():
            raise _all_invalid(name)
        unit = image_processor.rescale_factor if image_processor.do_rescale else 1.0
        mean = np.array(image_processor.image_mean, dtype=np.float32) / np.float32(unit)
        values = np.where(invalid, mean[:, None, None], values)
    return torch.from_numpy(values)


def image_options() -> dict:
    """Keyword arguments with which the family's image processor takes tensors of any number of channels."""
    return {"input_data_format": "channels_first", "do_convert_rgb": False}


def patches(array: np.ndarray, processor) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixel_values (P, C * T * patch * patch) float32, image_grid_thw (1, 3)) of a raster (C, H, W), as training has.

    Resizes to the processor's limits, fills invalid pixels with the channel's mean, normalises, cuts into patches.
    """
    image = _image_processor(processor)
    output = image(images=[as_image(array, image)], return_tensors="pt", **image_options())
    return output["pixel_values"], output["image_grid_thw"]
