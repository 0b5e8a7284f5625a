"""Which bands of a cube are usable, and which of them stand for a wavelength."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from overlays.domains.cuprite.cube import REFLECTANCE, Cube, probe
from overlays.errors import UserError

WATER_NM = ((1340.0, 1430.0), (1780.0, 2000.0))
FILL_SHARE = 0.05  # of the pixels with data in most bands: where a band lacks more of them, the band is left out
REASONS = ("header", "water", "wavelength", "constant", "fill", "overlap")


def skip_reasons(cube: Cube) -> list[str]:
    """Why each band is left out: "" for a good band, else one of REASONS.

    The file's own good-band list decides; without one, windows of atmospheric water (WATER_NM) do. In any case are
    left out: bands without a wavelength, bands that never vary, bands without data where other bands have some, and
    bands whose wavelength does not advance on the good bands before them (overlapping spectrometers). No index is
    fixed.
    """
    centres = cube.wavelength_nm
    if cube.good is not None:
        reasons = ["" if good else "header" for good in cube.good]
    else:
        reasons = ["water" if any(low <= centre <= high for low, high in WATER_NM) else "" for centre in centres]
    spectra = probe(cube).astype(np.float32)
    with np.errstate(invalid="ignore"):
        spectra[(spectra < REFLECTANCE[0]) | (spectra > REFLECTANCE[1])] = np.nan
    known = np.isfinite(spectra)
    usable = np.array([not reason for reason in reasons]) & known.any(0)
    lit = known[:, usable].mean(1) > 0.5 if usable.any() else np.zeros(len(spectra), bool)
    highest = -np.inf
    for band in _ascending(centres):
        values = spectra[known[:, band], band]
        if reasons[band]:
            continue
        if not centres[band] > 0:
            reasons[band] = "wavelength"
        elif values.size and (~known[lit, band]).mean() > FILL_SHARE:
            reasons[band] = "fill"
        elif not values.size or values.max() == values.min():
            reasons[band] = "constant"
        elif centres[band] <= highest:
            reasons[band] = "overlap"
        else:
            highest = centres[band]
    if sum(not reason for reason in reasons) < 3:
        raise UserError(f"cube {cube.path} has fewer than three usable bands: check its bad-band list")
    return reasons


def _ascending(centres: np.ndarray) -> np.ndarray:
    """Indexes in the order in which the bands advance.

    A file is one stretch of bands for each spectrometer, upwards or downwards (PRISMA); each stretch stays together.
    """
    order = np.arange(len(centres))
    steps = np.diff(centres)
    if (steps < 0).sum() > (steps > 0).sum():
        order = order[::-1]
    stretches = np.split(order, np.flatnonzero(np.diff(centres[order]) < 0) + 1)
    return np.concatenate(sorted(stretches, key=lambda stretch: np.nan_to_num(centres[stretch]).max()))


def good_bands(reasons: Sequence[str], wavelength_nm: np.ndarray) -> np.ndarray:
    """Indexes of the bands that are not left out, by ascending wavelength."""
    kept = np.array([band for band, reason in enumerate(reasons) if not reason])
    return kept[np.argsort(wavelength_nm[kept], kind="stable")]


def positions(good: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    """Where bands lie among the good ones."""
    where = {int(band): number for number, band in enumerate(good)}
    return np.array([where[int(band)] for band in bands], int)


def nearest_band(cube: Cube, good: np.ndarray, target_nm: float, purpose: str) -> int:
    """The good band nearest to `target_nm`.

    Raises:
        UserError: none lies within 30 nm or two band widths.
    """
    distance = np.abs(cube.wavelength_nm[good] - target_nm)
    best = int(good[distance.argmin()])
    if distance.min() > max(30.0, 2 * cube.fwhm_nm[best]):
        raise UserError(f"cube {cube.path} has no usable band near {target_nm:g} nm for {purpose}: "
                        "leave that composite out with --composites, or use another cube")
    return best
