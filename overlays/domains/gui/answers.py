"""Question and answer text of GUI grounding, and the reading of answers."""

import re

PROMPT = (
    "Given a GUI image, what are the relative (0-1000) pixel point coordinates for the element corresponding to the "
    "following instruction: {instruction}\n\nThink step-by-step, provide referring for the element first and then the "
    "grounded point coordinates."
)
ABSOLUTE_PROMPT = PROMPT.replace("relative (0-1000) pixel point", "absolute pixel point")

_BLOCK = re.compile(r"```[ \t]*grounding[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_NUMBER = r"-?\d+(?:\.\d+)?"
_NUMBERS = re.compile(_NUMBER)
_GROUP = re.compile(rf"[\[(<]\s*{_NUMBER}(?:\s*[,; ]\s*{_NUMBER})+\s*[\])>]")
_NAMED = re.compile(rf"x\w*\W{{1,4}}({_NUMBER})\W{{1,4}}y\w*\W{{1,4}}({_NUMBER})", re.IGNORECASE)


def question(instruction: str, convention: str = "relative") -> str:
    """The question about one screenshot, placeholder included."""
    text = ABSOLUTE_PROMPT if convention == "absolute" else PROMPT
    return f"<image>\n{text.format(instruction=instruction)}"


def answer(referring: str, point: tuple[int, int]) -> str:
    """The two fenced blocks: the element in words, then its point."""
    return f"```referring\n{referring}\n```\n```grounding\n[{point[0]}, {point[1]}]\n```"


def parse_point(text: str) -> tuple[float, float] | None:
    """The point of an answer, in the answer's own units; the centre of a box; None where there is none.

    Read in this order: the last group of two or four numbers in brackets inside the grounding block, the last such
    group anywhere, a last pair named x and y. Two corners, [[x1, y1], [x2, y2]], are a box.
    """
    blocks = _BLOCK.findall(text)
    for part in ([blocks[-1]] if blocks else []) + [text]:
        groups = [[float(number) for number in _NUMBERS.findall(group)] for group in _GROUP.findall(part)]
        groups = [group for group in groups if len(group) in (2, 4)]
        if groups:
            if len(groups[-1]) == 2 and len(groups) >= 2 and re.search(r"\]\s*,\s*\[[^\[\]]*\]\s*\]", part):
                return _centre(groups[-2] + groups[-1])
            return _centre(groups[-1])
    named = _NAMED.findall(text)
    return (float(named[-1][0]), float(named[-1][1])) if named else None


def _centre(group: list[float]) -> tuple[float, float]:
    if len(group) == 2:
        return group[0], group[1]
    return (group[0] + group[2]) / 2, (group[1] + group[3]) / 2
