"""One tap of a user on a screenshot, whatever file it came from."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tap:
    """A tap.

    Attributes:
        click_px: (x, y) in pixels of the screenshot.
        label: of the element in the view hierarchy, None where nothing is known.
        where: its place in the source, for messages.
        referring: description of the element, where the source has its own.
        system: text of the source's system turn.
    """

    user: int
    episode: str
    step: int
    screenshot: Path
    click_px: tuple[float, float]
    instruction: str
    label: str | None
    where: str
    referring: str | None = None
    system: str | None = None
