"""The table of labels: which column names the city, which holds the number, and which tile belongs to which city."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from overlays import archives
from overlays.errors import UserError

CITY_COLUMNS = ("city", "cityname", "name", "place", "municipality", "城市", "城市名称")
LABEL_COLUMNS = ("populationgrowth", "growth", "growthrate", "populationgrowthrate", "label", "target", "人口增长率",
                 "人口增长")
# Columns of numbers that are seldom the label; only a column named on the command line can be one of them.
OTHER_NUMBERS = ("id", "index", "year", "lon", "lat", "longitude", "latitude", "x", "y", "population", "fid", "code")
MAX_CELLS = 10_000_000  # of a workbook's first sheet, the empty ones before its last cell included
MAX_WORKBOOK_BYTES = 256 << 20  # unpacked


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
    """Labels from an .xlsx (its first sheet) or a .csv file.

    Raises:
        UserError: no such table, no such column, columns that cannot be told apart, a city with two labels, or none.
    """
    path, table = Path(path), _read_table(Path(path))
    columns = [str(column) for column in table.columns]
    table.columns = columns
    for column in columns:
        table[column] = _decimal_commas(table[column])
    numbers = [column for column in columns if _is_numeric(table[column])]
    city = _column(path, columns, city_column, "--city-column", CITY_COLUMNS,
                   [column for column in columns if column not in numbers])
    label = _column(path, columns, label_column, "--label-column", LABEL_COLUMNS,
                    [column for column in numbers if key(column) not in OTHER_NUMBERS and column != city])
    values, dropped, seen = {}, [], {}
    for row, (name, value) in enumerate(zip(table[city], table[label], strict=True), start=2):
        name = "" if _missing(name) else _words(name)
        number = _number(value)
        if not name:
            dropped.append((f"row {row}", f"no city in column {city}"))
        elif number is None:
            dropped.append((name, f"no number in column {label}: {'empty' if _missing(value) else repr(str(value))}"))
        elif key(name) in seen:
            raise UserError(f"table {path} has two labels for {name} (row {row} and row {seen[key(name)]}): keep one "
                            "row a city")
        else:
            values[name], seen[key(name)] = number, row
    if not values:
        raise UserError(f"column {label} of {path} holds no number: name another one with --label-column")
    name = re.sub(r"\W+", "_", label.strip().lower()).strip("_") or "label"
    return Labels(values, name, city, label, dropped)


def match_tiles(tiles: list[Path], cities: list[str]) -> dict[Path, str | None]:
    """City of every tile: its file name is the city's, or begins with it and a separator (`Lyon_2024_3.tif`).

    The longest city that fits is taken, so `San_Jose_2024` is not San's.
    """
    known = {key(city): city for city in cities}
    found: dict[Path, str | None] = {}
    for tile in tiles:
        words = re.split(r"[\s_.\-]+", tile.stem)
        starts = ("".join(words[:count]) for count in range(len(words), 0, -1))
        found[tile] = next((known[key(start)] for start in starts if key(start) in known), None)
    return found


def _check_cells(path: Path) -> None:
    """Raise UserError where the first sheet of a workbook would fill memory: a cell far out makes all before it."""
    import openpyxl

    archives.members(path, MAX_WORKBOOK_BYTES, flat=False)
    book = openpyxl.load_workbook(path, read_only=True)
    try:
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # the file's own word on its size
        height = width = 0
        for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
            if cells:
                height, width = number, max(width, len(cells))
            if height * width > MAX_CELLS:
                raise UserError(f"its first sheet reaches to row {height} and column {width}, beyond {MAX_CELLS} "
                                "cells: delete what stands far from the table")
    finally:
        book.close()


def _read_table(path: Path):
    import pandas as pd

    if not path.is_file():
        raise UserError(f"there is no table of labels {path}: give one with --labels")
    try:
        if path.suffix.lower() in (".xlsx", ".xlsm"):
            _check_cells(path)
            return pd.read_excel(path)
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            return pd.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else None, engine="python",
                               encoding="utf-8-sig")
    except Exception as error:  # zip, XML, parser and decoding errors of several libraries
        raise UserError(f"table {path} cannot be read: {' '.join(str(error).split())}") from None
    raise UserError(f"table {path} must be .xlsx or .csv")


def _column(path: Path, columns: list[str], wanted: str | None, flag: str, usual: tuple[str, ...],
            candidates: list[str]) -> str:
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UserError(f"table {path} has no column {wanted!r} ({flag}); it has {', '.join(columns)}")
    for name in usual:
        for column in columns:
            if key(column) == name:
                return column
    if len(candidates) == 1:
        return candidates[0]
    what = "any of them" if not candidates else " or ".join(candidates)
    raise UserError(f"table {path} does not say which column is meant ({', '.join(columns)}): name {what} with {flag}")


def _decimal_commas(column):
    """A column whose numbers are written with a decimal comma ("1,5", "2") as one with points.

    "1,234" beside nothing like "1,5" may be meant as a thousand and more: it stays, and is not a number.
    """
    words = [str(value).strip().removesuffix("%").strip() for value in column if not _missing(value)]
    commas = [word for word in words if "," in word]
    if not commas or not all(re.fullmatch(r"[-−+]?\d+(,\d+)?", word) for word in words):
        return column
    if all(re.fullmatch(r"[-−+]?[1-9]\d{0,2},\d{3}", word) for word in commas):
        return column
    return column.map(lambda value: value if _missing(value) else str(value).replace(",", "."))


def _words(value: object) -> str:
    """A cell as a name; a column of whole numbers with an empty row is read as 101.0, meant as 101."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()


def _is_numeric(column) -> bool:
    """Whether most of what a column holds are numbers."""
    filled = [value for value in column if not _missing(value)]
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


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()
