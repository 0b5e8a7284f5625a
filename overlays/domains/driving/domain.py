"""Driving clips: one second of video -> velocity and curvature of the next second."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from overlays import paths, report
from overlays.data import records, video
from overlays.domains.base import Domain, Evaluation, Metric
from overlays.domains.driving import clips, plots, prepare, score
from overlays.domains.driving.windows import PAIRS
from overlays.errors import UserError
from overlays.report import Paragraph, Picture, Section, Table

SHOWN = 12  # windows in the report
SHOWN_DROPS = 5  # clips that prepare names on the screen; metadata.json has them all


class Driving(Domain):
    """Windows of one second, answered with pairs of velocity and curvature."""

    name, title, Settings = "driving", "Driving: velocity and curvature of the next second", prepare.Settings
    records, groups, batch_size = "windows", "clips", 16
    baselines = {"train_mean": "train mean", "hold_v_zero_k": "hold v, k = 0", "hold_both": "hold both",
                 "linear_v_hold_k": "linear v, hold k"}
    metrics = (
        Metric("mae_v", "velocity, mean absolute error", "m/s", lower_is_better=True),
        Metric("rmse_v", "velocity, root mean square error", "m/s", lower_is_better=True),
        Metric("mae_k", "curvature, mean absolute error", "1/m", 5, lower_is_better=True),
        Metric("rmse_k", "curvature, root mean square error", "1/m", 5, lower_is_better=True),
        Metric("ade", "path, mean distance (ADE)", "m", lower_is_better=True),
        Metric("fde", "path, distance at the end (FDE)", "m", lower_is_better=True),
        Metric("turn_sign_accuracy", "turns with the right sign", over="{n_turns} turns"),
        Metric("speed_correlation", "speed within a kind of road: correlation"),
        Metric("parse_rate", "parse rate", over="{n} windows"),
    )

    def output(self, settings: prepare.Settings) -> Path:
        return paths.PREPARED / ("driving_motion" if settings.motion_only else "driving")

    def prepare(self, settings: prepare.Settings) -> dict:
        return prepare.prepare(settings)

    def summary(self, metadata: dict, output: Path) -> Iterable[str]:
        counts, parameters, future = metadata["counts"], metadata["parameters"], metadata["future"]
        dropped, refused = _listed(counts["clips_dropped"]), counts["archives_refused"]
        yield (f"clips: {counts['clips_used']} of {counts['clips']} used{f' (dropped: {dropped})' if dropped else ''}"
               f"{f', {refused} archives refused' if refused else ''}")
        dropped = _listed(counts["windows_dropped"])
        yield (f"windows of one second: {counts['windows']} = {counts['train']} train + {counts['val']} val + "
               f"{counts['test']} test ({'the index' if metadata['splits_by'] == 'index' else 'own'} splits, by clip)"
               f"{f'; dropped: {dropped}' if dropped else ''}")
        if metadata["consistency"]:
            yield from _agreement(metadata["consistency"].values())
        for clip, contradiction in list(metadata["contradictions_kept"].items())[:SHOWN_DROPS]:
            yield f"warning: {clip} contradicts itself and is kept: {contradiction}"
        if counts["curvature_fitted"]:
            bent = counts["curvature_out_of_range"]
            yield (f"curvature fitted from yaw rate where the file has none: {counts['curvature_fitted']} clips"
                   f"{f', {bent} rows of them for values that no car drives' if bent else ''}")
        yield (f"next second: {future['v_min']:.1f} to {future['v_max']:.1f} m/s, curvature {future['k_min']:.5f} to "
               f"{future['k_max']:.5f} 1/m; {counts['low_speed']} windows with less than 1 m/s, scored apart")
        if parameters["pairs"] != PAIRS:
            yield f"answers hold {parameters['pairs']} pairs, spread over the second (--pairs)"
        if parameters["messages"] and not parameters["cut"]:
            yield "note: messages name frames of whole clips (video_start, video_end); for other trainers add --cut"
        if counts["clips_dropped"] or counts["windows_dropped"] or refused:
            yield f"every drop is listed in {output / 'metadata.json'}"

    def score(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> dict:
        return score.score(predictions, train)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--overlay-video", type=Path, metavar="FILE",
                            help="also write a video of the windows that the report shows")

    def locate(self, flags: Namespace) -> tuple[str | Path, Path]:
        if flags.overlay_video and flags.overlay_video.suffix != ".mp4":
            raise UserError(f"--overlay-video {flags.overlay_video} must end in .mp4")
        return super().locate(flags)

    def check(self, evaluation: Evaluation) -> None:
        mean = score.train_mean(evaluation.train)
        for record in evaluation.records:
            score.read_row(record, mean)
        if evaluation.flags.overlay_video:
            for number in shown_rows(len(evaluation.records)):
                _future_frames(evaluation.records[number])

    def predict(self, evaluation: Evaluation) -> tuple[list[dict], dict]:
        tasks = sorted({str(record.get("task")) for record in evaluation.records})
        return evaluation.answers(), {"task": ", ".join(tasks)}

    def statistic(self, predictions: Sequence[dict], train: Sequence[dict], data: Path) -> Callable:
        return score.statistic(predictions, train)

    def notes(self, metrics: dict) -> list[str]:
        return [f"{metrics['n']} windows of one second ({metrics['task'].replace('_', ' ')}), {metrics['n_turns']} of "
                f"them turns (mean curvature of at least {metrics['turn_threshold_per_m']} 1/m), "
                f"{metrics['low_speed']['n']} under 1 m/s; {metrics['n_unreadable']} answers unreadable, "
                f"{metrics['n_partial']} with too few pairs{_of_readable(metrics['readable'])}.",
                "Errors over all pairs; paths by integrating velocity and curvature. An unreadable answer is replaced "
                "by what its question tells: the training mean, or the last motion where the past is told; its turn "
                "counts as wrong. Train mean knows nothing of the clip; the other baselines know the last second's "
                "true motion, which a model that sees only the video does not."]

    def sections(self, predictions: Sequence[dict], metrics: dict, data: Path, out: Path) -> list[Section]:
        mean = score.train_mean(records.read(data / "train.jsonl"))
        rows = [score.read_row(row, mean) for row in predictions]
        answered, scatter, windows = [row for row in rows if row.answered], out / "plots" / "scatter.png", []
        if answered:
            plots.draw_scatter(answered, scatter)
        for place, number in enumerate(shown_rows(len(rows))):
            row, file = rows[number], out / "plots" / f"window_{place:02d}.png"
            plots.draw_window(row, file)
            windows.append(Picture(file, f"{row.id}{'' if row.status == 'whole' else f'; the answer is {row.status}'}"))
        slow, moving, readable = (metrics[group]["n"] for group in ("low_speed", "moving", "readable"))
        return [
            Section("By horizon", [self._by_horizon(metrics)]),
            Section("All pairs", [Picture(scatter, f"Predicted against true in the {len(answered)} answers with a "
                                          "readable pair; on the line a prediction is exact.")] if answered else []),
            Section(f"Readable answers: {readable} windows", [Table(["", "model"], self._rows(
                {"model": metrics["readable"]}))] if 0 < readable < metrics["n"] else []),
            Section(f"Moving: {moving} windows", [self._of_group(metrics, "moving")] if slow and moving else []),
            Section(f"Under 1 m/s: {slow} windows", [self._of_group(metrics, "low_speed")] if slow else []),
            Section("Windows", [Paragraph("Evenly spread over the split, not picked by result.", True), *windows]),
        ]

    def _beside(self, metrics: dict) -> dict[str, dict]:
        return {"model": metrics} | ({"base model": metrics["base"]} if "base" in metrics else {}) | self.columns(
            metrics)

    def _of_group(self, metrics: dict, group: str) -> Table:
        beside = self._beside(metrics)
        return Table(["", *beside], self._rows({name: row[group] for name, row in beside.items()}))

    def _rows(self, beside: dict[str, dict]) -> list[list[str]]:
        """Rows of a table: every metric of a group of windows but the parse rate."""
        return [[", ".join(filter(None, (metric.label, metric.unit))),
                 *(report.number(column.get(metric.key), metric.decimals) for column in beside.values())]
                for metric in self.metrics if metric.key != "parse_rate"]

    def _by_horizon(self, metrics: dict) -> Table:
        beside, rows = self._beside(metrics), []
        for key, label, decimals in (("mae_v", "velocity error, m/s", 3), ("mae_k", "curvature error, 1/m", 5),
                                     ("distance", "distance of the paths, m", 3)):
            rows += [[f"{label}, at {second} s", *(report.number(part["horizons"][second][key], decimals)
                                                   for part in beside.values())]
                     for second, at_second in metrics["horizons"].items() if at_second["n"]]
        return Table(["", *beside], rows, "At the pair nearest to the second named.")

    def finish(self, evaluation: Evaluation, predictions: Sequence[dict], metrics: dict) -> None:
        """Write the overlay video of the windows that the report shows, if it is asked for."""
        file = evaluation.flags.overlay_video
        if not file:
            return
        mean, shown = score.train_mean(evaluation.train), []
        for number in shown_rows(len(predictions)):
            row = predictions[number]
            start, stop = _future_frames(row)
            path = records.media_file(evaluation.media_root, records.media_names(row, "video")[0])
            stop = min(stop, len(clips.frame_stamps(path)[0]))  # where frames are missing the next second has fewer
            shown.append((score.read_row(row, mean), video.read_frames(path, np.arange(start, stop))))
        plots.write_overlay(shown, file, float(stop - start))
        print(f"video of {len(shown)} windows: {file}")


def _future_frames(row: dict) -> tuple[int, int]:
    """(first, one after the last) frame of the second after a window; there are as many as in the window."""
    segment = records.video_segments(row)[0]
    if segment is None or segment[1] is None:
        raise UserError("--overlay-video needs the frames after a window, which data prepared with --cut do not have; "
                        "prepare them without --cut")
    return segment[1], 2 * segment[1] - segment[0]


def shown_rows(count: int) -> list[int]:
    """Up to SHOWN numbers below `count`, evenly spread."""
    return [i * count // min(SHOWN, count) for i in range(min(SHOWN, count))]


def _of_readable(metrics: dict) -> str:
    return (f"; the {metrics['n']} that can be read in full alone: velocity {metrics['mae_v']:.3f} m/s, curvature "
            f"{metrics['mae_k']:.5f} 1/m off") if metrics["n"] else ""


def _agreement(rows: Iterable[dict]) -> Iterator[str]:
    """Median and worst of what the columns of the clips say of each other."""
    rows, parts = list(rows), []
    for key, label, right in (("across_heading", "speed across the heading", 0),
                              ("path_over_speed", "path over speed", 1),
                              ("curvature_sign", "sign of curvature with the yaw rate", 1)):
        values = [row[key] for row in rows if row[key] is not None]
        if values:
            worst = max(values, key=lambda value: abs(value - right))
            parts.append(f"{label} {np.median(values):.3f}, worst {worst:.3f} ({len(values)} clips, {right} is right)")
    yield "consistency: " + ("; ".join(parts) or "nothing moves enough to tell")
    for key, label, unit in (("position_jumps", "position jumps", ""), ("frozen_s", "equal rows in motion", " s")):
        values = [row[key] for row in rows if row[key]]
        if values:
            yield f"{label}: in {len(values)} clips, at most {max(values):g}{unit}"


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in numbers.items())


DOMAIN = Driving()
