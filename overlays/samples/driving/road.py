"""Pictures of a road from a car's camera: a flat ground in perspective that moves and bends as the car does.

Everything is drawn by looking up where each pixel meets the ground. Along the road the ground is averaged over what a
pixel covers plus the way driven while the shutter is open, so that nothing flickers and speed blurs, as in a camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

STEP_M, SIDE_M = 0.1, 0.15  # grid of the ground, along and across the road
HALF_WIDTH_M = 15.0
AHEAD_M, BEHIND_M = 90.0, 20.0  # ground kept before and behind the way that is driven
GRAINS_M = ((0.18, 0.35), (0.6, 0.3), (2.0, 0.3), (7.0, 0.25))  # sizes of the ground's texture and their contrast
LANE_M = 3.5


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks straight ahead. Lengths in pixels but `mount_m`, its height above the ground."""

    width: int = 96
    height: int = 64
    focal: float = 44.0
    horizon: float = 22.0
    mount_m: float = 1.4
    shutter_s: float = 1 / 60


def grain(rng: np.random.Generator, length_m: float) -> np.ndarray:
    """Texture of unit contrast, (length / STEP_M, 2 HALF_WIDTH_M / SIDE_M) float32: noise of several grain sizes."""
    shape = (int(length_m / STEP_M), round(2 * HALF_WIDTH_M / SIDE_M))
    total = np.zeros(shape, np.float32)
    for size, contrast in GRAINS_M:
        layer = rng.standard_normal(shape, np.float32)
        layer = gaussian_filter(layer, (size / STEP_M / 2.5, size / SIDE_M / 2.5), mode="wrap", truncate=3)
        total += contrast * layer / layer.std()
    return total


@dataclass(frozen=True)
class Kind:
    """A kind of road: how fast one drives on it, and what it looks like. Ranges are (low, high).

    Attributes:
        speeds_mps: speeds that are usual on it.
        asphalt, verge, land: brightness of the road; colour of the ground beside it and of what stands at the horizon.
        dash_m: length of a dash.
        skyline: mean and deviation of what stands at the horizon, pixels above it.
        rough_deg: how wide one hill or house is.
    """

    speeds_mps: tuple[float, float]
    asphalt: tuple[float, float]
    verge: tuple[float, float, float]
    land: tuple[float, float, float]
    dash_m: tuple[float, float]
    skyline: tuple[float, float]
    rough_deg: float


KINDS = {
    "town": Kind((4, 14), (0.34, 0.42), (0.62, 0.56, 0.50), (0.62, 0.36, 0.28), (2.5, 3.0), (13.0, 3.0), 1.5),
    "country": Kind((14, 24), (0.34, 0.44), (0.28, 0.42, 0.16), (0.22, 0.36, 0.18), (3.0, 4.0), (5.0, 2.5), 4.0),
    "motorway": Kind((23, 33), (0.54, 0.62), (0.60, 0.62, 0.36), (0.55, 0.62, 0.66), (4.0, 5.0), (2.5, 0.5), 8.0),
    "open": Kind((4, 33), (0.44, 0.52), (0.50, 0.46, 0.30), (0.40, 0.38, 0.30), (3.0, 4.0), (4.0, 1.0), 6.0),
}


@dataclass(frozen=True)
class Look:
    """What one clip's surroundings look like: it goes by the kind of road, not by how the car moves on it."""

    asphalt: float
    verge: tuple[float, float, float]
    sky: tuple[float, float, float]
    contrast: float
    dash_m: tuple[float, float]  # length of a dash, distance from one to the next
    dash_start_m: float
    light: float
    land: tuple[float, float, float]
    skyline: np.ndarray  # (720,) elevation in pixels by half degrees of azimuth

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: str = "country") -> Look:
        """A look by chance, of a kind of road."""
        road = KINDS[kind]
        blue, dash = rng.uniform(0.75, 0.95), rng.uniform(*road.dash_m)
        skyline = gaussian_filter1d(rng.standard_normal(720), 2 * road.rough_deg, mode="wrap")
        verge, land = (tuple(np.array(color) * rng.uniform(0.9, 1.1, 3)) for color in (road.verge, road.land))
        return cls(
            rng.uniform(*road.asphalt), verge, (blue * rng.uniform(0.7, 0.85), blue * 0.92, blue),
            rng.uniform(0.9, 1.1), (dash, dash * 3), rng.uniform(0, dash * 3), rng.uniform(0.85, 1.1), land,
            road.skyline[0] + road.skyline[1] * skyline / skyline.std(),
        )


class Road:
    """The ground along a way, ready to be looked at.

    Args:
        look: of the surroundings.
        texture: of `grain`, at least as long as the way and what is seen before and behind it.
        texture_start: first row of it that is used.
        way_m: arc lengths in ascending order, (N,), from BEHIND_M before the start to AHEAD_M behind the end.
        heading: (N,) rad there, of the road's centre line.
    """

    def __init__(self, look: Look, texture: np.ndarray, texture_start: int, way_m: np.ndarray, heading: np.ndarray,
                 camera: Camera):
        self.look, self.camera = look, camera
        self.way_m, self.heading = way_m, heading
        self.first_m = float(way_m[0])
        rows = int((way_m[-1] - way_m[0]) / STEP_M) + 2
        texture = np.take(texture, np.arange(texture_start, texture_start + rows), axis=0, mode="wrap")
        across = (np.arange(texture.shape[1]) + 0.5) * SIDE_M - HALF_WIDTH_M
        along = self.first_m + np.arange(rows) * STEP_M
        # The car keeps to the right lane: its centre is 0, the dashed line lies to the left.
        on_road = _band(across, -LANE_M / 2 - 0.4, 1.5 * LANE_M + 0.4)
        edges = _band(across, -LANE_M / 2 - 0.12, -LANE_M / 2 + 0.12) + _band(
            across, 1.5 * LANE_M - 0.12, 1.5 * LANE_M + 0.12)
        phase = (along - look.dash_start_m) % look.dash_m[1]
        dashes = np.outer((phase < look.dash_m[0]), _band(across, LANE_M / 2 - 0.14, LANE_M / 2 + 0.14))
        paint = np.clip(edges[None] + dashes, 0, 1)
        asphalt = look.asphalt * (1 + 0.45 * look.contrast * texture)
        bright = on_road * (asphalt * (1 - paint) + 0.95 * paint)
        grass = (1 - on_road) * (1 + 0.6 * look.contrast * texture)
        layers = np.stack([np.clip(bright, 0, 1.2), np.clip(grass, 0, 2.5)], -1)
        self.sums = np.concatenate([np.zeros((1, *layers.shape[1:])), layers.cumsum(0)])  # along the road
        self.flat = self.sums.reshape(-1, 2).astype(np.float32)
        columns = np.arange(camera.width) + 0.5 - camera.width / 2
        below = np.arange(int(np.ceil(camera.horizon)) + 1, camera.height) + 0.5 - camera.horizon
        self.top = camera.height - len(below)
        self.ahead = camera.focal * camera.mount_m / below  # (R,) m
        self.side = -self.ahead[:, None] * columns / camera.focal  # (R, W) m, + to the left
        self.cover = np.maximum(self.ahead**2 / (camera.focal * camera.mount_m), STEP_M)  # m along, of a pixel
        self.haze = np.clip((self.ahead - 25) / 80, 0, 0.7).astype(np.float32)[:, None, None]
        self.azimuth = -np.degrees(np.arctan(columns / camera.focal))  # + to the left

    def view(self, way_m: float, speed_mps: float) -> np.ndarray:
        """The picture from a place on the way, (height, width, 3) uint8."""
        camera, look = self.camera, self.look
        lengths = np.arange(0, AHEAD_M, 0.25)
        turned = np.interp(way_m + lengths, self.way_m, self.heading)
        facing = np.interp(way_m, self.way_m, self.heading)
        turned = turned - facing
        forward = np.concatenate([[0], np.cumsum(np.cos(turned[:-1]) * 0.25)])
        left = np.concatenate([[0], np.cumsum(np.sin(turned[:-1]) * 0.25)])
        end = int(np.argmax(np.cos(turned) < 0.2)) or len(turned)  # the road leaves the view sideways
        length = np.interp(self.ahead, forward[:end], lengths[:end])
        angle = np.interp(length, lengths, turned)
        beyond = np.maximum(self.ahead - forward[end - 1], 0) * np.tan(angle)
        off = self.side - (np.interp(length, lengths, left) + beyond)[:, None]
        across = off * np.cos(angle)[:, None]
        along = way_m + length[:, None] + off * np.sin(angle)[:, None]
        span = np.hypot(self.cover, speed_mps * camera.shutter_s)[:, None]
        ground = self._mean(along, span, across)
        verge, sky, standing = (np.array(color, np.float32) for color in (look.verge, look.sky, look.land))
        picture = np.empty((camera.height, camera.width, 3), np.float32)
        picture[self.top:] = (ground[..., :1] + ground[..., 1:] * verge) * (1 - self.haze) + sky * self.haze
        bearing = ((self.azimuth + np.degrees(facing)) * 2) % 720
        high = np.interp(bearing, np.arange(721), np.append(look.skyline, look.skyline[0]))
        rows = np.arange(self.top)[:, None] + 0.5
        land = np.clip(rows - (camera.horizon - np.maximum(high, 0.5)) + 0.5, 0, 1)[..., None]
        picture[:self.top] = (1 - land) * sky + land * standing
        return np.clip(picture * look.light * 255, 0, 255).astype(np.uint8)

    def _mean(self, along: np.ndarray, span: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Mean of the ground's layers over `span` metres along the road, (R, W, 2)."""
        columns = self.sums.shape[1]
        column = np.clip((across + HALF_WIDTH_M) / SIDE_M, 0, columns - 1).astype(np.intp)
        ends = self.first_m + span / 2, self.first_m + (len(self.sums) - 1.01) * STEP_M - span / 2
        along = np.clip(along, *ends)

        def total(at: np.ndarray) -> np.ndarray:
            row = (at - self.first_m) / STEP_M
            low = row.astype(np.intp)
            part = (row - low).astype(np.float32)[..., None]
            cell = low * columns + column
            first = self.flat.take(cell, axis=0)
            return first + (self.flat.take(cell + columns, axis=0) - first) * part

        return (total(along + span / 2) - total(along - span / 2)) / (span / STEP_M).astype(np.float32)[..., None]


def _band(across: np.ndarray, low: float, high: float) -> np.ndarray:
    """Share of each grid cell that lies between two lines, (columns,)."""
    return np.clip((np.minimum(across + SIDE_M / 2, high) - np.maximum(across - SIDE_M / 2, low)) / SIDE_M, 0, 1)
