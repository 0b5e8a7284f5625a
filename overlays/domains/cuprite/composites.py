"""Three-band composites: which wavelengths, how they are stretched, and how a window becomes a picture."""

from __future__ import annotations

import numpy as np

from overlays.domains.cuprite.bands import nearest_band, positions
from overlays.domains.cuprite.cube import Cube
from overlays.errors import UserError

COMPOSITES_NM: dict[str, tuple[float, float, float]] = {
    "clay": (2200.0, 2100.0, 1650.0),
    "iron": (860.0, 660.0, 480.0),
    "natural": (660.0, 550.0, 470.0),
    "swir": (2350.0, 2200.0, 2100.0),
}
USUAL = ("clay", "iron", "natural")  # where a cube has their bands; else FALLBACK
FALLBACK = "swir"
PERCENT = (2.0, 98.0)


def composite_bands(cube: Cube, good: np.ndarray, names: list[str]) -> dict[str, list[int]]:
    """Band indexes (red, green, blue) of each composite on this cube."""
    return {name: [nearest_band(cube, good, nm, f"the {name} composite") for nm in COMPOSITES_NM[name]]
            for name in names}


def available_composites(cube: Cube, good: np.ndarray) -> dict[str, list[int]]:
    """`composite_bands` of the usual composites that the cube has bands for; of FALLBACK where it has none.

    Raises:
        UserError: the cube has no band for any.
    """
    found = {}
    for name in USUAL:
        try:
            found |= composite_bands(cube, good, [name])
        except UserError:  # the cube ends before its bands, such as one of short-wave infrared alone
            continue
    return found or composite_bands(cube, good, [FALLBACK])


def composite_projection(good: np.ndarray, bands: list[int]) -> np.ndarray:
    """(3, len(good)) float32 that picks a composite's red, green and blue from the good bands.

    For normalised bands: what comes out has mean 0 and deviation 1, which an RGB model takes for a picture of usual
    brightness and contrast.
    """
    projection = np.zeros((3, len(good)), np.float32)
    projection[np.arange(3), positions(good, bands)] = 1
    return projection


def fit_limits(values: np.ndarray) -> list[list[float]]:
    """2nd and 98th percentile of each channel, [[low, high]] * 3, from (n, 3) reflectances of the training area."""
    low, high = np.nanpercentile(values, PERCENT, axis=0)
    high = np.maximum(high, low + 1e-6)
    return [[float(a), float(b)] for a, b in zip(low, high, strict=True)]


def stretch(values: np.ndarray, limits: list[list[float]]) -> np.ndarray:
    """(h, w, 3) reflectance -> (h, w, 3) uint8 between the limits; pixels without data are black."""
    low, high = np.asarray(limits, np.float32).T
    scaled = (np.asarray(values, np.float32) - low) / (high - low)
    scaled[~np.isfinite(scaled).all(-1)] = 0
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
