"""Plots of GUI grounding: target, prediction and the measured ellipse on a screenshot; bars of users."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from overlays import plotting
from overlays.data import media
from overlays.domains.gui.coordinates import GRID
from overlays.domains.gui.score import RADIUS

HEIGHT = 640  # pixels of a drawn screen
TARGET, HIT, MISS = (30, 90, 220), (20, 150, 60), (210, 40, 40)


def draw_tap(screenshot: Path, target: tuple[float, float], point: tuple[float, float] | None) -> Image.Image:
    """A screenshot with the true tap (blue cross), the ellipse that counts as a hit, and the prediction.

    The circle of RADIUS grid units is an ellipse on a screen that is not square: it is drawn as it is measured.
    """
    image = media.open_rgb(screenshot)
    image = image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT), Image.Resampling.LANCZOS)
    width, height = image.size
    pen = ImageDraw.Draw(image, "RGBA")
    x, y = target[0] * width / GRID, target[1] * height / GRID
    rx, ry = RADIUS * width / GRID, RADIUS * height / GRID
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=(*TARGET, 40), outline=(*TARGET, 255), width=2)
    pen.line((x - 8, y, x + 8, y), fill=TARGET, width=3)
    pen.line((x, y - 8, x, y + 8), fill=TARGET, width=3)
    if point is not None:
        hit = (point[0] - target[0]) ** 2 + (point[1] - target[1]) ** 2 <= RADIUS**2
        shown = [min(max(value, -GRID), 2 * GRID) for value in point]  # far off is as invisible as very far off
        x, y = shown[0] * width / GRID, shown[1] * height / GRID
        pen.ellipse((x - 9, y - 9, x + 9, y + 9), fill=HIT if hit else MISS, outline="white", width=2)
    return image


def draw_users(stages: dict[str, dict[str, dict]], file: Path) -> None:
    """Bars of click accuracy by user, one colour a stage, with 95 % intervals.

    Args:
        stages: stage -> user -> its metrics with "interval", as in `score`.
    """
    users = list(next(iter(stages.values())))
    figure = plotting.figure(max(6, 0.9 * len(users)), 3.6)
    axes = figure.add_subplot()
    width = 0.8 / len(stages)
    for i, (stage, rows) in enumerate(stages.items()):
        places = [j + (i - (len(stages) - 1) / 2) * width for j in range(len(users))]
        values = [rows[user]["click_accuracy"] if user in rows else 0.0 for user in users]
        bounds = [rows[user]["interval"]["click_accuracy"] if user in rows else (0.0, 0.0) for user in users]
        spread = [[max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)],
                  [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)]]
        axes.bar(places, values, width, label=stage, yerr=spread, capsize=2, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(users)), users)
    axes.set(xlabel="user", ylabel=f"click accuracy within {RADIUS}", ylim=(0, 1))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=len(stages), fontsize=8)
    plotting.save(figure, file)


def shown_rows(rows: Sequence[dict], count: int) -> list[dict]:
    """Up to `count` rows, evenly spread over the users and their taps; not picked by result."""
    return [rows[i * len(rows) // min(count, len(rows))] for i in range(min(count, len(rows)))]
