"""One-second windows of a clip: which frames are seen, and the velocity and curvature of the second after them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from overlays.domains.driving.egomotion import LOW_SPEED_MPS, Egomotion
from overlays.domains.driving.skips import ClipSkip, check_unit

PAIRS = 30
MAX_FRAME_GAP_S = 0.1  # a few frames may be missing, as phones lose them
Drop = tuple[int, str, str]  # first frame of a window that is left out, the reason it is counted under, what exactly


@dataclass(frozen=True)
class Pairs:
    """Velocity and curvature at P times, evenly spread over a second.

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
        """Whether the car is slower than 1 m/s at any of the future pairs."""
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


def cut(timestamps_us: np.ndarray, egomotion: Egomotion, pairs: int = PAIRS, stride: int | None = None,
        max_gap_s: float | None = None, max_frame_gap_s: float | None = None,
        name: str = "camera") -> tuple[list[Window], list[Drop]]:
    """Windows of one clip; a 20-s clip gives 19.

    A window holds the frames of one second, by their timestamps, and is followed by another second of frames. Pairs
    stand at times, whatever the frame rate: the j-th of P at j / P s after the last frame that is seen.

    Args:
        timestamps_us: (F,) int64, when each frame was taken, on the clock of the egomotion.
        pairs: pairs in a second.
        stride: frames from one window to the next; None takes a second.
        max_gap_s: longest gap in the egomotion that is interpolated; None takes the egomotion's own `usual_gap_s`.
        max_frame_gap_s: longest time between two frames; None takes MAX_FRAME_GAP_S, or one and a half usual steps.

    Returns:
        the windows, and those left out: a window needs the egomotion of both seconds without a gap.

    Raises:
        ClipSkip: too short for one window, or timestamps out of order.
    """
    times = np.asarray(timestamps_us, np.int64)
    rate = frame_rate(times, name)
    step = float(np.median(np.diff(times)))
    if times[-1] - times[0] < 2e6 - 1.5 * step:
        raise ClipSkip("too short", f"{name} has {len(times)} frames in {(times[-1] - times[0] + step) / 1e6:.3f} s, "
                                    f"one window takes {2 * rate}, two seconds")
    gap, frame_gap = max_gap_s or egomotion.usual_gap_s, max_frame_gap_s or max(MAX_FRAME_GAP_S, 1.5e-6 * step)
    windows, dropped, start = [], [], 0
    while start < len(times):
        end = int(np.searchsorted(times, times[start] + 1e6 - step / 2))
        if end == len(times) or times[-1] < times[end] + 1e6 - 1.5 * step:
            break
        last = int(np.searchsorted(times, times[end] + 1e6 - step / 2)) - 1
        seen = times[end - 1]
        # The clocks of camera and egomotion may end together, some microseconds before the second is full.
        ahead = min(1e6, max(egomotion.times_us[-1] - seen, 0.99e6))
        past_us = seen - np.linspace(min(1e6 - 1e6 / pairs, seen - times[start]), 0, pairs)
        future_us = seen + np.arange(1, pairs + 1) * ahead / pairs
        longest = np.diff(times[start:last + 1]).max() / 1e6
        problem = egomotion.problem(times[start], max(int(future_us[-1]), seen + 1), gap)
        if longest > frame_gap:
            problem = "gap in the camera timestamps", f"{longest:.3f} s, above {frame_gap:.3f} s (--max-frame-gap)"
        if problem:
            dropped.append((start, *problem))
        else:
            past, future = (Pairs((at - seen) / 1e6, *egomotion.at(at)) for at in map(np.rint, (past_us, future_us)))
            windows.append(Window(start, end, int(times[start]), past, future))
        start = start + stride if stride else end
    return windows, dropped
