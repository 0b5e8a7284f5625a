"""manifest.json of a model or checkpoint folder: size and checksum of every file, written after all of them."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from overlays.errors import UserError
from overlays.files import atomic_path, read_json, sha256, sync, write_json
from overlays.paths import cache_folder

log = logging.getLogger(__name__)

NAME = "manifest.json"
_FORM = {"files": {str: {"bytes": int, "sha256": str}}}
NOT_LISTED = (NAME, "README.md")  # a card is its reader's to change
_ADAPTER_CONFIG, _BASE = "adapter_config.json", "base_model_name_or_path"
_TEXTS, _TEXT_BYTES = (".json", ".jinja", ".txt"), 1 << 20  # settings that a user may edit, and the largest of them
_checked: set[str] = set()  # what this process has compared: digests of folders with the state of their files
_LEDGER, _LEDGER_LINES = "checked_folders.txt", 1000  # the same of all processes, in the cache folder


def write(folder: str | Path) -> None:
    """Write the manifest of all files below a folder, once they have reached the disk."""
    folder = Path(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in NOT_LISTED)
    for place in [*files, *{file.parent for file in files}]:
        sync(place)
    with ThreadPoolExecutor(4) as pool:
        rows = zip(files, pool.map(_digest, files), strict=True)
        write_json(folder / NAME, {"version": 1, "files": {
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
            for file, digest in rows}}, durable=True)
    sync(folder)


def read(folder: str | Path) -> dict[str, dict] | None:
    """{file: {"bytes", "sha256"}} of a folder, None without a manifest. Raises UserError where that is damaged."""
    file = Path(folder) / NAME
    if not file.is_file():
        return None
    rows = read_json(file, _FORM, "copy the folder again, or restore the file")["files"]
    if not rows:
        raise UserError(f"{file} is damaged: it lists no file; copy the folder again, or restore the file")
    return rows


def check(folder: str | Path, skip: Callable[[str], bool] = lambda name: False, edited: bool = False) -> None:
    """Compare the files of a folder with its manifest, where it has one; checksums on the first process alone.

    A folder that a process has compared, and whose files have not changed since, is not read again.

    Args:
        skip: whether a file, by its name in the manifest, is not needed.
        edited: whether a small text file may have been edited, which is a warning; an index of weights may not.

    Raises:
        UserError: a file is missing, or has another size or checksum.
    """
    folder = Path(folder)
    rows = {name: row for name, row in (read(folder) or {}).items() if not skip(name)}
    texts = {name for name, row in rows.items() if edited and name.endswith(_TEXTS) and row["bytes"] <= _TEXT_BYTES
             and not name.endswith(".index.json")}
    states, newest = [], 0
    for name, row in rows.items():
        try:
            found = (folder / name).stat()
        except OSError:
            raise UserError(f"{folder} is incomplete: {name}, which its {NAME} lists, is missing: copy the folder "
                            "again, or use another checkpoint") from None
        if found.st_size != row["bytes"] and name != _ADAPTER_CONFIG and name not in texts:
            raise _damaged(folder / name, f"{found.st_size} bytes instead of {row['bytes']}", edited)
        if name not in texts:
            states.append((name, row["sha256"], found.st_size, found.st_mtime_ns, found.st_ino))
            newest = max(newest, found.st_mtime_ns)
    if os.environ.get("RANK", "0") != "0":
        return
    key = hashlib.sha256(json.dumps([str(folder.resolve()), states]).encode()).hexdigest()
    known = key in _checked or key in _ledger()
    names = [name for name in rows if name in texts or not known]
    with ThreadPoolExecutor(4) as pool:
        digests = zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True)
        changed = [name for name, digest in digests if digest != rows[name]["sha256"]]
    for name in changed:
        if name not in texts:
            raise _damaged(folder / name, "another checksum", edited)
    if changed and key not in _checked:
        log.warning("%s: %s changed after training (%s has another checksum)", folder, ", ".join(changed), NAME)
    _checked.add(key)
    if not known and time.time_ns() - newest > 2e9:  # a file just written could change without another time
        with suppress(OSError, UserError), atomic_path(cache_folder() / _LEDGER) as temporary:
            temporary.write_text("\n".join([*_ledger(), key][-_LEDGER_LINES:]))


def _ledger() -> list[str]:
    try:
        return (cache_folder() / _LEDGER).read_text(errors="replace").split()
    except (OSError, UserError):
        return []


def _damaged(file: Path, what: str, final: bool) -> UserError:
    own = f", or delete {NAME} if you changed it yourself" if final else ""  # a checkpoint without one is incomplete
    return UserError(f"{file} is damaged: it has {what} ({NAME}); copy the folder again, or use another checkpoint"
                     f"{own}")


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
