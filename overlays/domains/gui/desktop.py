"""Reads JSONL with `messages`: a screenshot, a question and the grounded answer of one user in each line.

A line is {"user_id" or "user", "session" or "episode", "image", "messages": [{"role", "content": text or parts}]},
with optional "instruction", "click_px" and "image_size". Without "click_px" the point is that of the answer's
grounding block, on the 0-1000 grid.

A system turn of text stays a system turn. Where the screenshot itself stands in a system turn, as some collections
have it, that turn is the question: the chat templates of all families would drop its image.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from overlays.data import records
from overlays.domains.gui import answers
from overlays.domains.gui.taps import Tap

_INSTRUCTION = re.compile(r"following instruction:\s*(.*?)\s*(?:\n\s*\n|\Z)", re.DOTALL)
_REFERRING = re.compile(r"```[ \t]*referring[ \t]*\n(.*?)\n?```", re.DOTALL)


def read(file: Path) -> Iterator[Tap | tuple[str, str]]:
    """Taps of a file in order; (where, why) instead for a line that holds none. Raises UserError without the file."""
    steps: Counter = Counter()
    for row, line in records.scan(file):
        where = f"{file.name}, row {row}"
        if isinstance(line, records.Defect):
            yield where, line.problem
            continue
        found = _tap(file, line, where, steps)
        yield found if isinstance(found, Tap) else (where, found)


def _tap(file: Path, line: dict, where: str, steps: Counter) -> Tap | str:
    user = line.get("user_id", line.get("user"))
    if not str(user).isdigit():
        return "no user number (user_id or user)"
    episode = str(line.get("session") or line.get("episode") or "0")
    system, question, said, picture = "", "", "", line.get("image")
    messages = line.get("messages")
    if not isinstance(messages, list):
        return "no messages"
    for message in messages:
        if not isinstance(message, dict):
            return "a message is no object"
        text, image = _content(message.get("content"))
        picture = picture or image
        if message.get("role") == "assistant":
            said = text
        elif message.get("role") == "system" and not image:
            system = text
        else:
            question = text
    if not isinstance(picture, str) or not picture:
        return "no screenshot is named"
    wish = line.get("instruction") or (_INSTRUCTION.search(question) or [None, question])[1]
    if not wish:
        return "no instruction"
    screenshot = (file.parent / picture).resolve()
    if not screenshot.is_relative_to(file.parent.resolve()):
        return f"screenshot {picture} lies outside the folder of the file"
    click = line.get("click_px") or _click_of_answer(said, line, screenshot)
    if not isinstance(click, list | tuple) or len(click) != 2:
        return "neither click_px nor an answer with a point"
    step = steps[user, episode]
    steps[user, episode] += 1
    block = _REFERRING.search(said)
    return Tap(int(user), episode, step, screenshot, (float(click[0]), float(click[1])), str(wish).strip(), None, where,
               block[1].strip() if block else None, system or None)


def _content(content: object) -> tuple[str, str | None]:
    """(text, image path or None) of a message's content."""
    if isinstance(content, str):
        return content, None
    texts, image = [], None
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict):
            texts += [part["text"]] if isinstance(part.get("text"), str) else []
            image = part.get("image") or image
    return "\n".join(texts), image


def _click_of_answer(said: str, line: dict, screenshot: Path) -> tuple[float, float] | None:
    point = answers.parse_point(said)
    if point is None:
        return None
    size = line.get("image_size")
    if not size:
        try:
            with Image.open(screenshot) as image:
                size = image.size
        except OSError:
            return point  # the missing screenshot is what will be told
    return point[0] * size[0] / 1000, point[1] * size[1] / 1000
