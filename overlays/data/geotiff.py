"""GeoTIFF rasters: which bands are channels and which are masks, metadata, values."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from html import unescape
from pathlib import Path

import numpy as np

from overlays.data.raster_file import Georeference, RasterFile, coefficients
from overlays.data.spectral_bands import named_centres, numbers, quantity, spectral
from overlays.errors import UserError

_BLOCKS = 64  # stored blocks of an alpha band that are looked at


SUFFIXES = (".tif", ".tiff")
_NAMES = {"wavelength": "wavelength", "wavelengths": "wavelength", "center_wavelength": "wavelength",
          "central_wavelength": "wavelength", "central_wavelength_um": "wavelength_um",
          "wavelength_nm": "wavelength_nm",
          "fwhm": "fwhm", "bandwidth": "fwhm", "fwhm_um": "fwhm_um", "fwhm_nm": "fwhm_nm", "bbl": "bbl",
          "wavelength_units": "unit", "wavelength_unit": "unit"}


@contextmanager
def open_with_gdal(path: Path, driver: str = "GTiff") -> Iterator:
    """A `rasterio` dataset with a small block cache; a missing map grid gives no warning here.

    GDAL would take any format under this suffix, some of which name other files to read from.

    Raises:
        UserError: the file is not of that format or is damaged; also from what is read inside the block.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=64):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path, driver=driver) as image:
                yield image
        except RasterioError as error:
            reason = " ".join(str(error.__cause__ or error).split())  # rasterio's own error may only point to GDAL's
            raise UserError(f"raster {path} cannot be read, it may be damaged or cut short: {reason}") from None


@contextmanager
def _tif(path: Path):
    """(dataset, numbers of its channels, of its masks)."""
    with open_with_gdal(path) as image:
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
    with open_with_gdal(Path(path)) as image:
        kind = np.dtype(image.dtypes[band - 1])
        full = [0, np.iinfo(kind).max] if kind.kind in "iu" else [0, 1, 255]
        blocks = [window for _, window in image.block_windows(band)]
        chosen = np.unique(np.linspace(0, len(blocks) - 1, min(len(blocks), _BLOCKS)).astype(int))
        return all(np.isin(image.read(band, window=blocks[number]), full).all() for number in chosen)


def note(path: str | Path) -> str:
    """" (band 4 is marked as alpha and not counted)" where that is so, else ""; for sentences about channels."""
    if Path(path).suffix.lower() not in SUFFIXES:
        return ""
    with _tif(Path(path)) as (_, _, masks):
        return f" (band {', '.join(map(str, masks))} is marked as alpha and not counted)" if masks else ""


def place_of(image) -> Georeference | None:
    """Where an open `rasterio` dataset lies; rows that run from south to north are turned."""
    if image.crs is None or image.transform.is_identity:
        return None
    a, b, c, d, e, f = tuple(image.transform)[:6]
    if e > 0 and not d:
        e, f = -e, f + e * image.height
    return Georeference(image.crs.to_wkt(), (a, b, c, d, e, f))


def open_geotiff(path: Path) -> RasterFile:
    """A GeoTIFF: bands that are masks are no channels, rows run from the north.

    Wavelengths, widths and good bands are those of the bands' tags, of the data set's own tags or of the bands' names.

    Raises:
        UserError: it cannot be read, or a tag is not what its name says.
    """
    from rasterio.enums import MaskFlags

    with _tif(path) as (image, bands, masks):
        flags = {flag for kind in image.mask_flag_enums for flag in kind}
        masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags  # alpha bands are `masks`
        types = [np.dtype(image.dtypes[band - 1]) for band in bands]
        dtype = np.result_type(*types) if types else np.dtype(bool)
        pick = [band - 1 for band in bands]
        names = tuple(image.descriptions[band] or "" for band in pick)
        centres, widths, good, note, problem = _spectral(image, bands, names, path)
        tags = {**image.tags(), "units": " ".join(str(image.units[band] or "") for band in pick[:1])}
        flip = image.transform.e > 0 and not image.transform.d and not image.transform.is_identity
        layout = {"path": path, "bands": tuple(bands), "masks": tuple(masks), "masked": masked, "flip": flip,
                  "height": image.height}
        return RasterFile(
            path, "geotiff", (path,), (image.height, image.width, len(bands)), dtype, partial(_stored, layout),
            coefficients(np.array(image.scales)[pick], 1.0), coefficients(np.array(image.offsets)[pick], 0.0),
            image.nodata, centres, widths, good, names if any(names) else (), _categories(path), tags,
            (note,) if note else (), problem, locate=partial(_locate, path))


def _categories(path: Path) -> tuple[str, ...]:
    """Names of a classification's values, which GDAL keeps in a file beside the raster."""
    try:
        text = path.with_name(f"{path.name}.aux.xml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(unescape(name).strip() for name in re.findall(r"<Category(?:>([^<]*)</Category|/)>", text))


def _locate(path: Path) -> Georeference | None:
    with open_with_gdal(path) as image:
        return place_of(image)


def _stored(layout: dict, row: int, col: int, rows: int, cols: int, bands: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask is that of the file (internal mask, .msk) or of the bands which are masks; the nodata value is compared
    in `RasterFile.read`, since GDAL's own masks of it are slow where pixels are interleaved."""
    from rasterio.windows import Window

    first = layout["height"] - row - rows if layout["flip"] else row
    window, missing = Window(col, first, cols, rows), None
    wanted = [layout["bands"][band] for band in bands]
    with open_with_gdal(layout["path"]) as image:
        values = image.read(wanted, window=window)
        hidden = [image.read_masks(layout["bands"][0], window=window)[None]] if layout["masked"] else []
        hidden += [image.read(list(layout["masks"]), window=window)] if layout["masks"] else []
        if hidden:
            missing = np.broadcast_to((np.concatenate(hidden) == 0).any(0), values.shape)
    if layout["flip"]:
        values, missing = values[:, ::-1], None if missing is None else missing[:, ::-1]
    return values.transpose(1, 2, 0), None if missing is None else missing.transpose(1, 2, 0)


def _tags(image, band: int | None = None) -> dict[str, str]:
    """Tags about the spectrum, of all domains, by the names of _NAMES."""
    found: dict[str, str] = {}
    domains = image.tag_namespaces() if band is None else image.tag_namespaces(band)
    for domain in (None, *(name for name in domains if not name.startswith("xml:"))):
        rows = image.tags(ns=domain) if band is None else image.tags(band, ns=domain)
        for key, value in rows.items():
            name = _NAMES.get(key.strip().lower().replace(" ", "_"))
            if name:
                found.setdefault(name, value)
    return found


def _spectral(image, bands: list[int], names: tuple[str, ...], path: Path
              ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None, str, str]:
    """(centres in nm, widths in nm, good bands, note, problem) of the channels; None for what the tags do not say."""
    own, whole = [_tags(image, band) for band in bands], _tags(image)

    def column(name: str) -> tuple[np.ndarray, str] | None:
        """(values by band, their unit) of the bands' tags or of the data set's."""
        unit = whole.get("unit", "")
        if own and all(name in tags for tags in own):
            pairs = [_quantity(tags[name], path) for tags in own]
            return np.array([value for value, _ in pairs]), pairs[0][1] or own[0].get("unit", unit)
        if name not in whole:
            return None
        try:
            values = numbers(whole[name])
        except ValueError:
            raise UserError(f"{path} has a {name!r} list that is not numbers") from None
        values = values[[band - 1 for band in bands]] if len(values) == image.count else values
        if len(values) != len(bands):
            raise UserError(f"{path} lists {len(values)} values under {name!r} for {len(bands)} bands")
        return values, unit

    def lengths(name: str) -> tuple[np.ndarray, str] | None:
        for end, unit in (("", ""), ("_nm", "nm"), ("_um", "um")):
            if (found := column(name + end)) is not None:
                return found[0], unit or found[1]
        return None

    try:
        marks = column("bbl")
        good = None if marks is None or not (marks[0] > 0).any() else marks[0] > 0
        centres, width = lengths("wavelength") or named_centres(names), lengths("fwhm")
        if centres is None:
            return None, None, good, "", ""
        found = spectral(*centres, *(width or (None, "")), path)
        return found[0], found[1], good, found[2], ""
    except UserError as error:  # matters only to who needs the spectrum
        return None, None, None, "", str(error)


def _quantity(text: str, path: Path) -> tuple[float, str]:
    try:
        return quantity(text)
    except ValueError:
        raise UserError(f"{path} has a band tag {text!r} where a wavelength in nanometers or micrometers is needed; "
                        "give --wavelengths FILE instead") from None

