"""Reads JSONL with `messages`: a screenshot, a question and the grounded answer of one user in each line.

A line is {"user_id" or "user", "session" or "episode", "image", "messages": [{"role", "content": text or parts}]},
with optional "instruction", "action", "click_px" (a point, or the four numbers of a box), "click_1000" and "image_size"
(of the screen that click_px is measured on). Without the two the point is that of the answer's grounding block, on the
0-1000 grid. Where several are there, they must say the same.

A system turn of text stays a system turn. Where the screenshot itself stands in a system turn, as some collections
have it, that turn is the question: the chat templates of all families would drop its image.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from overlays.data import records
from overlays.domains.gui import answers
from overlays.domains.gui.coordinates import GRID
from overlays.domains.gui.taps import CLICKS, Point, Tap, action_name, point_of, shortened, size_of

_INSTRUCTION = re.compile(r"following instruction:\s*(.*?)\s*(?:\n\s*\n|\Z)", re.DOTALL)
_REFERRING = re.compile(r"```[ \t]*referring[ \t]*\n(.*?)\n?```", re.DOTALL)
_NAME_BYTES = 255  # the longest name that a file can have


@dataclass
class Counts:
    """What reading several files has in common.

    Attributes:
        steps: taps so far of each user and session, which number the next one.
        other: lines whose action is not a tap, by action.
        roles: turns of roles that are neither system, user nor assistant; they are left out.
    """

    steps: Counter = field(default_factory=Counter)
    other: Counter = field(default_factory=Counter)
    roles: Counter = field(default_factory=Counter)


def read(file: Path, counts: Counts,
         answer_scale: tuple[float, float] | None = (GRID, GRID)) -> Iterator[Tap | tuple[str, str]]:
    """Taps of a file in order; (where, why) instead for a line that holds none. Raises UserError without the file.

    Args:
        answer_scale: (width, height) that click_1000 and answers are measured on; None: pixels.
    """
    for row, line in records.scan(file, convert=False):
        where = f"{file.name}, row {row}"
        if isinstance(line, records.Defect):
            yield where, line.problem
            continue
        action = line.get("action")
        if isinstance(action, dict):
            action = action.get("type", action.get("action"))
        if action and action_name(action) not in CLICKS:
            counts.other[action_name(action)] += 1
            continue
        item = _tap(file, line, where, counts, answer_scale)
        yield item if isinstance(item, Tap) else (where, item)


def _tap(file: Path, line: dict, where: str, counts: Counts, answer_scale: tuple[float, float] | None) -> Tap | str:
    user = str(line.get("user_id", line.get("user")))
    if not user.isdecimal() or len(user) > 9:
        return "no user number (user_id or user)"
    episode = str(line.get("session") or line.get("episode") or "0")
    turns = _turns(line.get("messages"))
    if isinstance(turns, str):
        return turns
    counts.roles.update(role for role, *_ in turns if role not in records.ROLES.values())
    picture = _picture(line.get("image")) or next((image for *_, image in turns if image), None)
    if not isinstance(picture, str) or not picture:
        return "no screenshot is named"
    system = next((text for role, text, image in reversed(turns) if role == "system" and not image), "")
    asked, answer = _asked_and_said(turns)
    wish = line.get("instruction")
    wish = wish.strip() if isinstance(wish, str) else ""
    wish = wish or (_INSTRUCTION.search(asked) or [None, asked])[1].strip()
    if not wish:
        return "no instruction"
    screenshot = _located(file, picture)
    if isinstance(screenshot, str):
        return screenshot
    for name in ("click_px", "click_1000"):
        if line.get(name) and point_of(name, line[name]) is None:
            return f"{name} is neither two nor four numbers"
    points = [point_of("click_px", line.get("click_px")), point_of("click_1000", line.get("click_1000"), answer_scale)]
    if numbers := answers.parse_numbers(answer):
        scale, corners = None if "absolute pixel" in asked else answer_scale, tuple(numbers) if numbers[2:] else None
        points.append(Point("answer", answers.centre(numbers), True, scale, corners))
    if not any(points):
        return "neither click_px nor an answer with a point"
    step = counts.steps[int(user), episode]
    counts.steps[int(user), episode] += 1
    block = _REFERRING.search(answer)
    return Tap(int(user), episode, step, screenshot, tuple(filter(None, points)), wish, None, where,
               block[1].strip() if block else None, system or None, size_of(line.get("image_size")))


def _turns(messages: object) -> list[tuple[str, str, str | None]] | str:
    """(role, text, image or None) of each message; a clause where they cannot be read."""
    if not isinstance(messages, list):
        return "no messages"
    if not all(isinstance(message, dict) for message in messages):
        return "a message is not an object"
    named = [(str(message.get("role")), message) for message in messages]
    return [(records.ROLES.get(role, role), *_content(message.get("content"))) for role, message in named]


def _asked_and_said(turns: list[tuple[str, str, str | None]]) -> tuple[str, str]:
    """(question, answer): the last answer that names a point and the last question before it.

    Where no answer names a point: the last question and the last answer.
    """
    questions = [i for i, (role, _, image) in enumerate(turns) if role == "user" or (role == "system" and image)]
    replies = [i for i, (role, *_) in enumerate(turns) if role == "assistant"]
    used = next((i for i in reversed(replies) if answers.parse_point(turns[i][1])), None)
    before = [i for i in questions if used is None or i < used] or questions
    used = replies[-1] if used is None and replies else used
    return turns[before[-1]][1] if before else "", "" if used is None else turns[used][1]


def _content(content: object) -> tuple[str, str | None]:
    """(text, image path or None) of a message's content."""
    if isinstance(content, str):
        return content, None
    texts, image = [], None
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict):
            texts += [part["text"]] if isinstance(part.get("text"), str) else []
            image = _picture(part.get("image")) or _picture(part.get("image_url")) or image
    return "\n".join(texts), image


def _picture(value: object) -> str | None:
    """The name of an image: text, or {"url": text} as in image_url parts."""
    value = value.get("url") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _located(file: Path, picture: str) -> Path | str:
    """The file that an image's name means, below the folder of the JSONL; a clause where it cannot be one."""
    if picture.startswith("file://"):
        picture = unquote(picture.removeprefix("file://"))
    if picture.startswith("data:") or "://" in picture:
        return f"screenshot is an address and no file: {shortened(picture)}"
    folder = file.parent.resolve()
    try:
        if any(len(part.encode()) > _NAME_BYTES for part in picture.split("/")):
            raise ValueError
        screenshot = (folder / picture).resolve()
    except (OSError, ValueError, RuntimeError):  # a zero byte, half a surrogate pair, links in a circle
        return f"screenshot has a name that no file can have: {shortened(ascii(picture)[1:-1])}"
    # A media folder beside the file may be a link to another disk; nothing in it may lead further.
    roots = [folder, *(folder / link for link in Path(picture).parts[:1] if (folder / link).is_symlink())]
    if not any(screenshot.is_relative_to(root.resolve()) for root in roots):
        return f"screenshot lies outside the folder of the file: {shortened(picture)}"
    return screenshot
