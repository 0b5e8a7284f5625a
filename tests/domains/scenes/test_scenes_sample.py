"""The sample's files: real layout, same bytes for the same seed, one world for all frames of a scene."""

import json

import numpy as np
import pytest
from PIL import Image

from overlays.domains.scenes import infos
from overlays.errors import UserError
from overlays.samples import scenes as sample
from overlays.samples.scenes import render, rooms


def test_layout_and_entries(raw):
    scene = raw / "posed_images" / "scene0000_00"
    names = {path.name for path in scene.iterdir()}
    assert {"intrinsic.txt", "depth_intrinsic.txt", "00000.jpg", "00000.png", "00000.txt"} <= names
    content = infos.load_pickle(raw / "embodiedscan_infos_train.pkl")
    entry = content["data_list"][0]
    assert entry["sample_idx"] == "scannet/scene0000_00"
    assert {"axis_align_matrix", "cam2img", "depth_cam2img", "images", "instances"} <= set(entry)
    assert entry["images"][0]["img_path"] == "scannet/posed_images/scene0000_00/00000.jpg"
    np.testing.assert_allclose(np.loadtxt(scene / "00000.txt"), entry["images"][0]["cam2global"], atol=1e-6)
    with Image.open(scene / "00000.jpg") as colour, Image.open(scene / "00000.png") as depth:
        assert colour.size == (sample.COLOUR.width, sample.COLOUR.height)
        assert depth.size == (sample.DEPTH.width, sample.DEPTH.height) and depth.mode.startswith("I;16")
    assert not np.allclose(entry["axis_align_matrix"][:2, :2], np.eye(2), atol=0.01)  # the world is turned


def test_depth_of_every_frame_agrees_with_the_room_through_pose_and_alignment(raw):
    """Back-projected depth, taken through the scan's world to the aligned frame, lies inside the room's walls."""
    room, poses, _ = sample.draw_room(0, 1)
    entry = infos.load_pickle(raw / "embodiedscan_infos_train.pkl")["data_list"][0]
    for image, pose in zip(entry["images"], poses, strict=False):
        aligned = entry["axis_align_matrix"] @ image["cam2global"]
        np.testing.assert_allclose(aligned, pose, atol=1e-9)
        with Image.open(raw / image["depth_path"].removeprefix("scannet/")) as opened:
            depth = np.asarray(opened).astype(np.uint16)
        valid = (depth > 0) & (depth < 65535)
        rays = sample.DEPTH.rays().reshape(*depth.shape, 3)[valid]
        noise = 0.001 + 0.0015 * (depth[valid] / 1000) ** 2  # the sensor's, metres along z
        slack = 5 * noise * np.linalg.norm(rays, axis=1)
        points = rays * depth[valid][:, None] / 1000 @ aligned[:3, :3].T + aligned[:3, 3]
        for axis in (0, 1):
            assert (np.abs(points[:, axis]) < room.half[axis] + slack).all()
        assert (points[:, 2] > -slack).all() and (points[:, 2] < room.height + slack).all()
        truth = render.trace(room, sample.DEPTH, pose).depth
        assert np.median(np.abs(depth[valid] / 1000 - truth[valid]) / noise) < 1


def test_pictures_do_not_tell_the_size_of_a_room():
    room, poses, _ = sample.draw_room(0, 1)
    assert room.scale in rooms.SCALES
    for factor in (0.5, 2.0):
        pose = poses[0].copy()
        pose[:3, 3] *= factor
        one, other = (render.trace(there, sample.COLOUR, at) for there, at in (
            (room, poses[0]), (room.scaled(factor), pose)))
        seen, again = (render.picture(there, hits, np.random.default_rng(0)) for there, hits in (
            (room, one), (room.scaled(factor), other)))
        assert (np.abs(seen.astype(int) - again) > 1).any(-1).mean() < 0.005  # pixels on an edge
        np.testing.assert_allclose(np.median(other.depth / one.depth), factor, rtol=1e-4)


def test_every_thing_is_shown_well_in_some_frame():
    room, poses, _ = sample.draw_room(3, 1)
    share = [max((render.trace(room, sample.COLOUR, pose).owner == owner).mean() for pose in poses)
             for owner in range(len(room.things))]
    assert min(share) > 0.1


def test_same_seed_same_bytes_other_seed_other_rooms(raw, tmp_path):
    again = sample.write(tmp_path / "again", 1, scenes=16, workers=2)
    for path in sorted(raw.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(raw)).read_bytes(), path.name
    other = sample.draw_room(0, 2)[0]
    assert other.things != sample.draw_room(0, 1)[0].things


def test_lost_frames_are_minus_infinity_and_named_only_in_half_of_the_scenes(raw):
    lost = [path for path in raw.rglob("0*.txt") if not np.isfinite(np.loadtxt(path)).all()]
    assert {path.parent.name for path in lost} == {"scene0005_00", "scene0013_00"}
    entries = {entry["sample_idx"].split("/")[1]: entry for split in ("train", "val", "test")
               for entry in infos.load_pickle(raw / f"embodiedscan_infos_{split}.pkl")["data_list"]}
    named = [name for name in ("scene0005_00", "scene0013_00")
             if any(not np.isfinite(image["cam2global"]).all() for image in entries[name]["images"])]
    assert named == ["scene0005_00"]


def test_questions_are_in_the_three_published_layouts(raw):
    asked = json.loads((raw / "questions/sqa3d/v1_balanced_questions_test_scannetv2.json").read_text())["questions"]
    notes = json.loads((raw / "questions/sqa3d/v1_balanced_sqa_annotations_test_scannetv2.json").read_text())
    assert {row["question_id"] for row in asked} == {row["question_id"] for row in notes["annotations"]}
    assert any(row["situation"].startswith("I stand at") for row in asked)
    assert {"answers", "question", "question_id", "scene_id"} <= set(
        json.loads((raw / "questions/scanqa/ScanQA_v1.0_test.json").read_text())[0])
    assert json.loads((raw / "questions/video3dllm/rooms_test_llava_style.json").read_text())[0]["video"].startswith(
        "scannet/scene")


def test_too_few_scenes_and_seeds_below_0_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 12 scenes"):
        sample.write(tmp_path / "few", scenes=5)
    with pytest.raises(UserError, match="--seed must be 0 or above"):
        sample.write(tmp_path / "few", -1, scenes=12)
