"""Question and answer text of GUI grounding, and the reading of answers."""

import math
import re
import unicodedata
from collections.abc import Sequence

PROMPT = (
    "Given a GUI image, what are the relative (0-1000) pixel point coordinates for the element corresponding to the "
    "following instruction: {instruction}\n\nThink step-by-step, provide referring for the element first and then the "
    "grounded point coordinates."
)
ABSOLUTE_PROMPT = PROMPT.replace("relative (0-1000) pixel point", "absolute pixel point")

_BLOCK = re.compile(r"```[ \t]*grounding[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_NUMBER = r"-?(?:\d+(?:\.\d+)?|\.\d+)"
_NUMBERS = re.compile(_NUMBER)
_QUOTED = rf"[\"']?{_NUMBER}[\"']?"
_LISTED = rf"{_QUOTED}(?:\s*[,; ]\s*{_QUOTED})+"
_GROUP = re.compile(rf"[\[(<{{]\s*{_LISTED}\s*[\])>}}]")
_BETWEEN = re.compile(r"\s*,?\s*")  # two corners, each in brackets of its own
_BARE = re.compile(rf"\s*{_LISTED}[\s.]*")
_GAP = r"(?:[^\w.-]|[-.](?![\d.])){1,4}"  # between a name and its number, but for its sign and point
_NAMED = re.compile(rf"x\w*{_GAP}({_NUMBER}){_GAP}y\w*{_GAP}({_NUMBER})", re.IGNORECASE)
_NAMED_BOX = re.compile(rf"x_?(?:1|min){_GAP}({_NUMBER}){_GAP}y_?(?:1|min){_GAP}({_NUMBER}){_GAP}"
                        rf"x_?(?:2|max){_GAP}({_NUMBER}){_GAP}y_?(?:2|max){_GAP}({_NUMBER})", re.IGNORECASE)
_OPENED = re.compile(r"<(?:point|box)\w*>|<\|(?:point|box)_start\|>", re.IGNORECASE)
_CLOSED = re.compile(r"</(?:point|box)\w*>|<\|(?:point|box)_end\|>", re.IGNORECASE)
_OTHER_LETTERS = str.maketrans("【】〔〕\u2212、", "[][]-,")  # that mean the same and which NFKC leaves


def question(instruction: str, convention: str = "relative") -> str:
    """The question about one screenshot, placeholder included."""
    text = ABSOLUTE_PROMPT if convention == "absolute" else PROMPT
    return f"<image>\n{text.format(instruction=instruction)}"


def answer(referring: str, point: tuple[int, int]) -> str:
    """The two fenced blocks: the element in words, then its point."""
    return f"```referring\n{referring}\n```\n```grounding\n[{point[0]}, {point[1]}]\n```"


def parse_point(text: str) -> tuple[float, float] | None:
    """The point of an answer, in the answer's own units; the centre of a box; None where there is none."""
    numbers = parse_numbers(text)
    return centre(numbers) if numbers else None


def parse_numbers(text: str) -> list[float] | None:
    """The two numbers of an answer's point, or the four of two corners of its box; None where it has neither.

    Read in this order: the last group of two or four numbers in brackets inside the grounding block, the block itself
    where it is nothing but numbers, the last such group anywhere, a last pair (or box) named x and y. Two pairs in
    brackets with at most a comma between them are the corners of a box. Full-width brackets and the tags <point> and
    <box> count as brackets.
    """
    text = unicodedata.normalize("NFKC", text).translate(_OTHER_LETTERS)
    text = _CLOSED.sub("]", _OPENED.sub("[", text))
    blocks = _BLOCK.findall(text)
    numbers = (_last_group(blocks[-1]) or _numbers(_BARE.fullmatch(blocks[-1]))) if blocks else None
    numbers = numbers or _last_group(text) or _last_named(text)
    return numbers if numbers and all(map(math.isfinite, numbers)) else None


def _numbers(match: re.Match | None) -> list[float] | None:
    """The numbers of a match, if they are two or four."""
    numbers = [float(number) for number in _NUMBERS.findall(match[0])] if match else []
    return numbers if len(numbers) in (2, 4) else None


def _last_group(text: str) -> list[float] | None:
    """The last two or four numbers in brackets; the two corners where exactly two pairs end the run of pairs."""
    groups = [(match, numbers) for match in _GROUP.finditer(text) if (numbers := _numbers(match))]
    if not groups:
        return None
    run = [groups[-1]]
    for match, numbers in reversed(groups[:-1]):
        if len(run[0][1]) == len(numbers) == 2 and _BETWEEN.fullmatch(text[match.end():run[0][0].start()]):
            run.insert(0, (match, numbers))
        else:
            break
    return run[0][1] + run[1][1] if len(run) == 2 else run[-1][1]


def _last_named(text: str) -> list[float] | None:
    matches = (_NAMED_BOX.findall(text) or _NAMED.findall(text))[-1:]
    return [float(number) for number in matches[0]] if matches else None


def centre(numbers: Sequence[float]) -> tuple[float, float]:
    """(x, y) of a point, or the centre of a box by two opposite corners."""
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    return (numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2
