"""A small AVIRIS-like scene of hydrothermal alteration with its true abundances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from overlays.errors import UserError
from overlays.files import atomic_path, write_json
from overlays.samples.cuprite.endmembers import VARIANTS, endmembers, ferric_coating

VERSION = 2  # raised with every change of the scene; an older sample is made anew
NAME = "cuprite_sample"
CLASSES = ("background", "alunite", "kaolinite", "muscovite", "montmorillonite", "buddingtonite", "calcite", "chlorite",
           "epidote")  # codes 0 to 8
IGNORE = -9999
SCALE = 10000
MAP_INFO = "{UTM, 1.0, 1.0, 494000.0, 4156000.0, 15.5, 15.5, 11, North, WGS-84, units=Meters}"
# What prepare takes where the user names neither cube nor parameters.
PREPARE = {"tile_size": 32, "stride": 16}
# Alteration systems, in fractions of height and width: row, column, radius (of the shorter side), elongation,
# orientation in degrees, and how deep erosion has cut: 0 shows the acid-leached core, 1 only its roots.
CENTRES = (
    (0.25, 0.15, 0.150, 1.25, 20, 0.00),
    (0.73, 0.21, 0.130, 1.10, 70, 0.25),
    (0.32, 0.45, 0.120, 1.35, -35, 0.10),
    (0.80, 0.50, 0.125, 1.15, 10, 0.00),
    (0.22, 0.82, 0.125, 1.20, 40, 0.05),
    (0.77, 0.85, 0.125, 1.25, -20, 0.05),
)
# Where along the distance from a centre (1 = its radius) each mineral peaks, how wide, how strong.
ZONES = {
    "alunite": (0.00, 0.50, 9.5),
    "kaolinite": (0.48, 0.18, 7.4),
    "montmorillonite": (0.64, 0.13, 7.6),
    "muscovite": (0.80, 0.13, 7.2),
    "chlorite": (0.99, 0.15, 6.8),
    "epidote": (1.04, 0.15, 6.8),
    "calcite": (1.13, 0.12, 5.6),
}
BUDDINGTONITE = ((0.10, 0.30), (0.52, 0.10), (0.50, 0.36), (0.90, 0.33), (0.10, 0.94), (0.40, 0.92), (0.93, 0.72),
                 (0.60, 0.93))
MARBLE = ((0.50, 0.55), (0.06, 0.55), (0.92, 0.08), (0.40, 0.74), (0.60, 0.73))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sizes: tuple[float, ...]) -> np.ndarray:
    """Sum of Gaussian fields of the given correlation lengths in pixels, zero mean, unit spread, (rows, cols)."""
    total = np.zeros(shape)
    for size in sizes:
        # Long correlations are drawn on a coarser grid and interpolated, which is the same field at less cost.
        coarse = max(1, int(size / 3))
        grid = [-(-length // coarse) + 1 for length in shape]
        layer = gaussian_filter(rng.standard_normal(grid), size / coarse, mode="reflect", truncate=3)
        layer = zoom(layer, coarse, order=3 if coarse > 1 else 0)[:shape[0], :shape[1]]
        total += np.sqrt(size) * layer / layer.std()
    return (total - total.mean()) / total.std()


def abundances(rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """True shares of the nine classes, (rows, cols, 9) float32, summing to 1; class 0 is unaltered ground."""
    unit = min(rows, cols)
    large, medium, small = unit / 14, unit / 45, max(unit / 130, 0.8)
    y, x = np.mgrid[:rows, :cols].astype(float)
    logits = np.full((rows, cols, len(CLASSES)), -4.6)
    logits[:, :, 0] = 0.0
    codes = {mineral: code for code, mineral in enumerate(CLASSES)}
    for row, col, radius, stretch, angle, erosion in CENTRES:
        turn = np.deg2rad(angle)
        dy, dx = y - row * (rows - 1), x - col * (cols - 1)
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        distance = np.hypot(along / stretch, across * stretch) / (radius * unit)
        distance = distance * (1 + 0.13 * smooth_noise(rng, (rows, cols), (large, medium)))
        for name, (peak, width, strength) in ZONES.items():
            bump = np.exp(-(((erosion + (1 - 0.75 * erosion) * distance - peak) / width) ** 2))
            uneven = 1 + 0.22 * smooth_noise(rng, (rows, cols), (1.6 * large,))
            logits[:, :, codes[name]] += strength * np.clip(uneven, 0.72, 1.2) * bump
    for name, spots, size, strength in (("buddingtonite", BUDDINGTONITE, 0.045, 9.0), ("calcite", MARBLE, 0.055, 8.0)):
        for row, col in spots:
            distance = np.hypot(y - row * (rows - 1), x - col * (cols - 1)) / (size * unit)
            distance *= np.maximum(1 + 0.25 * smooth_noise(rng, (rows, cols), (medium,)), 0.2)
            logits[:, :, codes[name]] += strength * np.exp(-(distance**2))
    for code in range(len(CLASSES)):
        logits[:, :, code] += 0.6 * smooth_noise(rng, (rows, cols), (large, medium, small))
    weights = np.exp(1.5 * (logits - logits.max(-1, keepdims=True)))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def write(folder: str | Path, seed: int = 0, *, lines: int = 400, samples: int = 480) -> Path:
    """Write the scene and its truth; the same arguments give the same files.

    Args:
        folder: gets cuprite_sample.{hdr,img} (int16 BIL, reflectance x 10000), abundances.{hdr,img}
            (float32 BSQ, nine classes and iron coating) and sample.json with prepare's defaults for this scene.
        seed: of every random choice.
        lines, samples: size in pixels; at least 64 each.

    Returns:
        Path of the cube's header.
    """
    if min(lines, samples) < 64:
        raise UserError(f"a sample scene needs at least 64 x 64 pixels, {lines} x {samples} were asked for")
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    shape = (lines, samples)
    unit = min(shape)
    truth = abundances(lines, samples, rng)
    iron = 1 / (1 + np.exp(-2.2 * (smooth_noise(rng, shape, (unit / 12, unit / 45)) - 0.7)))
    iron = np.clip(iron * (0.35 + 0.65 * truth[:, :, 1:4].sum(-1)), 0, 0.75)
    light = np.clip(1 + 0.13 * smooth_noise(rng, shape, (unit / 16, unit / 60, unit / 200)), 0.6, 1.35)
    spectra, centres, widths = endmembers()
    mixing = {name: _variant_shares(name, rng, shape) for name in spectra if name in VARIANTS}
    grass = np.clip(0.08 + 0.05 * smooth_noise(rng, shape, (unit / 30,)), 0, 0.25)
    sigma = _noise_level(centres)
    dead = _dead_bands(centres)
    data = _edge_of_flight(lines, samples)
    coating = ferric_coating(centres)
    with atomic_path(folder / f"{NAME}.img") as temporary, temporary.open("wb") as stream:
        for row in range(lines):
            ground = truth[row, :, :1] * ((1 - grass[row, :, None]) * spectra["rock"]
                                          + grass[row, :, None] * spectra["grass"])
            for name, shares in mixing.items():
                code = CLASSES.index(name)
                ground = ground + truth[row, :, code, None] * (shares[row] @ spectra[name])
            ground = ground * (1 - iron[row, :, None] * coating) * light[row, :, None]
            ground = ground + rng.standard_normal(ground.shape) * sigma
            stored = np.clip(np.rint(ground * SCALE), -2000, 32000).astype("<i2")
            stored[:, dead] = IGNORE
            stored[~data[row]] = IGNORE
            stream.write(np.ascontiguousarray(stored.T).tobytes())
    _write_header(folder / f"{NAME}.hdr", lines, samples, len(centres), "bil", 2, {
        "description": "synthetic AVIRIS-like surface reflectance made from USGS splib07 references",
        "map info": MAP_INFO,
        "wavelength units": "Nanometers", "reflectance scale factor": str(SCALE), "data ignore value": str(IGNORE),
        "wavelength": [f"{value:.3f}" for value in centres], "fwhm": [f"{value:.3f}" for value in widths],
        "bbl": ["0" if bad else "1" for bad in dead]})
    layers = np.concatenate([truth, iron[:, :, None].astype(np.float32)], -1)
    layers[~data] = 0
    with atomic_path(folder / "abundances.img") as temporary:
        np.ascontiguousarray(layers.transpose(2, 0, 1), "<f4").tofile(temporary)
    _write_header(folder / "abundances.hdr", lines, samples, layers.shape[2], "bsq", 4, {
        "description": "true abundances of the sample scene; iron coating beside them",
        "band names": [*CLASSES, "iron"]})
    # Written last: where it is present the scene is complete.
    write_json(folder / "sample.json", {
        "version": VERSION, "cube": f"{NAME}.hdr", "lines": lines, "samples": samples, "seed": seed,
        "prepare": PREPARE})
    return folder / f"{NAME}.hdr"


def read_abundances(folder: str | Path) -> np.ndarray:
    """The sample's truth, (rows, cols, 10) float32: nine classes, then iron coating; all zero outside the data."""
    from spectral.io import envi

    return np.array(envi.open(str(Path(folder) / "abundances.hdr")).open_memmap(interleave="bip"))


def _variant_shares(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    weights = np.array([weight for _, weight in VARIANTS[name]])
    fields = np.stack([smooth_noise(rng, shape, (min(shape) / 10,)) for _ in weights], -1)
    shares = weights * np.exp(1.2 * fields)
    return shares / shares.sum(-1, keepdims=True)


def _noise_level(centres: np.ndarray) -> np.ndarray:
    """(bands,) standard deviation of reflectance: rising to both ends and beside the water bands."""
    water = sum(np.exp(-((centres - centre) / width) ** 2) for centre, width in ((1390, 55), (1880, 70), (940, 25)))
    return 0.0012 + 0.004 * np.exp(-(centres - 350) / 60) + 0.0018 * np.exp((centres - 2500) / 120) + 0.003 * water


def _dead_bands(centres: np.ndarray) -> np.ndarray:
    return ((centres > 1358) & (centres < 1420)) | ((centres > 1815) & (centres < 1935))


def _edge_of_flight(lines: int, samples: int) -> np.ndarray:
    """(lines, samples) bool: the flight line runs slightly aslant, so two corners hold no data."""
    y, x = np.mgrid[:lines, :samples] / np.array([lines, samples])[:, None, None]
    return (x + 0.25 * y > 0.035) & (x + 0.25 * y < 1.215)


def _write_header(path: Path, lines: int, samples: int, bands: int, interleave: str, dtype: int, extra: dict) -> None:
    rows = {"samples": samples, "lines": lines, "bands": bands, "header offset": 0, "file type": "ENVI Standard",
            "data type": dtype, "interleave": interleave, "byte order": 0, **extra}
    text = ["ENVI"]
    for key, value in rows.items():
        if isinstance(value, list):
            value = "{\n  " + ", ".join(value) + "}"
        elif key == "description":
            value = "{" + value + "}"
        text.append(f"{key} = {value}")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="ascii")
