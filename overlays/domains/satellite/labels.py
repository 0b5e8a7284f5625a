"""The table of labels: which column names the city, which holds the number, and which tile belongs to which city."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from overlays.domains.satellite.label_table import HEADER_ROWS, Sheet, missing, read_sheets
from overlays.errors import UserError

CITY_COLUMNS = ("city", "cityname", "name", "place", "municipality", "城市", "城市名称")
LABEL_COLUMNS = ("populationgrowth", "growth", "growthrate", "populationgrowthrate", "label", "target", "人口增长率",
                 "人口增长")
# Columns of numbers that are seldom the label; only a column named on the command line can be one of them.
OTHER_NUMBERS = ("id", "index", "year", "lon", "lat", "longitude", "latitude", "x", "y", "population", "fid", "code")
LARGEST = 1e18  # its square is a float32


@dataclass(frozen=True)
class Labels:
    """A table of labels.

    Attributes:
        values: city as the table writes it -> number.
        name: what is predicted: the column's name in lower case with underscores.
        city_column, label_column: as the table writes them.
        dropped: (city, reason) of rows that hold no number.
    """

    values: dict[str, float]
    name: str
    city_column: str
    label_column: str
    dropped: list[tuple[str, str]]


def key(name: str) -> str:
    """A name as it is compared: without case, accents, spaces and punctuation; vowel signs (Hindi, Thai) stay."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in plain if letter.isalnum() or _is_sign(letter))


def _is_sign(letter: str) -> bool:
    """Whether a mark is part of the spelling: no accent (classes above 200), no Hebrew or Arabic point (10 to 36)."""
    place = unicodedata.combining(letter)
    return unicodedata.category(letter) in ("Mn", "Mc") and (place < 10 or 36 < place < 200)


def read_labels(path: str | Path, city_column: str | None = None, label_column: str | None = None) -> Labels:
    """Labels from an .xlsx or a .csv file.

    The table is the first one in its sheets whose header names a city's column and a label's, in one row or in two; a
    title may stand above it. Where no header is known, the first filled row of the first sheet is taken for one.

    Raises:
        UserError: no such table, no such column, columns that cannot be told apart, a city with two labels, or none.
    """
    path = Path(path)
    sheet, first, columns = _find_table(path, city_column, label_column)
    cells = {column: [row[number] for row in sheet.rows[first:]] for number, column in enumerate(columns) if column}
    table = {column: _decimal_commas(values) for column, values in cells.items()}
    numbers = [column for column, values in table.items() if _is_numeric(values)]
    where = f"{path}{f', sheet {sheet.name},' if sheet.name else ''}"
    city = _column(where, list(table), city_column, "--city-column", CITY_COLUMNS,
                   [column for column in table if column not in numbers])
    label = _column(where, list(table), label_column, "--label-column", LABEL_COLUMNS,
                    [column for column in numbers if key(column) not in OTHER_NUMBERS and column != city])
    values, dropped, seen = {}, [], {}
    for row, (name, value) in enumerate(zip(table[city], table[label], strict=True), start=first + 1):
        name = "" if missing(name) else _words(name)
        number = _number(value)
        if not name and missing(value):
            continue
        if not name:
            dropped.append((f"row {row}", f"no city in column {city}"))
        elif number is None:
            dropped.append((name, f"no number in column {label}: {'empty' if missing(value) else repr(str(value))}"))
        elif abs(number) > LARGEST:
            dropped.append((name, f"{number:g} in column {label} is too large to be learnt"))
        elif key(name) in seen:
            raise UserError(f"table {path} has two labels for {name} (row {row} and row {seen[key(name)]}): keep one "
                            "row a city")
        else:
            values[name], seen[key(name)] = number, row
    if not values:
        raise UserError(f"column {label} of {path} holds no number: name another one with --label-column")
    name = re.sub(r"\W+", "_", label.strip().lower()).strip("_") or "label"
    return Labels(values, name, city, label, dropped)


def _find_table(path: Path, city: str | None, label: str | None) -> tuple[Sheet, int, list[str]]:
    """(sheet, number of the first row below the header, names of the columns, "" where a column has none)."""
    sheets = read_sheets(path)

    def known(names: list[str], wanted: str | None, usual: tuple[str, ...]) -> bool:
        return wanted in names if wanted is not None else any(key(name) in usual for name in names)

    headers = [(sheet, *_header(sheet, row, city)) for sheet in sheets
               for row in range(min(HEADER_ROWS, len(sheet.rows) - 1))]
    headers = [header for header in headers if known(header[2], city, CITY_COLUMNS) and sum(map(bool, header[2])) > 1]
    headers.sort(key=lambda header: not known(header[2], label, LABEL_COLUMNS))
    if headers:
        return headers[0]
    if city is None and label is None:
        sheet = sheets[0]
        row = next(number for number, cells in enumerate(sheet.rows) if not all(map(missing, cells)))
        names = sheet.columns(row, 1)
        if all(names) and len(sheet.rows) > row + 1:
            return sheet, row + 1, names
    tops = "; ".join((f"sheet {sheet.name}: " if sheet.name else "") + " / ".join(
        filter(None, (", ".join(filter(None, sheet.columns(row, 1))) for row in range(min(3, len(sheet.rows))))))
        for sheet in sheets)
    for wanted, flag in ((city, "--city-column"), (label, "--label-column")):
        if wanted is not None and not any(wanted in sheet.columns(row, depth) for sheet in sheets for depth in (1, 2)
                                          for row in range(min(HEADER_ROWS, len(sheet.rows) - depth + 1))):
            raise UserError(f"table {path} has no column {wanted!r} ({flag}); it has {tops}")
    raise UserError(f"table {path} has no header row that names the cities' column; its first rows are {tops}: name "
                    "the columns with --city-column and --label-column")


def _header(sheet: Sheet, row: int, city: str | None) -> tuple[int, list[str]]:
    """(number of the first row below, names) of a header that begins at a row.

    It has a second row where the city's cell below is merged with it, or is empty beside text or under equal names.
    """
    names, below = sheet.columns(row, 1), sheet.rows[row + 1]
    own = next((number for number, name in enumerate(names) if name and (
        name == city if city is not None else key(name) in CITY_COLUMNS)), None)
    if own is not None and row + 2 < len(sheet.rows):
        filled = [name for name in names if name]
        text = any(not missing(value) and _number(value) is None for value in below)
        if str(below[own]).strip() == names[own] or missing(below[own]) and (text or len(set(filled)) < len(filled)):
            return row + 2, sheet.columns(row, 2)
    return row + 1, names


def match_tiles(tiles: list[Path], cities: list[str], inexact: bool = False) -> dict[Path, str | None]:
    """City of every tile: its file name is the city's, alone or before numbers (`Lyon_2024_3.tif`, `Lyon-tile7.tif`).

    The longest city that fits is taken, so `San_Jose_2024` is not San's.

    Args:
        inexact: a name that only begins with a city's is taken as well (`San_Jose_del_Monte.tif` and San Jose).
    """
    known = {key(city): city for city in cities}
    found: dict[Path, str | None] = {}
    for tile in tiles:
        words = [word for word in re.split(r"[\s_.\-]+", tile.stem) if word]
        counts = (count for count in range(len(words), 0, -1) if key("".join(words[:count])) in known)
        count = next(counts, 0)
        exact = all(re.fullmatch(r"(?:year|tile|part|patch|sample|v|r|c|x|y|p|t)?\d+|embeddings?|alphaearth",
                                 word.lower()) for word in words[count:])
        found[tile] = known[key("".join(words[:count]))] if count and (exact or inexact) else None
    return found


def _column(where: str, columns: list[str], wanted: str | None, flag: str, usual: tuple[str, ...],
            candidates: list[str]) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UserError(f"table {where} has no column {wanted!r} ({flag}); it has {', '.join(columns)}")
    for name in usual:
        for column in columns:
            if key(column) == name:
                return column
    if len(candidates) == 1:
        return candidates[0]
    what = "any of them" if not candidates else " or ".join(candidates)
    raise UserError(f"table {where} does not say which column is meant ({', '.join(columns)}): name {what} with {flag}")


def _decimal_commas(column: list) -> list:
    """A column whose numbers are written with a decimal comma ("1,5", "2") as one with points.

    "1,234" beside nothing like "1,5" may be meant as a thousand and more: it stays, and is not a number.
    """
    words = [str(value).strip().removesuffix("%").strip() for value in column if not missing(value)]
    commas = [word for word in words if "," in word]
    if not commas or not all(re.fullmatch(r"[-−+]?\d+(,\d+)?", word) for word in words):
        return column
    if all(re.fullmatch(r"[-−+]?[1-9]\d{0,2},\d{3}", word) for word in commas):
        return column
    return [value if missing(value) else str(value).replace(",", ".") for value in column]


def _words(value: object) -> str:
    """A cell as a name; a column of whole numbers with an empty row is read as 101.0, meant as 101."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()


def _is_numeric(column: list) -> bool:
    """Whether most of what a column holds are numbers."""
    filled = [value for value in column if not missing(value)]
    return bool(filled) and sum(_number(value) is not None for value in filled) > len(filled) / 2


def _number(value: object) -> float | None:
    """A finite number; text such as "1.8 %" or "-0.4" is read as well."""
    if isinstance(value, bool):
        return None
    try:
        number = float(str(value).strip().rstrip("%").replace("−", "-"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
