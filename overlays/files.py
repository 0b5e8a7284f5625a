"""Files that are complete or absent: atomic writes, locks, checksums; JSON read back by a schema."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from overlays.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where `lock` does nothing
    fcntl = None

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS)
SURROGATE = re.compile("[\ud800-\udfff]")
JSON_BYTES = 64 << 20  # of one file that `read_json` reads
OWN_JSON_BYTES = 4 << 30  # of one that this project or the trainer wrote, and that grows with the data or the steps
JSON_LEVELS = 100  # of one JSON value: what walks through it must not run out of stack

# ---- temporary files, and whose they are

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<owner>\d+-\d+-[0-9a-f]{4,8})\.(?P<kind>tmp|old)(?:\.[^.]*)?")
_HOST = socket.gethostname()
try:
    _PROCESSES = os.readlink("/proc/self/ns/pid")  # containers may share a name and not their process numbers
except OSError:
    _PROCESSES = ""
_swept: set[str] = set()  # folders that this process has cleared


def _started(pid: int) -> str:
    """Clock ticks from boot to the start of a process; "" for one that has ended, "0" where the system does not say."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else "0"
    return "" if state in "ZX" else fields[18]


def _owner() -> str:
    """This process as the names of its temporary files hold it: pid, start, host with its pid namespace."""
    return f"{os.getpid()}-{_started(os.getpid())}-{zlib.crc32(f'{_HOST} {_PROCESSES}'.encode()):08x}"


def _is_dead(owner: str) -> bool:
    """Whether a process of this host has ended; False for one of another host, of which nothing is known."""
    pid, start, host = owner.split("-")
    if host != _owner().split("-")[2] or os.name == "nt":  # there, signal 0 is no question
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's, of which /proc may say nothing (hidepid)
        return False
    return start != _started(int(pid))


def sweep(folder: str | Path) -> None:
    """Remove what processes of this host that were killed left half-written in a folder; once for each process.

    A folder that was being replaced and is not there comes back.
    """
    folder = os.path.abspath(folder)
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):
        for name in os.listdir(folder):
            found = _TEMPORARY.fullmatch(name)
            if found is None or not _is_dead(found["owner"]):
                continue
            path, target = Path(folder, name), Path(folder, found["name"])
            if found["kind"] == "old" and not target.exists():
                path.rename(target)
            else:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it; nothing where neither is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not.

    The temporary path keeps the file's suffix, so writers that choose a format by suffix work. It may be made a
    folder; a folder already at `path` is then replaced. What a killed process left is removed, see `sweep`.

    Raises:
        OSError: with the name of `path`; on a full disk with ENOSPC, whatever the writer raised.
    """
    path = Path(path)
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary = path.with_name(f".{path.stem}.{_owner()}.tmp{path.suffix}")
        try:
            yield temporary
            if temporary.is_dir() and path.is_dir():
                old = path.with_name(f".{path.name}.{_owner()}.old")  # no folder can be renamed onto a full one
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
        finally:
            remove(temporary)


@contextmanager
def temporary_folder(parent: str | Path, name: str) -> Iterator[Path]:
    """A hidden folder in `parent`, for the time of the block; see `sweep` for what a kill leaves of it."""
    sweep(parent)
    folder = Path(parent) / f".{name}.{_owner()}.tmp"
    remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove(folder)


@contextmanager
def complete_folder(output: str | Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden folder beside `output` that takes its place at the end; an end by force leaves `output` as it was.

    Args:
        check: raises UserError where `output` must not be replaced; asked at the start and again at the end.

    Raises:
        InUse: another process is writing `output`.
    """
    output = Path(output)
    with lock_output(output):
        check(output)
        with atomic_path(output) as temporary:
            temporary.mkdir()
            yield temporary
            check(output)


# ---- one writer at a time


class InUse(UserError):
    """Another process holds a lock."""


_held: set[tuple[int, str]] = set()  # (pid, lock file)


@contextmanager
def lock(file: str | Path, folder: str | Path) -> Iterator[None]:
    """Be the only process that writes `folder` while the block runs; the system frees the lock of one that dies.

    Args:
        file: says which process on which host holds the lock; is removed at the end.

    Raises:
        InUse: another process holds it.
    """
    file = Path(file)
    key = os.getpid(), os.path.abspath(file)
    if fcntl is None or key in _held:  # by a caller of ours
        yield
        return
    with named_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = _locked(file, folder)
        stream.truncate()
        stream.write(f"process {os.getpid()} on {_HOST} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        stream.flush()
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        file.unlink(missing_ok=True)
        stream.close()


def lock_output(output: Path) -> AbstractContextManager[None]:
    """The `lock` of a folder that is replaced as one."""
    return lock(output.with_name(f".{output.name}.lock"), output)


def _locked(file: Path, folder: str | Path) -> TextIO:
    """The lock file, open, locked where the file system has locks, and not one that its holder has just removed."""
    for _ in range(20):
        stream = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8", errors="replace")
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                with stream:
                    holder = stream.read(200).strip() or "another process"
                raise InUse(f"{folder} is being written by {holder}: wait until it ends, or give another folder"
                            ) from None
        if file.exists() and os.path.samestat(os.fstat(stream.fileno()), file.stat()):
            return stream
        stream.close()
        time.sleep(0.01)
    raise InUse(f"{file} is replaced all the time by other processes: run again, or give another folder")


# ---- a full disk

_FULL = re.compile(r"No space left on device|os error (27|28|122)\b|[Qq]uota exceeded|requested and \d+ written|"
                   "inline_container")


def is_full(error: BaseException, path: Path) -> bool:
    """Whether a writer failed because the disk, the quota or the largest size of a file is used up."""
    if isinstance(error, UserError):
        return False
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _FULL.search(str(error)):
        return True
    free = free_bytes(path) if isinstance(error, OSError | RuntimeError) else None
    return free is not None and free < 1 << 14


def free_bytes(path: Path) -> int | None:
    """Bytes that can be written where `path` is or will be; None where the file system does not say."""
    path = Path(os.path.abspath(path))
    usage = shutil.disk_usage(next(place for place in (path, *path.parents) if os.path.exists(place)))
    return usage.free if usage.total else None


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """What the system refuses inside the block names `path`; a full disk is an OSError, whatever a library makes of it.
    """
    try:
        yield
    except Exception as error:
        if is_full(error, Path(path)):
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: make room and run again", str(path)) from error
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def reserve(path: str | Path) -> None:
    """Allocate all blocks of a file that is written through memory: on a full disk, such a write kills the process."""
    with Path(path).open("r+b") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)


# ---- contents


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


def read_json(path: str | Path, schema: object = dict, hint: str = "make it again",
              limit: int = JSON_BYTES) -> Any:
    """The value of a JSON file that this project or a library wrote, once its types are as `schema` says.

    Args:
        schema: `str`, `bool`, `int` (of 64 bits), `float` (finite), `list`, `dict`, or `None`; a tuple of alternatives;
            [schema] for a list of such; {str: schema} for an object of any keys; {"key": schema, "other?": schema} for
            an object with these keys and any others, of which those with "?" may be missing or null.
        hint: what the user can do about a damaged file.
        limit: bytes that the file may have.

    Raises:
        UserError: no such file, not JSON (see `parse_json`), more than `limit` bytes, or another form.
    """
    try:
        if Path(path).stat().st_size > limit:
            raise ValueError(f"more than {limit >> 20} MB")
        value = parse_json(Path(path).read_bytes().decode("utf-8-sig"))
        problem = misfit(value, schema)
        if problem:
            raise ValueError(problem)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; {hint}") from None
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


def sync(path: str | Path) -> None:
    """Wait until a file, or the names in a folder where the system can tell, have reached the disk."""
    with suppress(OSError) if os.path.isdir(path) else nullcontext():
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: str | Path, value: object, durable: bool = False) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; a `durable` one is on the disk before it takes its place."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(value, indent=2) + "\n", encoding="utf-8")
        if durable:
            sync(temporary)


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
