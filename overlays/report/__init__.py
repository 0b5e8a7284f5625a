"""One self-contained HTML page: tables, pictures and sample answers. Knows no domain.

Pictures are embedded and nothing is loaded from outside, so the file can be mailed, printed and archived.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from overlays.files import atomic_path

TILE_PX = 224  # embedded tiles are reduced to this side
PICTURE_PX = 1400
MAX_PIXELS = 100_000_000  # larger files are named, not opened


@dataclass(frozen=True)
class Cell:
    """A cell with a note below its text, or a tone: "better" or "worse"."""

    text: str
    tone: str = ""
    note: str = ""


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str
    quiet: bool = False
    kind = "paragraph"

    @property
    def is_empty(self) -> bool:
        return not self.text


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row. Cells are `Cell`, text, numbers (see `number`) or None."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell | float | int | str | None]]
    caption: str = ""
    kind = "table"

    @property
    def is_empty(self) -> bool:
        return not self.rows


@dataclass(frozen=True)
class Picture:
    """A picture file with its caption; left out where the file is not there or cannot be shown."""

    path: Path | None
    caption: str = ""
    kind = "picture"

    @property
    def is_empty(self) -> bool:
        return self.path is None or embedded(self.path, PICTURE_PX) is None


@dataclass(frozen=True)
class Sample:
    """One answer to show. `right` None leaves it unjudged."""

    name: str
    question: str
    prediction: str
    target: str
    right: bool | None = None
    images: Sequence[Path] = ()


@dataclass(frozen=True)
class Cards:
    """Sample answers side by side."""

    items: Sequence[Sample]
    kind = "cards"

    @property
    def is_empty(self) -> bool:
        return not self.items


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it; left out where all blocks are empty."""

    title: str
    blocks: Sequence[Paragraph | Table | Picture | Cards]


def number(value: float | int | str | None, decimals: int = 3) -> str:
    """A float with its decimals, a dash for what does not exist, anything else as text."""
    if value is None:
        return "–"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


@cache
def embedded(path: Path, side: int):
    """An `<img>` of a picture file, reduced to `side` pixels; None where the file cannot be shown."""
    from markupsafe import Markup

    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            picture = opened.convert("RGBA" if "A" in opened.getbands() else "RGB")
    except (OSError, Image.DecompressionBombError):
        return None
    small = max(picture.size) < TILE_PX // 2
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    picture.save(stored, "PNG", optimize=True)
    return Markup('<img{} src="data:image/png;base64,{}" width="{}" height="{}" alt="{}">').format(
        Markup(' class="small"' if small else ""), base64.b64encode(stored.getvalue()).decode(), *picture.size,
        Path(path).stem)


def page(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """The page as text. Every text is escaped."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "image": embedded, "text": lambda text: text.replace(" %", "\u00a0%")}
    embedded.cache_clear()
    shown = [Section(section.title, [block for block in section.blocks if not block.is_empty]) for section in sections]
    return environment.get_template("page.html.j2").render(
        title=title, lead=lead, sections=[section for section in shown if section.blocks], footer=footer,
        tile_px=TILE_PX, picture_px=PICTURE_PX).lstrip()


def write(path: str | Path, title: str, lead: str, sections: Sequence[Section], footer: str = "") -> None:
    """Write the page, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(page(title, lead, sections, footer), encoding="utf-8")
