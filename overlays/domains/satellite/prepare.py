"""GeoTIFFs of embeddings and a table of labels -> arrays and records, split by city."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from overlays import samples
from overlays.data.encodings import lengths
from overlays.data.geotiff import SUFFIXES
from overlays.data.media import MAX_ASPECT
from overlays.data.rasters import MAX_VALUES
from overlays.data.splits import parse_fractions, split_groups
from overlays.domains.base import SPLITS, parameters, prepared_folder, write_metadata
from overlays.domains.satellite import questions
from overlays.domains.satellite.embeddings import Raster, is_scales, off_length, open_raster, windows
from overlays.domains.satellite.labels import Labels, key, match_tiles, read_labels
from overlays.domains.satellite.score import r2
from overlays.errors import UserError
from overlays.files import atomic_path, read_json, reserve, sha256, write_jsonl
from overlays.flags import check_choices, option
from overlays.paths import relative

TRUTH = "truth.json"  # the sample's signal without its noise
MAX_DECIMALS = 12  # of an answer's number


@dataclass(frozen=True)
class Settings:
    """Prepare satellite embeddings and city labels; without --tiles, from the sample cities."""

    tiles: Path | None = option(None, "folder of GeoTIFFs named after their cities, searched with its subfolders "
                                "(default: the sample, made in data/raw/satellite/sample)")
    labels: Path | None = option(None, "table, .xlsx or .csv (default: the only one in or beside --tiles)")
    city_column: str | None = option(None, "column of the table that names the city (default: found)")
    label_column: str | None = option(None, "column that holds the number (default: found)")
    output: Path | None = option(None, "folder (default: data/prepared/satellite)")
    rgb_pca: bool = option(False, "also a folder <output>_rgb of pictures by PCA; arrays that are prepared are taken "
                           "as they are unless --tiles is given")
    encoding: Literal["auto", "alphaearth", "float", "tessera"] = option(
        "auto", "auto: AlphaEarth's codes or values of unit length; float: values as they are, of any length (Clay, "
        "Prithvi, SatCLIP); tessera: int8 times the scale of the file or of <name>_scales.tif")
    inexact_names: bool = option(False, "take tiles whose names only begin with a city's as that city's")
    min_valid: float = option(0.5, "least share of pixels with data in a tile")
    decimals: int = option(2, "of the number in an answer")
    split_fractions: tuple[float, float, float] = option((0.7, 0.15, 0.15), "train,val,test, in tiles; a city is never "
                                                         "divided", parse=parse_fractions)
    seed: int = option(0, "of the split")


@dataclass(frozen=True)
class Tile:
    """What was found while a tile was converted: share of pixels with data, and their mean (bands,)."""

    valid: float
    mean: np.ndarray


def prepare(settings: Settings) -> dict:
    """Prepare a data set; the output folder appears complete or not at all.

    Writes {train,val,test}.jsonl, tiles/*.npy (bands, height, width) float16 with NaN where there is no data,
    means.npz (mean embedding of every tile over its pixels with data) and metadata.json.

    Returns:
        metadata, as in metadata.json; `dropped` lists every tile and label that is left out, and why.

    Raises:
        UserError: something about the input or the settings that the user can fix.
    """
    _check(settings)
    folder, table = _inputs(settings)
    labels = read_labels(table, settings.city_column, settings.label_column)
    files = find_tiles(folder)
    dropped = [{"what": "label", "name": city, "reason": reason} for city, reason in labels.dropped]
    exact, near = (match_tiles(files, list(labels.values), inexact) for inexact in (False, True))
    cities = near if settings.inexact_names else exact
    inexact = {_within(file, folder): city for file, city in near.items() if city != exact[file]}
    for file, city in cities.items():
        if city is None:
            hint = f"; it begins with {near[file]}, which --inexact-names takes" if near[file] else ""
            dropped.append({"what": "tile", "name": _within(file, folder), "reason": f"no label for it{hint}"})
    with prepared_folder(settings.output, "satellite") as temporary:
        rows, means, rasters = _convert(temporary, folder, cities, labels, settings, dropped)
        used = {row["group"] for row in rows}
        for city in labels.values:
            if city not in used:
                has_tile = any(name == city for name in cities.values())
                reason = "its tiles were left out" if has_tile else "no tile for it"
                dropped.append({"what": "label", "name": city, "reason": reason})
        if len(used) < 3:
            raise UserError(f"only {len(used)} cities have both a tile in {folder} and a label in {table}, fewer "
                            f"than a split takes: {_why_few(cities, dropped, files, labels)}")
        _check_decimals(settings.decimals, [labels.values[city] for city in used])
        splits = split_groups(rows, dict(zip(SPLITS, settings.split_fractions, strict=True)), seed=settings.seed)
        for name, part in splits.items():
            write_jsonl(temporary / f"{name}.jsonl", [{**row, "split": name} for row in part])
        with atomic_path(temporary / "means.npz") as file:
            np.savez(file, **means)
        return write_metadata(temporary, "satellite",
                              _metadata(settings, folder, table, labels, splits, dropped, rasters)
                              | {"inexact_names": inexact if settings.inexact_names else {}})


def _check(settings: Settings) -> None:
    check_choices(settings)
    if not 0 <= settings.min_valid <= 1:
        raise UserError(f"--min-valid is a share from 0 to 1, not {settings.min_valid:g}")
    if not 0 <= settings.decimals <= MAX_DECIMALS:
        raise UserError(f"--decimals must be 0 to {MAX_DECIMALS}, not {settings.decimals}")
    if settings.seed < 0:
        raise UserError(f"--seed must be at least 0, not {settings.seed}")
    if not settings.split_fractions[0] > 0:
        raise UserError(f"--split-fractions leaves nothing to train on: {settings.split_fractions[0]:g} is the share "
                        "of train")


def find_tiles(folder: Path) -> list[Path]:
    """GeoTIFFs below a folder, sorted, hidden ones left out. Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder of tiles {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts)
                   and not is_scales(path))
    if not files:
        raise UserError(f"folder {folder} holds no GeoTIFF ({' or '.join(SUFFIXES)})")
    return files


def _truth(file: Path) -> dict:
    """What the sample notes about itself; nothing where it does not."""
    try:
        return read_json(file)
    except UserError:
        return {}


def _inputs(settings: Settings) -> tuple[Path, Path]:
    """(folder of tiles, table of labels)."""
    if settings.tiles is None and settings.labels is not None:
        raise UserError("--labels needs --tiles, the folder of GeoTIFFs")
    folder = samples.ensure("satellite") if settings.tiles is None else Path(settings.tiles)
    if settings.labels is not None:
        return folder, Path(settings.labels)
    if not folder.is_dir():
        raise UserError(f"there is no folder of tiles {folder}")
    places = (folder, folder.parent) if settings.tiles is not None else (folder,)
    for place in places:
        tables = sorted(path for path in place.iterdir() if path.suffix.lower() in (".xlsx", ".csv")
                        and not path.name.startswith((".", "~")))
        if len(tables) == 1:
            return folder, tables[0]
        if tables:
            raise UserError(f"{place} holds {len(tables)} tables ({', '.join(path.name for path in tables)}): name "
                            "the one with the labels with --labels")
    raise UserError(f"there is no table of labels (.xlsx or .csv) in {folder} or beside it: name it with --labels")


def _convert(output: Path, folder: Path, cities: dict[Path, str | None], labels: Labels, settings: Settings,
             dropped: list[dict]) -> tuple[list[dict], dict[str, np.ndarray], list[Raster]]:
    """Records, mean embeddings by id, and the headers of all tiles that are kept; arrays go to output/tiles."""
    (output / "tiles").mkdir(parents=True)
    wanted = {file: city for file, city in cities.items() if city is not None}
    headers = {file: open_raster(file, settings.encoding) for file in wanted}
    counts = Counter(header.shape[0] for header in headers.values())
    usual = counts.most_common(1)[0][0] if counts else 0
    rows, means, kept, ids = [], {}, [], {"file"}  # np.savez has an argument of that name
    for file, city in tqdm(wanted.items(), desc="tiles", unit="tile"):
        header, name = headers[file], _within(file, folder)
        bands, height, width = header.shape
        if bands != usual:
            dropped.append({"what": "tile", "name": name, "reason": f"{bands} bands, the others have {usual}"})
            continue
        if max(height, width) > MAX_ASPECT * min(height, width):
            reason = f"{height} x {width} pixels: training takes no side above {MAX_ASPECT} times the other"
            dropped.append({"what": "tile", "name": name, "reason": reason})
            continue
        if bands * height * width > MAX_VALUES:
            side = int((MAX_VALUES / bands) ** 0.5)
            raise UserError(f"tile {file} has {height} x {width} pixels, more than training reads: "
                            f"cut a window of at most {side} x {side} around its city")
        tile_id = _unique(key(file.stem) or "tile", ids)
        tile = convert_tile(header, output / "tiles" / f"{tile_id}.npy")
        if not tile.valid or tile.valid < settings.min_valid:
            (output / "tiles" / f"{tile_id}.npy").unlink()
            why = "no pixel with data" if not tile.valid else f"data in only {tile.valid:.0%} of its pixels"
            dropped.append({"what": "tile", "name": name, "reason": why})
            continue
        ids.add(tile_id)
        value = labels.values[city]
        means[tile_id] = tile.mean
        kept.append(header)
        rows.append({
            "id": tile_id, "image": f"tiles/{tile_id}.npy",
            "conversations": [
                {"from": "human", "value": f"<image>\n{questions.question(labels.name)}"},
                {"from": "gpt", "value": questions.answer(value, settings.decimals)}],
            "target": {labels.name: value}, "task": labels.name, "group": city, "source": name,
            "valid_share": round(tile.valid, 4), "lonlat": header.lonlat,
        })
    return rows, means, kept


def convert_tile(raster: Raster, path: Path) -> Tile:
    """Write a raster as (bands, height, width) float16 .npy, window by window.

    Raises:
        UserError: its pixels have no unit length, so it holds no embeddings or has been scaled.
    """
    shape = raster.shape
    total, count, found, off = np.zeros(shape[0]), 0, [], 0
    with atomic_path(path) as temporary:
        stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        reserve(temporary)
        for start, values in windows(raster):
            if raster.unit:
                fill = off_length(values)
                found.append(lengths(values[:, fill], 0))
                off += int(fill.sum())
                values[:, fill] = np.nan
            stored[:, start:start + values.shape[1]] = values
            valid = ~np.isnan(values[0])
            total += values[:, valid].sum(1, dtype=np.float64)
            count += int(valid.sum())
        stored.flush()
        del stored
        if off > count:
            norm = float(np.median(np.concatenate(found)))
            raise UserError(f"the pixels of {raster.path} have length {norm:.2f} where embeddings have 1: "
                            + ("these int8 values are not codes of a Satellite Embedding; those of TESSERA are "
                               "--encoding tessera" if raster.coded else
                               "decode it as ((v / 127.5)^2) * sign(v), or give the int8 file as it was exported; "
                               "those of other lengths are --encoding float"))
    return Tile(count / (shape[1] * shape[2]), (total / max(count, 1)).astype(np.float32))


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def _within(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _check_decimals(decimals: int, values: list[float]) -> None:
    """Raise UserError where answers with so many decimals are the same for most labels that differ."""
    distinct, answers = len(set(values)), len({questions.answer(value, decimals) for value in values})
    if distinct > 2 and answers < distinct / 2:
        raise UserError(f"--decimals {decimals} leaves {answers} different answers to {distinct} different labels, "
                        f"such as {questions.answer(values[0], decimals)} for {values[0]:g}: give more decimals or "
                        "labels in a larger unit")


def _why_few(cities: dict[Path, str | None], dropped: list[dict], files: list[Path], labels: Labels) -> str:
    reasons = [row["reason"] for row in dropped if row["what"] == "tile" and not row["reason"].startswith("no label")]
    few = [reason for reason in reasons if "of its pixels" in reason]
    matched = sum(city is not None for city in cities.values())
    if 2 * len(few) > matched:
        return f"{len(few)} tiles have too few valid pixels ({few[0]}), see --min-valid"
    if 2 * len(reasons) > matched:
        return f"{len(reasons)} tiles were left out, the first because of {reasons[0]}"
    return f"tiles are named like {files[0].name}, cities like {next(iter(labels.values))}"


def _metadata(settings: Settings, folder: Path, table: Path, labels: Labels, splits: dict[str, list[dict]],
              dropped: list[dict], rasters: list[Raster]) -> dict:
    train = np.array([row["target"][labels.name] for row in splits["train"]])
    return {
        "format": 1, "parameters": parameters(settings), "tiles": relative(folder),
        "labels": {"path": relative(table), "sha256": sha256(table), "city_column": labels.city_column,
                   "label_column": labels.label_column},
        "channels": rasters[0].shape[0],
        "target": {"name": labels.name, "train_mean": float(train.mean()), "train_std": float(train.std())},
        "size_px": {"min": min(min(r.shape[1:]) for r in rasters),
                    "max": max(max(r.shape[1:]) for r in rasters)},
        "counts": {
            "tiles": len(rasters), "cities": len({row["group"] for part in splits.values() for row in part}),
            **{name: len(part) for name, part in splits.items()},
            "partly_empty": sum(row["valid_share"] < 1 for part in splits.values() for row in part),
            "dropped_tiles": sum(row["what"] == "tile" for row in dropped),
            "dropped_labels": sum(row["what"] == "label" for row in dropped)},
        "dropped": dropped,
        "ceiling": _ceilings(folder, labels, splits),
    }


def _ceilings(folder: Path, labels: Labels, splits: dict[str, list[dict]]) -> dict[str, float] | None:
    """R2 by split of the sample's own signal without its noise; None for data whose noise nobody knows."""
    truth = _truth(folder / TRUTH)
    signal = truth.get("signal")
    if not isinstance(signal, dict) or truth.get("label") != labels.name or not all(
            row["group"] in signal for part in splits.values() for row in part):
        return None
    values = {name: r2([row["target"][labels.name] for row in part], [signal[row["group"]] for row in part])
             for name, part in splits.items()}
    return {name: round(value, 4) for name, value in values.items() if value is not None}
