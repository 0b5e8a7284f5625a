"""Score a fine-tuned model on held-out driving clips, beside four baselines: metrics.json and report.html."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, report, runs
from overlays.errors import UserError
from overlays.files import sha256, write_json

OUTPUTS = runs.ROOT / "outputs"
SHOWN = 12  # windows in the report
LABELS = {  # key: label, unit, decimals
    "mae_v": ("velocity, mean absolute error", "m/s", 3), "rmse_v": ("velocity, root mean square error", "m/s", 3),
    "mae_k": ("curvature, mean absolute error", "1/m", 5), "rmse_k": ("curvature, root mean square error", "1/m", 5),
    "ade": ("path, mean distance (ADE)", "m", 3), "fde": ("path, distance at the end (FDE)", "m", 3),
    "turn_sign_accuracy": ("turns with the right sign", "", 3), "parse_rate": ("readable answers", "", 3),
}
NAMES = {"train_mean": "train mean", "hold_v_zero_k": "hold v, k = 0", "hold_both": "hold both",
         "linear_v_hold_k": "linear v, hold k", "base": "base model"}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="run folder, checkpoint or model (default: the newest driving run)")
    parser.add_argument("--base_model", help="base of the adapter, where it is not the one it names")
    parser.add_argument("--data", type=Path, help="folder of the prepared data (default: what the run was trained on)")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--compare-base", action="store_true", help="score the base model without training as well")
    parser.add_argument("--overlay-video", type=Path, metavar="FILE", help="also write a video of the windows shown")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, help="default: the longest true answer and a quarter more")
    parser.add_argument("--limit", type=int, help="only the first N windows of the split")
    flags = parser.parse_args(words)
    if flags.overlay_video and flags.overlay_video.suffix != ".mp4":
        raise UserError(f"--overlay-video {flags.overlay_video} must end in .mp4")
    for name in ("limit", "batch_size", "max_new_tokens"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(flags, name)}")
    return flags


def find_checkpoint(flags: argparse.Namespace) -> tuple[str | Path, Path]:
    """(the model that is meant, folder for results): a hub name, or what `runs.find_checkpoint` finds."""
    named = flags.checkpoint
    if named and not Path(named).is_dir() and named.count("/") == 1 and not named.startswith("."):
        return named, OUTPUTS / named.replace("/", "--")
    found = runs.find_checkpoint(named, OUTPUTS, "driving")
    return found, found


def prepared_data(folder: Path) -> Path:
    """The folder of prepared data that a run was trained on, by the name of its data set; else that of the domain."""
    prepared = runs.ROOT / "data" / "prepared"
    sources = (runs.read_run(folder) or {}).get("data", {}).get("train", [])
    names = [source["name"].removesuffix("_train") for source in sources]
    return next((prepared / name for name in names if (prepared / name).is_dir()), prepared / "driving")


def answer_length(chosen: Sequence[dict], processor) -> int:
    """Tokens of the longest true answer and a quarter more."""
    from overlays.predict import last_turns

    texts = [last_turns(record)[1] for record in chosen]
    return int(1.25 * max(len(processor.tokenizer(text)["input_ids"]) for text in texts)) + 8


def answers(checkpoint: str | Path, flags: argparse.Namespace, chosen: list[dict], root: Path, out: Path) -> list[dict]:
    """Predictions of a checkpoint, written to `out`."""
    from overlays.model.load import load_for_inference
    from overlays.predict import checkpoint_identity, predict

    model, processor = load_for_inference(checkpoint, flags.base_model)
    print(f"checkpoint {checkpoint} on {next(model.parameters()).device}")
    length = flags.max_new_tokens or answer_length(chosen, processor)
    return predict(model, processor, chosen, root, flags.batch_size, length, out,
                   checkpoint_identity(checkpoint, flags.base_model), print)


def base_answers(checkpoint: str | Path, flags: argparse.Namespace, chosen: list[dict], root: Path,
                 out: Path) -> list[dict]:
    """Predictions of the model that was fine-tuned, at the resolution it was fine-tuned with."""
    from overlays.model import load
    from overlays.predict import checkpoint_identity, predict

    base = flags.base_model or (runs.read_run(Path(checkpoint)) or {}).get("base_model")
    if not base:
        raise UserError(f"--compare-base: {checkpoint} has no run.json that names its base model; give --base_model")
    model, _ = load.load_for_inference(base)
    processor = load.load_processor(checkpoint)
    length = flags.max_new_tokens or answer_length(chosen, processor)
    print(f"base model {base}")
    return predict(model, processor, chosen, root, flags.batch_size, length, out, checkpoint_identity(base), print)


def other_training_data(run: Path, data: Path) -> str | None:
    """A sentence where the run was trained on other files than this split belongs to: its test may have been seen."""
    sources = (runs.read_run(run) or {}).get("data", {}).get("train", [])
    known = [source["sha256"] for source in sources]
    if not known or sha256(data / "train.jsonl") in known:
        return None
    return (f"this run was trained on another file than {data / 'train.jsonl'}, so it may have seen clips of this "
            "split; train again, or give the data it was trained on with --data")


def evaluate(flags: argparse.Namespace) -> None:
    """Predict, score, print, report."""
    from overlays.data import records
    from overlays.domains.driving.score import read_row, score, train_mean
    from overlays.predict import load_records

    checkpoint, folder = find_checkpoint(flags)
    flags.data = flags.data or prepared_data(folder)
    for name in ("train.jsonl", f"{flags.split}.jsonl"):
        if not (flags.data / name).is_file():
            raise UserError(f"there is no {name} in {flags.data}: run scripts/prepare_physical_ai.py, or give --data")
    chosen, root = load_records(str(flags.data / f"{flags.split}.jsonl"), flags.limit)
    train = list(records.read(flags.data / "train.jsonl"))
    mean = train_mean(train)
    for record in chosen:
        read_row(record, mean)  # a row that cannot be scored is told before the model is asked
    out = folder / flags.split
    predictions = answers(checkpoint, flags, chosen, root, out / "predictions.jsonl")
    metrics = score(predictions, train)
    if flags.compare_base:
        rows = base_answers(checkpoint, flags, chosen, root, out / "base_predictions.jsonl")
        metrics["base"] = {key: value for key, value in score(rows, train).items() if key != "baseline"}
    warning = other_training_data(folder, flags.data)
    tasks = sorted({str(record.get("task")) for record in chosen})
    metrics |= {"task": ", ".join(tasks), "checkpoint": str(checkpoint), "data": str(flags.data), "warning": warning}
    write_json(out / "metrics.json", metrics)
    rows = [read_row(row, mean) for row in predictions]
    write_report(out, metrics, predictions, rows, flags, folder)
    print_table(metrics)
    print(f"report: {out / 'report.html'}")
    if flags.overlay_video:
        overlay(predictions, rows, root, flags.overlay_video)
    if warning:
        print(f"warning: {warning}")


# ---------------------------------------------------------------- what is shown

def columns(metrics: dict) -> dict[str, dict]:
    """Heading -> figures: the model, then what it is compared with."""
    others = ({"base": metrics["base"]} if "base" in metrics else {}) | metrics["baseline"]
    return {"model": metrics} | {NAMES[name]: figures for name, figures in others.items() if figures}


def shown(value: float | None, decimals: int) -> str:
    return report.number(None) if value is None else f"{value:.{decimals}f}"


def print_table(metrics: dict) -> None:
    beside = columns(metrics)
    print(f"{'':<36}" + "".join(f"{name:>18}" for name in beside))
    for key, (label, unit, decimals) in LABELS.items():
        cells = [shown(figures.get(key), decimals) for figures in beside.values()]
        print(f"{f'{label} {unit}'.strip():<36}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{metrics['n']} windows of one second ({metrics['task'].replace('_', ' ')}), {metrics['n_turns']} of them "
          f"turns (mean curvature of at least {metrics['turn_threshold_per_m']} 1/m), {metrics['low_speed']['n']} "
          f"under 1 m/s; {metrics['n_unreadable']} answers unreadable, {metrics['n_partial']} with too few pairs")


def chosen_rows(count: int) -> list[int]:
    """Up to SHOWN numbers below `count`, evenly spread."""
    return [i * count // min(SHOWN, count) for i in range(min(SHOWN, count))]


def compared(metrics: dict, group: str | None = None) -> str:
    """Table of all figures, or those of a group of rows, for model and baselines."""
    beside = columns(metrics)
    parts = {name: figures if group is None else figures[group] for name, figures in beside.items()}
    body = [[f"{label}{f', {unit}' if unit else ''}", *(shown(part.get(key), decimals) for part in parts.values())]
            for key, (label, unit, decimals) in LABELS.items() if group is None or key != "parse_rate"]
    return report.table(["", *parts], body)


def by_horizon(metrics: dict) -> str:
    beside = columns(metrics)
    rows = []
    for key, label, decimals in (("mae_v", "velocity error, m/s", 3), ("mae_k", "curvature error, 1/m", 5),
                                 ("distance", "distance of the paths, m", 3)):
        rows += [[f"{label}, at {second} s", *(shown(part["horizons"][second][key], decimals)
                                               for part in beside.values())]
                 for second, found in metrics["horizons"].items() if found["n"]]
    return report.table(["", *beside], rows, "At the pair nearest to the second named.")


def write_report(out: Path, metrics: dict, predictions: Sequence[dict], rows: Sequence, flags: argparse.Namespace,
                 folder: Path) -> None:
    """The page: figures, horizons, slow and moving windows, scatter, single windows, loss."""
    from overlays.domains.driving import plots

    plots.draw_scatter(rows, out / "plots" / "scatter.png")
    pictures = []
    for place, number in enumerate(chosen_rows(len(rows))):
        row, file = rows[number], out / "plots" / f"window_{place:02d}.png"
        plots.draw_window(row, file)
        note = "" if row.status == "whole" else f"; the answer is {row.status}"
        pictures.append(report.picture(file, f"{row.id}{note}"))
    run = folder if (folder / "run.json").is_file() else folder.parent
    base = (runs.read_run(run) or {}).get("base_model")
    unread = metrics["n_unreadable"]
    held = f" Answers that could not be read ({unread}) count as if the last known motion went on." if unread else ""
    sections = [
        report.paragraph(f"Careful: {metrics['warning']}.") if metrics["warning"] else "",
        report.section("Figures", compared(metrics), report.paragraph(
            f"Errors over all pairs of {metrics['n']} windows; paths by integrating velocity and curvature. A turn is "
            f"a window with a mean curvature of at least {metrics['turn_threshold_per_m']} 1/m; there are "
            f"{metrics['n_turns']}.{held} Train mean knows nothing of the clip; the other baselines know the last "
            "second's true motion, which a model that sees only the video does not.", True)),
        report.section("By horizon", by_horizon(metrics)),
        report.section("All pairs", report.picture(out / "plots" / "scatter.png",
                                                   "Predicted against true; on the line a prediction is exact.")),
        report.section(f"Moving: {metrics['moving']['n']} windows", compared(metrics, "moving"))
        if metrics["low_speed"]["n"] and metrics["moving"]["n"] else "",
        report.section(f"Under 1 m/s: {metrics['low_speed']['n']} windows", compared(metrics, "low_speed"))
        if metrics["low_speed"]["n"] else "",
        report.section("Windows", report.paragraph("Evenly spread over the split, not picked by result.", True),
                       *pictures),
        report.section("Training", report.picture(run / "training_loss.png", "Loss during training.")),
    ]
    name = str(folder.relative_to(runs.ROOT) if folder.is_relative_to(runs.ROOT) else folder)
    lead = (f"{metrics['n']} windows of one second from clips held out of training ({metrics['task'].replace('_', ' ')}"
            f"). Checkpoint {name}" + (f", fine-tuned from {base}." if base else "."))
    report.write(out / "report.html", "Driving: velocity and curvature of the next second", lead, sections,
                 f"python scripts/evaluate_physical_ai.py --checkpoint {name} --data {flags.data}")


def overlay(predictions: Sequence[dict], rows: Sequence, root: Path, file: Path) -> None:
    """The overlay video of the windows that the report shows, from the frames of the second that is predicted."""
    import numpy as np

    from overlays.data import records, video
    from overlays.domains.driving.plots import write_overlay

    taken, fps = [], 30.0
    for number in chosen_rows(len(rows)):
        record = predictions[number]
        path = records.media_file(root, records.media_names(record, "video")[0])
        segment = records.video_segments(record)[0]
        if segment is None or segment[1] is None:
            raise UserError("--overlay-video needs the frames after a window, which data prepared with --cut do not "
                            "have; prepare them without --cut")
        first, stop = segment
        frames = video.read_frames(path, np.arange(stop, 2 * stop - first))
        taken.append((rows[number], frames))
        fps = (stop - first) / 1.0
    write_overlay(taken, file, fps)
    print(f"video of {len(taken)} windows: {file}")


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    evaluate(parse())


if __name__ == "__main__":
    errors.run(main)
