"""Small cities as AlphaEarth-like GeoTIFFs and a table of their population growth.

What a city is made of shows in its mean embedding. How its built-up land is laid out does not: the share of built-up
pixels is drawn apart from how finely they are mixed with open land. Growth depends on both, and on noise that
truth.json knows.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from overlays.errors import UserError
from overlays.files import atomic_path, write_json

VERSION = 2  # raised with every change of the sample; an older one is made anew
TABLE, TRUTH = "cities.xlsx", "truth.json"
BANDS, PIXEL_M, NODATA = 64, 10.0, -128
CLASSES = ("water", "cropland", "trees", "grass", "bare", "houses", "blocks")  # the last two are built-up
BUILT = (5, 6)
# (longitude, latitude) of the regions that cities lie in, and how far they spread, in degrees.
REGIONS = ((-93.5, 41.8, 4.0), (-121.0, 38.0, 3.0), (9.0, 48.5, 4.0), (114.0, 31.0, 5.0), (77.0, 23.0, 4.0),
           (-47.5, -21.0, 4.0))
SYLLABLES = ("al", "bar", "cor", "den", "el", "far", "gol", "han", "is", "jun", "kel", "lor", "mar", "nev", "or",
             "pel", "quin", "ros", "sel", "tor", "ul", "ver", "wen", "yar", "zel")
ENDINGS = ("a", "burg", "by", "don", "field", "ford", "ham", "mouth", "o", "stad", "ton", "ville")
MEAN, SPREAD = 2.0, 1.0  # of growth, percent a year
SHARES = {"composition": 0.35, "layout": 0.45, "noise": 0.20}  # of the variance of growth
CONTACT_PX = 9  # side of the window in which open land lies near a built-up pixel


def land_cover(size: int, mixing: float, rng: np.random.Generator) -> np.ndarray:
    """Class of every pixel, (size, size) int: built-up land around a centre, by `mixing` (0..1) in one piece or strewn.

    Args:
        size: pixels of a side.
        mixing: 0 lays built-up land out as one compact body, 1 strews it over the whole window.
    """
    y, x = np.mgrid[:size, :size]
    centre = rng.uniform(0.3, 0.7, 2) * size
    distance = np.hypot(y - centre[0], x - centre[1])
    coarse = _standard(-distance / size + 0.10 * _noise(size, size / 6, rng))
    fine = _noise(size, 1.1, rng)
    field = np.sqrt(1 - mixing) * coarse + np.sqrt(mixing) * fine
    built_share = rng.uniform(0.35, 0.60)
    built = field >= np.quantile(field, 1 - built_share)
    ragged = distance + size * 0.06 * _noise(size, 3, rng)
    blocks = built & (ragged < np.quantile(distance[built], rng.uniform(0.1, 0.6)))
    shares = rng.dirichlet((0.7, 1.6, 1.6, 1.2, 0.6))
    ground = _noise(size, size / 7, rng)
    levels = np.quantile(ground[~built], np.cumsum(shares)[:-1])
    cover = np.searchsorted(levels, ground)
    return np.where(blocks, BUILT[1], np.where(built, BUILT[0], cover))


def contact(cover: np.ndarray) -> float:
    """How built-up and open land mix, about 0..1: open land around built-up pixels over open land in the whole city."""
    built = np.isin(cover, BUILT)
    nearby = uniform_filter((~built).astype(np.float32), CONTACT_PX, mode="nearest")
    return float(nearby[built].mean() / (~built).mean())


def _noise(size: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian field of the given correlation length in pixels, zero mean, unit spread, (size, size)."""
    return _standard(gaussian_filter(rng.standard_normal((size, size)), sigma, mode="reflect"))


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def _directions(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, BANDS) unit vectors, orthogonal to each other."""
    return np.linalg.qr(rng.standard_normal((BANDS, count)))[0].T


class _Palette:
    """Directions of regions, classes and of what varies within a class."""

    def __init__(self, rng: np.random.Generator):
        axes = _directions(len(REGIONS) + len(CLASSES) + 8, rng)
        self.regions, rest = np.split(axes, [len(REGIONS)])
        self.classes, self.within = np.split(rest, [len(CLASSES)])

    def embed(self, cover: np.ndarray, region: int, rng: np.random.Generator) -> np.ndarray:
        """(BANDS, h, w) vectors of unit length."""
        size = cover.shape[0]
        own = 0.1 * rng.standard_normal(BANDS) / np.sqrt(BANDS)
        vectors = (0.7 * self.regions[region] + own + 0.65 * self.classes[cover]).astype(np.float32)
        fields = np.stack([_noise(size, 2.5, rng) for _ in self.within], -1)
        vectors += (0.08 * fields @ self.within).astype(np.float32)
        vectors += rng.standard_normal(vectors.shape, dtype=np.float32) * np.float32(0.12 / np.sqrt(BANDS))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors.transpose(2, 0, 1)


def _names(count: int, rng: np.random.Generator) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        parts = rng.choice(SYLLABLES, 2, replace=False)
        names.setdefault(("".join(parts) + rng.choice(ENDINGS)).capitalize())
    return list(names)


def quantise(values: np.ndarray) -> np.ndarray:
    """Values in -1..1 -> int8 codes, the nearest ones; NaN becomes -128. The inverse of `embeddings.dequantise`."""
    codes = np.rint(127.5 * np.sign(values) * np.sqrt(np.abs(values)))
    codes = np.where(np.isnan(codes), NODATA, np.clip(codes, -127, 127))
    return codes.astype(np.int8)


def write(folder: str | Path, seed: int = 0, *, cities: int = 400) -> Path:
    """Write tiles/<city>.tif, cities.xlsx, truth.json and sample.json; the same arguments give the same content.

    Tiles are 48 to 64 pixels wide, int8 as AlphaEarth codes them, in UTM; every tenth lacks a strip at its border,
    one is stored bottom-up. One city of the table has no tile, and one tile is in no table.

    Args:
        cities: cities with both a tile and a label; at least 20.

    Returns:
        The folder.
    """
    if cities < 20:
        raise UserError(f"the sample needs at least 20 cities, {cities} were asked for")
    if seed < 0:
        raise UserError(f"--seed must be at least 0, not {seed}")
    folder, rng = Path(folder), np.random.default_rng(seed)
    palette, names = _Palette(rng), _names(cities + 2, rng)
    shares, layout, places = [], [], []
    for number, name in enumerate(names[:-1]):
        own = np.random.default_rng([seed, number])
        size = int(own.choice((48, 56, 64)))
        cover = land_cover(size, own.uniform(), own)
        region = number % len(REGIONS)
        values = palette.embed(cover, region, own)
        if number % 10 == 3:
            values[:, : int(own.integers(2, 6))] = np.nan
        lon, lat = REGIONS[region][:2] + own.uniform(-1, 1, 2) * REGIONS[region][2]
        _write_tile(folder / "tiles" / f"{name}.tif", quantise(values), lon, lat, bottom_up=number == 7)
        shares.append(np.bincount(cover.ravel(), minlength=len(CLASSES)) / cover.size)
        layout.append(contact(cover))
        places.append((name, region))
    growth, signal = _growth(np.array(shares[:cities]), np.array(layout[:cities]), rng)
    _write_table(folder / TABLE, names, growth)
    write_json(folder / TRUTH, {
        "version": VERSION, "seed": seed, "label": "population_growth",
        "ceiling": round(1 - float(((growth - signal) ** 2).sum() / ((growth - growth.mean()) ** 2).sum()), 4),
        "signal": {name: round(float(value), 6) for name, value in zip(names[:cities], signal, strict=True)},
        "classes": CLASSES,
        "shares": {name: np.round(row, 4).tolist() for name, row in zip(names[:cities], shares, strict=False)},
        "contact": {name: round(value, 4) for name, value in zip(names[:cities], layout, strict=False)},
    })
    write_json(folder / "sample.json", {"version": VERSION, "seed": seed})
    return folder


def _growth(shares: np.ndarray, layout: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(growth, growth without noise), (cities,), percent a year.

    New towns of blocks grow and farmland can be built on; water and bare ground hold growth back. Open land within
    reach of houses is where the next ones are built.
    """
    composition = _standard(shares @ np.array([-1.0, 0.8, 0.0, 0.3, -0.8, 0.4, 1.2]))
    parts = {"composition": composition, "layout": _standard(layout), "noise": rng.standard_normal(len(layout))}
    scaled = {name: SPREAD * np.sqrt(SHARES[name]) * part for name, part in parts.items()}
    signal = MEAN + scaled["composition"] + scaled["layout"]
    return np.round(signal + scaled["noise"], 2), signal


def _write_tile(path: Path, codes: np.ndarray, lon: float, lat: float, bottom_up: bool) -> None:
    import rasterio
    from rasterio.transform import Affine
    from rasterio.warp import transform

    zone = int((lon + 180) // 6) + 1
    crs = f"EPSG:{326 if lat >= 0 else 327}{zone:02d}"
    (x,), (y,) = transform("EPSG:4326", crs, [lon], [lat])
    _, height, width = codes.shape
    west, north = round(x / PIXEL_M) * PIXEL_M, round(y / PIXEL_M) * PIXEL_M
    place = Affine(PIXEL_M, 0, west, 0, -PIXEL_M, north)
    if bottom_up:
        codes, place = codes[:, ::-1], Affine(PIXEL_M, 0, west, 0, PIXEL_M, north - height * PIXEL_M)
    with atomic_path(path) as temporary, rasterio.open(
            temporary, "w", driver="GTiff", width=width, height=height, count=BANDS, dtype="int8", nodata=NODATA,
            crs=crs, transform=place, compress="deflate", interleave="band") as file:
        file.write(codes)
        file.descriptions = tuple(f"A{band:02d}" for band in range(BANDS))


def _write_table(path: Path, names: list[str], growth: np.ndarray) -> None:
    import pandas as pd

    rows = [{"city": name, "year": 2024, "population_growth": float(value)}
            for name, value in zip(names, growth, strict=False)]
    rows.append({"city": names[-1], "year": 2024, "population_growth": MEAN})  # no tile was exported for it
    rows.sort(key=lambda row: row["city"])
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_excel(temporary, sheet_name="cities", index=False)
        _fix_times(temporary)


def _fix_times(workbook: Path) -> None:
    """Replace the times at which a workbook was made, which would make every sample another file."""
    with zipfile.ZipFile(workbook) as read:
        members = {name: read.read(name) for name in read.namelist()}
    with zipfile.ZipFile(workbook, "w") as out:
        for name, content in members.items():
            content = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"2024-01-01T00:00:00Z", content)
            out.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
