"""Spectral indices of a pixel: ferric iron, depth of the clays' absorption."""

from __future__ import annotations

import numpy as np


def ferric_iron(reflectance: np.ndarray, wavelength_nm: np.ndarray) -> np.ndarray | None:
    """Pixels with ferric iron (the 1 um group), reported beside the minerals and never against them.

    Band depth D = 1 - Rb/Rc (Clark & Roush 1984, JGR 89:6329) of the 0.9 um band over the continuum from 760 to
    1230 nm is at least 0.03, and red stands above blue, R660/R480 >= 1.4, as the charge-transfer edge makes it.

    Args:
        reflectance: (n, bands).
        wavelength_nm: (bands,) ascending.

    Returns:
        (n,) bool, or None where the cube lacks one of these bands.
    """
    depth = _depth(reflectance, wavelength_nm, (760, 15), (900, 25), (1230, 15))
    red, blue = _mean(reflectance, wavelength_nm, 660, 12), _mean(reflectance, wavelength_nm, 480, 12)
    if depth is None or red is None or blue is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return (depth >= 0.03) & (red / blue >= 1.4)


def clay_depth(reflectance: np.ndarray, wavelength_nm: np.ndarray) -> np.ndarray | None:
    """(n,) depth of the Al-OH absorption at 2.2 um over the continuum from 2125 to 2250 nm; arguments and None as in
    `ferric_iron`."""
    return _depth(reflectance, wavelength_nm, (2125, 8), (2205, 8), (2250, 8))


def _mean(reflectance: np.ndarray, wavelength_nm: np.ndarray, centre: float, half: float) -> np.ndarray | None:
    chosen = np.abs(wavelength_nm - centre) <= half
    return reflectance[:, chosen].mean(1) if chosen.any() else None


def _depth(reflectance: np.ndarray, wavelength_nm: np.ndarray, *parts: tuple[float, float]) -> np.ndarray | None:
    """Band depth D = 1 - Rb / Rc of (centre, half width) of left shoulder, band and right shoulder."""
    left, band, right = (_mean(reflectance, wavelength_nm, *part) for part in parts)
    if left is None or band is None or right is None:
        return None
    (start, _), (middle, _), (end, _) = parts
    continuum = left + (right - left) * (middle - start) / (end - start)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - band / continuum
