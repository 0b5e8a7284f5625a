"""Files that are complete or absent: atomic writes, checksums, and JSON read back by a schema."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overlays.errors import UserError

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS)
SURROGATE = re.compile("[\ud800-\udfff]")
JSON_BYTES = 64 << 20  # of one file that `read_json` reads
JSON_LEVELS = 100  # of one JSON value: what walks through it must not run out of stack


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not.

    The temporary path keeps the file's suffix, so writers that choose a format by suffix work. It may be made a
    folder; a folder already at `path` is then replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")  # no folder can be renamed onto a full one
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def complete_folder(output: str | Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden folder beside `output` that takes its place at the end; an end by force leaves `output` as it was.

    Args:
        check: raises UserError where `output` must not be replaced; asked at the start and again at the end.
    """
    output = Path(output)
    check(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    for left in output.parent.glob(f".{output.name}.*.tmp"):
        owner = left.name.split(".")[-2]
        if not owner.isdigit() or _alive(int(owner)):
            continue
        if left.name == f".{output.name}.old.{owner}.tmp" and not output.exists():
            left.rename(output)  # killed between the two renames below
        else:
            shutil.rmtree(left, ignore_errors=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    old = output.with_name(f".{output.name}.old.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        check(output)
        if output.exists():
            output.rename(old)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def to_json(value: object, indent: int | None = None) -> str:
    """`value` as JSON in plain characters; in ASCII where it holds half a surrogate pair, which UTF-8 cannot."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if text.isascii() or not SURROGATE.search(text) else json.dumps(value, indent=indent)


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    names = {str: "text", bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def is_shallow(value: object, limit: int) -> bool:
    """Whether a JSON value has at most `limit` levels."""
    level = [value]
    for _ in range(limit):
        level = [item for outer in level if isinstance(outer, dict | list)
                 for item in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return True
    return False


def parse_json(text: str) -> Any:
    """A JSON value from a file that anybody may have written.

    Raises:
        ValueError: not JSON, more than JSON_LEVELS levels, a number of thousands of digits, or half a character.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"more than {JSON_LEVELS} levels") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not is_shallow(value, JSON_LEVELS):
        raise ValueError(f"more than {JSON_LEVELS} levels")
    if "\\u" in text and SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("text with half a character (a lone surrogate)")
    return value


def read_json(path: str | Path, schema: object = dict, hint: str = "delete it and make it again") -> Any:
    """The value of a JSON file that this project or a library wrote, once its types are as `schema` says.

    Args:
        schema: `str`, `bool`, `int` (of 64 bits), `float` (finite), `list`, `dict`, or `None`; a tuple of alternatives;
            [schema] for a list of such; {str: schema} for an object of any keys; {"key": schema, "other?": schema} for
            an object with these keys and any others, of which those with "?" may be missing or null.
        hint: what the user can do about a damaged file.

    Raises:
        UserError: no such file, not JSON (see `parse_json`), more than JSON_BYTES bytes, or another form.
    """
    try:
        if Path(path).stat().st_size > JSON_BYTES:
            raise ValueError(f"more than {JSON_BYTES >> 20} MB")
        value = parse_json(Path(path).read_bytes().decode("utf-8-sig"))
        problem = misfit(value, schema)
        if problem:
            raise ValueError(problem)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}; {hint}") from None
    return value


def misfit(value: object, schema: object, where: str = "it") -> str | None:
    """A clause about the first place where a JSON value is not as a schema of `read_json` says; None where it is."""
    if isinstance(schema, tuple):
        problems = [misfit(value, one, where) for one in schema]
        return None if None in problems else problems[0]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{where} must be a list, not {kind_of(value)}"
        found = (misfit(item, schema[0], f"element {number} of {where}") for number, item in enumerate(value, start=1))
        return next(filter(None, found), None)
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{where} must be an object, not {kind_of(value)}"
        pairs = [(key, one) for key in value for one in [schema[str]]] if str in schema else schema.items()
        for key, one in pairs:
            name = key if str in schema else key.removesuffix("?")
            if name != key and value.get(name) is None:
                continue
            if name not in value:
                return f"{where} has no {name!r}"
            problem = misfit(value[name], one, repr(name))
            if problem:
                return problem
        return None
    if schema is None:
        return None if value is None else f"{where} must be null, not {kind_of(value)}"
    known = int | float if schema is float else schema
    if not isinstance(value, known) or isinstance(value, bool) and schema is not bool:
        words = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list",
                 dict: "an object"}
        return f"{where} must be {words[schema]}, not {kind_of(value)}"
    if schema is int and abs(value) >= 2**63 or schema is float and not abs(value) <= sys.float_info.max:
        return f"{where} is a number without end or beyond its range"
    return None


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: str | Path, rows: Iterable[object]) -> None:
    """Write one JSON value per line, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(to_json(row) + "\n")


def link(source: str | Path, target: Path) -> None:
    """A hard link at `target`, or a copy where the file system takes none.

    Raises:
        FileExistsError: `target` is there; it may be a link to another original, which a copy would write through.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(Path(source).resolve(), target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        with Path(source).open("rb") as read, target.open("xb") as write:
            shutil.copyfileobj(read, write)


def is_file(path: Path) -> bool:
    """Whether there is such a file; False also where no file can have that name (too long, a zero byte)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content; of a folder, that of the names and contents of its files."""
    digest, path = hashlib.sha256(), Path(path)
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\0".encode())
        return digest.hexdigest()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
