"""Mineral mapping from imaging spectroscopy: hyperspectral cube -> tiles, questions, scores."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from overlays import paths, report
from overlays.data.maps import write_geopackage, write_geotiff
from overlays.data.raster_file import Georeference
from overlays.domains.base import Domain, Metric, read_metadata
from overlays.domains.cuprite import prepare, score
from overlays.domains.cuprite.bands import REASONS
from overlays.domains.cuprite.composites import USUAL
from overlays.domains.cuprite.questions import COMPOSITES, TASKS, parse_alteration
from overlays.paths import ROOT
from overlays.report import Cards, Paragraph, Picture, Section, Table

SHOWN = 12  # tiles in the report


def _scale_text(cube: dict) -> str:
    """How stored values become reflectance, of metadata's cube."""
    if isinstance(cube["scale"], list):
        return "reflectance = value x scale + offset, by band"
    return f"reflectance = value / {cube['scale']:g}"


class Cuprite(Domain):
    """Tiles of a scene with three kinds of questions about their minerals."""

    name, title, Settings = "cuprite", "Mineral mapping: held-out tiles", prepare.Settings
    records, groups, max_new_tokens = "questions", "tiles", 128
    metrics = (
        Metric("alteration_accuracy", "alteration accuracy", over="{n_by_task[alteration]} yes/no rows, unreadable "
               "ones wrong"),
        Metric("alteration_f1", "alteration F1", over="of the answer yes, {n_by_task[alteration]} rows"),
        Metric("mineral_macro_f1", "mineral macro-F1", over="mean over the minerals that occur, {n_by_task[minerals]} "
               "lists"),
        Metric("mineral_micro_f1", "mineral micro-F1", over="all minerals of {n_by_task[minerals]} lists together"),
        Metric("mineral_exact", "lists exactly right", over="{n_by_task[minerals]} lists"),
        Metric("share_mae", "share error", lower_is_better=True, over="mean absolute, fraction of the tile, "
               "{n_by_task[alteration]} rows"),
        Metric("parse_rate", "parse rate", over="all {n} rows"),
        Metric("analysis_zone_accuracy", "alteration zone right", over="{n_by_task[analysis]} analyses"),
        Metric("analysis_potential_accuracy", "inferred potential right", over="{n_by_task[analysis]} analyses"),
        Metric("analysis_mineral_macro_f1", "analysis: mineral macro-F1", over="{n_by_task[analysis]} analyses"),
    )

    def output(self, settings: prepare.Settings) -> Path:
        return paths.PREPARED / ("cuprite" if settings.channels == "composites" else "cuprite_all")

    def prepare(self, settings: prepare.Settings) -> dict:
        return prepare.prepare(settings)

    def summary(self, metadata: dict, output: Path) -> Iterable[str]:
        counts, cube, tile = metadata["counts"], metadata["cube"], metadata["parameters"]["tile_size"]
        skipped = prepare.band_skip_reasons(metadata)
        reasons = ", ".join(f"{skipped.count(name)} {name}" for name in REASONS if name in skipped)
        rows, cols, bands = cube["shape"]
        yield (f"cube: {rows} x {cols} pixels, {skipped.count('')} of {bands} bands used"
               f"{f' (left out: {reasons})' if reasons else ''}; {_scale_text(cube)} "
               f"({cube['scale_source']}); {metadata['valid_share']:.1%} of the pixels valid")
        yield (f"tiles of {tile} px: {counts['tiles']} = {counts['train']} train + {counts['val']} val + "
               f"{counts['test']} test + {counts['dropped_buffer']} dropped (buffer between the areas) + "
               f"{counts['dropped_invalid']} dropped (too few valid pixels)")
        for pair, pixels in metadata["buffer_px"].items():
            if pixels < tile:
                yield (f"note: the scene leaves a buffer of only {pixels} px between {pair.replace('-', ' and ')}, "
                       f"less than a tile of {tile}; a smaller --tile-size gives a full one")
        yield from (f"note: {note}" for note in metadata.get("notes", ()))
        if metadata["parameters"]["composites"] is None and set(metadata["composites"]) != set(USUAL):
            yield f"note: the cube has no bands for other composites than {', '.join(metadata['composites'])}"
        if lacking := metadata["labels"].get("incomplete_rules"):
            yield "note: these rules see only a part of their features, the cube lacks " + ", ".join(
                f"{what} ({rule})" for rule, what in lacking.items())
        if metadata.get("al_oh_nm"):
            yield f"Al-OH absorption of the micas: {metadata['al_oh_nm']:.1f} nm on average"
        shares = metadata["mineral_shares"]
        yield f"{'mineral':<16}" + "".join(f"{split:>9}" for split in shares)
        for mineral in shares["train"]:
            yield f"{mineral:<16}" + "".join(f"{of_split[mineral]:>9.1%}" for of_split in shares.values())
        if metadata["iron_share"] is not None:
            yield f"ferric iron (reported beside the minerals): {metadata['iron_share']:.1%} of the scene"

    def score(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> dict:
        return score.score(predictions, train)

    def group(self, row: dict) -> str:
        """Its tile: the rows of a split are all of one area. Neighbouring tiles overlap, so intervals are narrow."""
        return str(row.get("image") or row["id"])

    def statistic(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> Callable:
        return score.statistic(predictions)

    def columns(self, metrics: dict) -> dict[str, dict]:
        baselines = {"majority answer": metrics["baseline"], "every mineral": metrics["baseline_every_mineral"]}
        return {name: row for name, row in baselines.items() if row}

    def notes(self, metrics: dict) -> list[str]:
        if not metrics["baseline"]:
            return ["There is no majority baseline: the training split lacks a task."]
        answers = metrics["baseline"]["answers"]
        text = "The baseline gives the majority answer of the training split to every tile"
        if "alteration" in answers:
            verdict, share = answers["alteration"]
            text += f": {'yes' if verdict else 'no'} with a share of {share:.0%}"
            text += f", and the minerals {', '.join(answers['minerals']) or 'none'}" if "minerals" in answers else ""
        return [f"{text}.", "The other one names every mineral of the training split on every tile.",
                "An unreadable list counts as an empty one."]

    def sections(self, predictions: Sequence[dict], metrics: dict, data: Path, out: Path) -> list[Section]:
        save_prediction_map(predictions, data, out)
        baseline = (metrics["baseline"] or {}).get("per_mineral", {})
        minerals = [[name, row["support"], row["predicted"], row["precision"], row["recall"], row["f1"],
                     baseline.get(name, {}).get("f1")] for name, row in metrics["per_mineral"].items()]
        languages = [[name, part["n"], *(part[metric.key] for metric in self.metrics[:7])]
                     for name, part in metrics.get("languages", {}).items()]
        return [
            Section("Alteration: predicted against target", [Table(
                ["target", "predicted yes", "predicted no", "unreadable"],
                [[target, row["yes"], row["no"], row["unparsed"]]
                 for target, row in metrics["alteration_confusion"].items()])]),
            Section("Minerals", [Table(["mineral", "tiles with it", "tiles predicted", "precision", "recall", "F1",
                                        "baseline F1"], minerals, "From the mineral lists.")]),
            Section("Languages", [Table(["language", "rows", *(metric.label for metric in self.metrics[:7])],
                                        languages)]),
            Section("Tiles", [Paragraph(
                "Evenly spread over the held-out area, not picked by result. A verdict or list is right as a whole; an "
                "analysis needs zone, minerals and potential. The copper potential is an inference from mineral cover.",
                True), Cards(shown_samples(predictions, data))]),
            Section("Scene", [Picture(data / "label_map.png", "Mineral labels of the scene."),
                              Picture(data / "split_map.png", "Areas of training, validation and test."),
                              Picture(data / "clay_index.png", "Depth of the 2.2 um absorption.")]),
        ]


log = logging.getLogger(__name__)


def save_prediction_map(predictions: Sequence[dict], data: Path, out: Path) -> None:
    """Predictions of georeferenced tiles: predictions.gpkg, and predicted_share.tif and target_share.tif, the share of
    alteration minerals as the mean of the tiles that cover a pixel.

    Without the file of a swath's lookup table there are none, which is said.
    """
    metadata = read_metadata(data) or {}
    where, tile = metadata.get("georeference"), metadata.get("parameters", {}).get("tile_size")
    lines = (data / "tiles.jsonl").read_text(encoding="utf-8").splitlines() if where else []
    tiles = {row["id"]: row for row in map(json.loads, lines)}
    rows = [(row, tiles[name]) for row in predictions if (name := _tile_of(row)) in tiles]
    if not rows:
        return
    place = Georeference(where["crs"], tuple(where["transform"]),
                         ROOT / where["lookup_table"] if where["lookup_table"] else None)
    if place.table is not None and not place.table.is_file():
        log.warning("predictions get no map: %s, whose lookup table places the swath, is missing", place.table)
        return
    columns = {key: [str(row.get(key) or "") for row, _ in rows] for key in ("id", "task", "answer", "prediction")}
    columns["right"] = [int(score.right(row)) for row, _ in rows]
    write_geopackage(out / "predictions.gpkg", "predictions", place,
                     [(at["row"], at["col"], tile, tile) for _, at in rows], columns)
    shares = [(at, parse_alteration(row["prediction"] or "")[1], parse_alteration(row["answer"])[1])
              for row, at in rows if row["task"] == "alteration"]
    for number, name in ((1, "predicted"), (2, "target")):
        total, count = (np.zeros(metadata["cube"]["shape"][:2], np.float32) for _ in range(2))
        for part in shares:
            if part[number] is not None:
                at = part[0]
                here = np.s_[at["row"]:at["row"] + tile, at["col"]:at["col"] + tile]
                total[here] += part[number]
                count[here] += 1
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
        write_geotiff(out / f"{name}_share.tif", values, place, np.nan)


def _tile_of(row: dict) -> str:
    return re.sub(rf"-(?:{'|'.join(TASKS)})(?:-zh)?$", "", str(row["id"]))


def shown_samples(predictions: Sequence[dict], media_root: Path) -> list[report.Sample]:
    """Up to SHOWN answers, evenly spread over the tiles and taking the tasks in turn; not picked by result."""
    by_tile: dict[tuple, list[dict]] = {}
    for row in predictions:
        by_tile.setdefault(tuple(row["image"]), []).append(row)
    tiles = list(by_tile.values())
    count = min(SHOWN, len(tiles))
    picked = [tiles[i * len(tiles) // count] for i in range(count)]
    rows = [group[i % len(group)] for i, group in enumerate(picked)]
    return [report.Sample(row["id"], row["question"].split("\n")[-1], row["prediction"], row["answer"],
                          score.right(row), [file for name in row["image"] for file in visible(media_root / name)])
            for row in rows]


def visible(image: Path) -> list[Path]:
    """What can be looked at: a picture itself, for a raster the composites beside it."""
    if image.suffix != ".npy":
        return [image]
    return [file for name in COMPOSITES if (file := image.with_name(f"{image.stem}_{name}.png")).is_file()]


DOMAIN = Cuprite()
