"""Training records <-> rows of `messages` as Hugging Face tools take them, every row, without loss."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from overlays.data import records
from overlays.errors import UserError
from overlays.files import atomic_path, write_jsonl

FROM_OF = {"user": "human", "assistant": "gpt", "system": "system"}
OWN = ("conversations", *records.PLACEHOLDERS)  # keys of a record that messages say in their own way
PARTS = re.compile("|".join(map(re.escape, records.PLACEHOLDERS.values())))
LISTS = ("images", "videos")  # where a row may name its files beside its messages
COLUMNAR = ("messages", "extra")  # columns of .parquet and data set folders; `extra` is JSON of every other key
FORMS = ".jsonl, .json, .parquet, or a folder written by datasets' save_to_disk"


def to_messages(record: Mapping) -> dict:
    """A training record as a row {"messages": [{"role", "content"}], ...}; other keys stay as they are.

    The content of a turn with media is a list of parts, {"type": "text", "text"}, {"type": "image", "image": path} or
    {"type": "video", "video": path}, in the order of the placeholders; that of another turn is its text. A record that
    this would not give back exactly also keeps its own `conversations` and media keys.

    Raises:
        UserError: no conversation, an unknown role, placeholders that do not fit the files, or `messages` that say
            something else than the conversations.
    """
    if "messages" in record:  # it came from a row that keeps its own form
        _check_same(_said({key: value for key, value in record.items() if key not in OWN}), _said(_messages(
            {key: value for key, value in record.items() if key not in LISTS})), record)
        return {key: value for key, value in record.items() if key not in OWN}
    row = _messages(record)
    if any(key in record for key in LISTS) or _record(row, strict=False) != dict(record):
        row |= {key: record[key] for key in OWN if key in record}
    return row


def to_record(row: Mapping) -> dict:
    """A row of messages as a training record: the inverse of `to_messages`.

    Files may also stand in the lists `images` and `videos`, with <image> or {"type": "image"} where they belong. A row
    that a record would not give back exactly (such lists, text in parts) also keeps its `messages`.

    Raises:
        UserError: no messages, a role or part that training has no place for, files missing or under the keys of a
            record, or `conversations` that say something else than the messages.
    """
    if "conversations" in row:  # it came from a record that keeps its own form
        own = {key: value for key, value in row.items() if key != "messages"}
        _check_same(_said({key: value for key, value in row.items() if key not in OWN}, strict=False),
                    _said(_messages(own), strict=False), row)
        return own
    for kind in records.PLACEHOLDERS:
        if row.get(kind):
            raise UserError(f"row {row.get('id')} names {str(row[kind])[:100]} under {kind!r}, which a row of messages "
                            f"does not have: call the key '{kind}s'")
    record = _record(row, strict=True)
    if to_messages(record) != dict(row):
        record["messages"] = row["messages"]
    return record


def _check_same(messages: list, conversations: list, record: Mapping) -> None:
    if messages != conversations:
        raise UserError(f"record {record.get('id')} says one thing in its conversations and another in its messages: "
                        "delete the one that is out of date")


def _messages(record: Mapping) -> dict:
    name, turns = record.get("id"), record.get("conversations")
    if not isinstance(turns, list):
        raise UserError(f"record {name} has no conversations")
    files = {kind: _files(record, kind) for kind in records.PLACEHOLDERS}
    messages = []
    for turn in turns:
        role = records.ROLES.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise UserError(f"record {name} has a turn that is not text of human, gpt or system: {turn}")
        content = _split(turn["value"], files, name)
        shown = any(part["type"] != "text" for part in content)
        messages.append({"role": role, "content": content if shown else turn["value"]})
    for kind, left in files.items():
        if left:
            raise UserError(f"record {name} names {left[0]} but has no {records.PLACEHOLDERS[kind]} for it")
    return {"messages": messages, **{key: value for key, value in record.items() if key not in ("messages", *OWN)}}


def _record(row: Mapping, strict: bool) -> dict:
    media: dict[str, list[str]] = {kind: [] for kind in records.PLACEHOLDERS}
    turns = []
    for role, parts in _said(row, strict):
        texts = []
        for kind, value in parts:
            if kind != "text":
                media[kind].append(value)
            texts.append(value if kind == "text" else records.PLACEHOLDERS[kind])
        turns.append({"from": FROM_OF[role], "value": "".join(texts)})
    record = {key: value for key, value in row.items() if key not in ("messages", *OWN)}
    for kind, files in media.items():
        if files:
            record[kind] = files[0] if len(files) == 1 else files
    return {**record, "conversations": turns}


def _said(row: Mapping, strict: bool = True) -> list[tuple[str, list[tuple[str, str]]]]:
    """What a row's messages say, whatever their make: (role, [("text", text) or (kind, path)]), texts joined.

    Raises:
        UserError: messages that cannot be read, files missing, or, where `strict`, files that no message shows.
    """
    name, messages = row.get("id"), row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"row {name} has no messages")
    files = {kind: _files(row, f"{kind}s") for kind in records.PLACEHOLDERS}  # LISTS
    said = []
    for message in messages:
        role = str(message.get("role")) if isinstance(message, Mapping) else None
        content = message.get("content") if role in FROM_OF else None
        if role not in FROM_OF or not isinstance(content, str | list):
            raise UserError(f"row {name} has a message that is none of user, assistant or system: {message}")
        joined: list[tuple[str, str]] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            for item in _items(part, files, name):
                if item[0] == "text" and joined and joined[-1][0] == "text":
                    item = ("text", joined.pop()[1] + item[1])
                joined.append(item)
        said.append((role, joined or [("text", "")]))
    for left in files.values():
        if left and strict:
            raise UserError(f"row {name} names {left[0]} but no message shows it")
    return said


def _files(row: Mapping, key: str) -> list[str]:
    """The paths under a key: one, a list of them, or none. Raises UserError for anything else."""
    found = row.get(key) or []
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list | tuple) or not all(isinstance(path, str) for path in found):
        raise UserError(f"row {row.get('id')}: {key!r} must be a path or a list of paths, not {str(row[key])[:100]}")
    return list(found)


def _items(part: object, files: dict[str, list[str]], name: object) -> list[tuple[str, str]]:
    """One part of a message as ("text", text) or (kind, path); takes files without a path of their own from `files`."""
    kind = str(part.get("type")) if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return [(item["type"], item[item["type"]]) for item in _split(part["text"], files, name)]
    if kind not in records.PLACEHOLDERS:
        raise UserError(f"row {name} has a part that is not text, image or video: {part}")
    value = part.get(kind)
    if value is None:
        value = _split(records.PLACEHOLDERS[kind], files, name)[0][kind]
    if not isinstance(value, str):
        raise UserError(f"row {name} has a {kind} that is not a path: {str(part)[:100]}")
    return [(kind, value)]


def _split(text: str, files: dict[str, list[str]], name: object) -> list[dict]:
    """Text as parts, cut at its placeholders; takes the files that they show from `files`."""
    parts, at = [], 0
    for found in PARTS.finditer(text):
        kind = found[0].strip("<>")
        if not files[kind]:
            raise UserError(f"{name}: {found[0]} stands where there is no {kind} file left")
        if found.start() > at:
            parts.append({"type": "text", "text": text[at:found.start()]})
        parts.append({"type": kind, kind: files[kind].pop(0)})
        at = found.end()
    return [*parts, {"type": "text", "text": text[at:]}] if at < len(text) else parts


# ---- files


def read_rows(path: Path) -> Iterator[dict]:
    """Rows of a file or folder in one of FORMS, as they were written.

    Raises:
        UserError: no such file, another suffix, a row that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        import datasets

        try:
            table = datasets.load_from_disk(str(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a data set folder: {' '.join(str(error).split())[:200]}") from None
        if isinstance(table, datasets.DatasetDict):
            raise UserError(f"{path} holds several splits ({', '.join(table)}): name one, such as {path / min(table)}")
        yield from map(_from_columns, table)
    elif path.suffix == ".parquet":
        import pyarrow.parquet

        if not path.is_file():
            raise UserError(f"there is no file {path}")
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                for batch in table.iter_batches(1000):
                    yield from map(_from_columns, batch.to_pylist())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    else:
        yield from records.read(path, convert=False)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write rows in the form that the path's suffix says (FORMS; no suffix is a folder), atomically.

    .parquet and folders hold the columns COLUMNAR, because rows of free keys have no common type.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    elif path.suffix == ".json":
        records.write(path, rows)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, _schema()) as out:
            batch: list[dict] = []
            for row in rows:
                batch.append(_to_columns(row))
                if len(batch) == 1000:
                    out.write(pyarrow.Table.from_pylist(batch, _schema()))
                    batch = []
            out.write(pyarrow.Table.from_pylist(batch, _schema()))
    elif not path.suffix:
        import datasets
        import pyarrow

        if path.exists() and not (path / "dataset_info.json").is_file():
            raise UserError(f"{path} is there and not a data set folder: give another name")
        table = datasets.Dataset(pyarrow.Table.from_pylist([_to_columns(row) for row in rows], _schema()))
        with atomic_path(path) as temporary:
            table.save_to_disk(str(temporary))
    else:
        raise UserError(f"{path} must be {FORMS}")


def _schema():
    import pyarrow

    text = pyarrow.string()
    part = pyarrow.struct([("type", text), ("text", text), ("image", text), ("video", text)])
    message = pyarrow.struct([("role", text), ("content", pyarrow.list_(part))])
    return pyarrow.schema([("messages", pyarrow.list_(message)), ("extra", text)])


def _to_columns(row: Mapping) -> dict:
    """A row in the columns COLUMNAR; what they cannot hold exactly lies in `extra` as a whole."""
    if "messages" not in row:
        return {"messages": None, "extra": json.dumps(row, ensure_ascii=False)}
    said = [(role, [{"type": kind, kind: value} for kind, value in parts]) for role, parts in _said(row, strict=False)]
    extra = {key: value for key, value in row.items() if key != "messages"}
    columns = {"messages": [{"role": role, "content": parts} for role, parts in said],
               "extra": json.dumps(extra, ensure_ascii=False)}
    if _from_columns(columns) != dict(row):
        columns["extra"] = json.dumps(row, ensure_ascii=False)
    return columns


def _from_columns(columns: Mapping) -> dict:
    if "extra" not in columns:  # another's table: its columns as they are, empty ones left out
        return _filled(columns)
    extra = json.loads(columns["extra"] or "{}")
    if columns.get("messages") is None:
        return extra
    messages = []
    for message in _filled(columns["messages"]):
        text = len(message["content"]) == 1 and message["content"][0].get("text")
        messages.append({**message, "content": message["content"] if text in (False, None) else text})
    if "messages" in extra and _said(extra, strict=False) == _said({"messages": messages}):
        return extra
    return {**extra, "messages": messages}


def _filled(value: object) -> object:
    """A value of a table without the empty fields that its column type adds."""
    if isinstance(value, Mapping):
        return {key: _filled(item) for key, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def convert(source: Path, target: Path, to: str | None = None) -> tuple[int, str]:
    """Convert every row of `source` and write it to `target`.

    Args:
        to: "messages" or "training"; None takes the other of what the first row is.

    Returns:
        (rows, what they are now).

    Raises:
        UserError: a row that cannot be converted (its number is named; nothing is written), or no row.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise UserError(f"{source} would be overwritten by itself: give another --output")
    rows = read_rows(source)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source} holds no row")
    to = to or ("training" if "messages" in first and "conversations" not in first else "messages")
    count = 0

    def changed() -> Iterator[dict]:
        nonlocal count
        for row in _chain(first, rows):
            count += 1
            try:
                new = (to_messages if to == "messages" else to_record)(row)
                json.dumps(new, ensure_ascii=False).encode()
                yield new
            except UnicodeEncodeError as error:
                raise UserError(f"{source}, row {count}: text that is not Unicode (half of a surrogate pair) near "
                                f"{error.object[max(0, error.start - 20):error.start]!r}") from None
            except UserError as error:
                raise UserError(f"{source}, row {count}: {error}") from None

    write_rows(target, changed())
    return count, to


def _chain(first: dict, rows: Iterator[dict]) -> Iterator[dict]:
    yield first
    yield from rows
