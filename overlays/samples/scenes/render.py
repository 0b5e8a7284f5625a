"""Ray casting of rooms made of boxes: colour and depth frames of a pinhole camera, and what a depth sensor makes of it.

Camera axes are OpenCV's (x right, y down, z forward); pixel centres have integer coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

from overlays.samples.scenes.rooms import Room

RANGE_M = (0.2, 10.0)  # of the depth sensor
NO_RETURN, SATURATED = 0, 65535  # both codes for "no depth" occur in real scans


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: size in pixels, focal lengths and principal point in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def scaled(self, factor: float) -> Camera:
        """The same view in fewer or more pixels."""
        return replace(self, width=round(self.width * factor), height=round(self.height * factor), fx=self.fx * factor,
                       fy=self.fy * factor, cx=(self.cx + 0.5) * factor - 0.5, cy=(self.cy + 0.5) * factor - 0.5)

    @property
    def matrix(self) -> np.ndarray:
        """(4, 4) intrinsic matrix, as ScanNet writes it."""
        matrix = np.eye(4)
        matrix[[0, 1, 0, 1], [0, 1, 2, 2]] = self.fx, self.fy, self.cx, self.cy
        return matrix

    def corner_rays(self) -> np.ndarray:
        """(4, 3) directions in camera axes of the outermost pixels, z = 1."""
        u, v = np.array([0, self.width - 1] * 2), np.repeat([0, self.height - 1], 2)
        return np.stack([(u - self.cx) / self.fx, (v - self.cy) / self.fy, np.ones(4)], -1)

    def rays(self) -> np.ndarray:
        """(height * width, 3) directions in camera axes with z = 1, row by row."""
        v, u = np.mgrid[:self.height, :self.width].reshape(2, -1)
        return np.stack([(u - self.cx) / self.fx, (v - self.cy) / self.fy, np.ones(u.size)], -1)


@dataclass(frozen=True)
class Hits:
    """What the rays of a frame meet: depth along z in metres, thing (-1: none), surface normal and its colour."""

    depth: np.ndarray  # (H, W)
    owner: np.ndarray  # (H, W) int
    normal: np.ndarray  # (H, W, 3)
    colour: np.ndarray  # (H, W, 3) 0..255, unlit
    point: np.ndarray  # (H, W, 3) metres, in the room's frame


def look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """(4, 4) camera-to-room pose of a camera at `eye` that looks at `target`; `roll` in radians turns the picture."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * right + np.sin(roll) * down
    pose[:3, 1] = np.cos(roll) * down - np.sin(roll) * right
    pose[:3, 2], pose[:3, 3] = forward, eye
    return pose


def trace(room: Room, camera: Camera, pose: np.ndarray) -> Hits:
    """First hit of every ray: slab test (Kay and Kajiya 1986) against the walls from inside and every block."""
    # One array per axis and one block at a time: small arrays that stay in the cache.
    directions = (camera.rays() @ pose[:3, :3].T).T.astype(np.float32)
    directions = np.where(np.abs(directions) < 1e-9, np.float32(1e-9), directions)  # (3, rays)
    eye, inverse = pose[:3, 3].astype(np.float32), 1 / directions
    depth, axis = _farther(_slab(inverse, eye, (-room.half[0], -room.half[1], 0.0), (*room.half, room.height))[1], -1)
    block = np.full(depth.shape, -1)
    for number in _in_view(room, camera, pose):
        found = room.blocks[number]
        near, far = _slab(inverse, eye, found.low, found.high)
        enter, face = _farther(near, 1)
        hit = (enter < np.minimum(np.minimum(far[0], far[1]), far[2])) & (enter > 1e-6) & (enter < depth)
        depth, axis = np.where(hit, enter, depth), np.where(hit, face, axis)
        block[hit] = number
    positive = np.take_along_axis(directions, axis[None], 0)[0] > 0
    surface = np.where(axis == 2, 4 + positive, 2 * axis + positive)
    colours = np.array([*room.surfaces, *(found.colour for found in room.blocks)], np.float32)
    owners = np.array([-1, *(found.owner for found in room.blocks)])
    normal = np.zeros((*depth.shape, 3), np.float32)
    normal[np.arange(len(axis)), axis] = np.where(positive, -1, 1)
    shape = (camera.height, camera.width)
    colour = colours[np.where(block < 0, surface, 6 + block)]
    return Hits(depth.reshape(shape), owners[block + 1].reshape(shape), normal.reshape(*shape, 3),
                colour.reshape(*shape, 3), (eye[:, None] + depth * directions).T.reshape(*shape, 3))


def _in_view(room: Room, camera: Camera, pose: np.ndarray) -> np.ndarray:
    """Numbers of the blocks whose bounding sphere meets the cone around the camera's view."""
    low, high = (np.array([getattr(block, side) for block in room.blocks]).reshape(-1, 3) for side in ("low", "high"))
    radius, middle = np.linalg.norm(high - low, axis=1) / 2, (low + high) / 2 - pose[:3, 3]
    ahead = middle @ pose[:3, 2]
    aside = np.sqrt(np.maximum((middle**2).sum(1) - ahead**2, 0))
    corners = camera.corner_rays()
    slope = np.linalg.norm(corners[:, :2], axis=1).max()
    return np.flatnonzero((aside - slope * ahead) / np.hypot(1, slope) < radius)


def _slab(inverse: np.ndarray, eye: np.ndarray, low, high) -> tuple[np.ndarray, np.ndarray]:
    """Depths (3, rays) at which rays enter and leave the slab of each axis."""
    one = (np.array(low, np.float32) - eye)[:, None] * inverse
    two = (np.array(high, np.float32) - eye)[:, None] * inverse
    return np.minimum(one, two), np.maximum(one, two)


def _farther(depths: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """(largest of three depths, its axis) for sign 1, the smallest for -1."""
    better = np.greater if sign > 0 else np.less
    best, axis = depths[0], np.zeros(depths.shape[1], np.int64)
    for number in (1, 2):
        more = better(depths[number], best)
        best, axis = np.where(more, depths[number], best), np.where(more, number, axis)
    return best, axis


def picture(room: Room, hits: Hits, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 colour frame: diffuse light, floor boards, exposure and noise of the frame."""
    shade = 0.72 + 0.28 * np.abs(hits.normal @ room.light)
    boards = (hits.point[..., 2] < 1e-3 * room.scale) & (np.floor(hits.point[..., room.boards] / room.board_m) % 2 == 0)
    lit = hits.colour * shade[..., None] * np.where(boards, 0.88, 1.0)[..., None] * rng.uniform(0.88, 1.08)
    return np.clip(lit + rng.normal(0, 4, lit.shape), 0, 255).astype(np.uint8)


def sensor(hits: Hits, rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint16 depth in millimetres as a structured-light sensor gives it.

    Noise grows with the square of depth; there is none at depth edges, in a few blotches, on some grazing surfaces
    and beyond RANGE_M. Where depth is missing the value is NO_RETURN or SATURATED.
    """
    depth = hits.depth
    noisy = depth + rng.normal(0, 1, depth.shape) * (0.001 + 0.0015 * depth**2)
    edge = maximum_filter(depth, 3) - minimum_filter(depth, 3) > 0.12 * depth
    field = gaussian_filter(rng.standard_normal(depth.shape), max(depth.shape) / 24)
    field /= field.std()
    missing = (edge & (rng.random(depth.shape) < 0.6)) | (field > 1.9) | (depth < RANGE_M[0]) | (depth > RANGE_M[1])
    stored = np.rint(noisy * 1000).clip(1, 65534).astype(np.uint16)
    stored[missing] = NO_RETURN
    stored[field < -2.1] = SATURATED
    return stored
