"""The sample has the real layout and clocks, the same clips every time, and pictures that show the true motion."""

import zipfile
from itertools import combinations

import av
import numpy as np
import pandas as pd
import pytest

from overlays.samples import driving as sample
from overlays.samples.driving.road import KINDS, STEP_M, Camera, Look, Road


def test_the_layout_is_the_real_one(sample_clips):
    camera = sample_clips / "camera" / sample.CAMERA / f"{sample.CAMERA}.chunk_0000.zip"
    motion = sample_clips / "labels" / "egomotion" / "egomotion.chunk_0000.zip"
    name = sample.clip_name(0, 0)
    assert f"{name}.{sample.CAMERA}.mp4" in zipfile.ZipFile(camera).namelist()
    assert f"{name}.{sample.CAMERA}.timestamps.parquet" in zipfile.ZipFile(camera).namelist()
    with zipfile.ZipFile(motion).open(f"{name}.egomotion.parquet") as stream:
        table = pd.read_parquet(stream)
    assert list(table.columns) == ["timestamp", "qx", "qy", "qz", "qw", "x", "y", "z", "vx", "vy", "vz", "ax", "ay",
                                   "az", "curvature"]
    index = pd.read_parquet(sample_clips / "clip_index.parquet")
    assert index.index.name == "clip_id" and list(index.columns) == ["clip_is_valid", "chunk", "split", "road"]
    assert len(index) == 10


def test_the_clocks_are_asynchronous_and_egomotion_spans_the_clip():
    for number in range(20):
        frame_us, ego_us = sample.clocks(0, number, 6)
        assert (np.diff(frame_us) > 0).all() and (np.diff(ego_us) > 0).all()
        assert frame_us[0] > 0 and np.diff(frame_us).std() > 50
        assert ego_us[0] < -400_000 and ego_us[-1] > frame_us[-1] + 500_000
        assert 95 < 1e6 / np.diff(ego_us).mean() < 105 and np.diff(ego_us).std() > 200
        assert not np.isin(frame_us, ego_us).all()


def test_every_kind_of_driving_is_in_every_split():
    splits = {(kind, sample.split_of(number)) for number in range(sample.CLIPS)
              for kind in [sample.KINDS[number % len(sample.KINDS)]]}
    assert len(splits) == 3 * len(sample.KINDS)


def test_motions_are_those_of_a_car():
    seconds = np.linspace(0, 7, 200)
    for number in range(40):
        drive = sample.drive_of(0, number)
        speed, curvature = drive.speed(seconds), drive.curvature(seconds)
        assert speed.min() >= 0 and speed.max() < 36
        assert np.abs(np.diff(speed) / np.diff(seconds)).max() < 4.5
        assert np.abs(speed**2 * curvature).max() < 5
        assert drive.way(seconds) == pytest.approx(np.concatenate(
            [[0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(seconds))]), abs=0.02)
        side = {"left": 1, "slow left": 1, "right": -1, "slow right": -1}.get(drive.kind)
        assert side is None or (np.sign(curvature) == side).all()
    assert min(sample.drive_of(0, number).speed(6.0) for number in range(20)) < 0.2  # some stop


def test_a_kind_of_road_has_its_speeds_and_its_look():
    seconds = np.linspace(0, 6, 61)
    seen = set()
    for number in range(sample.CLIPS):
        drive = sample.drive_of(0, number)
        slowest, fastest = KINDS[drive.road].speeds_mps
        speed = drive.speed(seconds)
        assert drive.road in sample.ROADS[drive.kind] and speed.max() <= fastest + 1e-9
        assert drive.kind in ("start", "stop") or speed.min() >= max(slowest - 2, 2) - 1e-9
        seen.add((drive.road, sample.split_of(number)))
    assert len(seen) == 3 * len(KINDS)
    shades = {kind: np.array([[*look.land, *look.verge] for seed in range(20)
                              for look in [Look.draw(np.random.default_rng(seed), kind)]]) for kind in KINDS}
    for one, other in combinations(shades.values(), 2):  # no look of one kind is nearer to the other's mean
        assert (np.linalg.norm(one - one.mean(0), axis=1) < np.linalg.norm(one - other.mean(0), axis=1)).all()


def test_the_same_seed_gives_the_same_files(sample_clips, tmp_path):
    again = sample.write(tmp_path / "again", clips=2, seconds=3, workers=2)
    for place in (f"camera/{sample.CAMERA}/{sample.CAMERA}.chunk_0000.zip",
                  "labels/egomotion/egomotion.chunk_0000.zip"):
        one, other = zipfile.ZipFile(sample_clips / place), zipfile.ZipFile(again / place)
        for name in other.namelist():
            assert one.read(name) == other.read(name), name


def test_the_video_shows_each_frame_of_its_clock(sample_clips, tmp_path):
    number = sample.KINDS.index("left")
    name = f"{sample.clip_name(0, number)}.{sample.CAMERA}.mp4"
    archive = zipfile.ZipFile(sample_clips / "camera" / sample.CAMERA / f"{sample.CAMERA}.chunk_0000.zip")
    with av.open(archive.extract(name, tmp_path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 30)
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]).astype(float)
    drawn = np.stack(list(sample.pictures(0, number, 3, Camera()))).astype(float)
    assert shown.shape == drawn.shape
    distance = np.stack([np.abs(shown[1:-1] - drawn[1 + shift:len(drawn) - 1 + shift]).mean((1, 2, 3))
                         for shift in (-1, 0, 1)])
    assert (distance.argmin(0) == 1).all()


def test_pictures_move_with_the_speed_and_bend_with_the_curvature():
    texture = sample._texture(0)
    line = np.arange(-20.0, 200.0, 0.5)

    def road(curvature: float) -> Road:
        return Road(Look.draw(np.random.default_rng(3)), texture, 0, line, line * curvature, Camera())

    straight = road(0.0)
    moved = [np.abs(straight.view(20 + step, 0.0).astype(float) - straight.view(20.0, 0.0))[40:].mean()
             for step in (0.0, 0.03, 0.1, 0.3, 1.0)]
    assert moved[0] == 0 and (np.diff(moved) > 0.3).all()
    dash = straight.look.dash_m[1]
    assert dash > 2 * 32 / 30 and dash / STEP_M > 20  # no speed moves a dash to the place of the next one
    paint = {k: (road(k).view(15.0, 0.0)[26:30] > 150).all(-1).nonzero()[1].mean() for k in (-0.02, 0.0, 0.02)}
    assert paint[0.02] < paint[0.0] - 3 and paint[-0.02] > paint[0.0] + 3


def test_on_the_open_road_neither_looks_nor_blur_tell_the_speed(monkeypatch):
    number = sample.KINDS.index("any speed")
    assert KINDS["open"].speeds_mps == (4, 33)
    assert {sample.drive_of(0, number + i * len(sample.KINDS)).road for i in range(20)} == {"open"}
    drives = [sample.drive_of(0, number + i * len(sample.KINDS)) for i in range(60)]
    speeds = [drive.speeds_mps.mean() for drive in drives]
    for cue in ([np.abs(drive.curvatures).mean() for drive in drives], [np.diff(drive.ways_m)[0] for drive in drives]):
        assert np.ptp(cue) == 0 or abs(np.corrcoef(speeds, cue)[0, 1]) < 0.35  # slow roads do not bend more
    cameras = []
    monkeypatch.setattr(sample.road, "Road", lambda *arguments: cameras.append(arguments[-1]) or Road(*arguments))
    still = next(sample.pictures(0, number, 2, Camera()))
    next(sample.pictures(0, sample.KINDS.index("left"), 2, Camera()))
    assert [camera.shutter_s > 0 for camera in cameras] == [False, True] and still.any()


def test_records_and_index_tell_the_kind_of_road(sample_clips, tmp_path):
    from overlays.data import records
    from overlays.domains.driving.prepare import Settings, prepare

    prepare(Settings(raw=sample_clips, output=tmp_path / "out", workers=1, limit=3))
    rows = [row for split in ("train", "val", "test") for row in records.read(tmp_path / "out" / f"{split}.jsonl")]
    roads = {sample.clip_name(0, number): sample.drive_of(0, number, 3).road for number in range(10)}
    assert rows and all(row["road"] == roads[row["clip"]] for row in rows)
