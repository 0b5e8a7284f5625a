"""Annotation files: read, write and check records, and split them by group."""

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from overlays.errors import UserError
from overlays.files import SURROGATE, atomic_path, is_file, to_json, write_jsonl

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDERS = {"image": "<image>", "video": "<video>"}
_PLACEHOLDER = re.compile("|".join(PLACEHOLDERS.values()))
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Defect:
    """What is wrong with one row. `row` counts from 1: a line of a JSONL file, an element of a JSON list."""

    file: Path
    row: int
    id: str | None
    problem: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}{f' (id {self.id})' if self.id else ''}: {self.problem}"


def scan(path: str | Path) -> Iterator[tuple[int, dict | Defect]]:
    """(row, record) of every record in a .json or .jsonl file, read as a stream; a Defect where a row is none.

    A row that is a list (upstream's packed files) gives its records one by one.

    Raises:
        UserError: the file cannot be read or has another suffix.
    """
    path = Path(path)
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"annotation file {path} must end in .json (a list) or .jsonl (a record a line)")
    if not path.is_file():
        raise UserError(f"there is no annotation file {path}")
    for row, value in (_json_list if path.suffix == ".json" else _json_lines)(path):
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict | Defect):
                item = Defect(path, row, None, f"a record must be a JSON object, not {_kind(item)}")
            yield row, item


def read(path: str | Path) -> Iterator[dict]:
    """Records of a .json or .jsonl file, one at a time. Raises UserError at the first row that holds none."""
    for _, record in scan(path):
        if isinstance(record, Defect):
            raise UserError(str(record))
        yield record


def write(path: str | Path, records: Iterable[dict]) -> None:
    """Write records as a JSON list (.json) or a record a line (.jsonl), atomically and in UTF-8."""
    path = Path(path)
    if path.suffix == ".jsonl":
        write_jsonl(path, records)
    elif path.suffix == ".json":
        with atomic_path(path) as temporary:
            temporary.write_text(to_json(list(records), indent=1) + "\n", encoding="utf-8")
    else:
        raise UserError(f"annotation file {path} must end in .json or .jsonl")


def _kind(value: object) -> str:
    names = {str: "text", bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    with path.open("rb") as stream:
        for row, line in enumerate(stream, start=1):
            try:
                text = line.decode("utf-8-sig" if row == 1 else "utf-8").strip()
                if text:
                    yield row, json.loads(text)
            except UnicodeDecodeError as error:
                yield row, Defect(path, row, None, f"not UTF-8 at byte {error.start} of the line")
            except json.JSONDecodeError as error:
                yield row, Defect(path, row, None, f"not JSON: {error.msg} at column {error.colno}")
            except RecursionError:
                yield row, Defect(path, row, None, "not a record: nested too deeply")
            except ValueError as error:
                yield row, Defect(path, row, None, f"not a record: {error}")


def _json_list(path: Path) -> Iterator[tuple[int, object]]:
    """Elements of a JSON list without holding the file in memory; what follows a syntax error is lost."""
    lost = "; the rows after it cannot be read"
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")
    buffer, position, size, row, expected = "", 0, _CHUNK, 0, "list"
    with path.open(encoding="utf-8-sig") as stream:
        try:
            while True:
                position = space.match(buffer, position).end()
                if position == len(buffer):
                    buffer, position = stream.read(size), 0
                    if not buffer:
                        yield row + 1, Defect(path, row + 1, None, "not JSON: the list does not end" + lost)
                        return
                elif expected == "list":
                    if buffer[position] != "[":
                        yield 1, Defect(path, 1, None, "a .json file must hold one list of records "
                                                       "(name it .jsonl if it holds a record a line)")
                        return
                    position, expected = position + 1, "row or end"
                elif buffer[position] == "]" and expected != "row":
                    return
                elif expected == "comma or end":
                    if buffer[position] != ",":
                        yield row + 1, Defect(path, row + 1, None, "not JSON: no comma before this row" + lost)
                        return
                    position, expected = position + 1, "row"
                else:
                    try:
                        value, position = decoder.raw_decode(buffer, position)
                    except json.JSONDecodeError as error:
                        more = stream.read(size)
                        if not more:
                            yield row + 1, Defect(path, row + 1, None, f"not JSON: {error.msg}{lost}")
                            return
                        # Longer than the buffer: read ever larger pieces, so that decoding it again stays cheap.
                        buffer, position, size = buffer[position:] + more, 0, 2 * size
                        continue
                    row, size, expected = row + 1, _CHUNK, "comma or end"
                    yield row, value
        except UnicodeDecodeError:
            yield row + 1, Defect(path, row + 1, None, "not UTF-8" + lost)
        except RecursionError:
            yield row + 1, Defect(path, row + 1, None, "nested too deeply" + lost)
        except ValueError as error:
            yield row + 1, Defect(path, row + 1, None, f"not a record: {error}{lost}")


def media_names(record: Mapping, kind: str) -> list[str]:
    """The files of a record's "image" or "video" key as a list, in the order of their placeholders."""
    value = record.get(kind)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else list(value)


def windows(record: Mapping) -> list[list[int] | None]:
    """The part (row, column, height, width) of each image that is shown; None for the whole.

    The key `window` is such a list for the only image, or a list of them (or null) for all images.
    """
    names, value = media_names(record, "image"), record.get("window")
    if value is None:
        return [None] * len(names)
    return [value] if value and isinstance(value[0], int) else list(value)


def video_segments(record: Mapping) -> list[tuple[int, int | None] | None]:
    """For each video of a record the frames that count: (first, one after the last), None for the whole file.

    They are the keys `video_start` and `video_end`, frame numbers from 0 in the order of showing: a number, or a list
    with one (or null) for each video. A missing start is 0, a missing end the file's.
    """
    names = media_names(record, "video")
    starts, ends = (value if isinstance(value, list) else [value] * len(names)
                    for value in (record.get("video_start"), record.get("video_end")))
    return [None if start is None and end is None else (start or 0, end)
            for start, end in zip(starts, ends, strict=True)]


def media_file(media_root: str | Path, name: str) -> Path:
    """Path of a medium. Raises UserError where the name leaves the media root."""
    problem = _name_problem(name)
    if problem:
        raise UserError(problem)
    return Path(media_root) / name


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str) or not name.strip():
        return f"a media path must be text, not {_kind(name)}" if not isinstance(name, str) else "a media path is empty"
    if "://" in name:
        return f"media file {name} is an address; download it below the media root"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        return f"media path {name} is absolute; give it relative to the media root"
    depth = 0
    for part in re.split(r"[/\\]", name):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return f"media path {name} leaves the media root"
    return None


def check_record(record: Mapping, media_root: str | Path | None = None) -> list[str]:
    """Everything that is wrong with one record, each as a clause; empty where it is sound.

    Args:
        media_root: folder of its media, whose files must exist; None leaves the files unchecked.
    """
    if not isinstance(record.get("id", ""), str | int) or isinstance(record.get("id"), bool):
        return ["id must be text or a number"]
    problems, counts = _check_turns(record.get("conversations"))
    for kind, placeholder in PLACEHOLDERS.items():
        value = record.get(kind)
        if value is not None and not isinstance(value, str | list):
            problems.append(f"{kind} must be a path or a list of paths, not {_kind(value)}")
            continue
        names = media_names(record, kind)
        if counts is not None and len(names) != counts[kind]:
            problems.append(f"{counts[kind]} {placeholder} in the human turns but {len(names)} {kind} "
                            f"file{'' if len(names) == 1 else 's'}")
        for name in names:
            problem = _name_problem(name)
            if problem is None and media_root is not None and not is_file(Path(media_root) / name):
                problem = f"{kind} file {Path(media_root) / name[:200]} is missing"
            problems += [problem] if problem else []
    problems += _check_windows(record) + _check_segments(record)
    problems += _check_target(record.get("target"))
    return problems


def _check_turns(turns: object) -> tuple[list[str], dict[str, int] | None]:
    """(problems, placeholders by kind in the human turns or None where the turns cannot be read)."""
    if turns is None:
        return ["conversations is missing"], None
    if not isinstance(turns, list) or not turns:
        return ["conversations must be a list of at least one turn"], None
    problems, roles, counts = [], [], dict.fromkeys(PLACEHOLDERS, 0)
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            problems.append(f"turn {number} must be an object, not {_kind(turn)}")
            continue
        role, value = turn.get("from"), turn.get("value")
        if not isinstance(role, str) or role not in ROLES:
            problems.append(f"turn {number} has the unknown role {role!r}; roles are human, gpt and system")
            continue
        roles.append(ROLES[role])
        if not isinstance(value, str):
            problems.append(f"the value of turn {number} must be text, not {_kind(value)}")
            continue
        if SURROGATE.search(value):
            problems.append(f"the value of turn {number} holds half a character (a lone surrogate)")
        found = _PLACEHOLDER.findall(value)
        if ROLES[role] == "user":
            for kind, placeholder in PLACEHOLDERS.items():
                counts[kind] += found.count(placeholder)
            if not value.strip():
                problems.append(f"turn {number} asks nothing: its value is empty")
        elif found and ROLES[role] == "system":
            problems.append(f"turn {number} ({role}) holds {found[0]}; placeholders belong in human turns")
        elif found:
            problems.append(f"turn {number} ({role}) holds {found[0]}; an answer cannot hold media")
        if ROLES[role] == "system" and number > 1:
            problems.append(f"turn {number} is a system turn; only the first can be")
        if ROLES[role] == "assistant" and "user" not in roles:
            problems.append(f"turn {number} answers before any human turn")
    if len(roles) == len(turns) and "assistant" not in roles:
        problems.append("there is no gpt turn, so nothing to learn")
    return problems, counts


def _check_windows(record: Mapping) -> list[str]:
    value = record.get("window")
    if value is None or not isinstance(record.get("image"), str | list):
        return [] if value is None else ["window is there, but no image"]
    names, found = media_names(record, "image"), windows(record) if isinstance(value, list) else []
    sound = all(window is None or isinstance(window, list) and len(window) == 4 and
                all(type(side) is int for side in window) for window in found)
    fits = sound and len(found) == len(names)
    return [] if fits else ["window must be [row, column, height, width], or a list with one (or null) for each image"]


def _check_segments(record: Mapping) -> list[str]:
    values = {key: record[key] for key in ("video_start", "video_end") if record.get(key) is not None}
    if not values or not isinstance(record.get("video"), str | list):
        return [f"{key} is there, but no video" for key in values]
    count = len(media_names(record, "video"))
    for key, value in values.items():
        if isinstance(value, list) and len(value) != count:
            return [f"{key} lists {len(value)} frame numbers for {count} videos"]
        for number in value if isinstance(value, list) else [value]:
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
                return [f"{key} must be a frame number from 0 on, not {number!r}"]
    return [f"video_end {segment[1]} must be above video_start {segment[0]}" for segment in video_segments(record)
            if segment and segment[1] is not None and segment[1] <= segment[0]]


def _check_target(target: object) -> list[str]:
    if target is None:
        return []
    if not isinstance(target, dict):
        return [f"target must be an object of numbers, not {_kind(target)}"]
    return [
        f"target {name!r} must be a finite number" for name, value in target.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max
    ]


def check(path: str | Path, media_root: str | Path | None) -> Iterator[tuple[int, dict | None, list[Defect]]]:
    """(row, record or None, its defects) for every record of a file; ids that occur twice are defects too."""
    path, seen = Path(path), {}
    for row, record in scan(path):
        if isinstance(record, Defect):
            yield row, None, [record]
            continue
        own = record.get("id")
        problems = check_record(record, media_root)
        if isinstance(own, str | int):
            if own in seen:
                problems.append(f"its id is that of row {seen[own]}")
            seen.setdefault(own, row)
        yield row, record, [Defect(path, row, None if own is None else str(own), text) for text in problems]


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test from "0.7,0.15,0.15". Raises UserError where it is not three numbers."""
    try:
        train, val, test = (float(share) for share in text.split(","))
        if not all(map(math.isfinite, (train, val, test))):
            raise ValueError
    except ValueError:
        raise UserError(f"--split-fractions takes three numbers such as 0.7,0.15,0.15, got {text!r}") from None
    return train, val, test


def split_groups(records: Iterable[dict], fractions: Mapping[str, float], key: str = "group",
                 seed: int = 0) -> dict[str, list[dict]]:
    """Deal records out to splits so that all records of a group (area, clip, scene, user) are on one side.

    Groups are taken in an order that depends on the seed and their names alone; each goes to the split that lacks
    most of its share. Every split with a share gets a group as long as there are enough of them.

    Args:
        fractions: share of the records by split, e.g. {"train": 0.8, "test": 0.2}; they must add up to 1.
        key: the record's key that names its group.

    Returns:
        split -> its records, in their original order.

    Raises:
        UserError: the shares do not add up to 1, or a record has no group.
    """
    if any(share < 0 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UserError(f"the shares of the splits must add up to 1: {dict(fractions)}")
    records, groups = list(records), {}
    for number, record in enumerate(records, start=1):
        if record.get(key) is None:
            raise UserError(f"record {number} (id {record.get('id')}) has no {key!r}, which splits are made by")
        groups.setdefault(str(record[key]), []).append(number - 1)
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    chosen: dict[str, list[int]] = {split: [] for split in fractions}
    for position, name in enumerate(order):
        empty = [split for split, share in fractions.items() if share > 0 and not chosen[split]]
        candidates = empty if len(order) - position <= len(empty) else list(fractions)
        split = max(candidates, key=lambda s: fractions[s] * len(records) - len(chosen[s]))
        chosen[split] += groups[name]
    return {split: [records[i] for i in sorted(rows)] for split, rows in chosen.items()}
