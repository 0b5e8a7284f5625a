"""Score a model's city numbers on the held-out cities, beside the training mean and ridge on mean embeddings."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)
import numpy as np

from overlays import errors, report, runs
from overlays.data.rasters import NUMPY_ERRORS
from overlays.domains.satellite import questions
from overlays.domains.satellite.prepare import read_metadata
from overlays.domains.satellite.score import ridge, said_values, score
from overlays.errors import UserError
from overlays.files import sha256, write_json, write_jsonl

OUTPUTS, PREPARED = runs.ROOT / "outputs", runs.ROOT / "data" / "prepared"
FIGURES = (  # key, label, lower is better
    ("r2", "R2", False), ("rmse", "RMSE", True), ("mae", "mean absolute error", True), ("pearson", "Pearson r", False))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="run folder or checkpoint (default: the newest satellite run)")
    parser.add_argument("--base_model", help="base of the adapter, where it is not the one it names")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--data", type=Path, help="prepared folder (default: the one the model was trained on)")
    parser.add_argument("--head", choices=("auto", "none"), default="auto",
                        help="auto: the regression head where the checkpoint has one; none: the number in the answer")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--limit", type=int, help="only the first N records")
    flags = parser.parse_args(words)
    if flags.batch_size < 1 or flags.max_new_tokens < 1:
        raise UserError("--batch_size and --max_new_tokens must be at least 1")
    return flags


def evaluate(flags: argparse.Namespace) -> dict:
    """Predict and score a split; predictions.jsonl, metrics.json, report.html and pictures in <checkpoint>/<split>."""
    from overlays.data import records
    from overlays.predict import load_records

    checkpoint = runs.find_checkpoint(flags.checkpoint, OUTPUTS, "satellite")
    data = flags.data or prepared_data(checkpoint)
    for name in ("train.jsonl", f"{flags.split}.jsonl", "metadata.json"):
        if not (data / name).is_file():
            raise UserError(f"there is no {name} in {data}: run scripts/prepare_satellite.py, or give --data")
    metadata = read_metadata(data)
    chosen, media_root = load_records(str(data / f"{flags.split}.jsonl"), flags.limit)
    train = list(records.read(data / "train.jsonl"))
    means = mean_embeddings(data, [row.get("id") for row in (*train, *chosen)])
    warning = other_training_data(checkpoint, data / "train.jsonl")
    out = checkpoint / flags.split
    rows, method = predict_rows(flags, checkpoint, chosen, media_root, metadata, out)
    ceiling = metadata.get("ceiling") or {}
    metrics = score(rows, train, means) | {
        "ceiling": ceiling.get(flags.split), "method": method, "split": flags.split, "checkpoint": str(checkpoint),
        "data": str(data), "warning": warning}
    write_json(out / "metrics.json", metrics)
    write_report(out, metrics, rows, train, means, checkpoint, data)
    show(metrics, out)
    return metrics


def predict_rows(flags: argparse.Namespace, checkpoint: Path, chosen: list[dict], media_root: Path, metadata: dict,
                 out: Path) -> tuple[list[dict], str]:
    """(rows of predictions.jsonl, how they were made)."""
    from overlays.model import additions
    from overlays.model.load import load_for_inference
    from overlays.predict import checkpoint_identity, predict, predict_values, prediction_row

    model, processor = load_for_inference(checkpoint, flags.base_model)
    print(f"checkpoint {checkpoint} on {next(model.parameters()).device}")
    settings = additions.settings(model).get("regression")
    if settings is None or flags.head == "none":
        return predict(model, processor, chosen, media_root, flags.batch_size, flags.max_new_tokens,
                       out / "predictions.jsonl", checkpoint_identity(checkpoint, flags.base_model), print), "text"
    name = metadata["target"]["name"]
    if name not in settings["names"]:
        raise UserError(f"the head of {checkpoint} says {', '.join(settings['names'])}, but the records ask for "
                        f"{name}: give --data, the data the model was trained on")
    values = predict_values(model, processor, chosen, media_root, flags.batch_size)
    decimals = metadata["parameters"]["decimals"]
    rows = [prediction_row(record, questions.answer(value[name], decimals)) | {"value": value[name]}
            for record, value in zip(chosen, values, strict=True)]
    write_jsonl(out / "predictions.jsonl", rows)
    return rows, f"regression head on {settings['mode']}"


def prepared_data(run: Path) -> Path:
    """The prepared folder that a run was trained on, by its data set's name; the plain one where that is gone."""
    sources = (runs.read_run(run) or {}).get("data", {}).get("train", [])
    names = [source["name"].rpartition("_")[0] for source in sources if source["name"].startswith("satellite_")]
    found = [PREPARED / name for name in names if (PREPARED / name).is_dir()]
    return found[0] if found else PREPARED / "satellite"


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


def other_training_data(run: Path, train: Path) -> str | None:
    """A sentence where the run was trained on other files than this split belongs to: its test may have been seen."""
    sources = (runs.read_run(run) or {}).get("data", {}).get("train", [])
    known = [source["sha256"] for source in sources if source["name"].startswith("satellite_")]
    if not known or sha256(train) in known:
        return None
    return (f"this run was trained on another version of {train.name}, so it may have seen cities of this split; "
            "train again, or give the data it was trained on with --data")


# ---------------------------------------------------------------- what is shown

def show(metrics: dict, out: Path) -> None:
    columns = {"model": metrics, **{name: row for name, row in metrics["baseline"].items() if row}}
    print(f"{'':<22}" + "".join(f"{name:>9}" for name in columns))
    for key, label, _ in FIGURES:
        print(f"{label:<22}" + "".join(f"{report.number(row[key]):>9}" for row in columns.values()))
    print(f"{metrics['n']} records of held-out cities by {metrics['method']}; {metrics['parse_rate']:.0%} readable, "
          "the others count with the training mean")
    if metrics["ceiling"] is not None:
        print(f"R2 that the sample's noise leaves within reach: {metrics['ceiling']:.3f}")
    print(f"report: {out / 'report.html'}")
    if metrics["warning"]:
        print(f"warning: {metrics['warning']}")


def write_report(out: Path, metrics: dict, rows: list[dict], train: list[dict], means: dict | None, checkpoint: Path,
                 data: Path) -> None:
    """The page: figures, scatter plot, residual map, the largest errors."""
    from overlays.domains.satellite.pictures import save_residual_map, save_scatter

    name = metrics["target"]
    label, baselines = name.replace("_", " "), metrics["baseline"]
    usual = (baselines["mean"] or {}).get("value", 0.0)
    truth, said = said_values(rows, name, usual)
    fitted = None
    if baselines["ridge"]:
        values = np.array([row["target"][name] for row in train])
        fitted = ridge(np.stack([means[row["id"]] for row in train]), values,
                       np.stack([means[row["id"]] for row in rows]))[0]
    save_scatter(out / "scatter.png", truth, said, fitted, label)
    placed = [i for i, row in enumerate(rows) if row.get("lonlat")]
    residual_map = out / "residuals.png" if placed else None
    if placed:
        save_residual_map(residual_map, [rows[i]["lonlat"] for i in placed], (said - truth)[placed], label)
    kinds = [("model", metrics), ("ridge regression on the mean embedding", baselines["ridge"]),
             ("mean of the training cities", baselines["mean"])]
    table = report.table(["", *(text for _, text, _ in FIGURES)],
                         [[kind, *(row[key] for key, *_ in FIGURES)] for kind, row in kinds if row])
    reach = "" if metrics["ceiling"] is None else (
        f"The noise of the sample's labels leaves an R2 of {metrics['ceiling']:.3f} within reach on these cities. ")
    worst = sorted(range(len(rows)), key=lambda i: -abs(said[i] - truth[i]))[:12]
    errors_table = report.table(["city", "true", "said", "error", "ridge"], [
        [rows[i].get("group", rows[i]["id"]), float(truth[i]), float(said[i]), float(said[i] - truth[i]),
         None if fitted is None else float(fitted[i])] for i in worst])
    base = baselines["ridge"] or baselines["mean"] or {}
    against = "ridge regression" if baselines["ridge"] else "training mean"
    sections = [
        report.paragraph(f"Careful: {metrics['warning']}.") if metrics["warning"] else "",
        report.section("Figures", report.figures(
            [report.Figure(text, f"{metrics['n']} records, baseline: {against}", metrics[key], base.get(key), lower)
             for key, text, lower in FIGURES]), table, report.paragraph(
            f"{reach}{metrics['parsed']} of {metrics['n']} answers hold a number; the others count with the training "
            "mean. Ridge regression is fitted on the mean embeddings of the training cities, its penalty by "
            "leave-one-out.", True)),
        report.section("Said against true", report.picture(out / "scatter.png", f"Predicted against true {label}.")),
        report.section("Residuals on the map", report.picture(residual_map, "Predicted minus true, at the centre of "
                                                              "every tile.")),
        report.section("Largest errors", errors_table),
        report.section("Unreadable answers", report.paragraph(", ".join(metrics["unparsed"])))
        if metrics["unparsed"] else "",
    ]
    shown = checkpoint.relative_to(runs.ROOT) if checkpoint.is_relative_to(runs.ROOT) else checkpoint
    lead = f"{metrics['n']} records of the {metrics['split']} split, {metrics['method']}. Checkpoint {shown}."
    report.write(out / "report.html", f"Held-out cities: {label}", lead, sections,
                 f"python scripts/evaluate_satellite.py --checkpoint {shown} --split {metrics['split']}")


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    evaluate(parse())


if __name__ == "__main__":
    errors.run(main)
