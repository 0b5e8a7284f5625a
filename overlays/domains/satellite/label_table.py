"""Tables of labels as people have them: sheets, title rows, two header rows, merged cells, percent formats."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from overlays import archives
from overlays.errors import UserError

MAX_CELLS = 10_000_000  # of a sheet, the empty ones before its last cell included
MAX_WORKBOOK_BYTES = 256 << 20  # unpacked
HEADER_ROWS = 12  # rows at the top among which a header is looked for


@dataclass(frozen=True)
class Sheet:
    """Cells of one sheet, as rows of equal length; empty ones are None.

    Attributes:
        name: of the sheet, "" in a text file.
        rows: values; a number whose cell is formatted as a percentage is in percent.
    """

    name: str
    rows: list[list]

    def columns(self, row: int, depth: int) -> list[str]:
        """Names of the columns where the header begins at `row` and has `depth` rows; "" where there is none."""
        parts = zip(*self.rows[row:row + depth], strict=True)
        return [" ".join(dict.fromkeys(str(part).strip() for part in column if not missing(part))) for column in parts]


def missing(value: object) -> bool:
    """Whether a cell is empty."""
    return value is None or value != value or not str(value).strip()


def read_sheets(path: Path) -> list[Sheet]:
    """The sheets of an .xlsx file, or the one of a .csv, .tsv or .txt file; empty ones are left out.

    Raises:
        UserError: no such table, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"there is no table of labels {path}: give one with --labels")
    suffix = path.suffix.lower()
    if suffix not in (".xlsx", ".xlsm", ".csv", ".tsv", ".txt"):
        raise UserError(f"table {path} must be .xlsx or .csv")
    try:
        sheets = _workbook(path) if suffix in (".xlsx", ".xlsm") else [_text(path)]
    except Exception as error:  # zip, XML and decoding errors of several libraries
        raise UserError(f"table {path} cannot be read: {' '.join(str(error).split())}") from None
    sheets = [sheet for sheet in sheets if sheet.rows]
    if not sheets:
        raise UserError(f"table {path} is empty")
    return sheets


def _check_cells(path: Path) -> None:
    """Raise UserError where a sheet of a workbook would fill memory: a cell far out makes all before it."""
    from openpyxl import load_workbook

    archives.members(path, MAX_WORKBOOK_BYTES, flat=False)
    book = load_workbook(path, read_only=True)
    try:
        for number, sheet in enumerate(book.worksheets):
            sheet.reset_dimensions()  # the file's own word on its size
            height = width = 0
            for row, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
                if cells:
                    height, width = row, max(width, len(cells))
                if height * width > MAX_CELLS:
                    which = "its first sheet" if number == 0 else f"its sheet {sheet.title}"
                    raise UserError(f"{which} reaches to row {height} and column {width}, beyond {MAX_CELLS} cells: "
                                    "delete what stands far from the table")
    finally:
        book.close()


def _workbook(path: Path) -> list[Sheet]:
    from openpyxl import load_workbook

    _check_cells(path)
    sheets = []
    for sheet in load_workbook(path, data_only=True).worksheets:
        rows = [[_value(cell) for cell in row] for row in sheet.iter_rows()]
        for area in sheet.merged_cells.ranges:
            value = rows[area.min_row - 1][area.min_col - 1]
            for row in rows[area.min_row - 1:area.max_row]:
                row[area.min_col - 1:area.max_col] = [value] * (area.max_col - area.min_col + 1)
        sheets.append(Sheet(sheet.title, _even(rows)))
    return sheets


def _value(cell) -> object:
    number = isinstance(cell.value, int | float) and not isinstance(cell.value, bool)
    form = re.sub(r'"[^"]*"|\\.', "", cell.number_format or "")  # a sign that is only shown does not count
    return round(cell.value * 100, 12) if number and "%" in form.split(";")[0] else cell.value


def _text(path: Path) -> Sheet:
    lines = _decoded(path).splitlines()
    if path.suffix.lower() == ".tsv":
        separator = "\t"
    else:
        sample = [line for line in lines if line.strip()][:50]
        # The separator is what most lines have equally often; a decimal comma is rarer than it.
        counts = {mark: [line.count(mark) for line in sample] for mark in ("\t", ";", ",", "|")}
        separator = max(counts, key=lambda mark: (sum(count > 0 for count in counts[mark]) if mark in "\t;" else
                                                  sum(count > 0 for count in counts[mark]) - 0.5), default=",")
    rows = [[cell if cell.strip() else None for cell in row] for row in csv.reader(lines, delimiter=separator)]
    return Sheet("", _even(rows))


def _decoded(path: Path) -> str:
    """Text in UTF-8, in UTF-16 with its mark, or as Chinese spreadsheets write it; told by a Chinese city column.

    Raises:
        ValueError: any other encoding.
    """
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("gb18030", errors="replace")
        if "城市" in text and "\ufffd" not in text:
            return text
    raise ValueError("it is not UTF-8: save it as \"CSV UTF-8\" or as .xlsx")


def _even(rows: list[list]) -> list[list]:
    """Rows of equal length without the empty ones at the end."""
    while rows and all(missing(value) for value in rows[-1]):
        rows = rows[:-1]
    width = max((len(row) for row in rows), default=0)
    return [[*row, *[None] * (width - len(row))] for row in rows]
