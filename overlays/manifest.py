"""manifest.json of a model or checkpoint folder: size and checksum of every file, written after all of them."""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from overlays.errors import UserError
from overlays.files import read_json, sha256, write_json

NAME = "manifest.json"
_FORM = {"files": {str: {"bytes": int, "sha256": str}}}
NOT_LISTED = (NAME, "README.md")  # a card is its reader's to change
_ADAPTER_CONFIG, _BASE = "adapter_config.json", "base_model_name_or_path"
_checked: dict[tuple, None] = {}  # folders and the state of their files that this process has compared


def write(folder: str | Path) -> None:
    """Write the manifest of all files below a folder, once they have reached the disk."""
    folder = Path(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in NOT_LISTED)
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    with ThreadPoolExecutor(4) as pool:
        rows = zip(files, pool.map(_digest, files), strict=True)
        write_json(folder / NAME, {"version": 1, "files": {
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
            for file, digest in rows}})


def read(folder: str | Path) -> dict[str, dict] | None:
    """{file: {"bytes", "sha256"}} of a folder, None without a manifest. Raises UserError where that is damaged."""
    file = Path(folder) / NAME
    if not file.is_file():
        return None
    return read_json(file, _FORM, "copy the folder again, or restore the file")["files"]


def check(folder: str | Path, skip: Callable[[str], bool] = lambda name: False) -> None:
    """Compare the files of a folder with its manifest, where it has one.

    Args:
        skip: whether a file, by its name in the manifest, is not needed.

    Raises:
        UserError: a file is missing, or has another size or checksum.
    """
    folder = Path(folder)
    rows = {name: row for name, row in (read(folder) or {}).items() if not skip(name)}
    stats = []
    for name, row in rows.items():
        try:
            found = (folder / name).stat()
        except OSError:
            raise UserError(f"{folder} is incomplete: {name}, which its {NAME} lists, is missing: copy the folder "
                            "again, or use another checkpoint") from None
        if found.st_size != row["bytes"] and name != _ADAPTER_CONFIG:
            raise _damaged(folder / name, f"{found.st_size} bytes instead of {row['bytes']}")
        stats.append((name, found.st_size, found.st_mtime_ns, found.st_ino))
    key = str(folder.resolve()), tuple(stats)
    if key in _checked:
        return
    with ThreadPoolExecutor(4) as pool:
        for name, digest in zip(rows, pool.map(lambda name: _digest(folder / name), rows), strict=True):
            if digest != rows[name]["sha256"]:
                raise _damaged(folder / name, "another checksum")
    _checked[key] = None


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} is damaged: it has {what} ({NAME}); copy the folder again, or use another checkpoint")


def _digest(file: Path) -> str:
    """SHA-256 of a file; of an adapter's configuration without its base, which may have moved."""
    if file.name == _ADAPTER_CONFIG:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            values.pop(_BASE, None)
            return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        except (ValueError, AttributeError, RecursionError):
            pass  # damaged: the bytes differ as well
    return sha256(file)
