"""Band centres and widths as files write them -> nanometres."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from overlays.data.raster_file import NUMPY_ERRORS
from overlays.errors import UserError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_QUANTITY = re.compile(rf"\s*(nan|{_NUMBER})\s*([^\d\s]\S*)?\s*", re.IGNORECASE)
_IN_NAME = re.compile(r"([\d.]+)\s*(nanomet\w*|nm|micromet\w*|um|µm|μm)\b", re.IGNORECASE)
_LONGEST_UM = 100.0  # no wavelength of a cube is longer in micrometres, or shorter in nanometres
_PLAUSIBLE = (0.05, 40.0)  # band width over band spacing


def numbers(text: str | list[str]) -> np.ndarray:
    """Numbers of a list such as "{1.5, 2}" or ["1.5", "2"]. Raises ValueError where there are none or other words."""
    words = text if isinstance(text, list) else re.split(r"[\s,;]+", text.strip().strip("{}[]()"))
    values = np.array([float(word.strip("'\"")) for word in words if word.strip()])
    if not values.size:
        raise ValueError("an empty list")
    return values


def quantity(text: str) -> tuple[float, str]:
    """(number, unit) of a tag such as "480", "0.48 um" or "nan". Raises ValueError for anything else."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number with a unit")
    return float(match[1]), match[2] or ""


def quantities(text: str) -> tuple[np.ndarray, str]:
    """(numbers, their unit) of a list such as "{1.5, 2}" or "{398.5 nm, 400.7 nm}". Raises ValueError as `numbers`."""
    try:
        return numbers(text), ""
    except ValueError:
        words = [word.strip(" \t\r\n'\"") for word in re.split("[,;]", text.strip().strip("{}[]()"))]
        pairs = [quantity(word) for word in words if word]
        if not pairs:
            raise
        return np.array([value for value, _ in pairs]), pairs[0][1]


def named_centres(names: Sequence[str]) -> tuple[np.ndarray, str] | None:
    """(centres, unit) of bands whose names hold one number with a unit of length, such as "band 7 (465.3 nm)"."""
    found = [_IN_NAME.search(name) for name in names]
    if not found or not all(found):
        return None
    return np.array([float(each[1]) for each in found]), found[0][2]


def unit_factor(unit: str) -> float | None:
    """Nanometres in a unit; 0 for wavenumbers (cm-1), None for an empty or unknown word."""
    word = unit.strip().strip("[]()").lower()
    if word.startswith(("nano", "nm")):
        return 1.0
    if word.startswith(("micro", "um", "µm", "μm")):
        return 1000.0
    if word.startswith(("angstrom", "å")):
        return 0.1
    if word.startswith(("wavenumber", "cm-1", "cm^-1", "1/cm", "cm⁻¹")):
        return 0.0
    return None


def centres_nm(values: np.ndarray, unit: str, where: object) -> np.ndarray:
    """(bands,) centres in nm; values up to _LONGEST_UM are micrometres, above it nanometres, whatever the unit says.

    Raises:
        UserError: a unit that is not one of a wavelength.
    """
    factor = unit_factor(unit)
    if factor is None and unit.strip().lower() not in ("", "unknown", "none", "1"):
        raise UserError(f"{where} gives wavelengths in {unit!r}: nanometers, micrometers or cm-1 are needed")
    if factor in (None, 1.0, 1000.0):
        factor = 1.0 if np.nanmax(values, initial=0) > _LONGEST_UM else 1000.0
    if factor:
        return values * factor
    with np.errstate(divide="ignore"):
        return np.where(values > 0, 1e7 / values, 0.0)


def spacing_nm(centres: np.ndarray) -> np.ndarray:
    """(bands,) distance of neighbouring centres; the usual one where spectrometers meet and beside a centre that is
    NaN; NaN where fewer than two neighbours are known."""
    spacing = np.abs(np.gradient(centres)) if len(centres) > 1 else np.full(len(centres), np.nan)
    known = spacing[np.isfinite(spacing)]
    usual = np.median(known) if known.size else np.nan
    return np.where((spacing >= usual / 3) & (spacing <= usual * 3), spacing, usual)


def widths_nm(values: np.ndarray | None, unit: str, centres: np.ndarray, where: object) -> tuple[np.ndarray, str]:
    """((bands,) full widths at half maximum in nm, a note where the unit is not the one that the file says).

    A width is about as large as the distance to the next centre, which tells nanometres from micrometres whatever the
    file says, where there is a next centre. Bands without a width get that distance.
    """
    spacing, note = spacing_nm(centres), ""
    if values is None:
        return spacing, note
    factor = unit_factor(unit)
    with np.errstate(invalid="ignore", divide="ignore"):
        widths = values * centres**2 / 1e7 if factor == 0 else values * (1.0 if factor is None else factor)
        known = np.isfinite(widths) & (widths > 0)
    if not known.any():
        return spacing, note
    usual = float(np.median(spacing))  # `spacing_nm` leaves no NaN, or nothing else

    def ratio(factor: float) -> float:
        return float(np.median(widths[known])) * factor / max(usual, 1e-9)

    if usual >= 0 and not _PLAUSIBLE[0] <= ratio(1) <= _PLAUSIBLE[1]:
        factor = min((1000.0, 0.001), key=lambda candidate: abs(np.log(ratio(candidate))))
        if _PLAUSIBLE[0] <= ratio(factor) <= _PLAUSIBLE[1]:
            widths = widths * factor
            note = (f"{where}: the band widths are taken as {'micrometers' if factor > 1 else 'nanometers'}, another "
                    f"unit than that of the centres: their median is then {np.median(widths[known]):.3g} nm at a band "
                    f"spacing of {usual:.3g} nm")
        else:
            return spacing, f"{where}: its band widths fit no unit, the spacing of the bands is used"
    return np.where(known, widths, spacing), note


def spectral(centres: np.ndarray | None, unit: str, widths: np.ndarray | None, width_unit: str, where: object
             ) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """(centres, widths, note) in nm of a file's own lists; widths without a unit have that of the centres.

    Raises:
        UserError: a unit that is not one of a wavelength.
    """
    if centres is None:
        return None, None, ""
    found, note = centres_nm(centres, unit, where), ""
    plain = "um" if np.nanmax(centres, initial=0) <= _LONGEST_UM else "nm"
    if unit_factor(unit) in (1.0, 1000.0) and unit_factor(unit) != unit_factor(plain):
        note = f"{where}: the wavelengths are taken as {plain}, not as {unit} as it says"
        unit = plain
    if widths is None:
        return found, None, note
    known, about_widths = widths_nm(widths, width_unit or (plain if unit_factor(unit) is None else unit), found, where)
    return found, known, "; ".join(filter(None, (note, about_widths)))


def read_wavelengths(path: str | Path) -> np.ndarray:
    """(bands,) centres in nm from a .npy, text or CSV file, first column; values up to 100 are micrometres."""
    path = Path(path)
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False).astype(float).ravel()
        else:
            lines = [re.match(rf"\s*({_NUMBER})", line, re.IGNORECASE) for line in path.read_text().splitlines()]
            values = np.array([float(line.group(1)) for line in lines if line])
    except (*NUMPY_ERRORS, AttributeError) as error:  # AttributeError: an archive of arrays
        raise UserError(f"wavelength file {path} cannot be read: {error}") from None
    return centres_nm(values, "", path)
