"""Hyperspectral cubes of any format as surface reflectance: wavelengths, scale, and what cannot be reflectance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from overlays.data import rasters
from overlays.data.raster_file import Georeference, RasterFile
from overlays.data.spectral_bands import read_wavelengths, spacing_nm
from overlays.errors import UserError

RADIANCE_WORDS = re.compile(r"radian|uw\s*/|µw\s*/|w\s*/\s*(m|cm)|microwatt|micro-watt", re.IGNORECASE)
REFLECTANCE = (-0.2, 2.0)  # values outside are fill
PERCENT = 100.0 * 1.5  # medians above are of reflectance x 10000


@dataclass(frozen=True)
class Cube:
    """A reflectance cube on disk; holds no pixels and can be sent to other processes.

    Attributes:
        file: the raster, with the scale that gives reflectance.
        files: every file that makes up the cube, for checksums.
        wavelength_nm: (bands,) centres, in file order (they may go backwards where spectrometers overlap).
        fwhm_nm: (bands,) full widths at half maximum; the spacing of the centres where the file has none.
        scale_source: "header", "argument" or "values".
    """

    file: RasterFile
    files: tuple[Path, ...]
    wavelength_nm: np.ndarray
    fwhm_nm: np.ndarray
    scale_source: str

    @property
    def path(self) -> Path:
        """The file the user named."""
        return self.file.path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, bands)."""
        return self.file.shape

    @property
    def good(self) -> np.ndarray | None:
        """(bands,) the file's own good-band list, or None."""
        return self.file.good

    @property
    def scale(self) -> float | list[list[float]]:
        """Reflectance = stored value / scale; [[factor, offset]] by band where it is not one number."""
        factor = np.ones(self.shape[2]) if self.file.scale is None else self.file.scale
        if self.file.offset is None and (factor == factor[0]).all():
            return float(round(1 / factor[0], 9))
        offset = np.zeros(self.shape[2]) if self.file.offset is None else self.file.offset
        return [[float(a), float(b)] for a, b in zip(factor, offset, strict=True)]

    def georeference(self) -> Georeference | None:
        """Where the cube lies; None where the file does not say."""
        return self.file.georeference()

    def read(self, row: int, col: int, rows: int, cols: int, bands: np.ndarray | None = None) -> np.ndarray:
        """Reflectance of a window, (rows, cols, bands) float32; NaN where there is no data.

        There is none where the file says so and where a value cannot be reflectance (REFLECTANCE): fill that no header
        names.
        """
        values = self.file.read(row, col, rows, cols, bands).astype(np.float32, copy=False)
        with np.errstate(invalid="ignore"):
            values[(values < REFLECTANCE[0]) | (values > REFLECTANCE[1])] = np.nan
        return values


def open_cube(path: str | Path, wavelengths: str | Path | None = None, scale: float | None = None,
              mat_variable: str | None = None, mat_shape: tuple[int, int] | None = None) -> Cube:
    """Open a cube of any format of `rasters.open_raster` and check that it holds reflectance.

    Args:
        path: the cube; for ENVI the header or the data file.
        wavelengths: text, CSV or .npy file with one band centre a line (nm or um), for files that name none.
        scale: stored values are reflectance times this; None takes the file's, or judges by the values.
        mat_variable, mat_shape: which array of a MATLAB file, and (rows, columns) of one of bands x pixels.

    Raises:
        UserError: missing or truncated file, no wavelengths, unknown units, or radiance instead of reflectance.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"cube {path} does not exist: give an ENVI header, GeoTIFF, NetCDF, HDF5, MATLAB or .npy file")
    if (mat_variable or mat_shape) and path.suffix.lower() != ".mat":
        raise UserError(f"--mat-variable and --mat-shape belong to a MATLAB cube, not to {path}")
    listed = None if wavelengths is None else read_wavelengths(wavelengths)
    file = rasters.open_raster(path, mat_variable=mat_variable, mat_shape=mat_shape,
                               bands=None if listed is None else len(listed))
    if words := _radiance_words(file.tags):
        raise UserError(f"{file.files[0]} says it holds radiance ({words!r}), but surface reflectance is needed: "
                        "correct the scene for the atmosphere first")
    bands = file.shape[2]
    if bands < 2:
        raise UserError(f"cube {path} has one band, which is not a spectrum: give a cube of many bands")
    if listed is not None and len(listed) != bands:
        raise UserError(f"wavelength file {wavelengths} lists {len(listed)} bands, the cube has {bands}")
    centres = file.wavelength_nm if listed is None else listed
    if centres is None and file.problem:
        raise UserError(file.problem)
    if centres is None:
        raise UserError(f"{file.files[0]} has no wavelengths: give --wavelengths FILE, one band centre a line")
    widths = file.fwhm_nm if listed is None and file.fwhm_nm is not None else spacing_nm(centres)
    files = file.files if wavelengths is None else (*file.files, Path(wavelengths))
    return _resolve_scale(Cube(file, files, centres, widths, "values"), scale)


def _radiance_words(tags: Mapping[str, str]) -> str:
    for key in ("data units", "units", "z plot titles", "description", "sensor type", "measurement", "product"):
        text = str(tags.get(key, ""))
        if RADIANCE_WORDS.search(text) and "reflectance" not in text.lower():
            return text.strip()
    return ""


def probe(cube: Cube, pixels: int = 4000) -> np.ndarray:
    """(n, bands) float32 from rows spread over the scene, before `Cube.read` takes out fill; NaN without data."""
    rows, cols, _ = cube.shape
    picked = np.unique(np.linspace(0, rows - 1, min(rows, max(8, pixels // cols))).astype(int))
    spectra = np.concatenate([cube.file.read(int(row), 0, 1, cols)[0] for row in picked])
    return spectra[:: max(1, len(spectra) // pixels)]


def _scaled(cube: Cube, scale: float, source: str) -> Cube:
    return replace(cube, scale_source=source, file=replace(
        cube.file, scale=np.full(cube.shape[2], 1 / scale), offset=None))


def _resolve_scale(cube: Cube, scale: float | None) -> Cube:
    """Fix the scale, and refuse cubes whose values cannot be reflectance."""
    if scale is not None:
        if not scale > 0:
            raise UserError(f"--scale must be positive, got {scale}")
        cube = _scaled(cube, scale, "argument")
    elif cube.file.scale is not None or cube.file.offset is not None:
        cube = replace(cube, scale_source="header")
    spectra = probe(cube).astype(np.float32)
    usable = cube.good if cube.good is not None else np.ones(cube.shape[2], bool)
    with np.errstate(invalid="ignore"):
        spectra[(spectra <= -9990) | (spectra >= 1e9)] = np.nan  # fill without a tag, whatever the scale
    values = spectra[:, usable]
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        raise UserError(f"cube {cube.path} holds no positive value in its good bands")
    if _looks_like_radiance(spectra, cube.wavelength_nm, usable):
        raise UserError(f"cube {cube.path} looks like radiance (sunlight's fall-off from blue to infrared and air's "
                        "absorption bands), but surface reflectance is needed: correct it for the atmosphere first")
    middle = float(np.median(values))
    if cube.scale_source == "values":
        whole = cube.file.dtype.kind in "iu"
        if whole and (cube.file.dtype.itemsize == 1 or middle <= PERCENT):
            raise UserError(f"cube {cube.path} holds whole numbers with a median of {middle:.4g} and names no scale: "
                            "give --scale, for example 255 or 100")
        guess = 10000.0 if middle > PERCENT else 100.0 if middle > REFLECTANCE[1] else 1.0
        if guess != 1:
            cube = _scaled(cube, guess, "values")
            note = (f"{cube.path} names no scale: its values are taken as reflectance x {guess:g}; where they are "
                    "not, give --scale")
            cube = replace(cube, file=replace(cube.file, notes=(*cube.file.notes, note)))
        middle /= guess
    if not 0.005 < middle < 1.5:
        raise UserError(f"cube {cube.path} has a median value of {middle:.4g} after its scale is applied, "
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
