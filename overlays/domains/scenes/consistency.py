"""Whether depth and poses of a scene agree: what one frame measures is where another frame sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, pairwise, product
from statistics import median
from typing import get_args

import numpy as np

from overlays.data.geometry import INVALID, read_depth, rotate_right
from overlays.domains.scenes.cameras import IntrinsicSizes, fit, sizes
from overlays.domains.scenes.infos import CameraAxes, Conventions, DepthEncoding, Pose, PoseUnit, Scene
from overlays.errors import UserError

FRAMES = 32  # evenly spaced, whose neighbours are compared
PAIRS, FEW_FRAMES = 5, 4  # so many pairs of neighbours; of as few frames, each with every other one
APART = (16, 8, 4, 2)  # frames between two that are far apart; the first at which they overlap
POINTS = 2500  # of a frame that are followed, at most
RELATIVE, ABSOLUTE_M = 0.03, 0.02  # within which two depths are the same
OVERLAP = 0.3  # share of points that both frames must see for a pair to count
LEAST_PAIRS, LEAST_SPARSE = 3, 5  # a single pair of wrong data may agree by chance, and one of few frames be hidden
NEEDED, FOUND = 0.6, 0.8  # agreement that is needed, and that another convention must reach
SEEN_THROUGH = 0.15  # above; with less, and half of what is needed, much is hidden between frames that are far apart
COVERED = 0.01  # share of valid depth below which there is none to speak of
FOCAL, FAR_BETTER = (0.5, 0.67, 1.5, 2.0), 0.6  # focal lengths over the right one; share of the error that is left
UPRIGHT = 0.7  # length along one axis of the mean of the cameras' upward directions
MOST_CHANGES = 3  # of conventions at once
DEPTH_SCALES = (1000.0, 4000.0, 5000.0, 6553.5, 10000.0, 256.0, 100.0)  # ScanNet, Matterport3D, TUM, Replica, ...
TYPICAL_M = 0.2, 30.0  # median depth of a scan; in a smaller one everything would lie within ABSOLUTE_M

# Of two frames: the share of points that both measure at one place, within 3 % and 2 cm; and of these and those in
# front, the share that the other frame looks through. A point behind what the other sees is hidden, as it may be.
Pair = tuple[float, float]


def _agreement(pairs: Sequence[Pair], least: int = LEAST_PAIRS) -> float | None:
    return median(pair[0] for pair in pairs) if len(pairs) >= least else None


def _contradicts(value: float | None, pairs: Sequence[Pair]) -> bool:
    return value is not None and value < NEEDED and (value < NEEDED / 2 or median(
        pair[1] for pair in pairs) > SEEN_THROUGH)


@dataclass(frozen=True)
class Agreement:
    """Of the frames of one scene, or of several.

    Attributes:
        near, far: pairs of neighbouring frames, and of frames farther apart, which tell a wrong scale.
        coverage: share of valid pixels of each depth picture.
        same_pose: whether all frames have one pose.
        sparse: whether the frames are few, and then far apart, so that it takes more pairs to tell.
        focal: of each scene the focal length over that with which depth and poses agree far better; 1 when right.
    """

    near: tuple[Pair, ...] = ()
    far: tuple[Pair, ...] = ()
    coverage: tuple[float, ...] = ()
    same_pose: bool = False
    sparse: bool = False
    focal: tuple[float, ...] = ()

    @property
    def value(self) -> float | None:
        """Median agreement of neighbouring frames; None where too few of them overlap."""
        return _agreement(self.near, LEAST_SPARSE if self.sparse else LEAST_PAIRS)

    @property
    def lowest(self) -> float:
        """The lower one of neighbours and frames farther apart; 0 where too few overlap."""
        return min(self.value or 0.0, 1.0 if _agreement(self.far) is None else _agreement(self.far))

    @property
    def contradiction(self) -> str | None:
        """What contradicts itself, in words; None where nothing does or too little overlaps to tell."""
        if self.coverage and np.mean(self.coverage) < COVERED:
            return f"depth is empty: {np.mean(self.coverage):.1%} of its pixels are valid"
        if not (_contradicts(self.value, self.near) or _contradicts(_agreement(self.far), self.far)):
            focal = median(self.focal or (1.0,))
            return None if focal == 1 else f"the focal length is about {focal:g} times that of depth and poses"
        if self.same_pose:
            return "all frames have one pose, but not the same depth"
        return f"depth and poses agree in {self.lowest:.2f} of the points that two frames see (0.95 is usual)"

    def numbers(self) -> dict[str, float | int | None]:
        """As metadata.json keeps them."""
        values = {"agreement": self.value, "agreement_far_apart": _agreement(self.far),
                  "depth_coverage": float(np.mean(self.coverage)) if self.coverage else 0.0}
        return {"pairs": len(self.near), "focal_length": median(self.focal or (1.0,)),
                **{name: None if value is None else round(value, 4) for name, value in values.items()}}


def upward(scene: Scene) -> str | None:
    """The axis of the aligned frame, "x" to "z" with its sign, along which the cameras' pictures stand upright on
    average, as they do in a scan by hand; None where they do not agree on one."""
    up = np.mean([scene.axis_align[:3, :3] @ -frame.pose[:3, 1] for frame in scene.frames], 0)
    axis = int(np.argmax(np.abs(up)))
    return f"{'-' if up[axis] < 0 else '+'}{'xyz'[axis]}" if abs(up[axis]) > UPRIGHT else None


def pool(agreements: Sequence[Agreement]) -> Agreement:
    """Several scenes as one."""
    near, far, coverage, focal = (tuple(item for agreement in agreements for item in getattr(agreement, name))
                                  for name in ("near", "far", "coverage", "focal"))
    return Agreement(near, far, coverage, *(all(getattr(agreement, name) for agreement in agreements)
                                            for name in ("same_pose", "sparse")), focal)


class Comparison:
    """The frames of a scene that are compared with each other. Each depth picture is decoded once.

    Args:
        used: the conventions by which `scene` was read.
    """

    def __init__(self, scene: Scene, used: Conventions, intrinsic_sizes: IntrinsicSizes = (None, None)):
        self.scene, self.used, self.intrinsic_sizes = scene, used, intrinsic_sizes
        count = min(FRAMES, len(scene.frames))
        self.frames = [scene.frames[i] for i in np.linspace(0, len(scene.frames) - 1, count).round().astype(int)]
        starts = np.unique(np.linspace(0, count - 2, min(PAIRS, max(count - 1, 1))).round().astype(int)).tolist()
        self.sparse = count <= FEW_FRAMES
        near = combinations(range(count), 2) if self.sparse else ((start, start + 1) for start in starts)
        self.near = [[pair] for pair in near]
        self.far = [[(start, start + gap) for gap in APART if start + gap < count] for start in starts]
        self.same_pose = count > 1 and all(np.allclose(one.pose, two.pose, atol=1e-6)
                                           for one, two in pairwise(self.frames))
        self._stored: dict[int, tuple[np.ndarray, np.ndarray] | None] = {}
        self._coverage: list[float] = []

    def stored(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Depth and intrinsics of a frame; None where it cannot be used, which is named where it is chosen."""
        if number not in self._stored:
            self._stored[number] = self._read(number)
        return self._stored[number]

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        color, depth, problem = sizes(self.frames[number])
        if problem:
            return None
        frame, problem = fit(self.frames[number], color, depth, self.intrinsic_sizes)
        if problem:
            return None
        try:
            image = read_depth(frame.depth, depth, self.used.rotated_bits)
        except UserError:
            return None
        self._coverage.append(float(((image != INVALID[0]) & (image != INVALID[1])).mean()))
        return image, frame.depth_intrinsic

    def median_m(self, conventions: Conventions) -> float:
        """Median depth of the first frame that can be used, as it would be read by some conventions."""
        stored = next(filter(None, map(self.stored, range(len(self.frames)))), None)
        depth = np.zeros(0) if stored is None else rotate_right(
            stored[0], conventions.rotated_bits - self.used.rotated_bits)
        depth = depth[(depth != INVALID[0]) & (depth != INVALID[1])]
        return float(np.median(depth)) / self._scale(conventions) if depth.size else 0.0

    def _scale(self, conventions: Conventions) -> float:
        """Stored units per metre: those of the scene where some conventions do not name others."""
        same = conventions.depth_scale == self.used.depth_scale
        return self.scene.depth_scale if same else conventions.depth_scale

    def agreements(self, read_by: Sequence[Conventions]) -> list[Agreement]:
        """Agreement of the scene as it would be if it were read by each of some conventions."""

        @cache
        def metres(number: int, bits: int, scale: float) -> np.ndarray:
            depth = rotate_right(self.stored(number)[0], bits)
            return np.where(depth == INVALID[1], 0, depth).astype(np.float32) / np.float32(scale)

        def compare(conventions: Conventions, one: int, two: int) -> tuple[int, int, int, int]:
            if self.stored(one) is None or self.stored(two) is None:
                return 0, 0, 0, 0
            a, b = (view(conventions, number) for number in (one, two))
            return tuple(map(sum, zip(_project(*a, *b), _project(*b, *a), strict=True)))

        def view(conventions: Conventions, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            depth, k = self.stored(number)
            bits = conventions.rotated_bits - self.used.rotated_bits
            return (metres(number, bits, self._scale(conventions)), k,
                    conventions.camera_to_world(self.used.as_stored(self.frames[number].pose)))

        def focal(conventions: Conventions) -> float:
            """Focal length over that with which depth and poses agree far better; 1 where there is none."""
            apart = [[], *([] for _ in FOCAL)]
            for one, two in (pair for choice in self.far for pair in choice[-2:]):
                if self.stored(one) is None or self.stored(two) is None:
                    continue
                (a, k_a, pose_a), (b, k_b, pose_b) = (view(conventions, number) for number in (one, two))
                for errors, factor in zip(apart, (1.0, *FOCAL), strict=True):
                    longer = np.array([[1 / factor, 1, 1], [1, 1 / factor, 1], [1, 1, 1]])
                    points, ahead, there = _seen(a, k_a * longer, pose_a, b, k_b * longer, pose_b)
                    if len(there) > OVERLAP * points:
                        errors.append(float(np.median(np.abs(there - ahead) / there)))
            if min(map(len, apart)) < LEAST_PAIRS:
                return 1.0
            given, *others = map(median, apart)
            return FOCAL[int(np.argmin(others))] if min(others) < FAR_BETTER * given else 1.0

        def pairs(conventions: Conventions, choices: Sequence[Sequence[tuple[int, int]]]) -> tuple[Pair, ...]:
            """Of each choice the first pair that overlaps."""
            overlapping = []
            for choice in choices:
                for one, two in choice:
                    points, both, same, front = compare(conventions, one, two)
                    if both > OVERLAP * points:
                        overlapping.append((same / both, front / max(same + front, 1)))
                        break
            return tuple(overlapping)

        measured = [(pairs(conventions, self.near), pairs(conventions, self.far)) for conventions in read_by]
        return [Agreement(*row, tuple(self._coverage), self.same_pose, self.sparse, (focal(conventions),))
                for row, conventions in zip(measured, read_by, strict=True)]


def _project(depth: np.ndarray, k: np.ndarray, pose: np.ndarray, other: np.ndarray, other_k: np.ndarray,
             other_pose: np.ndarray) -> tuple[int, int, int, int]:
    """Numbers of points of a frame: all, those that the other one measures, at the same place, farther away."""
    points, ahead, there = _seen(depth, k, pose, other, other_k, other_pose)
    apart, near = there - ahead, RELATIVE * np.maximum(there, ahead) + ABSOLUTE_M
    return points, len(there), int((np.abs(apart) <= near).sum()), int((apart > near).sum())


def _seen(depth: np.ndarray, k: np.ndarray, pose: np.ndarray, other: np.ndarray, other_k: np.ndarray,
          other_pose: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of points of a frame, and of the (N,) that the other one measures: their depth there, and what it has."""
    step = max(1, int(np.ceil(np.sqrt(depth.size / POINTS))))
    v, u = np.nonzero(depth[::step, ::step])
    z = depth[::step, ::step][v, u]
    rays = np.stack([(u * step - k[0, 2]) / k[0, 0], (v * step - k[1, 2]) / k[1, 1], np.ones(len(u))])
    move = np.linalg.inv(other_pose) @ pose
    x, y, ahead = move[:3, :3] @ (rays * z) + move[:3, 3:]
    with np.errstate(all="ignore"):
        column = other_k[0, 0] * x / ahead + other_k[0, 2] + 0.5
        row = other_k[1, 1] * y / ahead + other_k[1, 2] + 0.5
        seen = (ahead > 0.05) & (column >= 0) & (column < other.shape[1]) & (row >= 0) & (row < other.shape[0])
    ahead, there = ahead[seen], other[row[seen].astype(int), column[seen].astype(int)]
    return len(z), ahead[there > 0], there[there > 0]


def remedy(scenes: Sequence[Scene], used: Conventions,
           intrinsic_sizes: IntrinsicSizes = (None, None)) -> tuple[tuple[str, ...], float]:
    """The fewest flags under which scenes that were read by `used` agree, and their agreement; or ((), 0)."""
    names = "pose", "camera_axes", "pose_unit", "depth_encoding", "depth_scale"
    scales = used.depth_scale, *(known for known in DEPTH_SCALES if known != scenes[0].depth_scale)
    by_changes: dict[int, list[Conventions]] = {}
    for values in product(*map(get_args, (Pose, CameraAxes, PoseUnit, DepthEncoding)), scales):
        other = replace(used, **dict(zip(names, values, strict=True)))
        by_changes.setdefault(len(other.flags(used)), []).append(other)
    comparisons = [Comparison(scene, used, intrinsic_sizes) for scene in scenes]
    for others in (by_changes[number] for number in range(1, MOST_CHANGES + 1)):
        others = [other for other in others if all(
            TYPICAL_M[0] <= comparison.median_m(other) <= TYPICAL_M[1] for comparison in comparisons)]
        measured = zip(*(comparison.agreements(others) for comparison in comparisons), strict=True)
        pooled = [(pool(results), other.flags(used)) for other, results in zip(others, measured, strict=True)]
        best, flags = max(pooled, key=lambda pair: pair[0].lowest, default=(Agreement(), ()))
        if best.lowest >= (NEEDED if best.sparse else FOUND):
            return flags, best.lowest
    return (), 0.0
