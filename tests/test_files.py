"""Files are complete or absent."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from overlays import files
from overlays.files import atomic_path, complete_folder, link, sha256, write_json, write_jsonl


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == '{\n  "old": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        assert (folder / "old").exists()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_prepared_data_survives_a_kill_between_the_two_renames(tmp_path):
    output = tmp_path / "prepared"
    with complete_folder(output, lambda folder: None) as folder:
        (folder / "metadata.json").write_text("first")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = files._owner().split("-", 1)[1]
    output.rename(tmp_path / f".prepared.{dead.pid}-{own}.old")
    (tmp_path / f".prepared.{dead.pid}-{own}.tmp").mkdir()
    files._swept.clear()  # as in a new process
    with pytest.raises(RuntimeError), complete_folder(output, lambda folder: None):
        raise RuntimeError
    assert (output / "metadata.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_half_a_character_is_written_so_that_it_can_be_read_again(tmp_path):
    rows = [{"text": "half \ud83d"}, {"text": "明矾石"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows and "明矾石" in lines[1]


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f").startswith("ba7816bf")


def test_a_link_is_never_written_through(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    link(tmp_path / "one", tmp_path / "place" / "linked")
    with pytest.raises(FileExistsError):
        link(tmp_path / "two", tmp_path / "place" / "linked")

    def refuse(*_):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr("os.link", refuse)
    with pytest.raises(FileExistsError):
        link(tmp_path / "two", tmp_path / "place" / "linked")
    link(tmp_path / "two", tmp_path / "place" / "copied")
    assert [(tmp_path / name).read_text() for name in ("one", "place/linked", "place/copied")] == ["one", "one", "two"]


# ---- kills


def child(action):
    """Process number of a fork that runs `action` and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(1)
    return pid


def test_what_a_killed_writer_left_goes_with_the_next_write_and_what_lives_stays(tmp_path):
    def write():
        with atomic_path(tmp_path / "model") as folder, files.temporary_folder(tmp_path, "clips") as clips:
            folder.mkdir()
            (folder / "half").touch()
            (clips / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(child(write), 0)
    (tmp_path / ".mine.123.tmp").touch()  # no name of ours
    files._swept.clear()  # as in a new process
    with atomic_path(tmp_path / "alive") as living:
        living.touch()
        assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, ".mine.123.tmp"]
        os.waitpid(child(lambda: write_json(tmp_path / "a.json", 1)), 0)
        files._swept.clear()
        os.waitpid(child(lambda: write_json(tmp_path / "b.json", 1)), 0)
        assert living.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.123.tmp", "a.json", "alive", "b.json"]


def test_the_second_writer_is_told_who_holds_the_folder_and_a_dead_one_is_taken_over(tmp_path):
    output, locked = tmp_path / "out", tmp_path / ".out.lock"

    def hold():
        with files.lock(locked, output):
            time.sleep(60)

    holder = child(hold)
    while not locked.exists() or not locked.read_text():
        time.sleep(0.01)
    with pytest.raises(files.InUse, match=f"{output} is being written by process {holder} on {files._HOST}"):
        with complete_folder(output, lambda folder: None):
            pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert locked.exists()
    with complete_folder(output, lambda folder: None) as folder, files.lock(locked, output):  # again by its holder
        (folder / "done").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_asked_about_is_alive_and_containers_of_one_name_are_not_one_host(monkeypatch):
    def hidden(pid, number):
        raise PermissionError

    number, start, host = files._owner().split("-")
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", hidden)
        assert not files._is_dead(f"{number}-{int(start) + 1}-{host}")
    assert files._is_dead(f"{number}-{int(start) + 1}-{host}")
    monkeypatch.setattr(files, "_PROCESSES", "pid:[1]")
    assert not files._is_dead(f"{number}-{int(start) + 1}-{host}")
    assert all(files._TEMPORARY.fullmatch(f".a.1-2-{old}.tmp.json") for old in ("abcd", host))


def test_a_lock_that_never_holds_ends_and_a_system_without_locks_has_none(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(files.InUse, match="replaced all the time"):
        patched.setattr(os.path, "samestat", lambda *_: False)
        with files.lock(tmp_path / "lock", tmp_path):
            pass
    (tmp_path / "lock").unlink()
    monkeypatch.setattr(files, "fcntl", None)
    with files.lock(tmp_path / "lock", tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_file_system_that_does_not_tell_its_size_is_not_full(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: Namespace(total=0, free=0))
    assert files.free_bytes(tmp_path) is None and not files.is_full(OSError(errno.EIO, "broken"), tmp_path)


# ---- a full disk: a limit on the size of files fails as a full file system does

WRITERS = {
    "text": lambda file: file.write_text("x" * 300_000),
    "npy": lambda file: np.save(file, np.zeros(300_000, np.uint8)),
    "npz": lambda file: np.savez(file, a=np.zeros(300_000, np.uint8)),
    "img": lambda file: np.zeros(300_000, np.uint8).tofile(file),
    "safetensors": lambda file: save_file({"a": torch.zeros(300_000)}, file),
    "pt": lambda file: torch.save({"a": torch.zeros(300_000)}, file),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_full_disk_names_the_file_whatever_writes_it_and_keeps_the_old_one(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as caught, atomic_path(file) as temporary:
            WRITERS[suffix](temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(file)
    assert file.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_file_written_through_memory_has_its_blocks_before(tmp_path):
    file = tmp_path / "a.npy"
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(1 << 20,))
    assert file.stat().st_blocks * 512 < 1 << 20
    files.reserve(file)
    assert file.stat().st_blocks * 512 >= 1 << 20
