"""Chunks are fetched by number, one camera only, and no archive is trusted."""

import zipfile
from unittest.mock import Mock

import pytest
from huggingface_hub import errors as hub

from overlays import archives
from overlays.domains.driving import download
from overlays.errors import UserError

CAMERA = "camera_front_wide_120fov"


@pytest.fixture
def asked(monkeypatch):
    """Names asked from the hub; every file is there, zips hold one clip of two cameras' files."""
    names = []

    def fetch(repository, name, repo_type, local_dir, revision):
        assert (repository, repo_type) == ("nvidia/PhysicalAI-Autonomous-Vehicles", "dataset")
        names.append(name)
        path = local_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as out:
                out.writestr(f"clip.{path.name.split('.')[0]}.mp4", b"pictures")
        else:
            path.touch()
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return names


def test_chunks_are_named_by_number():
    assert download.chunk_numbers("0-2,7, 1") == [0, 1, 2, 7]
    for text in ("", "a", "3-1", "1-", "-1", "12345", "0;1"):
        with pytest.raises(UserError, match="--chunks"):
            download.chunk_numbers(text)


def test_only_what_is_needed_is_fetched(asked, tmp_path):
    files = list(download.fetch(tmp_path, [0, 12]))
    assert asked == ["clip_index.parquet", "splits/default.parquet"] + [
        name.format(chunk) for chunk in (0, 12) for name in (
            "labels/egomotion/egomotion.chunk_{:04d}.zip", f"camera/{CAMERA}/{CAMERA}.chunk_{{:04d}}.zip")]
    assert all(path.is_file() for path in files)


def test_unpacked_chunks_are_not_fetched_again(asked, tmp_path):
    list(download.fetch(tmp_path, [3], unpack=True))
    folder = tmp_path / "camera" / CAMERA
    assert (folder / f"clip.{CAMERA}.mp4").read_bytes() == b"pictures" and not list(folder.glob("*.zip"))
    asked.clear()
    list(download.fetch(tmp_path, [3], unpack=True))
    assert asked == ["clip_index.parquet", "splits/default.parquet"]


@pytest.mark.parametrize(("kind", "message"), [
    (hub.GatedRepoError, "gated.*hf auth login"), (hub.RepositoryNotFoundError, "hf auth login"),
    (hub.RevisionNotFoundError, "no revision"), (hub.RemoteEntryNotFoundError, "holds no clip_index.parquet"),
    (hub.LocalEntryNotFoundError, "cannot be reached"), (hub.HfHubHTTPError, "could not be fetched.*kept"),
])
def test_refusals_of_the_hub_are_one_sentence(monkeypatch, tmp_path, kind, message):
    error = kind("line one\nline two", **({} if kind is hub.LocalEntryNotFoundError else {"response": Mock()}))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=error))
    with pytest.raises(UserError, match=message) as caught:
        list(download.fetch(tmp_path, [0]))
    assert "\n" not in str(caught.value)


def test_a_camera_cannot_name_another_folder(tmp_path):
    with pytest.raises(UserError, match="is not a name such as"):
        list(download.fetch(tmp_path, [0], camera="../labels"))


def zipped(path, **options):
    with zipfile.ZipFile(path, "w") as out:
        for name, content in options.get("files", {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = options.get("mode", 0o100644) << 16
            out.writestr(info, content)
    return path


@pytest.mark.parametrize(("options", "message"), [
    ({"files": {"../x": b""}}, "leave its folder"), ({"files": {"/x": b""}}, "leave its folder"),
    ({"files": {"a/../../x": b""}}, "leave its folder"), ({"files": {"c:\\x": b""}}, "leave its folder"),
    ({"files": {"x": b"target"}, "mode": 0o120777}, "not a plain file"),
    ({"files": {"a/x": b"", "b/x": b""}}, "'x' twice"), ({"files": {"x": b"1" * 2000}}, "above the limit"),
])
def test_archives_that_cannot_be_trusted_are_refused_before_anything_is_written(tmp_path, options, message):
    archive = zipped(tmp_path / "a.zip", **options)
    with pytest.raises(UserError, match=message):
        archives.unpack(archive, tmp_path / "out" / "in", limit=1000)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip"]


def test_damaged_archives_are_named(tmp_path):
    archive = zipped(tmp_path / "a.zip", files={"x": b"content" * 50})
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b"contentcontent", b"contentCONTENT", 1))
    with pytest.raises(UserError, match="x is damaged"):
        archives.unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    archive.write_bytes(whole[:100])
    with pytest.raises(UserError, match="cannot be read"):
        archives.members(archive)


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_named_whatever_the_packing(tmp_path, packing):
    archive, content = tmp_path / "a.zip", bytes(range(256)) * 20
    with zipfile.ZipFile(archive, "w", packing) as out:
        out.writestr("x", content)
    (info,) = archives.members(archive).values()
    assert archives.read_member(archive, info) == content
    whole = archive.read_bytes()
    for spoilt in (whole[:60] + bytes(40) + whole[100:], whole[:40] + whole[60:]):
        archive.write_bytes(spoilt)
        for act in (archives.read_member, lambda *member: archives.extract(*member, tmp_path / "x")):
            with pytest.raises(UserError, match="x is damaged"):
                act(archive, info)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_odd_directories_of_archives_are_one_sentence(tmp_path):
    archive = zipped(tmp_path / "a.zip", files={"name": b"content"})
    whole = archive.read_bytes()
    entry = whole.index(b"PK\x01\x02")
    newer, no_text = bytearray(whole), bytearray(whole.replace(b"name", b"\xff\xfe\xfd\xfc"))
    newer[entry + 6], no_text[entry + 9] = 99, 8  # version needed; the flag that names are UTF-8
    for spoilt in (newer, no_text):
        archive.write_bytes(spoilt)
        with pytest.raises(UserError, match="cannot be read"):
            archives.members(archive)


def test_a_snapshot_in_the_cache_of_the_hub_is_read(sample_clips, tmp_path):
    """Its files are links to blobs elsewhere; so physical_ai_av and the hub's library leave them."""
    from overlays.domains.driving import clips

    for number, path in enumerate(sorted(path for path in sample_clips.rglob("*") if path.is_file())):
        blob, link = tmp_path / "blobs" / str(number), tmp_path / "snapshot" / path.relative_to(sample_clips)
        for place in (blob, link):
            place.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link.symlink_to(blob)
    found, refused = clips.find(tmp_path / "snapshot")
    assert len(found) == 10 and not refused and all(clip.video and clip.egomotion for clip in found)
    found[0].video.place(tmp_path / "video.mp4")
    assert len(clips.frame_stamps(tmp_path / "video.mp4")[0]) > 80
