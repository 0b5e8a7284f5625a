"""City-level numbers from 64-channel satellite embeddings: tiles of embeddings -> records with a target, scores."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from overlays.data import records
from overlays.data.raster_file import NUMPY_ERRORS
from overlays.domains.base import Domain, Evaluation, Metric
from overlays.domains.satellite import pca, plots, prepare, questions, score
from overlays.domains.satellite.metadata import read_metadata
from overlays.errors import UserError
from overlays.files import write_jsonl
from overlays.report import Paragraph, Picture, Section, Table


class Satellite(Domain):
    """One number for each city, by a regression head or in words."""

    name, title, Settings = "satellite", "Regression of a city-level target: held-out cities", prepare.Settings
    groups, max_new_tokens = "cities", 16
    baselines = {"mean": "training mean", "ridge": "ridge regression"}
    metrics = (Metric("r2", "R2"), Metric("rmse", "RMSE", lower_is_better=True),
               Metric("mae", "mean absolute error", lower_is_better=True), Metric("pearson", "Pearson r"),
               Metric("parse_rate", "parse rate", over="{n} records; the others count with the training mean"))

    def prepare(self, settings: prepare.Settings) -> dict:
        """Arrays, and with `rgb_pca` pictures of them beside; the metadata are then those of the pictures."""
        ready = settings.rgb_pca and not settings.tiles and (settings.output / "metadata.json").is_file()
        if not ready:
            metadata = prepare.prepare(settings)
        elif idle := [f"--{item.name.replace('_', '-')}" for item in fields(settings)
                      if item.name not in ("output", "rgb_pca") and getattr(settings, item.name) != item.default]:
            raise UserError(f"{', '.join(idle)} would change nothing: the arrays in {settings.output} are taken as "
                            "they are; prepare them again without --rgb-pca first, or give --tiles")
        if settings.rgb_pca:
            metadata = pca.prepare_rgb(settings.output, settings.output.with_name(f"{settings.output.name}_rgb"))
        return metadata

    def summary(self, metadata: dict, output: Path) -> Iterable[str]:
        counts, target, size = metadata["counts"], metadata["target"], metadata["size_px"]
        yield (f"{counts['tiles']} tiles of {counts['cities']} cities, {metadata['channels']} channels, {size['min']} "
               f"to {size['max']} px: {counts['train']} train + {counts['val']} val + {counts['test']} test")
        yield (f"{target['name']}: mean {target['train_mean']:.3f}, standard deviation {target['train_std']:.3f} over "
               "the training cities")
        if counts["partly_empty"]:
            yield f"{counts['partly_empty']} tiles lack data in some pixels (valid_share in their records)"
        for tile, city in metadata.get("inexact_names", {}).items():
            yield f"inexact name: {tile} is taken as {city}"
        for row in metadata["dropped"]:
            yield f"dropped: {row['what']} {row['name']}: {row['reason']}"
        if metadata["ceiling"]:
            shown = ", ".join(f"{name} {value:.3f}" for name, value in metadata["ceiling"].items())
            yield f"noise ceiling of the sample, R2: {shown}"
        if "pca" in metadata:
            parts = ", ".join(f"{part:.1%}" for part in metadata["pca"]["explained_variance"])
            yield f"RGB pictures of three components ({parts} of the variance): {output}_rgb"

    def score(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> dict:
        return score.score(predictions, train, mean_embeddings(data, [row.get("id") for row in (*train, *predictions)]))

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--head", choices=("auto", "none"), default="auto", help="auto: the regression head where "
                            "the checkpoint has one; none: the number in the answer")

    def check(self, evaluation: Evaluation) -> None:
        read_metadata(evaluation.data)
        mean_embeddings(evaluation.data, [row.get("id") for row in (*evaluation.train, *evaluation.records)])

    def predict(self, evaluation: Evaluation) -> tuple[list[dict], dict]:
        """The regression head's numbers where the model has one, else the numbers in its words."""
        from overlays.model import extensions
        from overlays.predict import predict_values, prediction_row

        metadata, (model, processor) = read_metadata(evaluation.data), evaluation.loaded
        facts = {"ceiling": (metadata.get("ceiling") or {}).get(evaluation.split)}
        head = extensions.settings(model).get("regression")
        if head is None or evaluation.flags.head == "none":
            return evaluation.answers(), facts | {"method": "text"}
        name, decimals = metadata["target"]["name"], metadata["parameters"]["decimals"]
        if name not in head["names"]:
            raise UserError(f"the head of {evaluation.checkpoint} predicts {', '.join(head['names'])}, but the records "
                            f"ask for {name}: give --data, the data the model was trained on")
        values = predict_values(model, processor, evaluation.records, evaluation.media_root,
                                evaluation.flags.batch_size)
        rows = [prediction_row(record, questions.answer(value[name], decimals)) | {"value": value[name]}
                for record, value in zip(evaluation.records, values, strict=True)]
        write_jsonl(evaluation.out / "predictions.jsonl", rows)
        return rows, facts | {"method": f"regression head on {head['mode']}"}

    def statistic(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> Callable:
        return score.statistic(predictions, train)

    def notes(self, metrics: dict) -> list[str]:
        ceiling = metrics.get("ceiling")
        return [f"{metrics['n']} records by {metrics['method']}; {metrics['parsed']} answers hold a number"
                + ("." if ceiling is None else f"; noise ceiling of the sample's labels: R2 {ceiling:.3f}."),
                "Ridge regression is fitted on the mean embeddings of the training cities, its penalty by "
                "leave-one-out."]

    def sections(self, predictions: Sequence[dict], metrics: dict, data: Path, out: Path) -> list[Section]:
        name, baselines = metrics["target"], metrics["baseline"]
        label, train = name.replace("_", " "), list(records.read(data / "train.jsonl"))
        means = mean_embeddings(data, [row.get("id") for row in (*train, *predictions)])
        fitted = (score.ridge_of(predictions, train, means) or [None])[0]
        target, predicted = score.predicted_values(predictions, name, (baselines["mean"] or {}).get("value", 0.0))
        error = predicted - target
        plots.save_scatter(out / "scatter.png", target, predicted, fitted, label)
        placed = [i for i, row in enumerate(predictions) if row.get("lonlat")]
        if placed:
            plots.save_residual_map(out / "residuals.png", [predictions[i]["lonlat"] for i in placed], error[placed],
                                    label)
        largest = [[predictions[i].get("group", predictions[i]["id"]), float(target[i]), float(predicted[i]),
                    float(error[i]), None if fitted is None else float(fitted[i])]
                   for i in np.argsort(-abs(error), kind="stable")[:12]]
        return [
            Section("Predicted against true", [Picture(out / "scatter.png", f"Predicted against true {label}.")]),
            Section("Residuals on the map", [Picture(out / "residuals.png" if placed else None, "Predicted minus true, "
                                                     "at the centre of every tile.")]),
            Section("Largest errors", [Table(["city", "target", "predicted", "error", "ridge"], largest)]),
            Section("Unreadable answers", [Paragraph(", ".join(metrics["unparsed"]))]),
        ]


def mean_embeddings(data: Path, ids: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Mean embedding by id; None where the prepared data have none. Raises UserError where one of `ids` lacks it."""
    file = data / "means.npz"
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in ids}
    except NUMPY_ERRORS as error:
        raise UserError(f"{file} cannot be read or lacks a record: {' '.join(str(error).split())}; prepare the data "
                        "again") from None


DOMAIN = Satellite()
