"""One-second windows of a clip: which frames are seen, and the velocity and curvature of the second after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from overlays.domains.driving.egomotion import LOW_SPEED_MPS, Egomotion
from overlays.domains.driving.skips import ClipSkip, check_unit

Drop = tuple[int, str, str]  # first frame of a window that is left out, the reason it is counted under, what exactly


@dataclass(frozen=True)
class Pairs:
    """Velocity and curvature at P frames.

    times: (P,) seconds from the last frame that is seen; v: (P,) m/s, signed; k: (P,) 1/m, + to the left.
    """

    times: np.ndarray
    v: np.ndarray
    k: np.ndarray


@dataclass(frozen=True)
class Window:
    """Frames `start` to `end` (exclusive) are seen; `past` is their motion, `future` that of the next second."""

    start: int
    end: int
    start_us: int
    past: Pairs
    future: Pairs

    @property
    def low_speed(self) -> bool:
        """Whether the car is slower than 1 m/s at any of the future frames."""
        return bool((np.abs(self.future.v) < LOW_SPEED_MPS).any())


def frame_rate(timestamps_us: np.ndarray, name: str = "camera") -> int:
    """Whole frames in a second, from the median distance of the timestamps: 30 for 29.97.

    Raises:
        ClipSkip: fewer than two timestamps, or timestamps out of order or not in microseconds.
    """
    if len(timestamps_us) < 2:
        raise ClipSkip("too short", f"{name} has {len(timestamps_us)} frames")
    steps = np.diff(timestamps_us)
    if (steps <= 0).any():
        frame = int(np.flatnonzero(steps <= 0)[0]) + 1
        raise ClipSkip("camera timestamps out of order", f"{name}: frame {frame} ({timestamps_us[frame]} us) is not "
                                                          f"after frame {frame - 1} ({timestamps_us[frame - 1]} us)")
    check_unit(timestamps_us, name)
    return max(1, round(1e6 / float(np.median(steps))))


def pair_frames(second: int, pairs: int) -> np.ndarray:
    """Numbers within a second of `second` frames at which pairs are given: evenly spread, the last one always."""
    return np.rint(np.arange(1, pairs + 1) * second / pairs).astype(int) - 1


def cut(timestamps_us: np.ndarray, egomotion: Egomotion, pairs: int | None = None, stride: int | None = None,
        max_gap_s: float | None = None, name: str = "camera") -> tuple[list[Window], list[Drop]]:
    """Windows of one clip; a 20-s clip at 30 fps gives 19.

    Args:
        timestamps_us: (F,) int64, when each frame was taken, on the clock of the egomotion.
        pairs: pairs in a second; None gives one for every frame.
        stride: frames from one window to the next; None takes a second.
        max_gap_s: longest gap in the egomotion that is interpolated; None takes the egomotion's own `usual_gap_s`.

    Returns:
        the windows, and those left out: a window needs two seconds of egomotion without a gap, and two seconds of
        frames of which none is missing.

    Raises:
        ClipSkip: too short for one window, or timestamps out of order.
    """
    timestamps_us = np.asarray(timestamps_us, np.int64)
    second = frame_rate(timestamps_us, name)
    if len(timestamps_us) < 2 * second:
        raise ClipSkip("too short", f"{name} has {len(timestamps_us)} frames, one window takes {2 * second}")
    if pairs is not None and not 1 <= pairs <= second:
        raise ClipSkip("too few frames", f"{name} has {second} frames a second, {pairs} pairs were asked for")
    frames_of_pairs = pair_frames(second, pairs or second)
    steps = np.diff(timestamps_us)
    usual = np.median(steps)
    windows, dropped, gap = [], [], max_gap_s or egomotion.usual_gap_s
    for start in range(0, len(timestamps_us) - 2 * second + 1, stride or second):
        times = timestamps_us[start:start + 2 * second]
        problem = egomotion.problem(times[0], times[-1], gap)
        longest = steps[start:start + 2 * second - 1].max()
        if longest > 1.5 * usual:
            problem = "gap in the camera timestamps", f"{longest / 1e6:.3f} s, {usual / 1e6:.3f} s is usual"
        if problem:
            dropped.append((start, *problem))
            continue
        motion = egomotion.at(times)
        seconds = (times - times[second - 1]) / 1e6
        past, future = (Pairs(seconds[at], motion.speed[at], motion.curvature[at])
                        for at in (frames_of_pairs, second + frames_of_pairs))
        windows.append(Window(start, start + second, int(times[0]), past, future))
    return windows, dropped
