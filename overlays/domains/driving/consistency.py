"""Whether an egomotion file agrees with itself: heading, velocity, position and curvature say the same thing twice."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from overlays.domains.driving.egomotion import SPEED_UNITS, Conventions, Egomotion, fit_curvature, forward_speed

SPAN_S = 0.5  # between two positions that are compared: nearer ones hold the noise of a satellite receiver
MOVING_MPS = 1.0
MAX_ACROSS = 0.1  # share of speed, or of the path, across the heading
PATH_OVER_SPEED = (0.8, 1.25)
MIN_PATH_M, MIN_TURN_RAD, TURNED_DEG = 5.0, 0.1, 20.0  # with less than these, a file tells nothing


@dataclass(frozen=True)
class Agreement:
    """What the columns of one file say of each other; None where too little moves or turns to tell.

    across_heading: share of the speed that goes across the heading; 0 when right.
    path_across_heading: the same of the path from position to position; 0 when right.
    path_over_speed: length of that path over the integral of speed; 1 when right.
    curvature_sign: agreement of the signs of yaw rate x speed and curvature, from -1 to 1; 1 when right.
    turned_deg: largest change of the heading.
    position_jumps: steps of the position that the speed does not explain.
    frozen_s: longest time in seconds for which the rows of a moving car are equal.
    """

    across_heading: float | None
    path_across_heading: float | None
    path_over_speed: float | None
    curvature_sign: float | None
    turned_deg: float
    position_jumps: int
    frozen_s: float

    def fault(self) -> tuple[str, str] | None:
        """(reason, detail) of the first contradiction that concerns the whole file."""
        across, aside, path, sign = astuple(self)[:4]
        if across is not None and across > MAX_ACROSS:
            return "velocity across the heading", (f"{across:.3f} of the speed goes across the heading (0 when right, "
                                                   f"at most {MAX_ACROSS})")
        if path is not None and not PATH_OVER_SPEED[0] <= path <= PATH_OVER_SPEED[1]:
            return "path and speed differ", f"the path between the positions is {path:.3f} times as long as speed says"
        if aside is not None and aside > 2 * MAX_ACROSS:  # positions are less exact than velocities
            return "path across the heading", f"{aside:.3f} of the path goes across the heading (0 when right)"
        if sign is not None and sign < 0:
            return "curvature against the yaw rate", (f"yaw rate and curvature have opposite signs (agreement "
                                                      f"{sign:.3f}, 1 when right)")
        return None

    def tells(self, flags: str) -> bool:
        """Whether the file would contradict itself if it were read with flags that are wrong for it."""
        return self.path_over_speed is not None if "speed-unit" in flags else self.turned_deg >= TURNED_DEG

    def numbers(self) -> dict[str, float | int | None]:
        """As metadata.json keeps them."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}


def measure(motion: Egomotion) -> Agreement:
    """Agreement of the columns of a file."""
    seconds = (motion.times_us - motion.times_us[0]) / 1e6
    speed = np.linalg.norm(motion.velocity, axis=1)
    driven = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(seconds))])  # m
    across = aside = path = None
    moves = speed > MOVING_MPS
    if driven[-1] >= MIN_PATH_M and moves.any():
        across = _across(motion.rotation[moves], motion.velocity[moves])
    marks = np.unique(np.searchsorted(seconds, np.arange(0, seconds[-1] + 1e-9, SPAN_S)))
    chords, ways = np.diff(motion.position[marks], axis=0), np.diff(driven[marks])
    usable = ways > MOVING_MPS * SPAN_S
    if ways[usable].sum() >= MIN_PATH_M:
        length = np.linalg.norm(chords[usable], axis=1).sum()
        path = float(length / ways[usable].sum())
        middles = (marks[:-1] + marks[1:])[usable] // 2
        aside = _across(motion.rotation[middles], chords[usable]) if length else None
    turned = np.degrees((motion.rotation[0].inv() * motion.rotation).magnitude().max())
    return Agreement(across, aside, path, _sign(motion, seconds), float(turned), int(motion.jumps.sum()),
                     float(max((last - first for first, last in motion.frozen(0.0)), default=0) / 1e6))


def _across(rotation: Rotation, vectors: np.ndarray) -> float:
    """Share of the lengths of (N, 3) vectors that is across the rig's x axis."""
    aside = rotation.inv().apply(vectors)[:, 1:]
    return float(np.linalg.norm(aside, axis=1).sum() / np.linalg.norm(vectors, axis=1).sum())


def _sign(motion: Egomotion, seconds: np.ndarray) -> float | None:
    """Agreement of the file's curvature with that which yaw rate and speed say."""
    fit = fit_curvature(motion.times_us, motion.rotation, motion.speed)
    metres = np.gradient(seconds) * np.abs(motion.speed) * (~motion.fitted & (np.abs(motion.speed) > 2 * MOVING_MPS))
    if min(np.sum(np.abs(curvature) * metres) for curvature in (fit, motion.curvature)) < MIN_TURN_RAD:
        return None
    both = fit * motion.curvature * metres
    return float(both.sum() / np.abs(both).sum())


def remedy(motion: Egomotion, used: Conventions) -> str:
    """The flags under which a file agrees with itself, those that change least; "" where it is none, or not one."""
    before, agreeing = measure(motion), {}
    for other in used.others():
        if other.speed_unit != used.speed_unit and PATH_OVER_SPEED[0] <= (before.path_over_speed or 1):
            continue  # no unit makes the speed larger than it is in m/s
        after = measure(_reread(motion, used, other))
        agrees = (not after.fault() and (after.path_across_heading or 0) <= MAX_ACROSS
                  and 0.9 < (after.path_over_speed or 1) < 1.11)
        if agrees and (after.curvature_sign is not None or before.curvature_sign is None):
            flags = other.flags(used)
            agreeing.setdefault(flags.count("--"), []).append(flags)
    fewest = agreeing[min(agreeing)] if agreeing else []
    return fewest[0] if len(fewest) == 1 else ""


def _reread(motion: Egomotion, used: Conventions, other: Conventions) -> Egomotion:
    """A file that was read by `used` as if it had been read by `other`."""
    quaternion = motion.rotation.as_quat()
    if used.quaternion_order != other.quaternion_order:
        quaternion = np.roll(quaternion, -1 if other.quaternion_order == "wxyz" else 1, axis=1)
    rotation, velocity = Rotation.from_quat(quaternion), motion.velocity
    if used.velocity_frame == "car":
        velocity = motion.rotation.inv().apply(velocity)
    if other.velocity_frame == "car":
        velocity = rotation.apply(velocity)
    velocity = velocity * SPEED_UNITS[other.speed_unit] / SPEED_UNITS[used.speed_unit]
    sign = 1 if used.curvature_sign == other.curvature_sign else -1
    return replace(motion, rotation=rotation, velocity=velocity, speed=forward_speed(rotation, velocity),
                   curvature=sign * motion.curvature)
