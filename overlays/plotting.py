"""Figures without a display: one way to set them up and to save them."""

from pathlib import Path

from overlays.files import atomic_path

GRID = {"color": "#dddddd", "linewidth": 0.6}


def figure(width: float, height: float):
    """An empty matplotlib figure of so many inches whose parts do not overlap."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(drawn, path: str | Path, dpi: int = 110) -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes."""
    with atomic_path(path) as temporary:
        drawn.savefig(temporary, dpi=dpi, facecolor="white", metadata={"Software": None})
