"""Plots of an evaluation: predicted against true, and where on the map the errors lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from overlays import plotting


def save_scatter(path: Path, target: Sequence[float], predicted: Sequence[float], ridge: Sequence[float] | None,
                 label: str) -> None:
    """Predicted against true values of every row, the model's over those of the ridge baseline."""
    figure = plotting.figure(5.6, 5.4)
    axes = _axes(figure)
    everything = np.concatenate([target, predicted, [] if ridge is None else ridge]).astype(float)
    margin = 0.05 * (np.ptp(everything) or 1)
    limits = everything.min() - margin, everything.max() + margin
    axes.plot(limits, limits, color="#999", linewidth=1)
    if ridge is not None:
        axes.scatter(target, ridge, s=26, facecolors="none", edgecolors="#b08a3c", label="ridge on the mean embedding")
    axes.scatter(target, predicted, s=26, color="#2b5d8a", label="model")
    axes.set(xlim=limits, ylim=limits, xlabel=f"true {label}", ylabel=f"predicted {label}", aspect="equal")
    axes.legend(frameon=False, fontsize=9)
    plotting.save(figure, path)


def save_residual_map(path: Path, lonlat: Sequence[Sequence[float]], residuals: Sequence[float], label: str) -> None:
    """Cities at their longitude and latitude, coloured by predicted minus true."""
    figure = plotting.figure(8.6, 4.4)
    axes = _axes(figure)
    lon, lat = np.asarray(lonlat, float).T
    reach = float(np.abs(residuals).max()) or 1.0
    points = axes.scatter(lon, lat, c=residuals, cmap="RdBu_r", vmin=-reach, vmax=reach, s=34, edgecolors="#444",
                          linewidths=0.4)
    axes.set(xlabel="longitude, degrees", ylabel="latitude, degrees")
    axes.margins(0.06)
    axes.grid(**plotting.GRID)
    axes.set_axisbelow(True)
    figure.colorbar(points, label=f"predicted - true {label}")
    plotting.save(figure, path)


def _axes(figure):
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes
