"""One tap of a user on a screenshot, whatever file it came from."""

import re
from dataclasses import dataclass
from pathlib import Path

from overlays.domains.gui.answers import centre

CLICKS = {"click", "tap", "press", "touch", "long_press", "longpress", "long_click", "long_tap", "double_click",
          "doubleclick", "double_tap", "left_click", "left_single", "left_double", "right_click", "right_single",
          "点击", "单击", "双击", "长按", "轻触"}
_CALL = re.compile(r"\s*([^\W\d][\w ]*?)\s*[\[(](.*)[\])]\s*;?\s*", re.DOTALL)
_NAMES = {"left": "x1", "top": "y1", "right": "x2", "bottom": "y2", "xmin": "x1", "ymin": "y1", "xmax": "x2",
          "ymax": "y2", "x_min": "x1", "y_min": "y1", "x_max": "x2", "y_max": "y2", "w": "width", "h": "height"}


@dataclass(frozen=True)
class Point:
    """A point or box as a source writes it.

    Attributes:
        name: of the field.
        numbers: two of a point, four of a box.
        named: whether the source says which number is x and which is y.
        scale: (width, height) that the numbers are measured on; None where the source does not say it.
        corners: two opposite corners of the box whose centre the two numbers are; None of a point.
    """

    name: str
    numbers: tuple[float, ...]
    named: bool = False
    scale: tuple[float, float] | None = None
    corners: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return "[" + ", ".join(f"{number:g}" for number in self.numbers) + "]"


@dataclass(frozen=True)
class Tap:
    """A tap.

    Attributes:
        points: where it was; the first counts, the others must say the same.
        hierarchy: dump of the screen's elements, None where the source has none.
        where: its place in the source, for messages.
        referring: description of the element, where the source has its own.
        system: text of the source's system turn.
        space: (width, height) of the screen that the source names, which need not be that of the screenshot.
    """

    user: int
    episode: str
    step: int
    screenshot: Path
    points: tuple[Point, ...]
    instruction: str
    hierarchy: Path | None
    where: str
    referring: str | None = None
    system: str | None = None
    space: tuple[float, float] | None = None


def point_of(name: str, value: object, scale: tuple[float, float] | None = None) -> Point | None:
    """A point or box of a field; None where its value is neither.

    Numbers may be text; they stand in a list, a list of two corners, one text, or under names: {"x", "y"}, with
    {"width", "height"}, or two corners.
    """
    if isinstance(value, str):
        value = _numbers(value)
    if isinstance(value, dict):
        return _named_point(name, {_NAMES.get(str(key).lower(), str(key).lower()): number
                                   for key, number in value.items()}, scale)
    corners = isinstance(value, list | tuple) and value and all(isinstance(item, list | tuple) for item in value)
    if corners:
        value = [number for corner in value for number in corner]
    numbers = _floats(value)
    if numbers is None or len(numbers) not in (2, 4):
        return None
    if corners and len(numbers) == 4:  # the centre is the same whichever corners they are
        return Point(name, centre(numbers), False, scale, numbers)
    return Point(name, numbers, False, scale)


def _named_point(name: str, row: dict, scale: tuple[float, float] | None) -> Point | None:
    for keys in (("x1", "y1", "x2", "y2"), ("x1", "y1", "width", "height"), ("x", "y", "width", "height"), ("x", "y")):
        numbers = _floats([row.get(key) for key in keys])
        if numbers is None:
            continue
        if len(numbers) == 2:
            return Point(name, numbers, True, scale)
        x, y, *far = numbers
        if keys[2] == "width":
            if min(far) < 0:
                return None
            far = x + far[0], y + far[1]
        return Point(name, centre((x, y, *far)), True, scale, (x, y, *far))
    return None


def size_of(value: object) -> tuple[float, float] | None:
    """(width, height) of "1080x2400", two numbers or {"width", "height"}; None where it is neither."""
    value = _numbers(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        value = [value.get("width", value.get("w")), value.get("height", value.get("h"))]
    numbers = _floats(value)
    return numbers if numbers and len(numbers) == 2 and min(numbers) > 0 else None


def _numbers(text: str) -> list[str]:
    return re.findall(r"(?<![\w.])-?(?:\d+(?:\.\d+)?|\.\d+)|(?<=\dx)\d+", text)


def _floats(value: object) -> tuple[float, ...] | None:
    try:
        return tuple(float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        return None


def call(text: str) -> tuple[str, str] | None:
    """(name, arguments) of an action written as a call: "CLICK(100,200)", "click(start_box='(1,2)')"."""
    found = _CALL.fullmatch(text)
    return (found[1], found[2]) if found else None


def action_name(name: object) -> str:
    """An action's name in small letters with underscores; of a call, what stands before its brackets."""
    called = call(str(name))
    return re.sub(r"\W+", "_", (called[0] if called else str(name)).strip().lower()).strip("_")


def shortened(text: object, length: int = 60) -> str:
    """A text as a message can hold it."""
    words = " ".join(str(text).split())
    return words if len(words) <= length else f"{words[:length]}..."
