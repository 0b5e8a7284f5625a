"""Posed RGB-D scenes: rooms seen in several frames with depth and poses -> questions of what and where, scores."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from overlays import report
from overlays.domains.base import Domain, Evaluation, Metric, training_sources
from overlays.domains.scenes import compare, plots, prepare, score
from overlays.domains.scenes.question_files import task_of
from overlays.errors import UserError
from overlays.files import sha256
from overlays.report import Cards, Paragraph, Picture, Section, Table

SHOWN = 10  # questions in the report
SHOWN_DROPS = 5  # items that prepare names on the screen; metadata.json has them all
MAX_DEPTH_M = 10.0  # of the report's top views where the model takes no coordinates


class Scenes(Domain):
    """Questions about rooms, whose frames come with coordinates."""

    name, title, Settings = "scenes", "Questions about posed RGB-D scenes", prepare.Settings
    records, groups, max_new_tokens = "questions", "scenes", 16
    metrics = (
        Metric("em", "exact match", over="all {n} questions"),
        Metric("em_r", "relaxed match", over="all {n} questions"),
        Metric("where_em", "exact match, where", over="{n_where} questions about places"),
        Metric("what_em", "exact match, what", over="{n_what} questions about things"),
        Metric("cider", "CIDEr-D", over="mean over {n} questions; published tables show it times 100"),
    )

    def prepare(self, settings: prepare.Settings) -> dict:
        return prepare.prepare(settings)

    def summary(self, metadata: dict, output: Path) -> Iterable[str]:
        counts, dropped = metadata["counts"], metadata["dropped"]
        yield ("scenes: " + ", ".join(f"{number} {split}" for split, number in counts["scenes"].items())
               + f"; {counts['frames']} frames, at most {metadata['parameters']['num_frames']} a scene"
               + f"; {counts['scenes_without_questions']} scenes of the infos files have no question")
        yield "depth: " + ", ".join(f"{scale} units a metre in {number} frames"
                                    for scale, number in counts["frames_by_depth_scale"].items())
        yield from _agreement(metadata["consistency"])
        if others := Counter(axis for axis in metadata["upward"].values() if axis not in (None, "+z")):
            axes = ", ".join(f"{axis} in {number} scenes" for axis, number in others.most_common())
            yield f"note: pictures stand upright along another axis than +z: {axes} (--world-up)"
        for scene, contradiction in list(metadata["contradictions_kept"].items())[:SHOWN_DROPS]:
            yield f"warning: {scene} contradicts itself and is kept: {contradiction}"
        types = sorted({name for split in counts["by_type"].values() for name in split})
        yield f"{'questions':<20}" + "".join(f"{split:>8}" for split in counts["questions"])
        for name in types:
            yield f"{name:<20}" + "".join(f"{split.get(name, 0):>8}" for split in counts["by_type"].values())
        for name, key in (("all", "questions"), ("records", "records")):
            yield f"{name:<20}" + "".join(f"{number:>8}" for number in counts[key].values())
        for what, key in (("frames", "frame"), ("scenes", "scene"), ("questions", "id")):
            items = dropped[what]
            if not items:
                continue
            reasons = ", ".join(f"{number} {reason}" for reason, number in
                                Counter(item["reason"] for item in items).most_common())
            lost = f" with {sum(item['questions'] for item in items)} questions" if what == "scenes" else ""
            yield f"dropped {len(items)} {what}{lost}: {reasons}"
            for item in items[:SHOWN_DROPS]:
                yield f"  {item['scene']}{f' {item[key]}' if key != 'scene' else ''}: {item['reason']}"
            if len(items) > SHOWN_DROPS:
                yield f"  and {len(items) - SHOWN_DROPS} more, listed in metadata.json"
        if not counts["questions"]["test"]:
            yield ("note: no question falls into the test split; score with --split val, or prepare with --split "
                   "questions")

    def score(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> dict:
        return score.score(predictions, train)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--table", nargs="+", type=Path, metavar="RUN",
                            help="only print the table of runs that are scored already, base first")

    def handle(self, flags: Namespace) -> bool:
        """Print the table that --table asks for."""
        if flags.table:
            folders = [(flags.output_dir or run) / flags.split for run in flags.table]
            print("\n".join(compare.table([compare.read_metrics(folder) for folder in folders])))
        return bool(flags.table)

    def check(self, evaluation: Evaluation) -> None:
        from overlays.predict import prediction_row

        for record in evaluation.records:
            score.answers_of(prediction_row(record, ""))

    def predict(self, evaluation: Evaluation) -> tuple[list[dict], dict]:
        from overlays.model import extensions
        from overlays.predict import max_depth_m

        model, _ = evaluation.loaded
        return evaluation.answers(), {
            "method": extensions.settings(model).get("spatial", {}).get("method", "base"),
            "max_depth_m": max_depth_m(model), "steps": compare.steps_of(evaluation.folder),
            "questions_sha256": sha256(evaluation.data / f"{evaluation.split}.jsonl"),
            "train": [row["sha256"] for row in training_sources(evaluation.folder)], "limit": evaluation.flags.limit}

    def statistic(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> Callable:
        return score.statistic(predictions)

    def columns(self, metrics: dict) -> dict[str, dict]:
        """The majority answer, and runs of other methods with the same steps, training data and questions."""
        majority = {"majority answer": metrics["baseline"]} if metrics["baseline"] else {}
        return majority | {row["method"]: row for row in compare.siblings(metrics)}

    def notes(self, metrics: dict) -> list[str]:
        given = ("The model gets the coordinates of every token." if metrics["method"] != "base"
                 else "This model does not get the coordinates; they are shown for comparison.")
        return [f"Method {metrics['method']}; the baseline gives each question type its majority answer in training.",
                "Answers are compared in lower case, numbers as words, without articles and punctuation; the relaxed "
                "match lets one contain the other.", given]

    def sections(self, predictions: Sequence[dict], metrics: dict, data: Path, out: Path) -> list[Section]:
        from overlays.model.load import load_processor

        baseline, processor = metrics["baseline"] or {}, load_processor(metrics["checkpoint"])
        types = [[kind, row["task"], row["n"], row["em"], row["em_r"], row["cider"],
                  baseline.get("by_type", {}).get(kind, {}).get("em"), baseline.get("answers", {}).get(kind)]
                 for kind, row in metrics["by_type"].items()]
        shown = []
        for number, row in enumerate(shown_rows(predictions), start=1):
            shown += [_top_view(row, out / "views" / f"{number:02d}.png", data, processor,
                                metrics.get("max_depth_m") or MAX_DEPTH_M),
                      Cards([report.Sample(f"{task_of(score.type_of(row))}: {score.type_of(row)}",
                                           row["question"].split("\n")[-1], row["prediction"],
                                           " or ".join(score.answers_of(row)), score.right(row))])]
        return [
            Section("Question types", [Table(["type", "task", "n", "EM", "EM-R", "CIDEr-D", "baseline EM",
                                              "majority answer"], types)]),
            Section("Questions", [Paragraph(
                "Question types in turn, not picked by result. A token stands at the mean of the valid points of its "
                "block of the picture; one without valid depth is not drawn.", True), *shown]),
        ]


def _agreement(scenes: dict[str, dict]) -> Iterator[str]:
    """Median and lowest of what depth and poses of the scenes say of each other."""
    values = {name: row["agreement"] for name, row in scenes.items() if row["agreement"] is not None}
    if values:
        lowest = min(values, key=values.get)
        yield (f"agreement of depth and poses: median {median(values.values()):.2f}, lowest {values[lowest]:.2f} "
               f"({lowest}) in {len(values)} scenes")
    if len(values) < len(scenes):
        yield (f"agreement of depth and poses: not told by {len(scenes) - len(values)} scenes, whose frames hardly "
               "overlap")
    coverage = {name: row["depth_coverage"] for name, row in scenes.items()}
    if coverage:
        lowest = min(coverage, key=coverage.get)
        yield f"valid depth: {median(coverage.values()):.1%} of the pixels, lowest {coverage[lowest]:.1%} ({lowest})"


def shown_rows(predictions: Sequence[dict]) -> list[dict]:
    """Up to SHOWN answers: the question types in turn, evenly spread over the scenes, not picked by result."""
    by_type: dict[str, list[dict]] = {}
    for row in predictions:
        by_type.setdefault(score.type_of(row), []).append(row)
    groups = [by_type[kind] for kind in sorted(by_type)]
    picked = []
    for i in range(min(SHOWN, len(predictions))):
        group = groups[i % len(groups)]
        picked.append(group[(i * len(group)) // SHOWN % len(group)])
    return picked


def _top_view(row: dict, file: Path, data: Path, processor, max_depth_m: float) -> Picture | Paragraph:
    """The frames of a row beside their tokens from above; why there is no such plot; or nothing to show."""
    seen = plots.seen(row)
    if not seen:
        return Picture(None)
    try:
        plots.draw(file, seen, data, plots.tokens_by_frame(seen, processor, data, max_depth_m),
                   plots.camera_poses(seen, data))
    except UserError as error:  # a model without coordinates answers where depth is broken
        return Paragraph(f"No top view: {error}.", True)
    return Picture(file, f"{row.get('group', row.get('id'))}, {len(seen['image'])} frames")


DOMAIN = Scenes()
