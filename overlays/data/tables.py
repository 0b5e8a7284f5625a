"""Rows in parquet files and in data sets saved by `datasets.save_to_disk`, as JSON values; media may be bytes."""

import re
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from overlays.data.formats import PLACEHOLDERS
from overlays.data.messages import from_columns, to_columns
from overlays.errors import UserError
from overlays.files import atomic_path, read_json

if TYPE_CHECKING:
    import pandas as pd

BATCH = 64  # rows that are unpacked at a time: each may hold pictures
WRITTEN = 1000  # rows that are written at a time
FREE_ROWS, ROWS_PER_BYTE = 100_000, 10  # what a parquet file may hold
STATE, SPLITS = "state.json", "dataset_dict.json"


def is_table(path: Path) -> bool:
    """Whether `rows` reads this path: a .parquet file or any folder."""
    return path.suffix == ".parquet" or path.is_dir()


def rows(path: Path) -> Iterator[dict]:
    """Rows in order; empty fields that the columns' types add are left out.

    Raises:
        UserError: the file or folder cannot be read, also in the midst of it.
    """
    import pyarrow

    try:
        for batch in (_saved if path.is_dir() else _parquet)(path):
            own = _is_own(batch.schema)
            for start in range(0, batch.num_rows, BATCH):
                for row in batch.slice(start, BATCH).to_pylist():
                    yield from_columns(_plain(row)) if own else _plain(row)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        what = "data set folder" if path.is_dir() else "parquet file"
        raise UserError(f"{what} {path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _parquet(path: Path) -> Iterator:
    import pyarrow.parquet

    check_rows(path)
    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH)


def check_rows(source: Path | BytesIO) -> None:
    """Raise ValueError where a parquet file of few bytes, each column one repeated value, unpacks to gigabytes."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_metadata(source).num_rows
    size = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())
    if rows > FREE_ROWS + ROWS_PER_BYTE * size:
        raise ValueError(f"{size} bytes unpack to {rows} rows, more than different rows can: it was not read")


def read_frame(source: Path | bytes) -> "pd.DataFrame":
    """A parquet file, its path or its content.

    Raises:
        ValueError: it cannot be read; the message is one line of at most 200 characters.
    """
    import pandas as pd

    content = BytesIO(source) if isinstance(source, bytes) else source
    try:
        check_rows(content)
        frame = pd.read_parquet(content)
        for values in (frame.index, *(column for _, column in frame.items())):
            if not pd.api.types.is_numeric_dtype(values):
                values.tolist()  # pandas 3 decodes text where it is used: bytes that are not UTF-8 are said here
        return frame
    except MemoryError:
        raise
    except Exception as error:  # pyarrow raises many kinds on bad bytes
        raise ValueError(" ".join(str(error).split())[:200]) from None


def _saved(path: Path) -> Iterator:
    import pyarrow

    if (path / SPLITS).is_file():
        splits = read_json(path / SPLITS, {"splits?": [str]}).get("splits")
        first = f", such as {path / splits[0]}" if splits else ""
        raise UserError(f"{path} holds the splits of a data set; name one of its folders{first}")
    if not (path / STATE).is_file():
        raise UserError(f"{path} is no data set that datasets.save_to_disk wrote: {STATE} is missing")
    state = read_json(path / STATE, {"_data_files": [{"filename": str}]}, "save the data set again")
    for name in [entry["filename"] for entry in state["_data_files"]]:
        if Path(name).name != name:
            raise UserError(f"{path / STATE} names {name!r}, which is not a file beside it: save the data set again")
        if not (path / name).is_file():
            raise UserError(f"data set folder {path} is incomplete: {name} is missing")
        with pyarrow.memory_map(str(path / name)) as source:
            yield from pyarrow.ipc.open_stream(source)


def _plain(value: object) -> object:
    """A value of a table as JSON has it, without the empty fields that its column type adds; bytes stay."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float | bytes) else str(value)


def write(path: Path, rows: Iterable[dict]) -> None:
    """Write rows to a .parquet file or, without a suffix, a folder as save_to_disk writes it, atomically.

    The columns are those of `messages.to_columns`.

    Raises:
        UserError: the folder is there and holds something else.
    """
    import pyarrow
    import pyarrow.parquet

    if path.suffix == ".parquet":
        with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, _schema()) as out:
            batch: list[dict] = []
            for row in rows:
                batch.append(to_columns(row))
                if len(batch) == WRITTEN:
                    out.write(pyarrow.Table.from_pylist(batch, _schema()))
                    batch = []
            out.write(pyarrow.Table.from_pylist(batch, _schema()))
        return
    import datasets

    if path.exists() and not (path / "dataset_info.json").is_file():
        raise UserError(f"{path} exists and is not a data set folder: give another name")
    table = datasets.Dataset(pyarrow.Table.from_pylist([to_columns(row) for row in rows], _schema()))
    with atomic_path(path) as temporary:
        table.save_to_disk(str(temporary))


def _is_own(schema) -> bool:
    """Whether a table has the columns of `messages.to_columns`: a user's own column `extra` is metadata."""
    names = re.findall(r"(\w+): ", str(schema.field("messages").type)) if "messages" in schema.names else []
    return sorted(schema.names) == ["extra", "messages"] and {*names} - {"element", "item"} == {
        "role", "content", "type", "text", *PLACEHOLDERS}


def _schema():
    import pyarrow

    text = pyarrow.string()
    part = pyarrow.struct([("type", text), ("text", text), ("image", text), ("video", text)])
    message = pyarrow.struct([("role", text), ("content", pyarrow.list_(part))])
    return pyarrow.schema([("messages", pyarrow.list_(message)), ("extra", text)])
