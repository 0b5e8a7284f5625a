"""One tap of a user on a screenshot, whatever file it came from."""

import re
from dataclasses import dataclass
from pathlib import Path

CLICKS = {"click", "tap", "press", "touch", "long_press", "longpress", "long_click", "long_tap", "double_click",
          "doubleclick", "double_tap", "left_click", "left_single", "left_double", "right_click", "right_single",
          "点击", "单击", "双击", "长按", "轻触"}
_CALL = re.compile(r"\s*([^\W\d][\w ]*?)\s*[\[(](.*)[\])]\s*;?\s*", re.DOTALL)


@dataclass(frozen=True)
class Tap:
    """A tap.

    Attributes:
        click: (x, y), measured on `scale`.
        hierarchy: dump of the screen's elements, None where the source has none.
        where: its place in the source, for messages.
        referring: description of the element, where the source has its own.
        system: text of the source's system turn.
        scale: (width, height) that `click` is measured on; None for the pixels of the upright screenshot.
    """

    user: int
    episode: str
    step: int
    screenshot: Path
    click: tuple[float, float]
    instruction: str
    hierarchy: Path | None
    where: str
    referring: str | None = None
    system: str | None = None
    scale: tuple[float, float] | None = None


def point_of(value: object) -> tuple[float, float] | None:
    """(x, y) of two numbers, the centre of four; None where the value is neither.

    Numbers may be text; they stand in a list, a list of two corners, {"x", "y"} or one text.
    """
    if isinstance(value, str):
        value = re.findall(r"(?<![\w.])-?(?:\d+(?:\.\d+)?|\.\d+)", value)
    if isinstance(value, dict):
        value = [value.get("x"), value.get("y")]
    if isinstance(value, list | tuple) and value and all(isinstance(corner, list | tuple) for corner in value):
        value = [number for corner in value for number in corner]
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        return None
    if len(numbers) == 4:
        return (numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


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
