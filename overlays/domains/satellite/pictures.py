"""Pictures of an evaluation: said against true, and where on the map the errors lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from overlays.files import atomic_path


def save_scatter(path: Path, truth: Sequence[float], said: Sequence[float], ridge: Sequence[float] | None,
                 label: str) -> None:
    """Predicted against true values of every row, the model's over those of the ridge baseline."""
    figure, axes = _figure(5.6, 5.4)
    everything = np.concatenate([truth, said, [] if ridge is None else ridge]).astype(float)
    margin = 0.05 * (np.ptp(everything) or 1)
    limits = everything.min() - margin, everything.max() + margin
    axes.plot(limits, limits, color="#999", linewidth=1)
    if ridge is not None:
        axes.scatter(truth, ridge, s=26, facecolors="none", edgecolors="#b08a3c", label="ridge on the mean embedding")
    axes.scatter(truth, said, s=26, color="#2b5d8a", label="model")
    axes.set(xlim=limits, ylim=limits, xlabel=f"true {label}", ylabel=f"predicted {label}", aspect="equal")
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def save_residual_map(path: Path, lonlat: Sequence[Sequence[float]], residuals: Sequence[float], label: str) -> None:
    """Cities at their longitude and latitude, coloured by predicted minus true."""
    figure, axes = _figure(8.6, 4.4)
    lon, lat = np.asarray(lonlat, float).T
    reach = float(np.abs(residuals).max()) or 1.0
    points = axes.scatter(lon, lat, c=residuals, cmap="RdBu_r", vmin=-reach, vmax=reach, s=34, edgecolors="#444",
                          linewidths=0.4)
    axes.set(xlabel="longitude, degrees", ylabel="latitude, degrees")
    axes.margins(0.06)
    axes.grid(color="#ddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.colorbar(points, label=f"predicted - true {label}")
    _save(figure, path)


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
