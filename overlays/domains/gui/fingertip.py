"""Reads fingertip-20k folders: user/YYYYMMDD_HHMMSS/{screenshots/*.jpg, *.xml, action.jsonl, survey_result.json}.

The line format of action.jsonl is not documented by the data set; the reader takes the names in common use for each
field and says which line it cannot read.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

EPISODE = re.compile(r"\d{8}_\d{6}$")
CLICKS = {"click", "tap", "long_press", "longpress", "double_click", "double_tap", "press"}
_ACTION = ("action", "action_type", "type", "act")
_POINT = ("coordinate", "coordinates", "point", "position", "click_px", "xy", "touch")
_IMAGE = ("screenshot", "image", "img", "screenshot_path", "pic")
_WISH = ("instruction", "low_level_instruction", "step_instruction", "intent", "task", "query", "goal")
_BOUNDS = re.compile(r"\[(-?\d+),(-?\d+)\]\[(-?\d+),(-?\d+)\]")
_CALL = re.compile(r"^\s*([A-Za-z_ ]+?)\s*[\[(]\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Step:
    """One action of an episode. click_px: (x, y) pixels of the screenshot, None where the action has no point."""

    number: int
    action: str
    click_px: tuple[float, float] | None
    screenshot: Path
    instruction: str
    hierarchy: Path


@dataclass(frozen=True)
class Element:
    """A node of the view hierarchy. box: left, top, right, bottom in pixels."""

    label: str
    box: tuple[int, int, int, int]


def episodes(user_folder: Path) -> list[Path]:
    """Episode folders of a user, by name."""
    return sorted(path for path in user_folder.iterdir() if path.is_dir() and EPISODE.match(path.name))


def read_episode(folder: Path) -> Iterator[Step | str]:
    """Steps of an episode in order; a clause instead where a line cannot be read or nothing is there."""
    file = folder / "action.jsonl"
    if not file.is_file():
        yield "action.jsonl is missing"
        return
    intent = _intent(folder)
    pictures = sorted((path for path in (folder / "screenshots").glob("*") if path.suffix.lower() in
                       (".jpg", ".jpeg", ".png")), key=_natural)
    lines = [line for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]
    if not lines:
        yield "action.jsonl holds no action"
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = line
        if isinstance(row, str):
            call = _CALL.match(row)
            row = {"action": (call[1] if call else row.split("(")[0]), **({"x": call[2], "y": call[3]} if call else {})}
        if not isinstance(row, dict):
            yield f"line {number + 1} of action.jsonl is no action"
            continue
        if isinstance(row.get("action"), dict):  # {"action": {"type": "click", ...}, "screenshot": ...}
            inner = row.pop("action")
            row = row | inner
        action = re.sub(r"\W+", "_", str(_first(row, _ACTION) or "").strip().lower()).strip("_")
        if not action:
            yield f"line {number + 1} of action.jsonl names no action"
            continue
        named = _first(row, _IMAGE)
        picture = (folder / "screenshots" / Path(str(named)).name if named else
                   pictures[number] if number < len(pictures) else folder / "screenshots" / f"{number}.jpg")
        wish = _first(row, _WISH) or intent
        yield Step(number, action, _point(row), picture, str(wish or "").strip(), _hierarchy(folder, picture))


def _first(row: dict, names: tuple[str, ...]):
    return next((row[name] for name in names if row.get(name) not in (None, "", [])), None)


def _point(row: dict) -> tuple[float, float] | None:
    value = _first(row, _POINT)
    if value is None and "x" in row and "y" in row:
        value = [row["x"], row["y"]]
    if isinstance(value, str):
        value = re.findall(r"-?\d+(?:\.\d+)?", value)
    if isinstance(value, dict):
        value = [value.get("x"), value.get("y")]
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError):
        return None
    if len(numbers) == 4:
        return (numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _intent(folder: Path) -> str:
    """The user's own words for the whole episode."""
    try:
        survey = json.loads((folder / "survey_result.json").read_text(encoding="utf-8-sig"))
        return str(_first(survey, _WISH) or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _hierarchy(folder: Path, picture: Path) -> Path:
    beside = picture.with_suffix(".xml")
    return beside if beside.is_file() else folder / beside.name


def _natural(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def element_at(hierarchy: Path, point: tuple[float, float]) -> Element | None:
    """The smallest node with a label under a point, clickable ones first; None where the dump is missing or broken."""
    try:
        data = hierarchy.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # a dump has none; entities can blow up
            return None
        root = ElementTree.fromstring(data)
    except (OSError, ElementTree.ParseError):
        return None
    found = []
    for node in root.iter("node"):
        bounds = _BOUNDS.match(node.get("bounds", ""))
        label = (node.get("text") or node.get("content-desc") or "").strip()
        if not bounds or not label:
            continue
        left, top, right, bottom = map(int, bounds.groups())
        if left <= point[0] <= right and top <= point[1] <= bottom:
            area = (right - left) * (bottom - top)
            found.append((node.get("clickable") != "true", area, label, (left, top, right, bottom)))
    return Element(*min(found)[2:]) if found else None
