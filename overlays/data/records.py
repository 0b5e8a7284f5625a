"""Annotation files: read, write and check records."""

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from overlays import paths
from overlays.data import tables
from overlays.data.embedded import embedded_file
from overlays.data.formats import PLACEHOLDER, PLACEHOLDERS, ROLES, TOOL, to_record
from overlays.errors import UserError
from overlays.files import SURROGATE, atomic_path, is_file, kind_of, to_json, write_jsonl

SUFFIXES = (".json", ".jsonl", ".parquet")
_CHUNK = 1 << 20
FLOAT32_MAX = 3.4028234e38  # what a head is trained in
MAX_FPS = 1000  # of frames in a folder or list
_FILE_URI = "file://"


@dataclass(frozen=True)
class Defect:
    """What is wrong with one row. `row` counts from 1: a line of a JSONL file, an element of a JSON list."""

    file: Path
    row: int
    id: str | None
    problem: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}{f' (id {self.id})' if self.id else ''}: {self.problem}"


def scan(path: str | Path, convert: bool = True) -> Iterator[tuple[int, dict | Defect]]:
    """(row, record) of every record of an annotation file, read as a stream; a Defect where a row is none.

    A row that is a list (upstream's packed files) gives its records one by one.

    Args:
        path: .json, .jsonl or .parquet file, or a folder that `datasets.save_to_disk` wrote.
        convert: whether rows of other formats become records (`formats.to_record`); else they are as they were written.

    Raises:
        UserError: the file cannot be read or has another suffix.
    """
    path = Path(path)
    for row, value in _rows(path):
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict | Defect):
                item = Defect(path, row, None, f"a record must be a JSON object, not {kind_of(item)}")
            yield row, _converted(path, row, item) if convert and isinstance(item, dict) else item


def _converted(path: Path, row: int, item: dict) -> dict | Defect:
    try:
        record = to_record(item)
    except UserError as error:
        record_id = item.get("id")
        return Defect(path, row, str(record_id) if isinstance(record_id, str | int) else None, str(error))
    return _without_bytes(record) if tables.is_table(path) else record


def _without_bytes(value: object) -> object:
    """A row of a table as JSON holds it: bytes that are no media of the record are metadata, and left out."""
    if isinstance(value, dict):
        return {key: _without_bytes(item) for key, item in value.items() if not isinstance(item, bytes)}
    if isinstance(value, list):
        return [_without_bytes(item) for item in value if not isinstance(item, bytes)]
    return value


def _rows(path: Path) -> Iterator[tuple[int, object]]:
    """(row, value) of an annotation file; what follows a place that cannot be read is lost."""
    if path.suffix not in SUFFIXES and not path.is_dir():
        raise UserError(f"annotation file {path} must end in .json (a list), .jsonl (a record a line) or .parquet")
    if not path.exists():
        raise UserError(f"there is no annotation file {path}")
    if tables.is_table(path):
        yield from enumerate(tables.rows(path), start=1)
    else:
        yield from (_json_list if path.suffix == ".json" else _json_lines)(path)


def read(path: str | Path, convert: bool = True) -> Iterator[dict]:
    """Records of an annotation file (see `scan`), one at a time. Raises UserError at the first row that holds none."""
    for _, record in scan(path, convert):
        if isinstance(record, Defect):
            raise UserError(str(record))
        yield record


def write(path: str | Path, records: Iterable[dict]) -> None:
    """Write records atomically, in UTF-8: a JSON list (.json), a record a line (.jsonl) or a table (`tables.write`)."""
    path = Path(path)
    if path.suffix == ".jsonl":
        write_jsonl(path, records)
    elif path.suffix == ".json":
        with atomic_path(path) as temporary:
            temporary.write_text(to_json(list(records), indent=1) + "\n", encoding="utf-8")
    elif path.suffix in (".parquet", ""):
        tables.write(path, records)
    else:
        raise UserError(f"{path} must end in {', '.join(SUFFIXES)}, or have no suffix: then it is a folder")


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


def media_names(record: Mapping, kind: str) -> list[str | list[str]]:
    """The media of a record's "image" or "video" key, in the order of their placeholders.

    Each is the name of a file; that of a video may also be a folder of frames, or a list of frame files.
    """
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


def video_segments(record: Mapping) -> list[tuple | None]:
    """For each video of a record the frames that count: (first, one after the last), None for the whole file.

    They are the keys `video_start` and `video_end`, frame numbers from 0 in the order of showing: a number, or a list
    with one (or null) for each video. A missing start is 0, a missing end the file's. A third element is the key `fps`,
    where there is one: how many frames of a folder or list of frames are a second.
    """
    names = media_names(record, "video")
    starts, ends, rates = (value if isinstance(value, list) else [value] * len(names)
                           for value in map(record.get, ("video_start", "video_end", "fps")))
    return [
        None if (start, end, rate) == (None, None, None) else
        (start or 0, end) if rate is None else (start or 0, end, rate)
        for start, end, rate in zip(starts, ends, rates, strict=True)
    ]


def media_file(media_root: str | Path, name: str | list[str]) -> Path | tuple[Path, ...]:
    """Path of a medium, a tuple of paths for a list of frames.

    Raises:
        UserError: a name leaves the media root, or a link on its way does and `paths.allow_symlinks` was not called.
    """
    if isinstance(name, list):
        return tuple(media_file(media_root, frame) for frame in name)
    problem = _name_problem(name)
    if problem:
        raise UserError(problem)
    embedded = embedded_file(name)
    if embedded:
        return embedded
    path = Path(unquote(name.removeprefix(_FILE_URI))) if name.startswith(_FILE_URI) else Path(media_root) / name
    try:
        root, target = _real_root(Path(media_root).absolute()), os.path.realpath(path)
        if _is_inside(target, root):
            return path
        written = [_is_inside(os.path.normpath(path.absolute()), start)
                   for start in (root, os.path.normpath(Path(media_root).absolute()))]
    except ValueError as error:
        raise UserError(f"media path {name[:200]!r} cannot be the name of a file: {error}") from None
    if not any(written):
        raise UserError(f"media path {name} leaves the media root {media_root}")
    if not paths.follows_symlinks():
        raise UserError(f"media path {name} leaves the media root {media_root} by a link to {target}: "
                        f"--allow_symlinks or {paths.SYMLINKS}=1 follows it")
    return path


@functools.lru_cache(maxsize=64)
def _real_root(media_root: Path) -> str:
    return os.path.realpath(media_root)


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def media_files(record: Mapping, media_root: str | Path) -> list[Path]:
    """Every file of a record's media, frames of videos one by one. Raises UserError as `media_file`."""
    files = []
    for kind in PLACEHOLDERS:
        for name in media_names(record, kind):
            path = media_file(media_root, name)
            files += path if isinstance(path, tuple) else sorted(path.iterdir()) if _is_folder(path) else [path]
    return files


def _name_problem(name: object) -> str | None:
    if not isinstance(name, str) or not name.strip():
        return f"a media path must be text, not {kind_of(name)}" if not isinstance(name, str) \
            else "a media path is empty"
    if name.startswith(_FILE_URI):
        return None
    if "://" in name:
        return f"media file {name} is an address; download it below the media root"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        return f"media path {name} is absolute; give it relative to the media root"
    return None


def answer_text(turn: Mapping) -> str:
    """The words of an assistant's turn; its tool calls follow, each as a line of JSON."""
    calls = [to_json(call) for call in turn.get("tool_calls") or []]
    return "\n".join([turn["value"], *calls] if turn["value"] else calls)


def empty_answers(record: Mapping) -> list[int]:
    """Numbers, from 1, of the assistant's turns without words and without tool calls: they teach to say nothing."""
    turns = record.get("conversations")
    return [number for number, turn in enumerate(turns if isinstance(turns, list) else [], start=1)
            if isinstance(turn, dict) and ROLES.get(str(turn.get("from"))) == "assistant"
            and isinstance(turn.get("value"), str) and not turn["value"].strip() and not turn.get("tool_calls")]


def check_record(record: Mapping, media_root: str | Path | None = None) -> list[str]:
    """Everything that is wrong with one record, each as a clause; empty where it is sound.

    Args:
        media_root: folder of its media, whose files must exist; None leaves the files unchecked.
    """
    record_id = record.get("id", "")
    if not isinstance(record_id, str | int) or isinstance(record_id, bool):
        return ["id must be text or a number"]
    if isinstance(record_id, str) and SURROGATE.search(record_id):
        return ["id holds half a character (a lone surrogate)"]
    problems, counts = _check_turns(record.get("conversations"))
    for kind, placeholder in PLACEHOLDERS.items():
        value = record.get(kind)
        if value is not None and not isinstance(value, str | list):
            problems.append(f"{kind} must be a path or a list of paths, not {kind_of(value)}")
            continue
        names = media_names(record, kind)
        if counts is not None and len(names) != counts[kind]:
            problems.append(f"{counts[kind]} {placeholder} in the human turns but {len(names)} {kind} "
                            f"file{'' if len(names) == 1 else 's'}")
        for name in names:
            problem = _medium_problem(kind, name, media_root)
            problems += [problem] if problem else []
    problems += _check_windows(record) + _check_segments(record)
    problems += _check_target(record.get("target"))
    if record.get("tools") is not None and SURROGATE.search(json.dumps(record["tools"], ensure_ascii=False)):
        problems.append("tools hold half a character (a lone surrogate)")
    return problems


def check_trained(record: Mapping, media_root: str | Path | None = None) -> list[str]:
    """`check_record`, and what supervised training would not read: the two answers of a preference pair."""
    turns = record.get("conversations")
    last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else {}
    answered = ROLES.get(str(last.get("from"))) == "assistant"
    return check_record(record, media_root) + [
        f"the key {side!r} is there beside an answer; only preference training reads it"
        for side in ("chosen", "rejected") if answered and record.get(side) is not None
    ]


def _medium_problem(kind: str, name: object, media_root: str | Path | None) -> str | None:
    """What is wrong with one medium of a record; None where it is sound."""
    frames = name if kind == "video" and isinstance(name, list) and name else [name]
    for frame in frames:
        problem = _name_problem(frame)
        if problem or media_root is None:
            return problem
        try:
            path = media_file(media_root, frame)
        except UserError as error:
            return str(error)
        if not is_file(path) and not (kind == "video" and frames == [name] and _is_folder(path)):
            if embedded_file(frame):
                return f"an embedded {kind} is gone from the cache; delete {path.parents[2]}"
            return f"{kind} file {Path(media_root) / frame[:200]} is missing"
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _check_turns(turns: object) -> tuple[list[str], dict[str, int] | None]:
    """(problems, placeholders by kind in the human turns or None where the turns cannot be read)."""
    if turns is None:
        return ["conversations is missing"], None
    if not isinstance(turns, list) or not turns:
        return ["conversations must be a list of at least one turn"], None
    problems, roles, counts = [], [], dict.fromkeys(PLACEHOLDERS, 0)
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            problems.append(f"turn {number} must be an object, not {kind_of(turn)}")
            continue
        role, value = turn.get("from"), turn.get("value")
        if not isinstance(role, str) or role not in (*ROLES, TOOL):
            problems.append(f"turn {number} has the unknown role {role!r}; roles are human, gpt, system and tool")
            continue
        role = ROLES.get(role, TOOL)
        roles.append(role)
        if not isinstance(value, str):
            problems.append(f"the value of turn {number} must be text, not {kind_of(value)}")
            continue
        if SURROGATE.search(value) or SURROGATE.search(json.dumps(turn.get("tool_calls"), ensure_ascii=False)):
            problems.append(f"the value of turn {number} holds half a character (a lone surrogate)")
        held = PLACEHOLDER.findall(value)
        if role in ("user", TOOL):
            for kind, placeholder in PLACEHOLDERS.items():
                counts[kind] += held.count(placeholder)
            if not value.strip() and role == "user":
                problems.append(f"turn {number} asks nothing: its value is empty")
        elif held and role == "system":
            problems.append(f"turn {number} ({turn['from']}) holds {held[0]}; placeholders belong in human turns")
        elif held:
            problems.append(f"turn {number} ({turn['from']}) holds {held[0]}; an answer cannot hold media")
        if role == "system" and number > 1:
            problems.append(f"turn {number} is a system turn; only the first can be")
        if role in ("assistant", TOOL) and "user" not in roles:
            problems.append(f"turn {number} answers before any human turn")
    if len(roles) == len(turns) and "assistant" not in roles:
        problems.append("there is no gpt turn, so nothing to learn")
    return problems, counts


def _check_windows(record: Mapping) -> list[str]:
    value = record.get("window")
    if value is None or not isinstance(record.get("image"), str | list):
        return [] if value is None else ["window is there, but no image"]
    names, given = media_names(record, "image"), windows(record) if isinstance(value, list) else []
    sound = all(window is None or isinstance(window, list) and len(window) == 4 and
                all(type(side) is int for side in window) for window in given)
    fits = sound and len(given) == len(names)
    return [] if fits else ["window must be [row, column, height, width], or a list with one (or null) for each image"]


def _check_segments(record: Mapping) -> list[str]:
    values = {key: record[key] for key in ("video_start", "video_end", "fps") if record.get(key) is not None}
    if not values or not isinstance(record.get("video"), str | list):
        return [f"{key} is there, but no video" for key in values if key != "fps"]
    count = len(media_names(record, "video"))
    for key, value in values.items():
        if isinstance(value, list) and len(value) != count:
            return [f"{key} lists {len(value)} {'rates' if key == 'fps' else 'frame numbers'} for {count} videos"]
        for number in value if isinstance(value, list) else [value]:
            if number is None:
                continue
            if key == "fps" and (type(number) not in (int, float) or not 0 < number <= MAX_FPS):
                return [f"fps must be a number above 0, up to {MAX_FPS}, not {number!r}"]
            if key != "fps" and (type(number) is not int or number < 0):
                return [f"{key} must be a frame number from 0 on, not {number!r}"]
    return [f"video_end {segment[1]} must be above video_start {segment[0]}" for segment in video_segments(record)
            if segment and segment[1] is not None and segment[1] <= segment[0]]


def _check_target(target: object) -> list[str]:
    if target is None:
        return []
    if not isinstance(target, dict):
        return [f"target must be an object of numbers, not {kind_of(target)}"]
    return [
        f"target {name!r} must be a number within the range of float32" for name, value in target.items()
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= FLOAT32_MAX
    ]


def check(path: str | Path, media_root: str | Path | None) -> Iterator[tuple[int, dict | None, list[Defect]]]:
    """(row, record or None, its defects) for every record of a file; ids that occur twice are defects too."""
    path, seen = Path(path), {}
    for row, record in scan(path):
        if isinstance(record, Defect):
            yield row, None, [record]
            continue
        record_id = record.get("id")
        problems = check_trained(record, media_root)
        if isinstance(record_id, str | int):
            if record_id in seen:
                problems.append(f"its id is that of row {seen[record_id]}")
            seen.setdefault(record_id, row)
        yield row, record, [Defect(path, row, None if record_id is None else str(record_id), text) for text in problems]
