"""Plots of a prepared scene: composites, label map with legend, split map."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from overlays import plotting
from overlays.domains.cuprite.areas import Area
from overlays.domains.cuprite.classes import CLASSES
from overlays.domains.cuprite.composites import COMPOSITES_NM

SPLIT_COLORS = {"train": "#3fa7ff", "val": "#ffc94d", "test": "#ff5d73"}
TITLES = {"clay": "Clay", "iron": "Iron oxide", "natural": "Natural colour", "swir": "Short-wave infrared"}


def save_composites(path: Path, images: dict[str, np.ndarray]) -> None:
    """The composites (h, w, 3) uint8 side by side, each under its name and wavelengths."""
    figure, axes = _figure(next(iter(images.values())).shape, len(images))
    for axis, (name, image) in zip(axes, images.items(), strict=True):
        _show(axis, image)
        red, green, blue = COMPOSITES_NM[name]
        axis.set_title(f"{TITLES[name]}  ·  {red:.0f} / {green:.0f} / {blue:.0f} nm", fontsize=11)
    plotting.save(figure, path, dpi=150)


def save_label_map(path: Path, codes: np.ndarray, valid: np.ndarray, backdrop: np.ndarray, source: str) -> None:
    """Minerals in their colours over the darkened scene, with a legend that gives each one's share.

    Args:
        codes: (h, w) uint8; valid: (h, w) bool; backdrop: (h, w, 3) uint8; source: where the labels come from.
    """
    from matplotlib.patches import Patch

    colors = np.array([mineral.color for mineral in CLASSES], np.float32)
    grey = backdrop.astype(np.float32).mean(-1, keepdims=True)
    ground = np.repeat(0.16 * 255 + 0.38 * grey, 3, -1)
    picture = np.where((codes > 0)[:, :, None], colors[codes] * (0.72 + 0.28 * grey / 255), ground)
    picture[~valid] = 255
    figure, (axis,) = _figure(codes.shape, 1, legend=2.9)
    _show(axis, picture.astype(np.uint8))
    axis.set_title(f"Mineral labels  ·  {source}", fontsize=11)
    shares = np.bincount(codes[valid], minlength=len(CLASSES)) / max(int(valid.sum()), 1)
    handles = [Patch(facecolor=np.array(mineral.color) / 255 if mineral.code else (0.36, 0.36, 0.36),
                     label=f"{mineral.name}   {share:.1%}")
               for mineral, share in zip(CLASSES, shares, strict=True)]
    axis.legend(handles=[*handles[1:], handles[0]], loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False,
                fontsize=10, labelspacing=0.75, handlelength=1.4, handleheight=1.2)
    plotting.save(figure, path, dpi=150)


def save_clay_index(path: Path, depth: np.ndarray) -> None:
    """Depth of the 2.2 um absorption of clays and micas, (h, w), NaN where there is no data."""
    figure, (axis,) = _figure(depth.shape, 1, legend=1.2)
    known = depth[np.isfinite(depth)].astype(np.float32)
    top = max(float(np.percentile(known, 99)), 0.01) if known.size else 0.01
    shown = axis.imshow(depth.astype(np.float32), cmap="magma", vmin=0, vmax=top, interpolation="antialiased")
    _plain(axis)
    axis.set_title("Clay index  ·  depth of the 2.2 µm absorption", fontsize=11)
    figure.colorbar(shown, ax=axis, shrink=0.8, label="1 - R / continuum")
    plotting.save(figure, path, dpi=150)


def save_split_map(path: Path, backdrop: np.ndarray, areas: dict[str, Area], counts: dict[str, int],
                   tiles: dict[str, list[tuple[int, int]]], tile: int) -> None:
    """Areas of the splits over the scene; ground outside them is the buffer and is darkened.

    Args:
        backdrop: (h, w, 3) uint8; counts: tiles of each split; tiles: upper left corners of the kept tiles;
            tile: side in pixels.
    """
    from matplotlib.patches import Patch, Rectangle

    covered = np.zeros(backdrop.shape[:2], bool)
    for corners in tiles.values():
        for row, col in corners:
            covered[row:row + tile, col:col + tile] = True
    picture = np.where(covered[:, :, None], backdrop, backdrop * 0.28).astype(np.uint8)
    figure, (axis,) = _figure(backdrop.shape, 1, legend=2.3)
    _show(axis, picture)
    for name, area in areas.items():
        box = (area.col - 0.5, area.row - 0.5), area.col_stop - area.col, area.row_stop - area.row
        axis.add_patch(Rectangle(*box, facecolor=SPLIT_COLORS[name], alpha=0.10, linewidth=0))
        axis.add_patch(Rectangle(*box, facecolor="none", edgecolor=SPLIT_COLORS[name], linewidth=2.4))
        axis.text(area.col + 0.025 * backdrop.shape[1], area.row + 0.025 * backdrop.shape[0], name, va="top",
                  fontsize=12, weight="bold", color="#1b1b1b",
                  bbox={"facecolor": SPLIT_COLORS[name], "edgecolor": "none", "boxstyle": "round,pad=0.3"})
    axis.set_title(f"Splits by area  ·  tiles of {tile} px", fontsize=11)
    handles = [Patch(facecolor=SPLIT_COLORS[name], label=f"{name}   {counts[name]} tiles") for name in areas]
    handles.append(Patch(facecolor="#333333", label="buffer, no data"))
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=10,
                labelspacing=0.9, handlelength=1.4, handleheight=1.2)
    plotting.save(figure, path, dpi=150)


def _figure(shape: tuple[int, ...], panels: int, legend: float = 0.0):
    height, width = shape[:2]
    side = 4.6 if panels > 1 else 6.4
    inches = (side, side * height / width) if width >= height else (side * width / height, side)
    figure = plotting.figure(inches[0] * panels + legend + 0.5, inches[1] + 0.6)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _show(axis, image: np.ndarray) -> None:
    axis.imshow(image, interpolation="antialiased")
    _plain(axis)


def _plain(axis) -> None:
    axis.tick_params(labelsize=8, length=2, color="#999999", labelcolor="#666666")
    for spine in axis.spines.values():
        spine.set_visible(False)
