"""Which bands of a cube are usable, and which of them stand for a wavelength."""

from __future__ import annotations

import numpy as np

from overlays.domains.cuprite.cube import Cube, probe
from overlays.errors import UserError

WATER_NM = ((1340.0, 1460.0), (1780.0, 2000.0))


def skip_reasons(cube: Cube) -> list[str]:
    """Why each band is left out: "" for a good band, else "header", "water", "constant" or "overlap".

    The file's own good-band list decides; without one, windows of atmospheric water (1340-1460 and 1780-2000 nm,
    widened by half a band's FWHM on both sides) do. Bands that never vary, and bands whose wavelength does not
    advance on the good bands before them (overlapping spectrometers), are left out in any case. No index is fixed.
    """
    reasons = [""] * cube.shape[2]
    if cube.good is not None:
        reasons = ["" if good else "header" for good in cube.good]
    else:
        for band, (centre, width) in enumerate(zip(cube.wavelength_nm, cube.fwhm_nm, strict=True)):
            if any(low - width / 2 <= centre <= high + width / 2 for low, high in WATER_NM):
                reasons[band] = "water"
    spectra = probe(cube)
    lit = np.isfinite(spectra).any(0)
    span = np.full(cube.shape[2], 0.0)
    span[lit] = np.nanmax(spectra[:, lit], axis=0) - np.nanmin(spectra[:, lit], axis=0)
    highest = -np.inf
    for band, centre in enumerate(cube.wavelength_nm):
        if reasons[band]:
            continue
        if span[band] <= 0:
            reasons[band] = "constant"
        elif centre <= highest:
            reasons[band] = "overlap"
        else:
            highest = centre
    if sum(not reason for reason in reasons) < 3:
        raise UserError(f"cube {cube.path} has fewer than three usable bands: check its bad-band list")
    return reasons


def good_bands(reasons: list[str]) -> np.ndarray:
    """Indexes of the bands that are not left out; their wavelengths ascend."""
    return np.array([band for band, reason in enumerate(reasons) if not reason])


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
