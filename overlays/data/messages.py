"""Training records <-> rows of `messages` as Hugging Face tools take them, every row, without loss."""

from __future__ import annotations

import json
from collections.abc import Mapping

from overlays.data.formats import PLACEHOLDER, PLACEHOLDERS, ROLES
from overlays.errors import UserError
from overlays.files import parse_json

FROM_OF = {"user": "human", "assistant": "gpt", "system": "system"}
OWN = ("conversations", *PLACEHOLDERS)  # keys of a record that messages say in their own way
LISTS = ("images", "videos")  # where a row may name its files beside its messages


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
        _check_same(_turns({key: value for key, value in record.items() if key not in OWN}), _turns(_messages(
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
        _check_same(_turns({key: value for key, value in row.items() if key not in OWN}, strict=False),
                    _turns(_messages(own), strict=False), row)
        return own
    for kind in PLACEHOLDERS:
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
    files = {kind: _files(record, kind) for kind in PLACEHOLDERS}
    messages = []
    for turn in turns:
        role = ROLES.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise UserError(f"record {name} has a turn that is not text of human, gpt or system: {turn}")
        content = _split(turn["value"], files, name)
        shown = any(part["type"] != "text" for part in content)
        messages.append({"role": role, "content": content if shown else turn["value"]})
    for kind, left in files.items():
        if left:
            raise UserError(f"record {name} names {left[0]} but has no {PLACEHOLDERS[kind]} for it")
    return {"messages": messages, **{key: value for key, value in record.items() if key not in ("messages", *OWN)}}


def _record(row: Mapping, strict: bool) -> dict:
    media: dict[str, list[str]] = {kind: [] for kind in PLACEHOLDERS}
    turns = []
    for role, parts in _turns(row, strict):
        texts = []
        for kind, value in parts:
            if kind != "text":
                media[kind].append(value)
            texts.append(value if kind == "text" else PLACEHOLDERS[kind])
        turns.append({"from": FROM_OF[role], "value": "".join(texts)})
    record = {key: value for key, value in row.items() if key not in ("messages", *OWN)}
    for kind, files in media.items():
        if files:
            record[kind] = files[0] if len(files) == 1 else files
    return {**record, "conversations": turns}


def _turns(row: Mapping, strict: bool = True) -> list[tuple[str, list[tuple[str, str]]]]:
    """The turns of a row's messages, however they are written: (role, [("text", text) or (kind, path)]), texts joined.

    Raises:
        UserError: messages that cannot be read, files missing, or, where `strict`, files that no message shows.
    """
    name, messages = row.get("id"), row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"row {name} has no messages")
    files = {kind: _files(row, f"{kind}s") for kind in PLACEHOLDERS}  # LISTS
    turns = []
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
        turns.append((role, joined or [("text", "")]))
    for left in files.values():
        if left and strict:
            raise UserError(f"row {name} names {left[0]} but no message shows it")
    return turns


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
    if kind not in PLACEHOLDERS:
        raise UserError(f"row {name} has a part that is not text, image or video: {part}")
    value = part.get(kind)
    if value is None:
        value = _split(PLACEHOLDERS[kind], files, name)[0][kind]
    if not isinstance(value, str):
        raise UserError(f"row {name} has a {kind} that is not a path: {str(part)[:100]}")
    return [(kind, value)]


def _split(text: str, files: dict[str, list[str]], name: object) -> list[dict]:
    """Text as parts, cut at its placeholders; takes the files that they show from `files`."""
    parts, at = [], 0
    for found in PLACEHOLDER.finditer(text):
        kind = found[0].strip("<>")
        if not files[kind]:
            raise UserError(f"{name}: {found[0]} stands where there is no {kind} file left")
        if found.start() > at:
            parts.append({"type": "text", "text": text[at:found.start()]})
        parts.append({"type": kind, kind: files[kind].pop(0)})
        at = found.end()
    return [*parts, {"type": "text", "text": text[at:]}] if at < len(text) else parts


# ---- tables


def to_columns(row: Mapping) -> dict:
    """A row as the columns {"messages", "extra"}; what they cannot hold exactly lies in `extra` as a whole.

    Rows of free keys have no common type, so `extra` is the JSON text of every other key.
    """
    if "messages" not in row:
        return {"messages": None, "extra": json.dumps(row, ensure_ascii=False)}
    messages = [{"role": role, "content": [{"type": kind, kind: value} for kind, value in parts]}
                for role, parts in _turns(row, strict=False)]
    extra = {key: value for key, value in row.items() if key != "messages"}
    columns = {"messages": messages, "extra": json.dumps(extra, ensure_ascii=False)}
    if from_columns(columns) != dict(row):
        columns["extra"] = json.dumps(row, ensure_ascii=False)
    return columns


def from_columns(columns: Mapping) -> dict:
    """The row that the columns of `to_columns` stand for; `messages` may be edited."""
    extra = parse_json(columns.get("extra") or "{}")
    if not isinstance(extra, dict):
        raise UserError("the column extra must hold JSON objects")
    if columns.get("messages") is None:
        return extra
    row = {**extra, "messages": [_message(message) for message in columns["messages"]]}
    same = "messages" in extra and _turns(extra, strict=False) == _turns(row, strict=False)
    return extra if same else row


def _message(message: object) -> object:
    """A message whose only part is text with that text as its content."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping) and content[0].get("text"):
        return {**message, "content": content[0]["text"]}
    return message
