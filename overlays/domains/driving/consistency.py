"""Whether an egomotion file agrees with itself: heading, velocity, position and curvature say the same thing twice."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import lsq_linear
from scipy.spatial.transform import Rotation, Slerp

from overlays.domains.driving.answers import MAX_CURVATURE
from overlays.domains.driving.egomotion import (
    SPEED_UNITS,
    Conventions,
    Egomotion,
    fit_curvature,
    forward_speed,
    with_z_up,
    yaw_rates,
)

CHORD_M, SPAN_S = 5.0, 0.5  # least distance and time between positions that are compared, for their noise
MOVING_MPS = 1.0
MAX_ACROSS, MAX_RESIDUAL = 0.1, 0.06  # shares of the speed across the heading; twice that of the path
MAX_TILT, MAX_LEVER_M = 0.2, 4.0  # what a mounting (rad) and a reference point off the rear axle may explain
MAX_BACKWARD_MPS = 5.0  # median; faster than a car is driven in reverse
PATH_OVER_SPEED, CURVATURE_OVER_YAW, OPPOSITE = (0.8, 1.25), (0.5, 2.0), -0.5
MIN_PATH_M, MIN_TURN_RAD, TURNED_DEG = 5.0, 0.1, 20.0  # with less than these, a file tells nothing
UPSIDE_DOWN = -0.5  # cosine of the rig's z axis with up
EARTH_M = 6.3e6, 6.5e6  # distances from the centre of the earth
HOLD_S = 2.0  # a position that stands for longer at either end of a file was not measured there
STILL_M = 20.0  # positions of a standing car wander no farther
MAX_BEYOND = 0.1  # share of rows in motion whose curvature may be one that no car drives
BLOCK_S = 20.0  # time in which curvature adds up to the heading
MAX_UNEXPLAINED = {False: 0.5, True: 0.15}  # share that it may miss, where it has both signs and where it has one


@dataclass(frozen=True)
class Agreement:
    """What the columns of one file say of each other; None where too little moves or turns to tell.

    across_heading: share of the speed that goes across the heading; 0 when right.
    across_residual: what remains of it where mounting and reference point explain as much as they can.
    path_across_heading, path_across_residual: the same of the path from position to position; 0 when right.
    path_over_speed: length of that path over the integral of speed, negative where they point apart; 1 when
        right.
    median_speed: m/s along the heading, of the moving rows, negative backwards.
    curvature_sign: agreement of the signs of yaw rate x speed and curvature, from -1 to 1; 1 when right.
    curvature_over_yaw: curvature over that of yaw rate and speed, as near to 1 as noise in either allows.
    curvature_beyond: share of the rows in motion whose curvature no car drives; 0 when right.
    curvature_one_sided: whether it has one sign alone.
    heading_unexplained: share of the turns that curvature times speed does not add up to, beyond noise; 0 when
        right.
    up: cosine of the rig's z axis with the world's up; 1 when right, None where the world's z may point down.
    turned_deg: largest change of the heading.
    position_jumps: steps of the position that the speed does not explain.
    frozen_s: longest time in seconds for which the rows of a moving car are equal.
    """

    across_heading: float | None
    across_residual: float | None
    path_across_heading: float | None
    path_across_residual: float | None
    path_over_speed: float | None
    median_speed: float | None
    curvature_sign: float | None
    curvature_over_yaw: float | None
    curvature_beyond: float | None
    curvature_one_sided: bool
    heading_unexplained: float | None
    up: float | None
    turned_deg: float
    position_jumps: int
    frozen_s: float

    @property
    def contradiction(self) -> tuple[str, str] | None:
        """(reason, detail) of the first one that concerns the whole file; None where there is none."""
        across, path, sign, ratio = (self.across_heading, self.path_over_speed, self.curvature_sign,
                                     self.curvature_over_yaw)
        if across is not None and across > MAX_ACROSS and self.across_residual > MAX_RESIDUAL:
            return "velocity across the heading", (f"{across:.3f} of the speed goes across the heading (0 when right, "
                                                   f"at most {MAX_ACROSS})")
        if path is not None and not PATH_OVER_SPEED[0] <= path <= PATH_OVER_SPEED[1]:
            return "path and speed differ", (f"the path between the positions is {abs(path):.3f} times as long as "
                                             f"speed says{', and opposite to it' if path < 0 else ''}")
        aside = self.path_across_heading
        if aside is not None and aside > 2 * MAX_ACROSS and self.path_across_residual > 2 * MAX_RESIDUAL:
            return "path across the heading", f"{aside:.3f} of the path goes across the heading (0 when right)"
        if self.median_speed is not None and self.median_speed < -MAX_BACKWARD_MPS:
            return "driving backwards", f"the median speed along the heading is {self.median_speed:.1f} m/s"
        if self.up is not None and self.up < UPSIDE_DOWN:
            return "rig upside down", ("the rig's z axis points down (--rig-axes frd reads x forward, y right, z down; "
                                       "--quaternion-order wxyz a w that stands first)")
        if sign is not None and sign < OPPOSITE:
            return "curvature against the yaw rate", (f"yaw rate and curvature have opposite signs (agreement "
                                                      f"{sign:.3f}, 1 when right)")
        if ratio is not None and not CURVATURE_OVER_YAW[0] <= ratio <= CURVATURE_OVER_YAW[1]:
            return "curvature and yaw rate differ", (f"curvature is {ratio:.3f} times what yaw rate and speed say "
                                                     "(1 when right)")
        if (self.curvature_beyond or 0) > MAX_BEYOND:
            return "curvature and yaw rate differ", (f"{self.curvature_beyond:.0%} of the rows in motion have a "
                                                     f"curvature beyond {MAX_CURVATURE:g} 1/m, which no car drives")
        if (self.heading_unexplained or 0) > MAX_UNEXPLAINED[self.curvature_one_sided]:
            sides = ", and all of it is to one side" if self.curvature_one_sided else ""
            return "curvature and yaw rate differ", (f"curvature and speed leave {self.heading_unexplained:.2f} of the "
                                                     f"turns of the heading unexplained (0 when right){sides}")
        return None

    def tells(self, flag: str) -> bool:
        """Whether the file would contradict itself if it were read with a flag that is wrong for it."""
        if "speed-unit" in flag:
            return self.path_over_speed is not None
        if "curvature-sign" in flag:
            return self.curvature_sign is not None
        if "rig-axes" in flag:
            return self.up is not None and abs(self.up) > abs(UPSIDE_DOWN)
        return self.turned_deg >= TURNED_DEG

    def numbers(self) -> dict[str, float | int | None]:
        """As metadata.json keeps them."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}


def measure(motion: Egomotion) -> Agreement:
    """Agreement of the columns of a file."""
    seconds = (motion.times_us - motion.times_us[0]) / 1e6
    speed = np.linalg.norm(motion.velocity, axis=1)
    steps_m = (speed[1:] + speed[:-1]) / 2 * np.diff(seconds)
    driven = np.concatenate([[0.0], np.cumsum(steps_m)])
    known = _measured(motion, seconds)
    across, path, aside = (None, None), None, (None, None)
    moves = speed > MOVING_MPS
    if driven[-1] >= MIN_PATH_M and moves.any():
        turns = yaw_rates(seconds, motion.rotation)[moves]
        across = _across(motion.rotation[moves], motion.velocity[moves], turns)
    progress = np.concatenate([[0.0], np.cumsum(np.minimum(steps_m / CHORD_M, np.diff(seconds) / SPAN_S))])
    marks = np.unique(np.searchsorted(progress, np.minimum(np.arange(progress[-1] + 1e-9), progress[-1])))
    marks = marks[known[marks]]
    usable = np.diff(driven[marks]) > MOVING_MPS * np.diff(seconds[marks])
    first, last = marks[:-1][usable], marks[1:][usable]
    distance_m = (driven[last] - driven[first]).sum()
    if distance_m >= MIN_PATH_M:
        chords = motion.position[last] - motion.position[first]
        agrees = (chords * motion.velocity[(first + last) // 2]).sum() >= 0
        path = float(np.linalg.norm(chords, axis=1).sum() / distance_m) * (1 if agrees else -1)
        middles = np.interp((driven[first] + driven[last]) / 2, driven, seconds)
        turns = (motion.rotation[first].inv() * motion.rotation[last]).as_rotvec()[:, 2]
        aside = _across(Slerp(seconds, motion.rotation)(middles), chords, turns) if path else aside
    elif (farthest := _farthest(motion)) > max(STILL_M, 2 * driven[-1]):
        path = farthest / max(driven[-1], 1.0)
    along = motion.speed[np.abs(motion.speed) > MOVING_MPS]
    turned = np.degrees((motion.rotation[0].inv() * motion.rotation).magnitude().max())
    one_sided = bool((motion.curvature >= 0).all() or (motion.curvature <= 0).all())
    return Agreement(*across, *aside, path, float(np.median(along)) if len(along) else None,
                     *_curvature(motion, seconds), one_sided, _unexplained(motion, seconds, steps_m), _up(motion),
                     float(turned), int(motion.jumps.sum()),
                     float(max((last - first for first, last in motion.frozen(0.0)), default=0) / 1e6))


def _across(rotation: Rotation, vectors: np.ndarray, turns: np.ndarray) -> tuple[float, float]:
    """Share of the lengths of (N, 3) vectors that is across the rig's x axis: all of it, and what a constant mounting
    angle and a reference point ahead of the rear axle, which moves sideways by (N,) turns, cannot explain."""
    ahead, left, up = rotation.inv().apply(vectors).T
    explained = np.stack([ahead, turns], 1)
    mounting = lsq_linear(explained, left, ([-MAX_TILT, -MAX_LEVER_M], [MAX_TILT, MAX_LEVER_M])).x
    pitch = np.clip(ahead @ up / max(ahead @ ahead, 1e-9), -MAX_TILT, MAX_TILT)
    total = np.linalg.norm(vectors, axis=1).sum()
    return (float(np.hypot(left, up).sum() / total),
            float(np.hypot(left - explained @ mounting, up - pitch * ahead).sum() / total))


def _measured(motion: Egomotion, seconds: np.ndarray) -> np.ndarray:
    """(N,) bool: rows whose position is one, as it is not where it stands for long at either end, as in a tunnel."""
    changes = np.flatnonzero((np.diff(motion.position, axis=0) != 0).any(1))
    known = np.full(len(seconds), len(changes) > 0)
    if len(changes) and seconds[changes[0]] > HOLD_S:
        known[:changes[0] + 1] = False
    if len(changes) and seconds[-1] - seconds[changes[-1] + 1] > HOLD_S:
        known[changes[-1] + 2:] = False
    return known


def _farthest(motion: Egomotion) -> float:
    """Metres between the first and the farthest position, without jumps."""
    steps = np.diff(motion.position, axis=0) * ~motion.jumps[:, None]
    return float(np.linalg.norm(np.cumsum(steps, axis=0), axis=1).max())


def _up(motion: Egomotion) -> float | None:
    """Median cosine of the rig's z axis with up: away from the centre of the earth where positions are that far from
    the origin, else the world's z axis. None where the rig points against it by the flag that the user gave."""
    far = np.linalg.norm(motion.position, axis=1)
    above = motion.position / far[:, None] if EARTH_M[0] < np.median(far) < EARTH_M[1] else [[0.0, 0.0, 1.0]]
    up = float(np.median((motion.rotation.apply([0.0, 0.0, 1.0]) * above).sum(1)))
    return None if up < UPSIDE_DOWN and motion.rig_axes == "frd" else up


def _unexplained(motion: Egomotion, seconds: np.ndarray, steps_m: np.ndarray) -> float | None:
    """Share of the turns of the heading, by blocks of time, that the file's curvature does not add up to."""
    moves = (np.abs(motion.speed[1:]) > 2 * MOVING_MPS) & (np.abs(motion.speed[:-1]) > 2 * MOVING_MPS)
    turns = (motion.rotation[:-1].inv() * motion.rotation[1:]).as_rotvec()[:, 2] * moves
    told = (motion.curvature[1:] + motion.curvature[:-1]) / 2 * steps_m * np.sign(motion.speed[1:]) * moves
    missed = turned = 0.0
    for block in np.split(np.arange(len(turns)), np.searchsorted(seconds[1:], np.arange(
            BLOCK_S, seconds[-1], BLOCK_S))):
        if len(block) and (turn := np.ptp(np.cumsum(turns[block]))) > 2 * MIN_TURN_RAD:
            missed += max(0.0, np.ptp(np.cumsum(turns[block] - told[block])) - MIN_TURN_RAD)
            turned += turn
    return float(missed / turned) if turned > 0 else None


def _curvature(motion: Egomotion, seconds: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Agreement of the signs of the file's curvature and that of yaw rate and speed, the ratio of both, and the share
    of rows in motion whose curvature is beyond what a car drives.

    Least squares of either on the other give the ratio twice: noise makes the first too small, the second too large.
    """
    fit = fit_curvature(motion.times_us, motion.rotation, motion.speed)
    metres = np.gradient(seconds) * np.abs(motion.speed) * (~motion.fitted & (np.abs(motion.speed) > 2 * MOVING_MPS))
    moves = np.abs(motion.speed) > 2 * MOVING_MPS
    beyond = float(motion.bent[moves].mean()) if moves.any() else None
    turns = [np.sum(np.abs(curvature) * metres) for curvature in (fit, motion.curvature)]
    both = fit * motion.curvature * metres
    sign = float(both.sum() / np.abs(both).sum()) if min(turns) >= MIN_TURN_RAD else None
    if turns[0] < MIN_TURN_RAD or both.sum() <= 0:
        return sign, None, beyond
    return sign, float(np.clip(1.0, both.sum() / np.sum(fit**2 * metres),
                               np.sum(motion.curvature**2 * metres) / both.sum())), beyond


def remedy(motion: Egomotion, before: Agreement, used: Conventions) -> tuple[str, ...]:
    """The fewest flags under which a file agrees with itself that, read by `used`, does not; () where no set of flags
    or more than one of the same size does so."""
    agreeing: dict[int, list[tuple[float, tuple[str, ...], Conventions]]] = {}
    for other in used.others():
        if other.speed_unit != used.speed_unit and PATH_OVER_SPEED[0] <= (before.path_over_speed or 1):
            continue  # no unit makes the speed larger than it is in m/s
        after = measure(_reread(motion, used, other))
        agrees = (not after.contradiction and (other.rig_axes == used.rig_axes or after.up is not None)
                  and (after.path_across_residual or 0) <= MAX_ACROSS
                  and (after.median_speed or 0) >= 0 and 0.9 < (after.path_over_speed or 1) < 1.11)
        if agrees and (after.curvature_sign is not None or before.curvature_sign is None):
            flags = other.flags(used)
            off = abs(np.log(after.path_over_speed or 1))
            agreeing.setdefault(len(flags), []).append((off, flags, replace(other, speed_unit="m/s")))
    fewest = sorted(agreeing[min(agreeing)], key=lambda row: row[0]) if agreeing else []
    same = all(other == fewest[0][2] for _, _, other in fewest)  # but for the unit, of which the nearest counts
    return fewest[0][1] if fewest and same else ()


def _reread(motion: Egomotion, used: Conventions, other: Conventions) -> Egomotion:
    """A file that was read by `used` as if it had been read by `other`."""
    stored, velocity = with_z_up(motion.rotation, used.rig_axes), motion.velocity
    rotation = stored
    if used.quaternion_order != other.quaternion_order:
        rotation = Rotation.from_quat(np.roll(stored.as_quat(), -1 if other.quaternion_order == "wxyz" else 1, axis=1))
    if used.velocity_frame == "car":
        velocity = stored.inv().apply(velocity)
    if other.velocity_frame == "car":
        velocity = rotation.apply(velocity)
    rotation = with_z_up(rotation, other.rig_axes)
    velocity = velocity * SPEED_UNITS[other.speed_unit] / SPEED_UNITS[used.speed_unit]
    sign = 1 if used.curvature_sign == other.curvature_sign else -1
    speed = forward_speed(rotation, velocity)
    fit = fit_curvature(motion.times_us, rotation, speed) if motion.fitted.any() else motion.curvature
    return replace(motion, rotation=rotation, velocity=velocity, speed=speed, rig_axes=other.rig_axes,
                   curvature=np.where(motion.fitted, fit, sign * motion.curvature))
