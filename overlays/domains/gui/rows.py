"""Rows of predictions: read back whole, and told apart by what was asked of which model."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from overlays.data import records
from overlays.files import sha256

MARKS = ("answered_by", "asked")  # keys that `marked` adds


def read(file: Path) -> list[dict]:
    """The rows of a predictions file, none where there is no file. Lines that are damaged are told and left out."""
    try:
        lines = file.read_bytes().split(b"\n")  # only "\n" ends a row: a question may hold U+2028 and its like
    except FileNotFoundError:
        return []
    rows, damaged = [], 0
    for line in lines:
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = {}
        if isinstance(row, dict) and {"id", "question", "answer", "prediction"} <= row.keys():
            rows.append(row)
        else:
            damaged += row is not None
    if damaged:
        print(f"note: {damaged} damaged line{'' if damaged == 1 else 's'} of {file} left out")
    return rows


def digest(value: object) -> str:
    """Short digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def content(record: Mapping, media_root: Path) -> list:
    """All that decides what a record asks and what is right: the record, and digests of its pictures."""
    return [record, [_picture(media_root / name) for name in records.media_names(record, "image")]]


def _picture(file: Path) -> str:
    state = file.stat()
    return _sha256(file, state.st_size, state.st_mtime_ns)


@cache
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    return sha256(file)


def marked(record: Mapping, media_root: Path, model: str) -> dict:
    """A record whose prediction row says which model answered it and what exactly was asked."""
    return {**record, "answered_by": model, "asked": digest(content(record, media_root))}


def same_question(row: Mapping, other: Mapping) -> bool:
    """Whether two rows are about the same record, whoever answered it."""
    ignored = {"prediction", *MARKS}
    return {key: value for key, value in row.items() if key not in ignored} == \
        {key: value for key, value in other.items() if key not in ignored}


def by_id(rows: Iterable[Mapping]) -> dict:
    """Rows by the id of their record; of two, the later."""
    return {row["id"]: row for row in rows}
