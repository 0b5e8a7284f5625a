"""How a source writes its points, and whether what it says twice agrees: taps, trees, second points, the screen.

A screenshot is one measurement of where a tap was, the view hierarchy another, a second field a third. `resolve` takes
the usual convention, measures how far they agree, and refuses a source that they contradict.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from typing import Literal, get_args

from overlays.domains.gui.coordinates import GRID
from overlays.domains.gui.taps import Point, Tap
from overlays.domains.gui.trees import Tree, fits
from overlays.errors import UserError

Order, Scale, Box = Literal["xy", "yx"], Literal["pixels", "1", "100", "1000"], Literal["ltrb", "ltwh", "lrtb"]
ORDERS, SCALES, BOXES = map(get_args, (Order, Scale, Box))
# What click_1000 and answers are measured on, by the flag; None: pixels.
ANSWER_SCALES = {"auto": (GRID, GRID), "1000": (GRID, GRID), "100": (100.0, 100.0), "1": (1.0, 1.0), "pixels": None}
ROUNDING = 4  # grid units
CORNER, MANY = 0.52, 20  # shares of both sides beyond which no tap lies where another screen was meant; taps to refuse
FACTOR = 8  # by which two sizes of one screen differ at most
LEAST = 5  # taps that a judgement takes
WRONG, RIGHT = 0.5, 0.9  # share of agreement below which a convention is wrong, and from which on another one is right
STRAY = 0.1  # share of a source's taps that may contradict it and are dropped; beyond it the source is read wrongly


@dataclass(frozen=True)
class Convention:
    """How the numbers of a source are read.

    Attributes:
        order: of x and y, where they have no names.
        scale: what they are measured on, where the source does not say it.
        box: what four numbers are: left, top, right, bottom, width or height, by their first letters.
    """

    order: Order = "xy"
    scale: Scale = "pixels"
    box: Box = "ltrb"

    def box_of(self, point: Point) -> tuple[float, float, float, float] | None:
        """(left, top, right, bottom) in the point's own units, of a point without extent; None where its four numbers
        are not such a box."""
        turned = self.order == "yx" and not point.named and point.scale is None
        if len(point.numbers) == 2:
            a, b, c, d = point.corners or point.numbers * 2
            a, b, c, d = (b, a, d, c) if turned else (a, b, c, d)
            return min(a, c), min(b, d), max(a, c), max(b, d)
        a, b, c, d = point.numbers
        if turned:
            a, b, c, d = (c, d, a, b) if self.box == "lrtb" else (b, a, d, c)
        left, top, right, bottom = {"ltrb": (a, b, c, d), "ltwh": (a, b, a + c, b + d), "lrtb": (a, c, b, d)}[self.box]
        return (left, top, right, bottom) if left <= right and top <= bottom else None

    def centre(self, point: Point) -> tuple[float, float] | None:
        """(x, y) in the point's own units; None as of `box_of`."""
        box = self.box_of(point)
        return None if box is None else ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)

    def scale_of(self, point: Point, space: tuple[float, float]) -> tuple[float, float]:
        """(width, height) that a point is measured on. `space`: that of pixels."""
        return point.scale or {"pixels": space, "1": (1.0, 1.0), "100": (100.0, 100.0), "1000": (GRID, GRID)}[
            self.scale]

    def grid(self, point: Point, space: tuple[float, float]) -> tuple[float, float] | None:
        """The centre on the 0-1000 grid."""
        centre, scale = self.centre(point), self.scale_of(point, space)
        return None if centre is None else (centre[0] * GRID / scale[0], centre[1] * GRID / scale[1])

    def grid_box(self, point: Point, space: tuple[float, float]) -> tuple[float, ...] | None:
        """(left, top, right, bottom) on the 0-1000 grid."""
        box, scale = self.box_of(point), self.scale_of(point, space)
        return None if box is None else tuple(value * GRID / side for value, side in zip(box, scale * 2, strict=True))


@dataclass(frozen=True)
class Observed:
    """A tap and what else is known of its place.

    Attributes:
        space: (width, height) of the pixels that taps are measured in.
        picture: (width, height) of the screenshot.
        tree: the view hierarchy, None without one; `tree_space` is its (width, height).
    """

    tap: Tap
    space: tuple[float, float]
    picture: tuple[int, int]
    tree: Tree | None = None
    tree_space: tuple[float, float] = (1.0, 1.0)

    def in_element(self, grid: tuple[float, float]) -> bool | None:
        """Whether a grid point is in a single element of the tree; None where the tree has none."""
        point = [value * size / GRID for value, size in zip(grid, self.tree_space, strict=True)]
        return self.tree.has_target_at(point, self.tree_space) if self.tree else None

    def contradiction(self, convention: Convention) -> str | None:
        """A clause where a second point says another place, or a second box one that does not hold the first point."""
        first, *others = self.tap.points
        grid = convention.grid(first, self.space)
        for other in others:
            place, box = convention.grid(other, self.space), convention.grid_box(other, self.space)
            if grid and box and not self._holds(box, grid):
                return (f"{first.name} and {other.name} name different points: ({grid[0]:.0f}, {grid[1]:.0f}) and "
                        f"({place[0]:.0f}, {place[1]:.0f}) on the 0-1000 grid")
        return None

    def _holds(self, box: tuple[float, ...], grid: tuple[float, float]) -> bool:
        """Whether a grid point is in a box widened by rounding: of the grid, of a pixel, of a resized picture."""
        return all(low - ROUNDING - GRID / size <= value <= high + ROUNDING + GRID / size
                   for value, low, high, size in zip(grid, box[:2], box[2:], self.space, strict=True))


def measure(taps: Sequence[Observed], convention: Convention) -> dict:
    """How far taps agree with the other measurements; shares are None where there is nothing to compare.

    Returns:
        {"taps", "beyond_screen": share of the taps, "with_tree", "in_element": share of those, "with_second_point",
        "second_point_agrees": share of those}.
    """
    inside, agrees, beyond = [], [], 0
    for observed in taps:
        grid = convention.grid(observed.tap.points[0], observed.space)
        on_screen = grid is not None and all(0 <= value <= GRID for value in grid)
        beyond += not on_screen
        in_element = observed.in_element(grid or (-1.0, -1.0))
        inside += [] if in_element is None else [in_element]
        if len(observed.tap.points) > 1:
            agrees.append(grid is not None and observed.contradiction(convention) is None)

    def share(values: list[bool]) -> float | None:
        return round(sum(values) / len(values), 4) if values else None

    return {"taps": len(taps), "beyond_screen": round(beyond / len(taps), 4), "with_tree": len(inside),
            "in_element": share(inside), "with_second_point": len(agrees), "second_point_agrees": share(agrees)}


def together(parts: Sequence[dict]) -> dict:
    """The measurements of several groups of taps as one."""
    total = {}
    for count, share in (("taps", "beyond_screen"), ("with_tree", "in_element"),
                         ("with_second_point", "second_point_agrees")):
        total[count] = sum(part[count] for part in parts)
        sums = sum(part[count] * (part[share] or 0) for part in parts)
        total[share] = round(sums / total[count], 4) if total[count] else None
    return total


def _is_wrong(found: dict) -> bool:
    """Whether a convention contradicts the data."""
    return (found["taps"] >= LEAST and found["beyond_screen"] > STRAY
            or found["with_tree"] >= LEAST and found["in_element"] < WRONG
            or found["with_second_point"] >= LEAST and found["second_point_agrees"] < 1 - STRAY)


def _is_right(found: dict) -> bool:
    """Whether everything agrees with a convention."""
    return (found["beyond_screen"] <= 1 - RIGHT and (found["in_element"] is None or found["in_element"] >= RIGHT)
            and (found["second_point_agrees"] is None or found["second_point_agrees"] >= RIGHT))


def resolve(taps: Sequence[Observed], source: str, order: str = "auto", scale: str = "auto",
            box: str = "auto") -> Convention:
    """The convention of a source: what the flags say, else the usual one where the data do not contradict it.

    Args:
        order, scale, box: of `Convention`, or "auto". What is named is taken as it is.

    Raises:
        UserError: the data contradict the convention; the sentence names the flag of one that agrees, if one does.
    """
    unscaled = [observed for observed in taps if observed.tap.points[0].scale is None]
    usual = Convention(order if order != "auto" else "xy", scale if scale != "auto" else "pixels",
                       box if box != "auto" else "ltrb")
    if scale == "auto" and are_shares(unscaled):
        usual = Convention(usual.order, "1", usual.box)
    if not unscaled or "auto" not in (order, scale, box):
        return usual
    boxes = [observed for observed in unscaled if len(observed.tap.points[0].numbers) == 4]
    if box == "auto":
        _check_boxes(boxes, source, usual)
    found = measure(unscaled, usual)
    if not _is_wrong(found):
        return usual
    others = [Convention(*values) for values in product(
        ORDERS if order == "auto" else (order,), SCALES if scale == "auto" else (scale,),
        BOXES if box == "auto" and boxes else (usual.box,))]
    given = [_flags(other, usual) for other in others if other != usual and _is_right(measure(unscaled, other))]
    if _is_right(measure([replace(observed, space=observed.picture) for observed in unscaled], usual)):
        given.append("--tap-size screenshot")
    size = _size_by_second_points(unscaled, usual)
    if size and _is_right(measure([replace(observed, space=size) for observed in unscaled], usual)):
        given.append(f"--tap-size {size[0]}x{size[1]}")
    words = min(given, key=len, default=None)
    hint = (f"with {words} they agree: give {words}" if words else
            "no known convention agrees; --tap-size says on which screen taps are measured; where the points are right "
            f"give {_flags(usual)}")
    raise UserError(f"{source}: its points contradict its screens: {in_words(found)}; {hint}")


def _size_by_second_points(taps: Sequence[Observed], usual: Convention) -> tuple[int, int] | None:
    """(width, height) of the screen on which the points would be at their second points."""
    pairs = [(usual.centre(observed.tap.points[0]), usual.grid(observed.tap.points[1], observed.space))
             for observed in taps if len(observed.tap.points) > 1 and observed.tap.points[1].scale]
    sizes = [[a * GRID / b for a, b in zip(*pair, strict=True)] for pair in pairs if all(pair) and min(pair[1]) > 0]
    size = tuple(round(median(axis)) for axis in zip(*sizes, strict=True)) if len(sizes) >= LEAST else None
    return size if size and all(fits(size, observed.picture) and 1 / FACTOR <= size[0] / observed.picture[0] <= FACTOR
                                for observed in taps) else None


def check_grid(taps: Sequence[Observed], source: str) -> None:
    """Refuse a source whose click_1000 or answers are not on the 0-1000 grid. Raises UserError, naming the flag."""
    for name in ("click_1000", "answer"):
        points = [(point.corners or point.numbers, observed.space) for observed in taps for point in observed.tap.points
                  if point.name == name and point.scale]
        numbers = [number for row, _ in points for number in row]
        if not numbers:
            continue
        highest, beyond = max(numbers), sum(max(row) > GRID for row, _ in points) / len(points)
        if highest <= 1 and any(number % 1 for number in numbers):
            scale = "1"
        elif highest <= 100 and len(points) >= LEAST:
            scale = "100"
        elif beyond > STRAY and len(points) >= LEAST and all(
                number <= space[axis % 2] for row, space in points for axis, number in enumerate(row)):
            scale = "pixels"
        else:
            continue
        raise UserError(f"{source}: {name} of {len(points)} taps goes up to {highest:g}, which is not the 0-1000 grid: "
                        f"give --answer-scale {scale}, or --answer-scale 1000 if it is right")


def check_corner(taps: Sequence[Observed], convention: Convention, source: str) -> list[str]:
    """A note where all taps in pixels, without a word of their screen, lie in its upper left corner, as those measured
    on a smaller screen do (points of iOS, a screenshot that was enlarged, percents).

    Raises:
        UserError: the same of MANY taps.
    """
    if convention.scale != "pixels":
        return []
    places = [convention.grid(observed.tap.points[0], observed.space) for observed in taps
              if observed.tap.points[0].scale is None and observed.tap.space is None and observed.tree is None
              and len(observed.tap.points) == 1]
    places = [place for place in places if place]
    far = [max(axis) / GRID for axis in zip(*places, strict=True)]
    if len(places) < LEAST or max(far) > CORNER:
        return []
    said = (f"all {len(places)} taps of {source} lie in the upper left corner of the screen (up to {far[0]:.0%} of its "
            f"width, {far[1]:.0%} of its height)")
    if len(places) >= MANY:
        raise UserError(f"{said}: give --tap-size WIDTHxHEIGHT of the screen that they are measured on (such as points "
                        "of iOS), --point-scale, or --tap-size screenshot if they are right")
    return [f"{said}: --tap-size or --point-scale say on what else they are measured"]


def _flags(convention: Convention, usual: Convention | None = None) -> str:
    """The flags of a convention, those alone in which it is another than the usual one."""
    flags = {"order": "--point-order", "scale": "--point-scale", "box": "--box-order"}
    return " ".join(f"{flag} {getattr(convention, name)}" for name, flag in flags.items()
                    if usual is None or getattr(convention, name) != getattr(usual, name))


def _check_boxes(boxes: Sequence[Observed], source: str, usual: Convention) -> None:
    """Refuse a source of whose four numbers too many are not boxes in the usual order, rather than guess another."""
    impossible = [point for point in (observed.tap.points[0] for observed in boxes) if usual.centre(point) is None]
    if len(impossible) <= STRAY * len(boxes):
        return
    found = {name: measure(boxes, Convention(usual.order, usual.scale, name)) for name in BOXES}
    possible = [name for name in BOXES if found[name]["beyond_screen"] == 0]
    names = " or ".join([name for name in possible if _is_right(found[name])] or possible)
    hint = f"as {names} all of them are boxes on the screen: give --box-order {names}" if names else "give --box-order"
    raise UserError(f"{source}: {len(impossible)} of {len(boxes)} boxes are not left, top, right, bottom, the first is "
                    f"{impossible[0]}; {hint}")


def are_shares(taps: Sequence[Observed]) -> bool:
    """Whether all points lie between 0 and 1 and one of them is not a whole number."""
    numbers = [number for observed in taps for number in observed.tap.points[0].numbers]
    return bool(numbers) and all(0 <= number <= 1 for number in numbers) and any(number % 1 for number in numbers)


def disagreement(found: dict) -> float:
    """The largest share of taps that contradicts one of the other measurements."""
    agreed = (found["in_element"], found["second_point_agrees"])
    return max(found["beyond_screen"], *(1 - share for share in agreed if share is not None), 0)


def in_words(found: dict) -> str:
    """A measurement in one clause."""
    shares = [f"{found['beyond_screen']:.0%} of {found['taps']} taps beyond the screen"]
    if found["with_tree"]:
        shares.append(f"{found['in_element']:.0%} of {found['with_tree']} in an element of the tree")
    if found["with_second_point"]:
        shares.append(f"{found['second_point_agrees']:.0%} of {found['with_second_point']} at their second point")
    return ", ".join(shares)
