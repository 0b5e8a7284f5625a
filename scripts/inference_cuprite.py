"""Ask a fine-tuned model about mineral tiles: the held-out area with scores, a picture, a window of a cube."""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)
import numpy as np

from overlays import errors, report, runs
from overlays.domains.cuprite import questions as q
from overlays.domains.cuprite.score import right, score
from overlays.errors import UserError
from overlays.files import sha256, write_json

OUTPUTS = runs.ROOT / "outputs"
SHOWN = 12  # tiles in the report
FIGURES = (  # key, label, what it is taken over, whether lower is better
    ("alteration_accuracy", "alteration accuracy", "{alteration} yes/no rows, unreadable ones wrong", False),
    ("alteration_f1", "alteration F1", "of the answer yes, {alteration} rows", False),
    ("mineral_macro_f1", "mineral macro-F1", "mean over the {occurring} minerals that occur, {minerals} lists", False),
    ("mineral_micro_f1", "mineral micro-F1", "all minerals of {minerals} lists together", False),
    ("mineral_exact", "lists exactly right", "{minerals} lists", False),
    ("share_mae", "share error", "mean absolute, fraction of the tile, {alteration} rows", True),
    ("parse_rate", "readable answers", "all {n} rows", False),
    ("analysis_zone_accuracy", "alteration zone right", "{analysis} analyses", False),
    ("analysis_potential_accuracy", "inferred potential right", "{analysis} analyses", False),
    ("analysis_mineral_macro_f1", "analysis: mineral macro-F1", "{analysis} analyses", False),
)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__ + " With nothing to do it asks you.")
    parser.add_argument("--test", action="store_true", help="predict and score the test split, write a report")
    parser.add_argument("--image", nargs="+", type=Path, metavar="FILE", help="PNG tile, one or all its composites; "
                        "for a model of all bands its .npy")
    parser.add_argument("--cube", type=Path, help="raw cube; with --window")
    parser.add_argument("--window", nargs=2, type=int, metavar=("ROW", "COL"), help="upper left pixel of the tile")
    parser.add_argument("--question", help="default: the three questions of the data set")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of the default questions")
    parser.add_argument("--checkpoint", help="run folder, checkpoint or model (default: the newest cuprite run)")
    parser.add_argument("--base_model", help="base of the adapter, where it is not the one it names")
    parser.add_argument("--data", type=Path, help="prepared folder (default: the one the model was trained on)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--limit", type=int, help="only the first N questions of the test split")
    flags = parser.parse_args(words)
    if sum(map(bool, (flags.test, flags.image, flags.cube))) > 1:
        raise UserError("--test, --image and --cube exclude each other")
    if bool(flags.cube) != bool(flags.window):
        raise UserError("--cube and --window ROW COL belong together")
    return flags


# ---------------------------------------------------------------- model

class Answerer:
    """The model, loaded at the first question, so that a mistake in the files is told at once."""

    def __init__(self, flags: argparse.Namespace):
        named = flags.checkpoint
        is_hub_name = named and not Path(named).is_dir() and named.count("/") == 1 and not named.startswith(".")
        self.checkpoint = named if is_hub_name else runs.find_checkpoint(named, OUTPUTS, "cuprite")
        self.flags, self._loaded = flags, None

    @property
    def folder(self) -> Path:
        """The checkpoint's folder; one below outputs/ for a model of the hub."""
        return OUTPUTS / self.checkpoint.replace("/", "--") if isinstance(self.checkpoint, str) else self.checkpoint

    def load(self) -> tuple:
        """(model, processor)."""
        if self._loaded is None:
            from overlays.model.load import load_for_inference

            self._loaded = load_for_inference(self.checkpoint, self.flags.base_model)
            print(f"checkpoint {self.checkpoint} on {next(self._loaded[0].parameters()).device}")
        return self._loaded

    def ask(self, images: Sequence[Path], question: str, language: str = "en") -> str:
        """The model's answer to a question about images that lie anywhere."""
        from overlays.predict import answer

        paths = [path.resolve() for path in images]
        root = Path(os.path.commonpath([path.parent for path in paths]))
        names = [path.relative_to(root).as_posix() for path in paths]
        turn = {"from": "human", "value": q.ask(question, names, language)}
        record = {"id": names[0], "image": names, "conversations": [turn]}
        return answer(*self.load(), record, root, self.flags.max_new_tokens)


def prepared_data(run: Path) -> Path:
    """The prepared folder that a run was trained on, by its data set's name; the plain one where that is gone."""
    prepared = runs.ROOT / "data" / "prepared"
    sources = (runs.read_run(run) or {}).get("data", {}).get("train", [])
    names = [source["name"].rpartition("_")[0] for source in sources if source["name"].startswith("cuprite_")]
    found = [prepared / name for name in names if (prepared / name).is_dir()]
    return found[0] if found else prepared / "cuprite"


def read_metadata(answerer: Answerer, data: Path) -> dict:
    """metadata.json that the run holds, else that of the prepared data; empty where there is neither."""
    for folder in (answerer.folder, answerer.folder.parent, data):
        file = folder / "metadata.json"
        if file.is_file():
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{file} is damaged: {error}; prepare the data again") from None
    return {}


# ---------------------------------------------------------------- one tile

def with_siblings(images: Sequence[Path]) -> list[Path]:
    """The images; for a single composite whose other composites lie beside it, all of them, which it says.

    Raises:
        UserError: a file is not there.
    """
    for path in images:
        if not path.is_file():
            raise UserError(f"there is no image file {path}")
    tile, _, composite = images[0].stem.rpartition("_")
    if len(images) == 1 and composite in q.COMPOSITES:
        family = [images[0].with_name(f"{tile}_{name}{images[0].suffix}") for name in q.COMPOSITES]
        if all(path.is_file() for path in family):
            print(f"using all composites of {tile}: {', '.join(q.COMPOSITES)}")
            return family
    return list(images)


def ask_all(answerer: Answerer, images: Sequence[Path], flags: argparse.Namespace) -> None:
    """Ask the user's question, or the three of the data set, and print the answers."""
    parameters = read_metadata(answerer, flags.data).get("parameters", {})
    limits = {key: parameters[key] for key in ("alteration_threshold", "min_share") if key in parameters}
    asked = [flags.question] if flags.question else [q.question(task, flags.language, **limits) for task in q.TASKS]
    for question in asked:
        print(f"{question}\n  {answerer.ask(images, question, flags.language)}")


def ask_about_window(answerer: Answerer, flags: argparse.Namespace) -> None:
    """Render a window of a raw cube as training saw it, and ask about it."""
    metadata = read_metadata(answerer, flags.data)
    if not metadata:
        raise UserError(f"there is no metadata.json in {answerer.folder} or {flags.data}, which says how training "
                        "rendered its tiles: give --data, the folder of the prepared data")
    if metadata["parameters"].get("channels") == "all":
        from overlays.domains.cuprite.prepare import window_raster

        raster = window_raster(flags.cube, *flags.window, metadata)
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "window.npy", raster)
            ask_all(answerer, [Path(folder) / "window.npy"], flags)
        return
    from overlays.domains.cuprite.prepare import render_window

    pictures = render_window(flags.cube, *flags.window, metadata)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"window_{name}.png" for name in pictures]
        for path, picture in zip(paths, pictures.values(), strict=True):
            picture.save(path)
        ask_all(answerer, paths, flags)


def dialogue(answerer: Answerer, flags: argparse.Namespace) -> None:
    """Ask for a picture, then for questions about it, until `quit` or the end of the input."""
    try:
        import readline  # noqa: F401  (line editing)
    except ImportError:
        pass
    answerer.load()
    print("Give a PNG tile, then ask. An empty question asks the three of the data set, `image` takes another tile, "
          "`quit` ends.")
    images: list[Path] = []
    while True:
        try:
            line = input("question> " if images else "image> ").strip()
        except EOFError:
            print()
            return
        if line.lower() in ("quit", "exit"):
            return
        try:
            if line.lower() == "image":
                images = []
            elif images:
                ask_all(answerer, images, argparse.Namespace(**vars(flags) | {"question": line}))
            elif line:
                images = with_siblings([Path(line.strip("'\"")).expanduser()])
        except UserError as error:
            print(f"error: {error}")


# ---------------------------------------------------------------- test

def test(answerer: Answerer, flags: argparse.Namespace) -> None:
    """Predict and score the test split; predictions.jsonl, metrics.json and report.html in <checkpoint>/test."""
    from overlays.data import records
    from overlays.predict import checkpoint_identity, load_records, predict

    for name in ("train.jsonl", "test.jsonl"):
        if not (flags.data / name).is_file():
            raise UserError(f"there is no {name} in {flags.data}: run scripts/prepare_cuprite.py, or give --data")
    chosen, media_root = load_records(str(flags.data / "test.jsonl"), flags.limit)
    train = list(records.read(flags.data / "train.jsonl"))
    warning = other_training_data(answerer.folder, flags.data / "train.jsonl")
    out = answerer.folder / "test"
    model, processor = answerer.load()
    predictions = predict(model, processor, chosen, media_root, flags.batch_size, flags.max_new_tokens,
                          out / "predictions.jsonl", checkpoint_identity(answerer.checkpoint, flags.base_model), print)
    metrics = score(predictions, train)
    metrics |= {"checkpoint": str(answerer.checkpoint), "data": str(flags.data), "warning": warning}
    write_json(out / "metrics.json", metrics)
    write_report(out / "report.html", metrics, predictions, flags.data, answerer)
    print(f"{'':<28}{'model':>8}{'baseline':>10}")
    for row in figure_rows(metrics):
        print(f"{row.label:<28}{report.number(row.model):>8}{report.number(row.baseline):>10}")
    print(f"{metrics['n']} questions on {count_tiles(predictions)} held-out tiles; the baseline is the majority answer "
          f"of the training split\nreport: {out / 'report.html'}")
    if warning:
        print(f"warning: {warning}")


def other_training_data(run: Path, train: Path) -> str | None:
    """A sentence where the run was trained on other files than this split belongs to: its test may have been seen."""
    sources = (runs.read_run(run) or {}).get("data", {}).get("train", [])
    known = [source["sha256"] for source in sources if source["name"].startswith("cuprite_")]
    if not known or sha256(train) in known:
        return None
    return (f"this run was trained on another version of {train.name}, so it may have seen tiles of this test split; "
            "train again, or give the data it was trained on with --data")


def count_tiles(predictions: Sequence[dict]) -> int:
    return len({tuple(row["image"]) for row in predictions})


def chosen_samples(predictions: Sequence[dict], media_root: Path) -> list[report.Sample]:
    """Up to SHOWN answers, evenly spread over the tiles and taking the tasks in turn; not picked by result."""
    by_tile: dict[tuple, list[dict]] = {}
    for row in predictions:
        by_tile.setdefault(tuple(row["image"]), []).append(row)
    tiles = list(by_tile.values())
    picked = [tiles[i * len(tiles) // min(SHOWN, len(tiles))] for i in range(min(SHOWN, len(tiles)))]
    rows = [group[i % len(group)] for i, group in enumerate(picked)]
    return [report.Sample(row["id"], row["question"].split("\n")[-1], row["prediction"], row["answer"], right(row),
                          [file for name in row["image"] for file in shown(media_root / name)]) for row in rows]


def shown(image: Path) -> list[Path]:
    """What can be looked at: a picture itself, for a raster the composites beside it."""
    if image.suffix != ".npy":
        return [image]
    return [file for name in q.COMPOSITES if (file := image.with_name(f"{image.stem}_{name}.png")).is_file()]


def figure_rows(metrics: dict) -> list[report.Figure]:
    baseline = metrics["baseline"] or {}
    counts = metrics["n_by_task"] | {"n": metrics["n"], "occurring": len(metrics["mineral_macro_over"])}
    return [report.Figure(label, over.format(**counts), metrics[key], baseline.get(key), lower)
            for key, label, over, lower in FIGURES]


def baseline_text(metrics: dict) -> str:
    """What the baseline answers, in a sentence or two."""
    if not metrics["baseline"]:
        return "There is no baseline: the training split lacks a task."
    answers = metrics["baseline"]["answers"]
    text = "The baseline gives the majority answer of the training split to every tile."
    if "alteration" in answers:
        verdict, share = answers["alteration"]
        text += f" It says {'yes' if verdict else 'no'} with a share of {share:.0%}"
        text += f", and the minerals {', '.join(answers['minerals']) or 'none'}." if "minerals" in answers else "."
    every = metrics["baseline_every_mineral"]
    if every and every["mineral_macro_f1"] is not None:
        text += (f" Naming every mineral of the training split on every tile would give macro-F1 "
                 f"{every['mineral_macro_f1']:.3f} and micro-F1 {every['mineral_micro_f1']:.3f}.")
    return text


def write_report(path: Path, metrics: dict, predictions: Sequence[dict], data: Path, answerer: Answerer) -> None:
    """The page: figures, confusion, minerals, loss curve, tiles, label map."""
    confusion, baseline = metrics["alteration_confusion"], metrics["baseline"] or {}
    minerals = [[name, row["support"], row["predicted"], row["precision"], row["recall"], row["f1"],
                 baseline.get("per_mineral", {}).get(name, {}).get("f1")]
                for name, row in metrics["per_mineral"].items()]
    languages = [[name, part["n"], *(part[key] for key, *_ in FIGURES[:7])]
                 for name, part in metrics.get("languages", {}).items()]
    run = answerer.folder if (answerer.folder / "run.json").is_file() else answerer.folder.parent
    base = (runs.read_run(run) or {}).get("base_model")
    sections = [
        report.paragraph(f"Careful: {metrics['warning']}.") if metrics["warning"] else "",
        report.section("Figures", report.figures(figure_rows(metrics)), report.paragraph(baseline_text(metrics), True)),
        report.section("Alteration: said against true", report.table(
            ["true", "said yes", "said no", "unreadable"],
            [[truth, row["yes"], row["no"], row["unparsed"]] for truth, row in confusion.items()])),
        report.section("Minerals", report.table(
            ["mineral", "tiles with it", "tiles said", "precision", "recall", "F1", "baseline F1"], minerals,
            "From the mineral lists; an unreadable list counts as empty.")) if minerals else "",
        report.section("Languages", report.table(
            ["language", "rows", *(label for _, label, *_ in FIGURES[:7])], languages)) if languages else "",
        report.section("Training", report.picture(run / "training_loss.png", "Loss during training.")),
        report.section("Tiles", report.paragraph(
            "Evenly spread over the held-out area, not picked by result. A verdict or list is right as a whole; an "
            "analysis needs zone, minerals and potential. The copper potential is an inference from mineral cover.",
            True), report.samples(chosen_samples(predictions, data))),
        report.section("Scene", report.picture(data / "label_map.png", "Mineral labels of the scene."),
                       report.picture(data / "split_map.png", "Areas of training, validation and test.")),
    ]
    shown = Path(answerer.checkpoint)
    shown = shown.relative_to(runs.ROOT) if shown.is_relative_to(runs.ROOT) else shown
    lead = (f"{metrics['n']} questions on {count_tiles(predictions)} tiles of the held-out area. Checkpoint {shown}"
            + (f", fine-tuned from {base}." if base else "."))
    report.write(path, "Mineral mapping: held-out tiles", lead, sections,
                 f"python scripts/inference_cuprite.py --test --checkpoint {shown}")


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    flags = parse()
    images = with_siblings(flags.image) if flags.image else []
    answerer = Answerer(flags)
    flags.data = flags.data or prepared_data(answerer.folder)
    if flags.test:
        test(answerer, flags)
    elif flags.cube:
        ask_about_window(answerer, flags)
    elif images:
        ask_all(answerer, images, flags)
    else:
        dialogue(answerer, flags)


if __name__ == "__main__":
    errors.run(main)
