"""Procedural rooms: boxes of coloured furniture. The frame is axis-aligned, in metres.

x points east, y north, z up; the floor is z = 0 and the room's middle is x = y = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 40), "green": (40, 150, 50), "blue": (40, 70, 205), "yellow": (235, 210, 40),
}
THINGS = 3  # in a room
KINDS = ("box", "table", "sofa", "shelf", "lamp")
LEVELS_M = {"low": (0.0, 0.7), "middle": (0.95, 1.5), "high": (1.75, 3.0)}  # heights of a middle; none between them
ROOM_M = {"width": (4.4, 6.0), "depth": (4.4, 6.0), "height": (2.6, 3.0)}
SCALES = (2 / 3, 4 / 3, 8 / 3)  # a model, a room, a hall: alike in every picture, so that only depth tells the size
BOARD_M = 0.35


@dataclass(frozen=True)
class Block:
    """An axis-aligned box: corners in metres, colour 0..255, and the object it belongs to (-1: none)."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    colour: tuple[int, int, int]
    owner: int = -1

    def scaled(self, factor: float) -> Block:
        """The same box with every length times a factor."""
        return replace(self, low=_times(self.low, factor), high=_times(self.high, factor))


@dataclass(frozen=True)
class Thing:
    """A piece of furniture with its bounding box, corners in metres."""

    kind: str
    colour: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def name(self) -> str:
        """As questions call it: "red box"."""
        return f"{self.colour} {self.kind}"

    @property
    def centre(self) -> np.ndarray:
        """(3,) middle of the bounding box, metres."""
        return (np.array(self.low) + np.array(self.high)) / 2

    def scaled(self, factor: float) -> Thing:
        """The same thing with every length times a factor."""
        return replace(self, low=_times(self.low, factor), high=_times(self.high, factor))


@dataclass(frozen=True)
class Room:
    """A room: half extents and height in metres, furniture, its blocks, wall and floor colours, direction of light.

    `scale` is how many times larger it is than the rooms that `build_room` draws.
    """

    half: tuple[float, float]
    height: float
    things: tuple[Thing, ...]
    blocks: tuple[Block, ...]
    surfaces: np.ndarray  # (6, 3) colours of the walls -x +x -y +y, floor, ceiling
    light: np.ndarray  # (3,) unit vector
    boards: int = 0  # axis across which the floor boards lie
    scale: float = 1.0

    @property
    def board_m(self) -> float:
        """Width of a floor board."""
        return BOARD_M * self.scale

    def scaled(self, factor: float) -> Room:
        """The same room with every length times a factor."""
        return replace(self, half=_times(self.half, factor), height=self.height * factor, scale=self.scale * factor,
                       things=tuple(thing.scaled(factor) for thing in self.things),
                       blocks=tuple(block.scaled(factor) for block in self.blocks))


def _times(values: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(value * factor for value in values)


def build_room(rng: np.random.Generator) -> Room:
    """A room with three pieces of furniture in different colours; kinds other than boxes occur once.

    Nothing that a picture shows tells the compass: walls, floor and light are drawn anew for every room.
    """
    half = (rng.uniform(*ROOM_M["width"]) / 2, rng.uniform(*ROOM_M["depth"]) / 2)
    height = rng.uniform(*ROOM_M["height"])
    boxes = int(rng.choice((1, 2, 3), p=(0.45, 0.35, 0.2)))
    kinds = ["box"] * boxes + list(rng.permutation(KINDS[1:]))[:THINGS - boxes]
    colours = rng.permutation(list(COLOURS))[:THINGS]
    things: list[Thing] = []
    blocks: list[Block] = []
    for kind, colour in zip(kinds, colours, strict=True):
        placed = _place(rng, kind, half, height, things)
        if placed is None:
            continue
        low, high, support = placed
        thing = Thing(str(kind), str(colour), tuple(map(float, low)), tuple(map(float, high)))
        blocks += _blocks(thing, len(things), support)
        things.append(thing)
    base = rng.uniform(150, 225)
    surfaces = np.clip(base + rng.normal(0, 12, (6, 3)), 110, 245)
    surfaces[4] = np.clip(rng.uniform(70, 150) + rng.normal(0, 12, 3), 50, 170)
    surfaces[5] = np.clip(rng.uniform(225, 250) + rng.normal(0, 4, 3), 0, 255)
    light = np.array([*rng.normal(0, 0.5, 2), 1.0])
    return Room(half, height, tuple(things), tuple(blocks), surfaces, light / np.linalg.norm(light),
                int(rng.integers(2)))


def _place(rng, kind: str, half, height: float, things: list[Thing]):
    """(low, high, support) of a new thing that keeps clear of the others, None where no place was found.

    `support` is how far a column below it reaches up (0: none).
    """
    for _ in range(60):
        size, bottom, support = _shape(rng, kind, height)
        if rng.random() < 0.5 and kind != "box":
            size = size[[1, 0, 2]]
        room = np.array(half) - size[:2] / 2 - 0.05
        centre = rng.uniform(-room, room)
        if kind != "lamp" and rng.random() < 0.75:  # most furniture stands at a wall
            axis = int(rng.integers(2))
            centre[axis] = np.sign(rng.normal()) * room[axis]
        low = np.array([*(centre - size[:2] / 2), bottom])
        high = low + size
        gap = 0.35
        free = all((low[:2] > np.array(other.high[:2]) + gap).any() or (high[:2] < np.array(other.low[:2]) - gap).any()
                   for other in things)
        if free:
            return low, high, support
    return None


def _shape(rng, kind: str, height: float) -> tuple[np.ndarray, float, float]:
    """(size, height of its underside, height of a supporting column) in metres."""
    if kind == "table":
        return np.array([rng.uniform(1.1, 1.5), rng.uniform(0.8, 1.0), 0.75]), 0.0, 0.0
    if kind == "sofa":
        return np.array([rng.uniform(1.4, 1.8), rng.uniform(0.8, 0.95), 0.85]), 0.0, 0.0
    if kind == "shelf":
        return np.array([rng.uniform(0.9, 1.3), rng.uniform(0.35, 0.5), rng.uniform(1.7, 2.1)]), 0.0, 0.0
    if kind == "lamp":
        side = rng.uniform(0.5, 0.7)
        return np.array([side, side, side * 0.7]), height - 0.35 - side * 0.7, 0.0
    side = rng.uniform(0.6, 0.8)
    level = list(LEVELS_M)[int(rng.integers(3))]
    low, high = LEVELS_M[level]
    bottom = 0.0 if level == "low" else rng.uniform(low, min(high, height - side / 2 - 0.1)) - side / 2
    return np.full(3, side), bottom, bottom if level == "middle" else 0.0


def _blocks(thing: Thing, owner: int, support: float) -> list[Block]:
    """The boxes that a thing is made of."""
    low, high, colour = np.array(thing.low), np.array(thing.high), COLOURS[thing.colour]
    dark = tuple(int(0.3 * value) for value in colour)

    def part(a, b, shade=colour):
        return Block(tuple(low + np.array(a) * (high - low)), tuple(low + np.array(b) * (high - low)), shade, owner)

    if thing.kind == "table":
        legs = [part((x, y, 0), (x + 0.1, y + 0.12, 0.85)) for x in (0, 0.9) for y in (0, 0.88)]
        return [part((0, 0, 0.85), (1, 1, 1)), *legs]
    # Sofas and shelves are drawn along x and turned where they are longer along y.
    turned = high[1] - low[1] > high[0] - low[0]

    def turn(v):
        return (v[1], v[0], v[2]) if turned else v

    if thing.kind == "sofa":
        back = 0.7 if (low + high)[0 if turned else 1] > 0 else 0.0  # towards the nearer wall
        pieces = (((0, 0, 0), (1, 1, 0.5)), ((0, back, 0.5), (1, back + 0.3, 1)), ((0, 0, 0.5), (0.12, 1, 0.75)),
                  ((0.88, 0, 0.5), (1, 1, 0.75)))
        return [part(turn(a), turn(b)) for a, b in pieces]
    if thing.kind == "shelf":
        boards = [part((0, 0, z), (1, 1, z + 0.07)) for z in (0, 0.23, 0.465, 0.7, 0.93)]
        return [part(turn((0.03, 0.15, 0)), turn((0.97, 0.85, 1)), dark), *boards]
    if thing.kind == "lamp":
        middle = (low + high) / 2
        cord = Block((middle[0] - 0.02, middle[1] - 0.02, high[2]), (middle[0] + 0.02, middle[1] + 0.02, high[2] + 0.4),
                     (30, 30, 30))
        glow = tuple(int(0.5 * value + 127) for value in colour)
        return [part((0, 0, 0.3), (1, 1, 1)), part((0.1, 0.1, 0.0), (0.9, 0.9, 0.3), glow), cord]
    pieces = [part((0, 0, 0), (1, 1, 1))]
    if support:
        inset = 0.2 * (high - low)[:2]
        pieces.append(Block((*(low[:2] + inset), 0.0), (*(high[:2] - inset), support), (120, 105, 90)))
    return pieces
