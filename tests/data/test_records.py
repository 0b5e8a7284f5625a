"""Annotation files: both formats as a stream, every defect with its place, splits that keep groups together."""

import json
import re

import pytest

from overlays import paths
from overlays.data import records
from overlays.errors import UserError


def turns(question="What is it?", answer="A rock."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    rows = [{"id": f"r{i}", "conversations": turns(answer="蚀变 \u2028 ü")} for i in range(3)]
    records.write(tmp_path / f"a{suffix}", rows)
    assert list(records.read(tmp_path / f"a{suffix}")) == rows


@pytest.mark.parametrize("suffix, text", [
    (".json", '[{"id": 1}, [{"id": 2}, {"id": 3}]]'), (".jsonl", '{"id": 1}\n\n[{"id": 2}, {"id": 3}]\n'),
])
def test_byte_order_mark_and_packed_rows(tmp_path, suffix, text):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [record["id"] for record in records.read(file)] == [1, 2, 3]


def test_a_json_list_is_read_in_pieces(tmp_path, monkeypatch):
    rows = [{"id": f"r{i}", "text": "x, ] }" * (50 * (i % 3))} for i in range(40)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows, indent=2))
    for chunk in (1, 7, 64):
        monkeypatch.setattr(records, "_CHUNK", chunk)
        assert list(records.read(file)) == rows
    file.write_text("[ ]")
    assert list(records.read(file)) == []


@pytest.mark.parametrize("name, text, row, said", [
    ("a.jsonl", b'{"id": 1}\n{"id": \n', 2, "not JSON"),
    ("a.jsonl", b'{"id": 1}\n\n"text"\n', 3, "must be a JSON object, not text"),
    ("a.jsonl", b'{"id": 1}\n{"id": "\xff"}\n', 2, "not UTF-8"),
    ("a.json", b'[{"id": 1}, {"id": 2]', 2, "not JSON"),
    ("a.json", b'[{"id": 1}', 2, "not JSON"),
    ("a.json", b'[{"id": 1} {"id": 2}]', 2, "not JSON"),
    ("a.json", b'{"id": 1}', 1, "must hold one list"),
    ("a.json", b"[3]", 1, "must be a JSON object, not a number"),
    ("a.json", b'[{"id": ' + b"9" * 5000 + b"}]", 1, "not a record"),
    ("a.jsonl", b'{"id": ' + b"9" * 5000 + b"}", 1, "not a record"),
])
def test_a_row_that_is_no_record_is_named(tmp_path, name, text, row, said):
    file = tmp_path / name
    file.write_bytes(text)
    found = [(r, d.problem) for r, d in records.scan(file) if isinstance(d, records.Defect)]
    assert len(found) == 1 and found[0][0] == row and said in found[0][1]
    with pytest.raises(UserError, match=f"{name}, row {row}"):
        list(records.read(file))


@pytest.mark.parametrize("record, said", [
    ({}, "conversations is missing"),
    ({"conversations": []}, "at least one turn"),
    ({"conversations": "hi"}, "at least one turn"),
    ({"conversations": ["hi"]}, "turn 1 must be an object"),
    ({"conversations": [{"from": "bot", "value": "x"}]}, "unknown role 'bot'"),
    ({"conversations": [{"value": "x"}]}, "unknown role None"),
    ({"conversations": turns(answer=3)}, "turn 2 must be text, not a number"),
    ({"conversations": turns()[:1]}, "no gpt turn"),
    ({"conversations": turns()[::-1]}, "answers before any human turn"),
    ({"conversations": turns(" ")}, "asks nothing"),
    ({"conversations": turns() + [{"from": "system", "value": "x"}]}, "only the first"),
    ({"conversations": turns("<image>\nQ")}, "1 <image> in the human turns but 0 image files"),
    ({"conversations": turns(), "image": "a.png"}, "0 <image> in the human turns but 1 image file"),
    ({"conversations": turns("<video>"), "video": ["a.png", "a.png"]}, "1 <video> .* but 2 video files"),
    ({"conversations": turns(answer="<image>")}, "an answer cannot hold media"),
    ({"conversations": turns("<image>"), "image": "b.png"}, "b.png is missing"),
    ({"conversations": turns("<image>"), "image": "/etc/passwd"}, "is absolute"),
    ({"conversations": turns("<image>"), "image": "C:\\x.png"}, "is absolute"),
    ({"conversations": turns("<image>"), "image": "x/../../a.png"}, "leaves the media root"),
    ({"conversations": turns("<image>"), "image": "http://x/a.png"}, "is an address"),
    ({"conversations": turns("<image>"), "image": 3}, "image must be a path"),
    ({"conversations": turns("<image>"), "image": [None]}, "a media path must be text, not null"),
    ({"conversations": turns(), "target": {"x": float("nan")}}, "'x' must be a number within"),
    ({"conversations": turns(), "target": {"x": 1e308}}, "'x' must be a number within"),
    ({"conversations": turns("half \ud83d")}, "turn 1 holds half a character"),
    ({"conversations": turns("<image>"), "image": "x" * 5000}, "^image file .{200,400} is missing$"),
    ({"conversations": turns("<image>"), "image": "a\0.png"}, "cannot be the name of a file"),
    ({"conversations": turns("<image>"), "image": "\ud83d.png"}, "cannot be the name of a file"),
    ({"conversations": turns(), "id": "\ud83d"}, "id holds half a character"),
    ({"conversations": turns(), "id": ["x"]}, "id must be text"),
])
def test_every_defect_is_named(tmp_path, record, said):
    (tmp_path / "a.png").touch()
    problems = records.check_record(record, tmp_path)
    assert len(problems) == 1, problems
    assert re.search(said, problems[0]), problems[0]


def test_links_out_of_the_media_root_are_followed_where_the_user_says_so(tmp_path, monkeypatch):
    root, outside = tmp_path / "root", tmp_path / "outside" / "deep"
    for folder in (root, outside):
        folder.mkdir(parents=True)
        (folder / "a.png").touch()
    (root / "file.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    (root / "loop.png").symlink_to("loop.png")
    (root / "inner.png").symlink_to("a.png")
    (outside.parent / "a.png").touch()
    (tmp_path / "link").symlink_to(root)

    def problems(name, media_root=root):
        return records.check_record({"conversations": turns("<image>"), "image": name}, media_root)

    for media_root in (root, tmp_path / "link"):  # the root itself may be a link
        assert problems("a.png", media_root) == problems("inner.png", media_root) == []
        assert problems("folder/../../root/a.png", media_root) == []  # leaves by its text, and not by its links
        for name in ("file.png", "folder/a.png", "folder/../a.png"):
            assert re.search("leaves the media root .* --allow_symlinks or OVERLAYS_ALLOW_SYMLINKS=1",
                             problems(name, media_root)[0])
    assert "is missing" in problems("loop.png")[0]
    monkeypatch.setenv("OVERLAYS_ALLOW_SYMLINKS", "")  # undone at the end
    paths.allow_symlinks(True)
    assert problems("file.png") == problems("folder/a.png") == []
    assert "leaves the media root" in problems("../outside/a.png")[0]
    paths.allow_symlinks(False)
    assert "by a link" in problems("file.png")[0]
    monkeypatch.setenv("OVERLAYS_ALLOW_SYMLINKS", "1")
    paths.allow_symlinks(False)  # leaves what the user set
    assert problems("file.png") == []


def test_a_sound_record_has_no_defect(tmp_path):
    (tmp_path / "a.png").touch()
    record = {"id": 7, "image": ["a.png", "./a.png"], "target": {"x": 1.5}, "anything": None, "conversations": [
        {"from": "system", "value": ""}, {"from": "user", "value": "<image><image>"},
        {"from": "assistant", "value": ""},
    ]}
    assert records.check_record(record, tmp_path) == []


def test_check_names_file_row_and_id_and_finds_ids_used_twice(tmp_path):
    file = tmp_path / "a.jsonl"
    records.write(file, [{"id": "x", "conversations": turns()}, {"id": "y"}, {"id": "x", "conversations": turns()}])
    found = [str(defect) for _, _, defects in records.check(file, tmp_path) for defect in defects]
    assert found == [f"{file}, row 2 (id y): conversations is missing",
                     f"{file}, row 3 (id x): its id is that of row 1"]
