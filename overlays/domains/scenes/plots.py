"""Plots for the report: a scene's frames beside a top view of where their visual tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from overlays import plotting
from overlays.data import records
from overlays.data.media import RGB, opener_of, to_rgb

SHOWN = 8  # frames in a picture; all of them are in the top view
INK, QUIET = "#23211d", "#6b665c"


def seen(record: Mapping) -> dict | None:
    """The part of a record that can be drawn: its pictures with their scene; None where no picture has a place."""
    images, scene = records.media_names(record, "image"), record.get("scene")
    rows = scene.get("frames") if isinstance(scene, Mapping) else None
    if not isinstance(rows, list) or any(opener_of(name) is not RGB for name in images):
        return None
    rows = rows[:len(images)]
    if not any(isinstance(row, int) for row in rows):
        return None
    return {"id": record.get("id"), "image": images, "scene": {**scene, "frames": rows}}


def draw(path: Path, record: Mapping, media_root: Path, tokens: Sequence[np.ndarray],
         poses: Sequence[np.ndarray | None]) -> None:
    """Write a PNG: frames with numbers, and the tokens of all frames from above with the cameras.

    Args:
        record: what `seen` gives.
        tokens: for each frame (tokens, 3) coordinates in metres, axis-aligned; zero rows have no valid depth.
        poses: for each frame (4, 4) camera to axis-aligned frame, or None.
    """
    from matplotlib import colormaps

    count = len(record["image"])
    colours = [colormaps["tab10" if count <= 10 else "turbo"](i if count <= 10 else i / (count - 1))
               for i in range(count)]
    shown = np.unique(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int))
    columns = 2
    rows = -(-len(shown) // columns)
    figure = plotting.figure(9.6, 4.4)
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    places = np.ravel(left.subplots(rows, columns, squeeze=False))
    for axes in places:
        axes.set_axis_off()
    for axes, i in zip(places, shown, strict=False):
        with Image.open(media_root / record["image"][i]) as picture:
            axes.imshow(np.asarray(to_rgb(picture)), interpolation="nearest")
        axes.set_title(f"frame {i + 1}", fontsize=8, color=INK, pad=2)
        axes.add_patch(_frame(axes, colours[i]))
    axes = right.subplots()
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for i, (points, pose) in enumerate(zip(tokens, poses, strict=True)):
        if pose is None:
            continue
        valid = points[(points != 0).any(1)]
        eye, ahead = pose[:2, 3], pose[:2, 2] / max(np.linalg.norm(pose[:2, 2]), 1e-9) * 0.35
        axes.scatter(valid[:, 0], valid[:, 1], s=26, color=[colours[i]], linewidths=0, alpha=0.85)
        axes.annotate("", eye + ahead, eye, arrowprops={"arrowstyle": "-|>", "color": colours[i], "lw": 1.3})
        axes.scatter(*eye, marker="s", s=20, facecolors="white", edgecolors=[colours[i]], linewidths=1.3)
        axes.annotate(str(i + 1), eye, xytext=(4, 4), textcoords="offset points", fontsize=7, color=QUIET)
        for place in (*valid[:, :2], eye):
            low, high = np.minimum(low, place), np.maximum(high, place)
    if np.isfinite(low).all():
        axes.set_xlim(low[0] - 0.4, high[0] + 0.4)
        axes.set_ylim(low[1] - 0.4, high[1] + 0.4)
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=7, colors=QUIET)
    axes.set_xlabel("x (m), east", fontsize=8, color=QUIET)
    axes.set_ylabel("y (m), north", fontsize=8, color=QUIET)
    axes.set_title("visual tokens (dots) and cameras (squares) from above", fontsize=8, color=INK)
    plotting.save(figure, path)


def _frame(axes, colour):
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=colour, linewidth=3)


def tokens_by_frame(record: Mapping, processor, media_root: Path, max_depth_m: float) -> list[np.ndarray]:
    """(tokens, 3) coordinates of each frame of `seen`, as the model gets them. Raises UserError as geometry does."""
    from overlays.data import chat, geometry

    turn = {"from": "human", "value": "<image>" * len(record["image"])}
    sample = chat.encode_prompt({**record, "conversations": [turn]}, processor, media_root)
    points = geometry.token_coordinates(record, sample, processor, media_root, max_depth_m)
    merge = processor.image_processor.merge_size
    counts = [int(grid.prod()) // merge**2 for grid in sample["image_grid_thw"]]
    return np.split(points, np.cumsum(counts)[:-1])


def camera_poses(record: Mapping, media_root: Path) -> list[np.ndarray | None]:
    """For each frame of `seen` (4, 4) camera to axis-aligned frame; None where its place is not known."""
    from overlays.data.geometry import load_metadata

    arrays = load_metadata(media_root / record["scene"]["metadata"])
    return [None if row is None else arrays["axis_align"][row] @ arrays["pose"][row]
            for row in record["scene"]["frames"]]
