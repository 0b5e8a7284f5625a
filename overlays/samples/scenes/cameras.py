"""Camera poses that show the things of a room."""

from __future__ import annotations

import numpy as np

from overlays.samples.scenes.render import Camera, look_at, trace
from overlays.samples.scenes.rooms import Room

EYE_M = (1.1, 1.8)
SEEN = 0.22  # share of a frame that an object fills where a frame is made to show it


def plan(rng: np.random.Generator, room: Room, frames: int, camera: Camera) -> list[np.ndarray] | None:
    """Poses (4, 4) camera-to-aligned of a walk through the room that shows every thing well in at least one frame.

    None where a thing cannot be shown; the room is then to be drawn anew.
    """
    small = camera.scaled(0.25)
    poses = []
    for owner, thing in enumerate(room.things):
        best = (0.0, None)
        for _ in range(40):
            pose = _viewpoint(rng, room, thing.centre)
            if pose is None:
                continue
            share = float((trace(room, small, pose).owner == owner).mean())
            best = max(best, (share, pose), key=lambda pair: pair[0])
            if best[0] >= 2 * SEEN:
                break
        if best[0] < SEEN:
            return None
        poses.append(best[1])
    while len(poses) < frames:
        pose = _viewpoint(rng, room, rng.uniform((-room.half[0], -room.half[1], 0), (*room.half, room.height)))
        if pose is not None:
            poses.append(pose)
    order = rng.permutation(len(poses))
    return [poses[i] for i in order][:max(frames, len(room.things))]


def _viewpoint(rng, room: Room, target: np.ndarray) -> np.ndarray | None:
    """A pose 1 to 2.2 m from the target, in free space and slightly askew; None where this try is not free."""
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.2)
    eye = np.array([target[0] + distance * np.cos(angle), target[1] + distance * np.sin(angle), rng.uniform(*EYE_M)])
    if abs(eye[0]) > room.half[0] - 0.2 or abs(eye[1]) > room.half[1] - 0.2:
        return None
    for block in room.blocks:
        if (eye > np.array(block.low) - 0.25).all() and (eye < np.array(block.high) + 0.25).all():
            return None
    return look_at(eye, target + rng.normal(0, 0.12, 3), roll=rng.normal(0, 0.1))
