"""Reads fingertip-20k folders: user/YYYYMMDD_HHMMSS/{screenshots/*.jpg, *.xml, action.jsonl, survey_result.json}.

The line format of action.jsonl is not documented by the data set; the reader takes the names in common use for each
field and says which line it cannot read.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overlays.domains.gui.coordinates import GRID
from overlays.domains.gui.taps import Point, action_name, call, point_of, size_of
from overlays.files import is_file

EPISODE = re.compile(r"[0-9]{8}_[0-9]{6}")
_ACTION = ("action", "action_type", "type", "act")
_POINT = ("coordinate", "coordinates", "point", "position", "click_px", "xy", "touch")
_IMAGE = ("screenshot", "image", "img", "screenshot_path", "pic")
_WISH = ("instruction", "low_level_instruction", "step_instruction", "intent", "task", "query", "goal")
_SIZE = ("image_size", "screen_size", "resolution", "screen")
_USER = re.compile(r"(?:user[_-]?)?([0-9]{1,9})", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One action of an episode.

    Attributes:
        points: where it was, once for each field of the line that says so; none where the action has no point.
        space: (width, height) of the screen, where the line says it.
    """

    number: int
    action: str
    points: tuple[Point, ...]
    space: tuple[float, float] | None
    screenshot: Path
    instruction: str
    hierarchy: Path


def users(raw: Path) -> tuple[dict[int, Path], list[str]]:
    """(folder of each user, names of the folders that are none). "3", "03" and "user_3" are all user 3, the first."""
    found: dict[int, Path] = {}
    others = []
    for path in sorted(_folders(raw), key=lambda path: (len(path.name), path.name)):
        match = _USER.fullmatch(path.name)
        if match and int(match[1]) not in found:
            found[int(match[1])] = path
        else:
            others.append(path.name)
    return found, others


def episodes(user_folder: Path) -> tuple[list[Path], list[str]]:
    """(episode folders of a user by name, names of the folders that are none)."""
    there = sorted(_folders(user_folder))
    return ([path for path in there if EPISODE.fullmatch(path.name)],
            [path.name for path in there if not EPISODE.fullmatch(path.name)])


def _folders(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]


def read_episode(folder: Path, answer_scale: tuple[float, float] | None = (GRID, GRID)) -> Iterator[Step | str]:
    """Steps of an episode in order; a clause instead where a line cannot be read or nothing is there.

    Args:
        answer_scale: (width, height) that click_1000 is measured on; None: pixels.
    """
    file = folder / "action.jsonl"
    if not file.is_file():
        yield "action.jsonl is missing"
        return
    intent = _intent(folder)
    pictures = sorted((path for path in (folder / "screenshots").glob("*") if path.suffix.lower() in
                       (".jpg", ".jpeg", ".png")), key=_natural)
    # Only "\n" ends a line: an instruction may hold U+2028 and its like.
    lines = [line for line in file.read_text(encoding="utf-8-sig", errors="replace").split("\n") if line.strip()]
    if not lines:
        yield "action.jsonl holds no action"
    for number, line in enumerate(lines):
        row = _row(line)
        if isinstance(row, str):
            yield f"line {number + 1} of action.jsonl {row}"
            continue
        action = action_name(_first(row, _ACTION) or "")
        if not action:
            yield f"line {number + 1} of action.jsonl names no action"
            continue
        named = _first(row, _IMAGE)
        picture = (folder / "screenshots" / Path(str(named)).name if named else
                   pictures[number] if number < len(pictures) else folder / "screenshots" / f"{number}.jpg")
        wish = _first(row, _WISH) or intent
        yield Step(number, action, _points(row, answer_scale), size_of(_first(row, _SIZE)), picture,
                   str(wish or "").strip(), _hierarchy(folder, picture))


def _row(line: str) -> dict | str:
    """The object of a line, also of one that is a call such as click(1, 2); a clause where it is neither."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        if call(line) is None:
            return "is not JSON"
        row = line
    if isinstance(row, str):
        row = {"action": row}
    if not isinstance(row, dict):
        return "is not an action"
    if isinstance(row.get("action"), dict):  # {"action": {"type": "click", ...}, "screenshot": ...}
        inner = row.pop("action")
        row = row | inner
    return row


def _first(row: dict, names: tuple[str, ...]):
    return next((row[name] for name in names if row.get(name) not in (None, "", [])), None)


def _points(row: dict, answer_scale: tuple[float, float] | None) -> tuple[Point, ...]:
    """Every point that a line names, the first of the usual names first."""
    values = {name: row[name] for name in _POINT if row.get(name) not in (None, "", [])}
    if "x" in row and "y" in row:
        values["x and y"] = {"x": row["x"], "y": row["y"]}  # a row's width and height are the screen's
    called = call(str(_first(row, _ACTION)))
    if called and called[1]:
        values["the call"] = called[1]
    points = [point_of(name, value) for name, value in values.items()]
    grid = point_of("click_1000", row.get("click_1000"), answer_scale)
    return tuple(filter(None, [*points, grid]))


def _intent(folder: Path) -> str:
    """The user's own words for the whole episode."""
    try:
        survey = json.loads((folder / "survey_result.json").read_text(encoding="utf-8-sig"))
        return str(_first(survey, _WISH) or "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def _hierarchy(folder: Path, picture: Path) -> Path:
    beside = picture.with_name(f"{picture.stem}.xml")
    return beside if is_file(beside) else folder / beside.name


def _natural(path: Path) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]
