"""Plots of predicted against true motion: velocity and curvature over time, the driven path, a video of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from overlays import plotting
from overlays.data.decode import import_av
from overlays.domains.driving.score import Row, integrate
from overlays.errors import UserError
from overlays.files import atomic_path

TARGET, PREDICTED, PAST = "#1b6ca8", "#c8501e", "#777777"


def draw_window(row: Row, file: Path) -> None:
    """Velocity, curvature and path of one window, predicted, true and (before 0 s) past, as a PNG."""
    figure = plotting.figure(9.6, 2.7)
    speed, bend, path_axes = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 1))
    style = {"color": PREDICTED, "marker": "o", "markersize": 4, "linestyle": "-" if row.answered else ":",
             "label": "predicted" if row.answered else _replacement(row)}
    for axes, column, unit in ((speed, 0, "velocity (m/s)"), (bend, 1, "curvature (1/m)")):
        if len(row.past) > 1:
            axes.plot(row.past_times, row.past[:, column], color=PAST, marker="o", markersize=3, label="past")
        axes.plot(row.times, row.target[:, column], color=TARGET, marker="o", markersize=4, label="true")
        axes.plot(row.times, row.predicted[:, column], **style)
        axes.axvline(0, color="#bbbbbb", linewidth=1)
        axes.set(xlabel="seconds", ylabel=unit)
        axes.grid(alpha=0.3)
    low, high = speed.get_ylim()
    speed.set_ylim(min(low, (low + high) / 2 - 1), max(high, (low + high) / 2 + 1))  # no cliff out of 0.1 m/s
    largest = max(0.002, *(np.abs(pairs[:, 1]).max() for pairs in (row.target, row.predicted, row.past)))
    bend.set_ylim(-1.15 * largest, 1.15 * largest)
    speed.legend(fontsize=7)
    reach = 1.0
    for pairs, colour in ((row.target, TARGET), (row.predicted, PREDICTED)):
        path = np.concatenate([np.zeros((1, 3)), integrate(row.times, pairs)])
        path_axes.plot(path[:, 1], path[:, 0], color=colour, marker="o", markersize=4)
        reach = max(reach, np.abs(path[:, 1]).max() * 1.2)
    path_axes.set(xlabel="left (m)", ylabel="forward (m)", xlim=(reach, -reach))
    path_axes.grid(alpha=0.3)
    plotting.save(figure, file)


def _replacement(row: Row) -> str:
    """What stands in for an answer that cannot be read."""
    return f"unreadable: {'the past is held' if row.told else 'the training mean'}"


def draw_scatter(rows: Sequence[Row], file: Path) -> None:
    """Predicted against true velocity and curvature of every pair, as a PNG."""
    figure = plotting.figure(8.4, 3.8)
    panels = figure.subplots(1, 2)
    target, predicted = np.concatenate([row.target for row in rows]), np.concatenate([row.predicted for row in rows])
    for axes, column, name in zip(panels, (0, 1), ("velocity (m/s)", "curvature (1/m)"), strict=True):
        both = np.concatenate([target[:, column], predicted[:, column]])
        ends = [both.min(), both.max()]
        axes.plot(ends, ends, color="#bbbbbb", linewidth=1)
        axes.scatter(target[:, column], predicted[:, column], s=9, alpha=0.5, color=TARGET, linewidths=0)
        axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
        axes.grid(alpha=0.3)
    plotting.save(figure, file)


# ---- video

BRIGHT_TARGET, BRIGHT_PREDICTED = "#6db6ee", "#f2935f"  # on black
SCENE, PANEL = (480, 320), 320  # pixels: width and height of the picture, side of the panel beside it


def write_overlay(rows: Sequence[tuple[Row, np.ndarray]], file: Path, fps: float) -> None:
    """A video of windows one after the other: the second that is predicted, beside it both paths and velocities.

    Args:
        rows: windows with the frames (T, H, W, 3) uint8 of their future second.
        file: an .mp4.

    Raises:
        UserError: the file does not end in .mp4.
    """
    av = import_av()

    file = Path(file)
    if file.suffix != ".mp4":
        raise UserError(f"--overlay-video {file} must end in .mp4")
    with atomic_path(file) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.width, stream.height, stream.pix_fmt = SCENE[0] + PANEL, SCENE[1], "yuv420p"
        stream.options = {"crf": "20"}
        for row, frames in rows:
            for number, frame in enumerate(frames):
                picture = _overlay(row, frame, (number + 1) / fps)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _overlay(row: Row, frame: np.ndarray, second: float) -> np.ndarray:
    """One picture of the overlay video, (height, width, 3) uint8."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (SCENE[0] + PANEL, SCENE[1]), "black")
    scene = Image.fromarray(frame)
    scale = min(SCENE[0] / scene.width, SCENE[1] / scene.height)
    size = round(scene.width * scale), round(scene.height * scale)
    picture.paste(scene.resize(size), ((SCENE[0] - size[0]) // 2, (SCENE[1] - size[1]) // 2))
    pen, left, big = ImageDraw.Draw(picture), SCENE[0], ImageFont.load_default(15)
    paths = [np.concatenate([np.zeros((1, 3)), integrate(row.times, pairs)]) for pairs in (row.target, row.predicted)]
    reach = max(5.0, *(np.abs(path[:, :2]).max() for path in paths))
    scale, foot = (PANEL - 110) / reach, (left + PANEL / 2, PANEL - 20)
    for path, pairs, colour, name, line in zip(paths, (row.target, row.predicted), (BRIGHT_TARGET, BRIGHT_PREDICTED),
                                               ("true", "predicted"), (10, 32), strict=True):
        points = [(foot[0] - y * scale, foot[1] - x * scale) for x, y, _ in path]
        pen.line(points, fill=colour, width=4)
        times = np.concatenate([[0.0], row.times])
        here = [np.interp(second, times, [point[axis] for point in points]) for axis in (0, 1)]
        pen.ellipse([here[0] - 6, here[1] - 6, here[0] + 6, here[1] + 6], fill=colour)
        v, k = (np.interp(second, row.times, pairs[:, column]) for column in (0, 1))
        for place, text in ((12, name), (92, f"{v:.2f} m/s"), (180, f"{k:+.4f} 1/m")):
            pen.text((left + place, line), text, fill=colour, font=big)
    if not row.answered:
        pen.text((left + 12, 54), _replacement(row), fill="white", font=big)
    return np.asarray(picture)
