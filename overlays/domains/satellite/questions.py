"""Questions about a city's number, answers as text, and the number read back from an answer."""

import re

GROWTH = "population_growth"
QUESTIONS = {GROWTH: "By how many percent does the population of this city grow in a year? Answer with a number."}
_NUMBER = re.compile(r"[-+−]?(?:\d+(?:[.,]\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


def question(name: str) -> str:
    """The question for the label `name`."""
    return QUESTIONS.get(name, f"What is the {name.replace('_', ' ')} of this city? Answer with a number.")


def answer(value: float, decimals: int = 2) -> str:
    """A number as the answer: fixed decimals, never "-0.00"."""
    text = f"{value:.{decimals}f}"
    return text[1:] if float(text) == 0 and text.startswith("-") else text


def parse_number(text: str | None) -> float | None:
    """The number of an answer; None where it holds none, or several different ones."""
    numbers = {float(word.replace("−", "-").replace(",", ".")) for word in _NUMBER.findall(text or "")}
    return numbers.pop() if len(numbers) == 1 else None
