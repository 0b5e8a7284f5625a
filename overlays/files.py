"""Files that are complete or absent: atomic writes and checksums."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS)
SURROGATE = re.compile("[\ud800-\udfff]")


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
