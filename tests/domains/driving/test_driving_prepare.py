"""From clips to records: windows, splits and frames are right, every drop is counted and listed."""

import json
import shutil
import struct
import subprocess
import sys
import zipfile
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from overlays import files
from overlays.data import records
from overlays.data.video import read_frames
from overlays.domains.driving import clips, egomotion
from overlays.domains.driving.answers import read_answer
from overlays.domains.driving.prepare import Settings, prepare
from overlays.errors import UserError
from overlays.files import write_jsonl
from overlays.samples.driving import CAMERA, Drive, clip_name, clocks, drive_of, egomotion_table, split_of
from tests.domains.driving.motions import times, write_clip

ALL = ("train", "val", "test")


def rows(folder: Path, split: str) -> list[dict]:
    return list(records.read(folder / f"{split}.jsonl"))


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(container.streams.video[0])]


@pytest.fixture(scope="module")
def prepared(sample_clips, tmp_path_factory):
    """(folder, metadata) of the sample clips with every setting at its default."""
    folder = tmp_path_factory.mktemp("prepared") / "driving"
    return folder, prepare(Settings(raw=sample_clips, output=folder, workers=1))


@pytest.fixture
def unpacked(sample_clips, tmp_path):
    """Folder of the ten clips as plain files, to be spoilt."""
    raw = tmp_path / "raw"
    for place in (f"camera/{CAMERA}", "labels/egomotion"):
        for archive in (sample_clips / place).glob("*.zip"):
            zipfile.ZipFile(archive).extractall(raw / place)
    return raw


def test_windows_are_counted_and_split_by_the_index(prepared):
    folder, metadata = prepared
    counts = metadata["counts"]
    assert (counts["clips_used"], counts["windows"], metadata["splits_by"]) == (10, 20, "index")
    expected = {split: [clip_name(0, n) for n in range(10) if split_of(n) == split] for split in ALL}
    for split in ALL:
        assert {row["clip"] for row in rows(folder, split)} == set(expected[split])
        assert counts[split] == len(rows(folder, split)) == 2 * len(expected[split])
        assert all(row["split"] == split for row in rows(folder, split))


def test_records_are_sound_and_say_what_the_motion_was(prepared):
    folder, _ = prepared
    for number in range(10):
        drive, (frame_us, _) = drive_of(0, number, 3), clocks(0, number, 3)
        own = [row for split in ALL for row in rows(folder, split) if row["clip"] == clip_name(0, number)]
        assert [(row["video_start"], row["video_end"]) for row in own] == [(0, 30), (30, 60)]
        for row in own:
            assert records.check_record(row, folder) == []
            assert row["task"] == "video_only" and row["start_us"] == frame_us[row["video_start"]]
            at = frame_us[row["video_end"] - 1] + np.array([0.25, 0.5, 0.75, 1.0]) * 1e6
            assert row["times"] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=1e-6)
            assert row["future"]["v"] == pytest.approx(drive.speed(at / 1e6), abs=0.02)
            assert row["past"]["times"][-1] == 0.0
            last = frame_us[row["video_end"] - 1] / 1e6
            assert row["past"]["v"][-1] == pytest.approx(float(drive.speed(last)), abs=0.02)
            said = read_answer(row["conversations"][1]["value"], 4).pairs
            assert said[:, 0] == pytest.approx(row["future"]["v"], abs=0.006)
            assert said[:, 1] == pytest.approx(row["future"]["k"], abs=6e-6)


def test_past_motion_changes_the_question_and_nothing_else(prepared, sample_clips, tmp_path):
    prepare(Settings(raw=sample_clips, output=tmp_path / "past", workers=1, past_motion=True))
    for split in ALL:
        for plain, told in zip(rows(prepared[0], split), rows(tmp_path / "past", split), strict=True):
            assert told["task"] == "past_motion"
            asked = told["conversations"][0]["value"]
            assert asked.startswith(plain["conversations"][0]["value"])
            assert read_answer(asked, 4).pairs[:, 0] == pytest.approx(told["past"]["v"], abs=0.006)
            for key in ("id", "video", "future", "past", "times"):
                assert told[key] == plain[key]
            assert told["conversations"][1] == plain["conversations"][1]


def test_segments_hold_exactly_the_frames_of_their_window(prepared, sample_clips, tmp_path):
    folder = tmp_path / "cut"
    prepare(Settings(raw=sample_clips, output=folder, workers=1, cut=True, limit=2))
    names = [row["video"] for split in ALL for row in rows(folder, split)]
    assert len(names) == 4 and sorted(path.name for path in (folder / "segments").iterdir()) == sorted(
        name.split("/")[1] for name in names)
    for split in ALL:
        for row in rows(folder, split):
            assert "video_start" not in row
            start = int(row["id"].rpartition("-")[2])
            (source,) = (prepared[0] / "clips").glob(f"{row['clip']}.*.mp4")
            whole = pictures(source)
            assert np.array_equal(pictures(folder / row["video"]), whole[start:start + 30])
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_workers_and_a_second_run_change_nothing(prepared, sample_clips, tmp_path, monkeypatch):
    folder = tmp_path / "again"
    shutil.copytree(prepared[0], folder)
    for name in ("old.mp4", "a.0123456789ab.mp4", "mine.mp4"):
        (folder / "clips" / name).write_bytes(b"of another set")
    named = rows(folder, "train")
    write_jsonl(folder / "train.jsonl", [*named, {**named[0], "video": "clips/old.mp4"}])
    spoilt = sorted((folder / "clips").glob("*-*"))[0]
    spoilt.write_bytes(b"\0" * spoilt.stat().st_size)
    before = {path: path.stat().st_mtime_ns for path in (folder / "clips").iterdir()}
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = f"{dead.pid}-{files._owner().partition('-')[2]}"
    for name in (f".video.left.{owner}.tmp/half", f"clips/.a.{owner}.tmp.mp4", f"segments/.a.{owner}.tmp.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    monkeypatch.setattr(files, "_swept", set())  # as in a new process
    assert prepare(Settings(raw=sample_clips, output=folder, workers=2)) == prepared[1]
    for split in ALL:
        assert rows(folder, split) == rows(prepared[0], split)
    after = {path: path.stat().st_mtime_ns for path in (folder / "clips").iterdir()}
    assert {path for path in after if after[path] != before[path]} == {spoilt}
    assert {path.name for path in set(before) - set(after)} == {"old.mp4", "a.0123456789ab.mp4"}
    assert sorted(path.name for path in folder.iterdir()) == [
        "clips", "metadata.json", "test.jsonl", "train.jsonl", "val.jsonl"]
    assert spoilt.read_bytes() == (prepared[0] / "clips" / spoilt.name).read_bytes()


def test_messages_are_written_on_request_and_pairs_can_be_one_a_frame(sample_clips, tmp_path):
    from overlays.data.messages import to_record

    prepare(Settings(raw=sample_clips, output=tmp_path / "out", workers=1, messages=True, pairs=30, limit=1))
    (split,) = [split for split in ALL if rows(tmp_path / "out", split)]
    row, *_ = rows(tmp_path / "out", split)
    message, *_ = records.read(tmp_path / "out" / "messages" / f"{split}.jsonl", convert=False)
    assert message["messages"][0]["content"][0] == {"type": "video", "video": row["video"]}
    assert to_record(message) == row
    assert len(row["future"]["v"]) == 30 and read_answer(row["conversations"][1]["value"], 30).pairs.shape == (30, 2)


def test_own_splits_keep_clips_whole(unpacked, tmp_path):
    metadata = prepare(Settings(raw=unpacked, output=tmp_path / "out", workers=1))
    assert metadata["splits_by"] == "own"
    homes = [{row["clip"] for row in rows(tmp_path / "out", split)} for split in ALL]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 10 and all(homes)
    with pytest.raises(UserError, match="gives no split for 10 of 10 clips"):
        prepare(Settings(raw=unpacked, output=tmp_path / "out", workers=1, splits="index"))


def test_plain_files_are_linked_not_copied(unpacked, tmp_path):
    prepare(Settings(raw=unpacked, output=tmp_path / "out", workers=1, limit=1))
    (placed,) = (tmp_path / "out" / "clips").iterdir()
    assert placed.samefile(unpacked / "camera" / CAMERA / f"{placed.name.split('.')[0]}.{CAMERA}.mp4")


# ---- other cameras


CODECS = {".mov": "libx264", ".mkv": "libx264", ".MP4": "mpeg4", ".webm": "libvpx-vp9"}


def write_recording(raw: Path, name: str, suffix: str, fps: float, missing: tuple[int, ...] = ()) -> None:
    """Four seconds of a car whose speed grows by 1 m/s a second."""
    stamps = np.rint(np.delete(np.arange(round(4 * fps)), missing) * 1e6 / fps).astype(np.int64)
    camera, labels = raw / "camera" / CAMERA, raw / "labels" / "egomotion"
    camera.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    write_clip(camera / f"{name}.{CAMERA}{suffix}", len(stamps), codec=CODECS.get(suffix, "libx264"))
    pd.DataFrame({"timestamp": stamps}).to_parquet(camera / f"{name}.{CAMERA}.timestamps.parquet")
    drive = Drive("steady", "country", np.array([-2.0, 8.0]), np.array([8.0, 18.0]), np.array([-500.0, 500.0]),
                  np.zeros(2))
    egomotion_table(drive, times(-0.5, 6.0)).to_parquet(labels / f"{name}.egomotion.parquet")


def test_videos_of_other_containers_are_read(tmp_path):
    for suffix in CODECS:
        write_recording(tmp_path / "raw", f"clip{suffix[1:]}", suffix, 30)
    metadata = prepare(Settings(raw=tmp_path / "raw", output=tmp_path / "out", workers=1))
    assert metadata["counts"]["windows"] == 4 * 3 and not metadata["dropped"]["clips"]
    every = [row for split in ALL for row in rows(tmp_path / "out", split)]
    assert {Path(row["video"]).suffix for row in every} == {".mov", ".mkv", ".mp4", ".webm"}
    assert all(records.check_record(row, tmp_path / "out") == [] for row in every)
    for row in every:
        shown = read_frames(tmp_path / "out" / row["video"], np.arange(row["video_start"], row["video_end"]))
        assert len(shown) == 30 and abs(int(shown[5, 0, 0, 0]) - 2 * (row["video_start"] + 5)) < 12
    kept = {path.name for path in (tmp_path / "out" / "clips").iterdir()}
    prepare(Settings(raw=tmp_path / "raw", output=tmp_path / "out", workers=1, cut=True))
    assert len(list((tmp_path / "out" / "segments").iterdir())) == 12 and kept
    assert not (tmp_path / "out" / "clips").exists()


def test_a_set_of_many_frame_rates_has_one_number_of_pairs(tmp_path):
    for fps in (24, 25, 29.97, 30, 50, 60):
        write_recording(tmp_path / "raw", f"clip{fps}".replace(".", "_"), ".mp4", fps)
    write_recording(tmp_path / "raw", "phone", ".mp4", 30, missing=(7, 21, 40, 41, 77, 100))
    for cut in (False, True):
        metadata = prepare(Settings(raw=tmp_path / "raw", output=tmp_path / "out", workers=1, cut=cut))
        assert metadata["counts"]["windows"] == 7 * 3 and not metadata["counts"]["windows_dropped"]
        assert metadata["fps"] == [24, 25, 30, 50, 60] and metadata["parameters"]["pairs"] == 30
        for row in (row for split in ALL for row in rows(tmp_path / "out", split)):
            assert "exactly 30 pairs" in row["conversations"][0]["value"]
            assert len(read_answer(row["conversations"][1]["value"], 30).pairs) == 30
            last = row["future"]["v"][0] - row["times"][0]
            assert row["times"] == pytest.approx(np.arange(1, 31) / 30, abs=1e-5)
            assert row["future"]["v"] == pytest.approx(last + np.arange(1, 31) / 30, abs=2e-4)


# ---- folders that are there


def test_only_folders_of_its_own_are_filled(prepared, sample_clips, tmp_path):
    settings = Settings(raw=sample_clips, output=tmp_path / "out", workers=1, limit=1)
    for name, content in (("clips/holiday.mp4", ""), ("train.jsonl", ""), ("metadata.json", '{"domain": "cuprite"}'),
                          ("metadata.json", "[]")):
        mine = tmp_path / "out" / name
        mine.parent.mkdir(parents=True)
        mine.write_text(content)
        with pytest.raises(UserError, match="holds other files"):
            prepare(settings)
        assert mine.read_text() == content
        shutil.rmtree(tmp_path / "out")


def test_a_killed_run_goes_on_and_leaves_what_was_there(prepared, unpacked, tmp_path, monkeypatch):
    folder, video = tmp_path / "out", unpacked / "camera" / "camera_rear"
    first = Settings(raw=unpacked, output=folder, workers=1, limit=2)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("overlays.domains.driving.prepare._write", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(first)
    prepare(first)
    before = {row["video"]: (folder / row["video"]).read_bytes() for split in ALL for row in rows(folder, split)}
    video.mkdir()
    for path in (unpacked / "camera" / CAMERA).iterdir():
        end = b"\0\0\0\x08free" if path.suffix == ".mp4" else b""
        (video / path.name.replace(CAMERA, "camera_rear")).write_bytes(path.read_bytes() + end)
    with monkeypatch.context() as patch:
        patch.setattr("overlays.domains.driving.prepare._write", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(replace(first, camera="camera_rear"))
    assert {row["video"] for split in ALL for row in rows(folder, split)} == set(before)
    assert all((folder / name).read_bytes() == content for name, content in before.items())


# ---- real recordings


def test_real_recordings_give_the_windows_counted_by_hand(real_clips, tmp_path):
    # 362 frames hold 12 whole seconds of 30 frames, 315 hold 10; the log of the car has no pictures.
    metadata = prepare(Settings(raw=real_clips, output=tmp_path / "real", workers=1))
    assert metadata["counts"]["windows"] == 11 + 9 and metadata["fps"] == [30]
    assert metadata["counts"]["clips_dropped"] == {"no video": 1} and not metadata["counts"]["windows_dropped"]
    assert metadata["dropped"]["clips"][0]["clip"] == "comma2k19-ex1-seg40"
    every = [row for split in ALL for row in rows(tmp_path / "real", split)]
    assert all(records.check_record(row, tmp_path / "real") == [] for row in every)
    assert {len(row["future"]["v"]) for row in every} == {30}
    walk = [v for row in every if "walk" in row["clip"] for v in row["future"]["v"]]
    assert 0.4 < min(walk) < max(walk) < 1.6  # metres per second on foot
    drone = next(row for row in every if row["id"] == "gopro-karma-drone-00000")
    table = pd.read_parquet(real_clips / "labels" / "egomotion" / "gopro-karma-drone.egomotion.parquet")
    speed = table.vx * np.cos(2 * np.arcsin(table.qz)) + table.vy * np.sin(2 * np.arcsin(table.qz))
    seconds = table.timestamp[29] / 1e6 + np.arange(1, 31) / 30
    assert drone["future"]["v"] == pytest.approx(np.interp(seconds, table.timestamp / 1e6, speed), abs=1e-3)


def test_curvature_of_a_highway_is_not_all_zero(real_clips, tmp_path):
    metadata = prepare(Settings(raw=real_clips, output=tmp_path / "motion", workers=1, motion_only=True))
    assert metadata["counts"]["windows"] == 59 + 11 + 9
    car = [row for row in records.read(tmp_path / "motion" / "motion.jsonl") if row["clip"].startswith("comma")]
    assert len(car) == 59 and {len(row["future"]["k"]) for row in car} == {30}
    curvature = np.array([row["future"]["k"] for row in car])
    assert np.abs(curvature).max() < 0.0013
    assert (np.round(curvature, 3) == 0).mean() > 0.9 and (np.round(curvature, 5) == 0).mean() < 0.05
    assert (curvature > 1e-5).mean() > 0.2 and (curvature < -1e-5).mean() > 0.2


def test_the_fit_agrees_with_the_curvature_of_a_real_car(real_clips):
    content = (real_clips / "labels" / "egomotion" / "comma2k19-ex1-seg40.egomotion.parquet")
    given = egomotion.read(content)
    fitted = egomotion.fit_curvature(given.times_us, given.rotation, given.speed)
    assert np.corrcoef(fitted, given.curvature)[0, 1] > 0.7
    assert np.abs(fitted - given.curvature).mean() < 2e-4


# ---- bad input


def test_every_broken_clip_is_counted_and_listed(unpacked, tmp_path):
    names = sorted(path.name.removesuffix(".egomotion.parquet") for path in (unpacked / "labels").rglob("*.parquet"))
    camera, motion = unpacked / "camera" / CAMERA, unpacked / "labels" / "egomotion"

    def change(path: Path, edit) -> None:
        table = pd.read_parquet(path)
        edit(table).to_parquet(path)

    (motion / f"{names[0]}.egomotion.parquet").unlink()
    (camera / f"{names[1]}.{CAMERA}.mp4").unlink()
    (camera / f"{names[2]}.{CAMERA}.timestamps.parquet").unlink()
    video = camera / f"{names[3]}.{CAMERA}.mp4"
    video.write_bytes(video.read_bytes()[:-4000])
    change(camera / f"{names[4]}.{CAMERA}.timestamps.parquet", lambda table: table[::-1].reset_index(drop=True))
    change(camera / f"{names[5]}.{CAMERA}.timestamps.parquet", lambda table: table[:-1])
    change(motion / f"{names[6]}.egomotion.parquet", lambda table: table[::-1].reset_index(drop=True))
    change(motion / f"{names[7]}.egomotion.parquet", lambda table: table[~table.timestamp.between(2.2e6, 2.4e6)])
    (camera / f"{names[8]}.{CAMERA}.timestamps.parquet").write_bytes(b"cut short")
    metadata = prepare(Settings(raw=unpacked, output=tmp_path / "out", workers=1))
    reasons = {row["clip"]: row["reason"] for row in metadata["dropped"]["clips"]}
    truncated = reasons.pop(names[3])
    assert truncated in ("truncated video", "unreadable video")
    assert reasons == {
        names[0]: "no egomotion", names[1]: "no video", names[2]: "no timestamps",
        names[4]: "camera timestamps out of order", names[5]: "frames and timestamps differ",
        names[6]: "egomotion out of order", names[8]: "unreadable timestamps",
    }
    (lost,) = metadata["dropped"]["windows"]
    assert (lost["clip"], lost["start"], lost["reason"]) == (names[7], 30, "gap in the egomotion")
    assert "s without a row, above 0.100 s (--max-gap)" in lost["detail"]
    assert metadata["counts"]["clips_dropped"] == {reason: 1 for reason in [*reasons.values(), truncated]}
    assert (metadata["counts"]["clips_used"], metadata["counts"]["windows"]) == (2, 1 + 2)
    assert json.loads((tmp_path / "out" / "metadata.json").read_text()) == metadata
    assert {path.name.split(".")[0] for path in (tmp_path / "out" / "clips").iterdir()} == {names[7], names[9]}


def test_one_odd_clip_does_not_stop_the_others(unpacked, tmp_path, monkeypatch):
    names = sorted(path.name.removesuffix(".egomotion.parquet") for path in (unpacked / "labels").rglob("*.parquet"))
    stamps = unpacked / "camera" / CAMERA / f"{names[0]}.{CAMERA}.timestamps.parquet"
    table = pd.read_parquet(stamps).astype("Int64")
    table.loc[3, "timestamp"] = pd.NA
    table.to_parquet(stamps)
    read = egomotion.read

    def odd(content, name, *rest):
        if name.startswith(names[1]):
            raise error
        return read(content, name, *rest)

    monkeypatch.setattr(egomotion, "read", odd)
    settings = Settings(raw=unpacked, output=tmp_path / "out", workers=1, limit=3)
    error: BaseException = KeyError("first\nsecond")
    metadata = prepare(settings)
    assert [row["detail"] for row in metadata["dropped"]["clips"]] == [
        f"{names[0]}: row 3 has no timestamp", f"{names[1]}: KeyError: 'first\\nsecond'"]
    for full in (OSError(28, "No space left on device"), MemoryError()):
        error = full
        with pytest.raises(UserError, match=f"ran out at clip {names[1]}.*make room"):
            prepare(settings)


def test_a_killed_worker_is_one_sentence(sample_clips, tmp_path, monkeypatch):
    class Pool:
        def __init__(self, workers):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def map(self, *work, chunksize):
            raise BrokenProcessPool

    monkeypatch.setattr("overlays.domains.driving.prepare.ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match="worker process was killed.*fewer --workers than 2"):
        prepare(Settings(raw=sample_clips, output=tmp_path / "out", workers=2))


def test_frames_before_the_first_that_can_be_decoded_are_lost_and_shift_no_other(unpacked, tmp_path):
    """A file that starts within a group of pictures: its index has frames that no decoder can show."""
    stamps = sorted((unpacked / "camera" / CAMERA).glob("*.parquet"))[0]
    video = stamps.with_name(stamps.name.replace("timestamps.parquet", "mp4"))
    whole = write_clip(tmp_path / "whole.mp4", frames=102, gop=12, options={
        "x264-params": "open-gop=1:min-keyint=12:scenecut=0:bframes=3:b-adapt=0"})
    plain = {"use_editlist": "0", "avoid_negative_ts": "make_zero"}  # an edit list would hide those frames
    with av.open(str(whole)) as given, av.open(str(video), "w", options=plain) as out:
        stream, keys = out.add_stream_from_template(given.streams.video[0]), 0
        for packet in given.demux(given.streams.video[0]):
            keys += packet.is_keyframe and packet.dts is not None
            if keys > 1 and packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    shown, lost = clips.frame_stamps(video)
    assert 0 < lost < 12 and len(shown) > 90
    pd.read_parquet(stamps)[:len(shown)].to_parquet(stamps)
    pd.DataFrame({"timestamp": 5000 + np.arange(len(shown)) * 33333}).to_parquet(stamps)
    for cut in (False, True):
        metadata = prepare(Settings(raw=unpacked, output=tmp_path / "out", workers=1, limit=1, cut=cut))
        (dropped,) = metadata["dropped"]["windows"]
        assert (dropped["start"], dropped["reason"]) == (0, "frames that cannot be decoded")
    (segment,) = (tmp_path / "out" / "segments").iterdir()
    assert segment.name.endswith("-00030.mp4")
    assert np.array_equal(read_frames(segment, np.arange(30)), read_frames(video, np.arange(30, 60)))


def test_segments_look_as_their_source_does(tmp_path):
    for tags in ("colorprim=bt709:transfer=bt709:colormatrix=bt709", "fullrange=on"):
        source = write_clip(tmp_path / "a.mp4", frames=4, options={"x264-params": tags})
        stamps, _ = clips.frame_stamps(source)
        assert clips.cut(source, stamps, [(1, 3)], [tmp_path / "b.mp4"]) == []
        assert np.array_equal(read_frames(tmp_path / "b.mp4", np.arange(2)), read_frames(source, np.arange(1, 3)))
        with av.open(str(source)) as one, av.open(str(tmp_path / "b.mp4")) as other:
            for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                assert getattr(one.streams.video[0].codec_context, name) == getattr(
                    other.streams.video[0].codec_context, name)


def test_what_cannot_be_cut_is_one_sentence(tmp_path):
    source = write_clip(tmp_path / "a.mp4", frames=3)
    content = bytearray(source.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix:matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 * 65536, 0, 0x40000000)
    source.write_bytes(content)
    with pytest.raises(UserError, match="a.mp4 is rotated: prepare it without --cut"):
        clips.cut(source, clips.frame_stamps(source)[0], [(0, 2)], [tmp_path / "b.mp4"])
    odd = write_clip(tmp_path / "odd.mp4", frames=3, size=(65, 49), codec="libvpx-vp9", options={"cpu-used": "8"})
    with pytest.raises(UserError, match="H.264 takes no 65 x 49 yuv420p.*without --cut"):
        clips.cut(odd, clips.frame_stamps(odd)[0], [(0, 2)], [tmp_path / "b.mp4"])
    assert not (tmp_path / "b.mp4").exists()


def test_a_video_cut_within_its_pictures_is_found_without_decoding(sample_clips, tmp_path):
    with zipfile.ZipFile(sample_clips / "camera" / CAMERA / f"{CAMERA}.chunk_0000.zip") as archive:
        source = archive.extract(f"{clip_name(0, 0)}.{CAMERA}.mp4", tmp_path)
    whole = tmp_path / "fast.mp4"
    with av.open(source) as given, av.open(str(whole), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    stamps, lost = clips.frame_stamps(whole)
    assert len(stamps) == len(pictures(whole)) and lost == 0
    whole.write_bytes(whole.read_bytes()[:-3000])
    with pytest.raises(UserError, match="truncated video: fast.mp4 ends within frame"):
        clips.frame_stamps(whole)


@pytest.mark.parametrize("name", ["../../escape.mp4", "/tmp/escape.mp4", "a\\..\\b.mp4", "C:/escape.mp4"])
def test_an_archive_that_leaves_its_folder_is_refused(unpacked, tmp_path, name):
    archive = unpacked / "camera" / CAMERA / f"{CAMERA}.chunk_0007.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(f"good.{CAMERA}.mp4", b"x")
        out.writestr(name, b"x")
    metadata = prepare(Settings(raw=unpacked, output=tmp_path / "out", workers=1, limit=1))
    (refused,) = metadata["dropped"]["archives"]
    assert refused["archive"] == archive.name and "would leave its folder" in refused["detail"]
    assert metadata["counts"]["archives_refused"] == 1
    assert not (tmp_path / "escape.mp4").exists() and not Path("/tmp/escape.mp4").exists()


def test_invalid_clips_of_the_index_are_left_out(unpacked, tmp_path):
    names = sorted(path.name.removesuffix(".egomotion.parquet") for path in (unpacked / "labels").rglob("*.parquet"))
    for valid in ([False] + [True] * 9, ["False"] + ["True"] * 9, [None] + [True] * 9):
        pd.DataFrame({"clip_id": names, "clip_is_valid": valid, "chunk": 0,
                      "split": ["train"] * 8 + ["val", "test"]}).to_parquet(unpacked / "clip_index.parquet")
        metadata = prepare(Settings(raw=unpacked, output=tmp_path / "out", workers=1))
        assert metadata["counts"]["clips_dropped"] == {"marked invalid": 1} and metadata["splits_by"] == "index"
    assert (metadata["counts"]["train"], metadata["counts"]["val"], metadata["counts"]["test"]) == (14, 2, 2)


def test_user_mistakes_are_one_sentence(sample_clips, tmp_path):
    (tmp_path / "camera" / "camera_left").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    cases = (
        (dict(raw=tmp_path / "none"), "there is no folder"), (dict(raw=tmp_path), "holds no camera.*camera_left"),
        (dict(raw=tmp_path, camera="camera_left"), "holds no clip"), (dict(pairs=0), "--pairs must be at least 1"),
        (dict(split_fractions=(0.5, 0.1, 0.1)), "sum to 1"), (dict(max_gap_s=0), "--max-gap"),
        (dict(split_fractions=(float("nan"), 0.5, 0.5)), "sum to 1"), (dict(max_gap_s=float("nan")), "--max-gap"),
        (dict(output=tmp_path / "full"), "holds other files"), (dict(cut_quality=60), "--cut-quality"),
        (dict(max_frame_gap_s=0), "--max-frame-gap"),
        (dict(velocity_frame="mine"), "--velocity-frame must be start or car"), (dict(splits="mine"), "--splits"),
    )
    for change, message in cases:
        with pytest.raises(UserError, match=message):
            prepare(Settings(**{"raw": sample_clips, "output": tmp_path / "out", "workers": 1, **change}))
