"""One self-contained HTML page: figures, tables, pictures and sample answers. Knows no domain.

Every function returns a piece of HTML; `write` puts the pieces on a page. Texts are escaped, pictures are embedded, and
nothing is loaded from outside, so that the file can be mailed, printed and opened in ten years.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from overlays.files import atomic_path

TILE_PX = 224  # embedded tiles are reduced to this side
PICTURE_PX = 1400
MAX_PIXELS = 100_000_000  # larger files are named, not opened

_STYLE = """
:root { color-scheme: light dark; --paper: #fcfbf8; --ink: #23211d; --quiet: #6b665c; --line: #ddd8cc; --card: #fff;
  --right: #2b6e3f; --wrong: #a5342a; --mark: #8a5a1f; }
@media (prefers-color-scheme: dark) { :root { --paper: #1b1a18; --ink: #e9e5dc; --quiet: #a39d90; --line: #3b3833;
  --card: #242220; --right: #86c995; --wrong: #ee9186; --mark: #dcae6c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 Charter, "Bitstream Charter", Georgia, "Noto Serif", "Noto Serif CJK SC", serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; margin: .4rem 0; }
.lead, figcaption, .note, dt, th small { color: var(--quiet); }
.note, figcaption { font-size: .86rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0; }
caption { text-align: left; color: var(--quiet); font-size: .86rem; padding-bottom: .4rem; }
th, td { padding: .34rem 1.1rem .34rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
th[scope=row] { font-weight: 400; }
th small { display: block; font-weight: 400; font-size: .8rem; max-width: 30rem; }
.better { color: var(--right); } .worse { color: var(--wrong); }
figure { margin: .6rem 0; }
figure.plot img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .9rem 1rem 1rem;
  break-inside: avoid; overflow-wrap: anywhere; }
.card header { display: flex; justify-content: space-between; gap: 1rem; font-size: .86rem; color: var(--quiet); }
.card .images { display: flex; gap: 3px; margin: .6rem 0; }
.card .images img { flex: 1 1 0; min-width: 0; max-width: 224px; height: auto; aspect-ratio: 1; object-fit: contain; }
img.small { image-rendering: pixelated; }
.card dl { margin: 0; font-size: .92rem; } .card dt { font-size: .78rem; margin-top: .45rem; } .card dd { margin: 0; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .verdict { font-weight: 600; white-space: nowrap; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .86rem; }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --quiet: #555; --line: #bbb; --card: #fff;
  --right: #1d5a30; --wrong: #8d2018; } body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2 { break-after: avoid; } tr, figure, .card { break-inside: avoid; }
  .cards { grid-template-columns: repeat(2, 1fr); } }
"""


@dataclass(frozen=True)
class Figure:
    """One line of the table of figures; `over` says what the figure is taken over (its denominator)."""

    label: str
    over: str
    model: float | int | None
    baseline: float | int | None = None
    lower_is_better: bool = False


@dataclass(frozen=True)
class Sample:
    """One answer to show. `right` None leaves it unjudged."""

    name: str
    question: str
    prediction: str
    truth: str
    right: bool | None = None
    images: Sequence[Path] = field(default_factory=tuple)


def number(value: float | int | str | None) -> str:
    """Three decimals for fractions, a dash for what does not exist."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def paragraph(text: str, quiet: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=note' if quiet else ''}>{html.escape(text)}</p>"


def section(title: str, *pieces: str) -> str:
    """A heading and what stands under it; nothing where all pieces are empty."""
    content = "\n".join(filter(None, pieces))
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}\n</section>" if content else ""


def table(headers: Sequence[str], rows: Sequence[Sequence[float | int | str | None]], caption: str = "") -> str:
    """A table whose first column names the row; numbers through `number`."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headers)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(str(row[0]))}</th>'
        + "".join(f"<td>{html.escape(number(cell))}</td>" for cell in row[1:]) + "</tr>" for row in rows)
    note = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{note}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def figures(rows: Sequence[Figure]) -> str:
    """The model beside its baseline, and by how much it is better (green) or worse (red)."""
    lines = []
    for row in rows:
        change = ""
        if row.model is not None and row.baseline is not None:
            gain = row.model - row.baseline
            good = gain < 0 if row.lower_is_better else gain > 0
            shown = f"{gain:+.3f}".replace("-", "−") if round(gain, 3) else "0.000"
            tone = "" if shown == "0.000" else ' class="better"' if good else ' class="worse"'
            change = f"<span{tone}>{shown}</span>"
        over = row.over + (", lower is better" if row.lower_is_better else "")
        lines.append(f'<tr><th scope="row">{html.escape(row.label)}<small>{html.escape(over)}</small></th>'
                     f"<td><strong>{number(row.model)}</strong></td><td>{number(row.baseline)}</td><td>{change}</td></tr>")
    head = "".join(f'<th scope="col">{text}</th>' for text in ("figure", "model", "baseline", "difference"))
    return (f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(lines)
            + "\n</tbody></table></div>")


def embedded(path: Path, side: int) -> str | None:
    """An `<img>` of a picture file, reduced to `side` pixels; None where the file cannot be shown."""
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
    code = base64.b64encode(stored.getvalue()).decode()
    mark = ' class="small"' if small else ""
    return (f'<img{mark} src="data:image/png;base64,{code}" width="{picture.width}" height="{picture.height}" '
            f'alt="{html.escape(path.stem, quote=True)}">')


def picture(path: Path | None, caption: str = "") -> str:
    """A picture with its caption; nothing where the file is not there."""
    image = embedded(Path(path), PICTURE_PX) if path else None
    return f'<figure class="plot">{image}<figcaption>{html.escape(caption)}</figcaption></figure>' if image else ""


def samples(items: Sequence[Sample]) -> str:
    """Cards with the images, the question, what the model said and what is true."""
    cards, nbsp = [], "\u00a0"
    for item in items:
        shown = [(embedded(path, TILE_PX), path.name) for path in map(Path, item.images)]
        images = [image or f"<span>{html.escape(name)}</span>" for image, name in shown]
        verdict = "" if item.right is None else "✓ right" if item.right else "✗ wrong"
        if verdict:
            verdict = f'<span class="verdict {verdict[2:]}">{verdict}</span>'
        pairs = (("question", item.question), ("model", item.prediction or "(nothing)"), ("truth", item.truth))
        answers = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in pairs)
        answers = answers.replace(" %", nbsp + "%")
        cards.append(
            f'<article class="card"><header><span>{html.escape(item.name)}</span>{verdict}</header>'
            + (f'<div class="images">{"".join(images)}</div>' if images else "")
            + f"<dl>{answers}</dl></article>")
    return '<div class="cards">\n' + "\n".join(cards) + "\n</div>" if cards else ""


def page(title: str, lead: str, sections: Sequence[str], footer: str = "") -> str:
    """The whole page as text."""
    content = "\n".join(filter(None, sections))
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n{content}\n'
            f"<footer>{html.escape(footer)}</footer>\n</body>\n</html>\n")


def write(path: str | Path, title: str, lead: str, sections: Sequence[str], footer: str = "") -> None:
    """Write the page, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(page(title, lead, sections, footer), encoding="utf-8")
