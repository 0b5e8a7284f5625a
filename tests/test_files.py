"""Files are complete or absent."""

import errno
import json
import subprocess
import sys

import pytest

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
