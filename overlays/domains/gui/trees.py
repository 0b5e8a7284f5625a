"""View hierarchies: UI Automator dumps of a screen's elements, and the space that they and the taps are measured in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

_BOUNDS = re.compile(r"\[(-?\d{1,9}),(-?\d{1,9})\]\[(-?\d{1,9}),(-?\d{1,9})\]")
_DECLARATION = re.compile(r"\s*<\?xml[^>]*?\?>")
_ENCODING = re.compile(rb"\s*<\?xml[^>]*?encoding=[\"']([\w.-]+)")
FIT = 0.02  # by how much the proportions of two sizes of one screen may differ
BELOW_BARS = 0.85  # least share of a screen's side that navigation bars leave to a tree
BACKGROUND = 0.5  # share of the screen from which on a node is not a single element


@dataclass(frozen=True)
class Tree:
    """A screen's elements. Boxes are left, top, right, bottom in pixels.

    Attributes:
        root: the box of all windows together.
        boxes: (n, 4) int32.
        labels: (n) text of each element, "" without one.
        clickable, leaf: (n,) bool; a leaf has no elements in it.
    """

    root: tuple[int, int, int, int]
    boxes: np.ndarray
    labels: tuple[str, ...]
    clickable: np.ndarray
    leaf: np.ndarray

    def under(self, point: Sequence[float]) -> np.ndarray:
        """(n,) bool: the elements that hold a point."""
        return ((self.boxes[:, :2] <= point) & (point <= self.boxes[:, 2:])).all(1)

    @cached_property
    def area(self) -> np.ndarray:
        """(n,) pixels of each element."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).astype(np.int64).prod(1)

    def labelled_at(self, point: Sequence[float]) -> tuple[str, tuple[int, ...]] | None:
        """(label, box) of the smallest element with a label under a point, clickable ones first."""
        area = self.area
        found = [(not self.clickable[i], area[i], self.labels[i], tuple(self.boxes[i].tolist()))
                 for i in np.flatnonzero(self.under(point)) if self.labels[i]]
        return min(found)[2:] if found else None

    def has_target_at(self, point: Sequence[float], size: Sequence[float]) -> bool | None:
        """Whether a single element of a screen of `size` (width, height) is under a point; None where the tree does not
        say it: it has no such element, or a larger leaf is there, which draws its own (a game, a map, a web page).

        Such an element is clickable or a leaf, and smaller than half the screen.
        """
        area, hit = self.area, self.under(point)
        large = area >= BACKGROUND * size[0] * size[1]
        targets = (self.leaf | self.clickable) & (area > 0) & ~large
        if (targets & hit).any():
            return True
        return None if not targets.any() or (self.leaf & large & hit).any() else False


def read(file: Path) -> Tree | str | None:
    """The tree of a dump; a clause where it cannot be used, None where there is no such file."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    declared = _ENCODING.match(data)
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if wide else declared[1].decode() if declared else "utf-8-sig").lstrip("\ufeff")
    except (ValueError, LookupError) as error:
        return f"is not text: {error}"
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return "declares entities, which a dump has none of and which can blow up"
    try:  # expat itself knows few encodings
        top = ElementTree.fromstring(_DECLARATION.sub("", text, count=1))
    except (ValueError, ElementTree.ParseError) as error:
        return f"is not XML: {error}"
    nodes = [(node, box) for node in top.iter("node") if (box := _box(node))]
    roots = [box for node in ([top] if top.tag == "node" else top.findall("node")) if (box := _box(node))]
    if not roots:
        return "has no window with bounds"
    left, top_edge, right, bottom = zip(*roots, strict=True)
    return Tree((min(left), min(top_edge), max(right), max(bottom)), np.array([box for _, box in nodes], np.int32),
                tuple((node.get("text") or node.get("content-desc") or "").strip() for node, _ in nodes),
                np.array([node.get("clickable") == "true" for node, _ in nodes]),
                np.array([not len(node) for node, _ in nodes]))


def _box(node: ElementTree.Element) -> tuple[int, int, int, int] | None:
    bounds = _BOUNDS.match(node.get("bounds", ""))
    box = tuple(map(int, bounds.groups())) if bounds else None
    return box if box and box[0] <= box[2] and box[1] <= box[3] else None


def fits(size: Sequence[float], picture: Sequence[float]) -> bool:
    """Whether two (width, height) have the proportions of one screen."""
    return min(size) > 0 and abs(size[0] * picture[1] / (size[1] * picture[0]) - 1) <= FIT


def space_of(tree: Tree, picture: tuple[int, int]) -> tuple[int, int] | str:
    """(width, height) that a tree under a picture of (width, height) is measured on; a clause where they do not fit.

    A root inside the picture that touches its right or lower edge, or starts elsewhere than at (0, 0), is a window on
    it: bars and dialogs leave room. A root that is larger, or smaller with the same proportions, has a scale of its
    own; a larger one that starts at (0, 0) may end above a navigation bar.
    """
    left, top, width, height = tree.root
    inside = width <= picture[0] * (1 + FIT) and height <= picture[1] * (1 + FIT)
    touches = width >= picture[0] * (1 - FIT) or height >= picture[1] * (1 - FIT)
    if inside and (touches or (left, top) != (0, 0) or not fits((width, height), picture)):
        return picture
    if fits((width, height), picture):
        return width, height
    for axis in (0, 1):
        scale = (width, height)[axis] / picture[axis]
        other = (height, width)[axis] / scale / picture[1 - axis] if scale > 1 + FIT else 0
        if (left, top) == (0, 0) and BELOW_BARS <= other <= 1 + FIT:
            return round(picture[0] * scale), round(picture[1] * scale)
    return f"view hierarchy of {width} x {height} does not fit the screenshot of {picture[0]} x {picture[1]}"
