"""Files are whole or absent."""

import pytest

from overlays.files import atomic_path, sha256, write_json


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


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f").startswith("ba7816bf")
