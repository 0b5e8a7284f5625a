"""Motion of the car from an egomotion file: checked, and interpolated at the times of camera frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import numpy as np
from scipy.spatial.transform import Rotation

from overlays.data.tables import read_frame
from overlays.domains import base
from overlays.domains.driving.answers import MAX_CURVATURE, MAX_SPEED_MPS
from overlays.domains.driving.skips import ClipSkip, check_unit

POSE = ("qx", "qy", "qz", "qw", "x", "y", "z")
VELOCITY = ("vx", "vy", "vz")
MAX_GAP_S = 0.1  # longest stretch between two rows that is interpolated, unless rows are usually further apart
FIT_S = 1.0  # span of the least-squares fit of curvature
JUMP_M = 1.0  # a step of the position, beyond twice the distance that the speed explains
FROZEN_S = 0.5  # equal rows of a moving car for longer are a sensor that stands; satellite receivers repeat theirs
LOW_SPEED_MPS = 1.0  # under this speed curvature is hardly defined: such moments are flagged and scored apart

VelocityFrame, QuaternionOrder = Literal["start", "car"], Literal["xyzw", "wxyz"]
CurvatureSign, SpeedUnit = Literal["left", "right"], Literal["m/s", "km/h", "mph", "knots", "ft/s"]
RigAxes = Literal["flu", "frd"]  # x forward, and y left, z up, or y right, z down
SPEED_UNITS: dict[SpeedUnit, float] = {  # in m/s
    "m/s": 1.0, "km/h": 1 / 3.6, "mph": 0.44704, "knots": 1852 / 3600, "ft/s": 0.3048}


@dataclass(frozen=True)
class Conventions(base.Conventions):
    """How an egomotion file is read; each field is a flag of prepare.

    Attributes:
        velocity_frame: of vx vy vz: "start", the rig's at t = 0, or "car", the rig's at the row's own time.
        quaternion_order: of the columns qx qy qz qw; "wxyz" where the first of them holds w.
        curvature_sign: the side to which curvature is positive.
        speed_unit: of vx vy vz.
        rig_axes: of the rig that the quaternion turns; "frd" also reads files of left-handed axes.
    """

    velocity_frame: VelocityFrame = "start"
    quaternion_order: QuaternionOrder = "xyzw"
    curvature_sign: CurvatureSign = "left"
    speed_unit: SpeedUnit = "m/s"
    rig_axes: RigAxes = "flu"

    def others(self) -> Iterator[Conventions]:
        """All other conventions by which a file can be read."""
        every = product(*map(get_args, get_type_hints(Conventions).values()))
        return (other for other in (Conventions(*values) for values in every) if other != self)


@dataclass(frozen=True)
class Egomotion:
    """Rows of an egomotion file in ascending time; vectors are in the rig's frame at t = 0: x forward, y left, z up.

    Attributes:
        times_us: (N,) int64, microseconds; 0 is the start of the clip, rows may lie before it.
        position: (N, 3) m. rotation: N rotations. velocity: (N, 3) m/s. speed: (N,) m/s along the heading, signed.
        curvature: (N,) 1/m, + to the left. fitted: (N,) bool, where it was fitted for want of a value in the file.
        repairs: rows left out while reading: {"repeated": n, "not finite": n, "too fast": n}.
        bent: (N,) bool, rows whose curvature, beyond MAX_CURVATURE, counts as missing.
        rig_axes: that the file was read with; `rotation` is that of a rig with z up.
    """

    times_us: np.ndarray
    position: np.ndarray
    rotation: Rotation
    velocity: np.ndarray
    speed: np.ndarray
    curvature: np.ndarray
    fitted: np.ndarray
    bent: np.ndarray
    repairs: dict[str, int] = field(default_factory=dict)
    rig_axes: RigAxes = "flu"

    @property
    def usual_gap_s(self) -> float:
        """Longest gap that is interpolated where nobody says another: MAX_GAP_S, or one and a half usual steps."""
        return max(MAX_GAP_S, 1.5e-6 * float(np.median(np.diff(self.times_us))))

    def gaps(self, longest_s: float) -> np.ndarray:
        """(G, 2) int64: first and last microsecond of every stretch longer than `longest_s` without a row."""
        wide = np.flatnonzero(np.diff(self.times_us) > longest_s * 1e6)
        return np.stack([self.times_us[wide], self.times_us[wide + 1]], 1)

    @cached_property
    def jumps(self) -> np.ndarray:
        """(N - 1,) bool: steps of the position far beyond what the speed explains since the position last changed."""
        speed = np.linalg.norm(self.velocity, axis=1)
        changed = np.concatenate([[True], (np.diff(self.position, axis=0) != 0).any(1)])
        last = np.maximum.accumulate(np.where(changed, np.arange(len(changed)), 0))
        seconds = (self.times_us[1:] - self.times_us[last[:-1]]) / 1e6
        return np.linalg.norm(np.diff(self.position, axis=0), axis=1) > JUMP_M + 2 * seconds * np.maximum(
            speed[1:], speed[:-1])

    @cached_property
    def _equal(self) -> np.ndarray:
        """(G, 2) int64: first and last microsecond of every run of equal rows in which the car moves."""
        rows = np.concatenate([self.position, self.rotation.as_quat(), self.velocity], 1)
        equal = (rows[1:] == rows[:-1]).all(1) & (np.abs(self.speed[1:]) > LOW_SPEED_MPS)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]]).astype(int))).reshape(-1, 2)
        return self.times_us[edges].reshape(-1, 2)

    def frozen(self, longest_s: float) -> np.ndarray:
        """(G, 2) int64: first and last microsecond of every longer run of equal rows in which the car moves."""
        return self._equal[np.diff(self._equal, axis=1)[:, 0] > longest_s * 1e6]

    def problem(self, first_us: int, last_us: int, longest_s: float) -> tuple[str, str] | None:
        """Why nothing can be said about the motion between two times: a reason and what exactly, or None."""
        if first_us < self.times_us[0] or last_us > self.times_us[-1]:
            return "outside the egomotion", (f"{first_us / 1e6:.3f} to {last_us / 1e6:.3f} s, the egomotion runs from "
                                             f"{self.times_us[0] / 1e6:.3f} to {self.times_us[-1] / 1e6:.3f} s")
        jumped = np.flatnonzero(self.jumps)
        for spans, reason, detail in (
                (self.gaps(longest_s), "gap in the egomotion", "s without a row, above {longest:.3f} s (--max-gap)"),
                (self.frozen(max(longest_s, FROZEN_S)), "frozen egomotion",
                 "s of equal rows, though the car moves, above {frozen:.3f} s"),
                (np.stack([self.times_us[jumped], self.times_us[jumped + 1]], 1), "position jump",
                 "s for a step of the position that the speed does not explain")):
            spans = spans[(spans[:, 0] < last_us) & (spans[:, 1] > first_us)]
            if len(spans):
                return reason, f"{np.diff(spans).max() / 1e6:.3f} {detail}".format(
                    longest=longest_s, frozen=max(longest_s, FROZEN_S))
        return None

    def at(self, times_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(T,) speed and (T,) curvature at (T,) times in microseconds, linear between two rows.

        Raises:
            ValueError: a time before the first or after the last row; nothing is extrapolated.
        """
        times_us = np.asarray(times_us, np.int64)
        if times_us.size and (times_us.min() < self.times_us[0] or times_us.max() > self.times_us[-1]):
            raise ValueError(f"times {times_us.min()}..{times_us.max()} us leave the egomotion, "
                             f"{self.times_us[0]}..{self.times_us[-1]} us")
        return np.interp(times_us, self.times_us, self.speed), np.interp(times_us, self.times_us, self.curvature)


def read(source: Path | bytes, name: str = "", conventions: Conventions = Conventions(),
         fastest_mps: float = MAX_SPEED_MPS) -> Egomotion:
    """An egomotion parquet file, its path or its content.

    Columns `timestamp` (microseconds), qx qy qz qw, x y z (m), vx vy vz, and `curvature` (1/m), which is fitted
    (`fit_curvature`) where it is missing, not a number or beyond MAX_CURVATURE, which a standing car's may be. Rows
    repeated with the same time and rows with a number that is not finite or a speed above `fastest_mps` are left
    out, which may open a gap.

    Raises:
        ClipSkip: no parquet file, columns missing or of text, fewer than two rows, timestamps out of order or not in
            microseconds.
    """
    name = name or (source.name if isinstance(source, Path) else "egomotion")
    try:
        table = read_frame(source)
    except ValueError as error:
        raise ClipSkip("unreadable egomotion", f"{name}: {error}") from None
    if "timestamp" not in table.columns and table.index.name == "timestamp":
        table = table.reset_index()
    missing = [column for column in ("timestamp", *POSE, *VELOCITY) if column not in table.columns]
    if missing:
        raise ClipSkip("egomotion without columns", f"{name} lacks {', '.join(missing)}")
    times = table["timestamp"].to_numpy()
    if times.dtype.kind not in "iu":
        raise ClipSkip("unreadable egomotion", f"{name}: timestamp must be whole microseconds, not {times.dtype}")
    times = times.astype(np.int64)
    if (np.diff(times) < 0).any():
        row = int(np.flatnonzero(np.diff(times) < 0)[0]) + 1
        raise ClipSkip("egomotion out of order", f"{name}: row {row} ({times[row]} us) is before the row above it "
                                                  f"({times[row - 1]} us)")
    values = np.stack([_numbers(table, column, name) for column in (*POSE, *VELOCITY)], 1)
    values[:, 7:10] *= SPEED_UNITS[conventions.speed_unit]
    if conventions.quaternion_order == "wxyz":
        values[:, :4] = np.roll(values[:, :4], -1, axis=1)
    finite = np.isfinite(values).all(1) & (np.linalg.norm(values[:, :4], axis=1) > 0.5)
    sound = finite & (np.linalg.norm(values[:, 7:10], axis=1) <= fastest_mps)
    first = np.concatenate([[True], np.diff(times[sound]) > 0])[: sound.sum()]
    kept = np.flatnonzero(sound)[first]
    repairs = {"repeated": int((~first).sum()), "not finite": int((~finite).sum()),
               "too fast": int((finite & ~sound).sum())}
    repairs = {reason: number for reason, number in repairs.items() if number}
    if len(kept) < 2:
        left_out = ", ".join(f"{number} {reason}" for reason, number in repairs.items())
        raise ClipSkip("unreadable egomotion", f"{name} has fewer than two usable rows of {len(table)}"
                                                f"{f' (left out: {left_out})' if left_out else ''}")
    check_unit(times[kept], name)
    times, values = times[kept], values[kept]
    rotation, velocity = Rotation.from_quat(values[:, :4]), values[:, 7:10]
    if conventions.velocity_frame == "car":
        velocity = rotation.apply(velocity)
    rotation = with_z_up(rotation, conventions.rig_axes)
    speed = forward_speed(rotation, velocity)
    given = (_numbers(table, "curvature", name) if "curvature" in table.columns else np.full(len(table), np.nan))[kept]
    fitted = ~(np.abs(given) <= MAX_CURVATURE)
    curvature = given if conventions.curvature_sign == "left" else -given
    curvature = np.where(fitted, fit_curvature(times, rotation, speed), curvature) if fitted.any() else curvature
    return Egomotion(times, values[:, 4:7], rotation, velocity, speed, curvature, fitted,
                     np.abs(given) > MAX_CURVATURE, repairs, conventions.rig_axes)


def with_z_up(rotation: Rotation, axes: RigAxes) -> Rotation:
    """N rotations of a rig with given axes as those of x forward, y left, z up; and back."""
    return rotation * Rotation.from_quat([1.0, 0.0, 0.0, 0.0]) if axes == "frd" else rotation


def forward_speed(rotation: Rotation, velocity: np.ndarray) -> np.ndarray:
    """(N,) m/s along the heading of N rotations, negative when reversing."""
    return (velocity * rotation.apply([1.0, 0.0, 0.0])).sum(1)


def _numbers(table, column: str, name: str) -> np.ndarray:
    """(N,) float64 of a column, NaN where it has no value. Raises ClipSkip where it holds something else."""
    try:
        return table[column].to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise ClipSkip("unreadable egomotion", f"{name}: column {column} holds something else than numbers") from None


def yaw_rates(seconds: np.ndarray, rotation: Rotation) -> np.ndarray:
    """(N,) rad/s about the rig's own z axis, of N >= 2 rotations at ascending seconds."""
    steps = (rotation[:-1].inv() * rotation[1:]).as_rotvec()[:, 2] / np.diff(seconds)
    return np.interp(seconds, (seconds[:-1] + seconds[1:]) / 2, steps)


def fit_curvature(times_us: np.ndarray, rotation: Rotation, speed: np.ndarray, span_s: float = FIT_S) -> np.ndarray:
    """Curvature by least squares of yaw rate w on speed v: sum(w v) / (sum(v^2) + 1) over one second around each row.

    The 1 (m/s)^2 holds the quotient at 0 where the car stands.

    Args:
        times_us: (N,) ascending, N >= 2. rotation: N rotations. speed: (N,) m/s.

    Returns:
        (N,) 1/m, + to the left, within MAX_CURVATURE.
    """
    seconds = (times_us - times_us[0]) / 1e6
    yaw_rate = yaw_rates(seconds, rotation)
    low = np.searchsorted(seconds, seconds - span_s / 2, side="left")
    high = np.searchsorted(seconds, seconds + span_s / 2, side="right")

    def total(values: np.ndarray) -> np.ndarray:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return sums[high] - sums[low]

    return np.clip(total(yaw_rate * speed) / (total(speed**2) + 1.0), -MAX_CURVATURE, MAX_CURVATURE)
