"""Questions about a room of the sample, with answers computed from its geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

from overlays.samples.scenes.rooms import COLOURS, KINDS, Room, Thing

METRES = ("0.5", "1", "2", "4", "8")  # lengths are asked for to the nearest of these
CLEAR = 0.4  # an answer is at most this share of a step from its length
WALLS = ("west", "east", "south", "north")  # -x, +x, -y, +y of the axis-aligned frame


@dataclass(frozen=True)
class Asked:
    """A question: `situation` is a sentence before it, as SQA3D has one, or ""."""

    kind: str
    question: str
    answer: str
    situation: str = ""


def near_wall(room: Room, thing: Thing) -> str | None:
    """The wall nearest to a thing's middle; None where a second one is less than 0.5 m (of a plain room) farther."""
    x, y, _ = thing.centre
    distance = np.array([x + room.half[0], room.half[0] - x, y + room.half[1], room.half[1] - y])
    order = distance.argsort()
    return WALLS[order[0]] if distance[order[1]] - distance[order[0]] >= 0.5 * room.scale else None


def nearest(metres: float) -> str | None:
    """A length as the nearest of METRES, by ratio; None near the middle of two, and outside of them."""
    steps = float(np.log2(metres)) if metres > 0 else -np.inf
    name = f"{2.0 ** round(steps):g}" if np.isfinite(steps) else ""
    return name if name in METRES and abs(steps - round(steps)) <= CLEAR else None


def plan_distance(one: Thing, other: Thing) -> float:
    """Metres between two things' middles on the floor plan."""
    return float(np.linalg.norm((one.centre - other.centre)[:2]))


def bearing(origin: Thing, facing: Thing, thing: Thing) -> float:
    """Degrees from the line of sight origin -> facing to `thing`, counter-clockwise seen from above: left is > 0."""
    ahead, there = (facing.centre - origin.centre)[:2], (thing.centre - origin.centre)[:2]
    return float(np.degrees(np.arctan2(ahead[0] * there[1] - ahead[1] * there[0], ahead @ there)))


def _colours(room: Room) -> list[Asked]:
    single = [thing for thing in room.things if thing.kind != "box"]
    return [Asked("colour", f"What colour is the {thing.kind}?", thing.colour) for thing in single]


def _kinds(room: Room) -> list[Asked]:
    return [Asked("kind", f"What is the {thing.colour} thing?", thing.kind) for thing in room.things]


def _counts(room: Room) -> list[Asked]:
    boxes = sum(thing.kind == "box" for thing in room.things)
    return [Asked("count", "How many boxes are in the room?", str(boxes))]


def _walls(room: Room) -> list[Asked]:
    return [Asked("wall", f"Which wall is nearest to the {thing.name}?", wall)
            for thing in room.things if (wall := near_wall(room, thing))]


def _heights(room: Room) -> list[Asked]:
    return [Asked("height", f"How high above the floor is the top of the {thing.name}?", found)
            for thing in room.things if (found := nearest(thing.high[2]))]


def _nearer(room: Room) -> list[Asked]:
    found = []
    for thing in room.things:
        for one, other in permutations([item for item in room.things if item is not thing], 2):
            apart = plan_distance(thing, other) - plan_distance(thing, one)
            if apart >= 0.8 * room.scale:
                found += [Asked("nearer", f"Which is nearer to the {thing.name}, the {a.name} or the {b.name}?",
                                one.name) for a, b in ((one, other), (other, one))]
    return found


def _sides(room: Room) -> list[Asked]:
    found = []
    for origin, facing, thing in permutations(room.things, 3):
        angle = bearing(origin, facing, thing)
        if plan_distance(origin, facing) >= room.scale and 20 <= abs(angle) <= 160:
            found.append(Asked("side", f"Is the {thing.name} on my left or on my right?",
                               "left" if angle > 0 else "right",
                               f"I stand at the {origin.name} and face the {facing.name}."))
    return found


def _distances(room: Room) -> list[Asked]:
    return [Asked("distance", f"How many metres is it from the {one.name} to the {other.name}?", found)
            for one, other in combinations(room.things, 2) if (found := nearest(plan_distance(one, other)))]


ASK: dict[str, Callable[[Room], list[Asked]]] = {
    "colour": _colours, "kind": _kinds, "count": _counts,
    "wall": _walls, "height": _heights, "nearer": _nearer, "side": _sides, "distance": _distances,
}
ANSWERS = {"colour": tuple(COLOURS), "kind": KINDS, "wall": WALLS, "height": METRES,
           "distance": METRES, "side": ("left", "right")}


def ask(room: Room, rng: np.random.Generator, per_kind: dict[str, int]) -> list[Asked]:
    """Up to `per_kind` questions of each kind, drawn so that answers stay as even as the rooms allow.

    Where the answers of a kind are a fixed list, a draw first picks one of them, as long as a question has it, and
    then a question.
    """
    chosen: list[Asked] = []
    for kind, count in per_kind.items():
        left = ASK[kind](room)
        for _ in range(min(count, len(left))):
            order = rng.permutation(ANSWERS.get(kind, ())).tolist()
            present = {asked.answer for asked in left}
            wanted = next((answer for answer in order if answer in present), None)
            pool = [asked for asked in left if wanted in (None, asked.answer)]
            picked = pool[int(rng.integers(len(pool)))]
            chosen.append(picked)
            left.remove(picked)
    return chosen
