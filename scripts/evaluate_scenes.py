"""Score a model on held-out scenes: EM, EM-R, CIDEr by question type, beside other methods; --table compares runs."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, report, runs
from overlays.domains.scenes.question_files import task_of
from overlays.domains.scenes.score import HEADLINES, answers_of, right, score, type_of
from overlays.errors import UserError
from overlays.files import sha256, write_json

OUTPUTS = runs.ROOT / "outputs"
SHOWN = 10  # questions in the report
COLUMNS = ("method", "steps", "n", "n_where", "n_what", *HEADLINES, "by_type", "baseline")  # of the table
MAX_DEPTH_M = 10.0  # of the report's top views where the model takes no coordinates
FIGURES = (("em", "exact match", "all {n} questions"), ("em_r", "relaxed match", "all {n} questions"),
           ("where_em", "exact match, where", "{n_where} questions about places"),
           ("what_em", "exact match, what", "{n_what} questions about things"),
           ("cider", "CIDEr-D", "mean over {n} questions; published tables show it times 100"))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="run folder, checkpoint or model (default: the newest scenes run)")
    parser.add_argument("--table", nargs="+", type=Path, metavar="RUN",
                        help="only print the table of runs that are scored already, base first")
    parser.add_argument("--data", type=Path, default=runs.ROOT / "data" / "prepared" / "scenes")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--base_model", help="base of the adapter, where it is not the one it names")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--limit", type=int, help="only the first N questions")
    return parser.parse_args(words)


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    flags = parse()
    if flags.table:
        print_table([read_metrics(run) for run in flags.table])
    else:
        evaluate(flags)


# ---------------------------------------------------------------- scoring one run

def evaluate(flags: argparse.Namespace) -> None:
    """Predict and score a split; predictions.jsonl, metrics.json and report.html in <run>/test."""
    if flags.limit is not None and flags.limit < 1:
        raise UserError(f"--limit must be at least 1, not {flags.limit}")
    file = flags.data / f"{flags.split}.jsonl"
    for path in (flags.data / "train.jsonl", file):
        if not path.is_file():
            raise UserError(f"there is no {path.name} in {flags.data}: run scripts/prepare_scenes.py, or give --data")
    if not file.stat().st_size:
        raise UserError(f"{file} holds no questions: take another --split, or prepare with --split questions")
    named = flags.checkpoint
    is_hub_name = named and not Path(named).is_dir() and named.count("/") == 1 and not named.startswith(".")
    checkpoint = named if is_hub_name else runs.find_checkpoint(named, OUTPUTS, "scenes")
    folder = OUTPUTS / named.replace("/", "--") if is_hub_name else checkpoint

    from overlays.data import records
    from overlays.model import additions
    from overlays.model.load import load_for_inference
    from overlays.predict import checkpoint_identity, load_records, max_depth_m, predict, prediction_row

    chosen, media_root = load_records(str(file), flags.limit)
    for record in chosen:
        answers_of(prediction_row(record, ""))  # a question without an answer is no reason to answer the others first
    train = list(records.read(flags.data / "train.jsonl"))
    model, processor = load_for_inference(checkpoint, flags.base_model)
    method = additions.settings(model).get("spatial", {}).get("method", "base")
    print(f"checkpoint {checkpoint}, method {method}, {len(chosen)} questions")
    out = folder / "test"
    predictions = predict(model, processor, chosen, media_root, flags.batch_size, flags.max_new_tokens,
                          out / "predictions.jsonl", checkpoint_identity(checkpoint, flags.base_model), print)
    metrics = score(predictions, train) | {
        "method": method, "steps": steps_of(folder), "checkpoint": str(checkpoint), "split": flags.split,
        "questions_sha256": sha256(file), "train": trained_on(folder), "limit": flags.limit,
        "warning": other_training_data(folder, flags.data / "train.jsonl")}
    write_json(out / "metrics.json", metrics)
    beside = siblings(folder, metrics)
    depth = max_depth_m(model) or MAX_DEPTH_M
    write_report(out, metrics, beside, predictions, media_root, processor, depth)
    print_table([*beside, metrics])
    print(f"report: {out / 'report.html'}")


def steps_of(folder: Path) -> int | None:
    """Optimisation steps of a run, from its trainer state."""
    for place in (folder, folder.parent):
        try:
            return json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            continue
    return None


def trained_on(folder: Path) -> list[str]:
    """Checksums of the annotation files a run was trained on."""
    return [row["sha256"] for row in (runs.read_run(folder) or {}).get("data", {}).get("train", [])]


def other_training_data(run: Path, train: Path) -> str | None:
    """A sentence where the run was trained on other files than this split belongs to: its test may have been seen."""
    sources = (runs.read_run(run) or {}).get("data", {}).get("train", [])
    known = [source["sha256"] for source in sources if source["name"].startswith("scenes_")]
    if not known or sha256(train) in known:
        return None
    return (f"this run was trained on another version of {train.name}, so it may have seen scenes of this split; "
            "train again, or give the data it was trained on with --data")


# ---------------------------------------------------------------- several runs

def read_metrics(run: Path) -> dict:
    """metrics.json of a scored run. Raises UserError where there is none, or not all of it."""
    file = run / "test" / "metrics.json"
    if not file.is_file():
        raise UserError(f"there is no {file}: run scripts/evaluate_scenes.py --checkpoint {run} first")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; score the run again") from None
    if not is_whole(metrics):
        raise UserError(f"{file} is not what this script writes; score the run again")
    return metrics


def is_whole(metrics: object) -> bool:
    """Whether a metrics file has all that the table shows."""
    if not isinstance(metrics, dict) or not set(COLUMNS) <= set(metrics):
        return False
    baseline = metrics["baseline"]
    sides = [metrics, *([] if baseline is None else [baseline])]
    return isinstance(metrics["method"], str) and all(
        isinstance(side, dict) and isinstance(side.get("by_type"), dict)
        and all(isinstance(row, dict) for row in side["by_type"].values())
        and all(isinstance(side.get(name), int | float | None) for name in HEADLINES) for side in sides)


def siblings(folder: Path, metrics: dict) -> list[dict]:
    """Metrics of other methods' runs beside this one, on the same questions; base first."""
    run = folder if (folder / "run.json").is_file() else folder.parent
    found = {}
    for file in sorted(run.parent.glob("*/test/metrics.json")):
        try:
            other = read_metrics(file.parents[1])
        except (OSError, UserError):
            continue
        same = all(other.get(key) == metrics[key] for key in ("questions_sha256", "limit", "train", "steps"))
        if same and file.parents[1] != run and other["method"] != metrics["method"]:
            found[other["method"]] = other
    return sorted(found.values(), key=lambda other: other["method"] != "base")


def differences(rows: Sequence[dict]) -> list[str]:
    """What makes runs hard to compare, each as a sentence."""
    notes = []
    for key, text in (("steps", "the runs have different numbers of steps"),
                      ("questions_sha256", "the runs were scored on different questions"),
                      ("limit", "the runs were scored on different questions"),
                      ("train", "the runs were trained on different data")):
        if len({json.dumps(row.get(key)) for row in rows}) > 1:
            notes.append(text)
    return list(dict.fromkeys(notes))


def print_table(rows: Sequence[dict]) -> None:
    """The runs, one a line, with the majority baseline and what each gains over base."""
    types = list(dict.fromkeys(kind for row in rows for kind in row["by_type"]))
    print(f"{'method':<12}{'steps':>7}{'EM':>8}{'EM-R':>8}{'where':>8}{'what':>8}{'CIDEr':>8}"
          + "".join(f"{kind:>11}" for kind in types))
    lines = [(row["method"], row["steps"], row) for row in rows]
    if rows[0]["baseline"]:
        lines.insert(0, ("majority", None, rows[0]["baseline"]))
    for name, steps, row in lines:
        cells = [row[key] for key in ("em", "em_r", "where_em", "what_em", "cider")]
        print(f"{name:<12}{report.number(steps):>7}" + "".join(f"{report.number(cell):>8}" for cell in cells)
              + "".join(f"{report.number(row['by_type'].get(kind, {}).get('em')):>11}" for kind in types))
    counts = rows[0]
    print(f"{counts['n']} questions on held-out scenes, {counts['n_where']} where and {counts['n_what']} what; "
          "the columns of question types hold EM")
    base = next((row for row in rows if row["method"] == "base"), None)
    for row in rows:
        if base and row is not base:
            gains = ", ".join(f"{name} {row[key] - base[key]:+.3f}" for name, key in (("where", "where_em"),
                                                                                    ("what", "what_em"))
                              if row[key] is not None and base[key] is not None)
            print(f"{row['method']} over base: {gains}")
    for note in [*differences(rows), *(row["warning"] for row in rows if row.get("warning"))]:
        print(f"warning: {note}")


# ---------------------------------------------------------------- report

def chosen_rows(predictions: Sequence[dict]) -> list[dict]:
    """Up to SHOWN answers: the question types in turn, evenly spread over the scenes, not picked by result."""
    by_type: dict[str, list[dict]] = {}
    for row in predictions:
        by_type.setdefault(type_of(row), []).append(row)
    groups = [by_type[kind] for kind in sorted(by_type)]
    picked = []
    for i in range(min(SHOWN, len(predictions))):
        group = groups[i % len(groups)]
        picked.append(group[(i * len(group)) // SHOWN % len(group)])
    return picked


def write_report(out: Path, metrics: dict, beside: Sequence[dict], predictions: Sequence[dict], media_root: Path,
                 processor, max_depth_m: float) -> None:
    """The page: figures, methods side by side, question types, questions with frames and top views."""
    from overlays.domains.scenes import views

    baseline = metrics["baseline"] or {}
    figures = [report.Figure(label, over.format(**metrics), metrics[key], baseline.get(key))
               for key, label, over in FIGURES]
    methods = [[row["method"], row["steps"], *(row[key] for key, *_ in FIGURES)] for row in [*beside, metrics]]
    types = [[kind, row["task"], row["n"], row["em"], row["em_r"], row["cider"],
              baseline.get("by_type", {}).get(kind, {}).get("em"), baseline.get("answers", {}).get(kind)]
             for kind, row in metrics["by_type"].items()]
    shown = []
    for number, row in enumerate(chosen_rows(predictions), start=1):
        seen, kind = views.seen(row), type_of(row)
        if seen:
            picture = out / "views" / f"{number:02d}.png"
            try:
                views.draw(picture, seen, media_root, views.tokens_by_frame(seen, processor, media_root, max_depth_m),
                           views.camera_poses(seen, media_root))
                shown.append(report.picture(picture, f"{row.get('group', row.get('id'))}, {len(seen['image'])} frames"))
            except UserError as error:  # a model without coordinates answers where depth is broken
                shown.append(report.paragraph(f"No top view: {error}.", True))
        shown.append(report.samples([report.Sample(f"{task_of(kind)}: {kind}", row["question"].split("\n")[-1],
                                                   row["prediction"], " or ".join(answers_of(row)), right(row))]))
    run = out.parent if (out.parent / "run.json").is_file() else out.parent.parent
    given = ("The model gets the coordinates of every token." if metrics["method"] != "base"
             else "This model does not get the coordinates; they are shown for comparison.")
    sections = [
        report.paragraph(f"Careful: {metrics['warning']}.") if metrics["warning"] else "",
        report.section("Figures", report.figures(figures), report.paragraph(
            "The baseline gives each question type its majority answer in training. Answers are compared in lower "
            "case, numbers as words, without articles and punctuation; the relaxed match lets one contain the other.",
            True)),
        report.section("Methods", report.table(["method", "steps", *(label for _, label, _ in FIGURES)], methods,
                                               "Runs with the same steps, training data and questions."))
        if beside else "",
        report.section("Question types", report.table(
            ["type", "task", "n", "EM", "EM-R", "CIDEr-D", "baseline EM", "majority answer"], types)),
        report.section("Training", report.picture(run / "training_loss.png", "Loss during training.")),
        report.section("Questions", report.paragraph(
            f"Question types in turn, not picked by result. {given} A token stands at the mean of the valid points of "
            "its block of the picture; one without valid depth is not drawn.", True), *shown),
    ]
    place = Path(metrics["checkpoint"])
    place = place.relative_to(runs.ROOT) if place.is_relative_to(runs.ROOT) else place
    groups = {str(row["group"]) for row in predictions if row.get("group") is not None}
    scenes = f"{len(groups)} held-out scenes" if groups else "held-out data"
    report.write(out / "report.html", "Questions about posed RGB-D scenes",
                 f"{metrics['n']} questions on {scenes}. Method {metrics['method']}, "
                 f"checkpoint {place}.", sections, f"python scripts/evaluate_scenes.py --checkpoint {place}")


if __name__ == "__main__":
    errors.run(main)
