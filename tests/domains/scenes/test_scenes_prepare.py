"""From raw scenes to records: frames by linspace, one metadata file, splits by scene, everything left out listed."""

import errno
import json
import pickle
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from overlays.data import records
from overlays.domains.scenes import infos
from overlays.domains.scenes.prepare import METADATA, Settings, choose_frames, prepare
from overlays.errors import UserError
from overlays.samples.scenes import COLOUR, DEPTH, FRAMES

ARRAYS = {"scene", "image", "depth", "pose", "axis_align", "depth_intrinsic", "color_intrinsic", "depth_size",
          "color_size", "depth_scale", "depth_rotated_bits"}


# Without the search for other conventions, which takes long and which test_scenes_consistency.py checks.
unchecked = partial(Settings, contradictions="keep")


def read(folder, split):
    return list(records.read(folder / f"{split}.jsonl"))


def change_infos(folder, split, change):
    path = folder / f"embodiedscan_infos_{split}.pkl"
    content = pickle.loads(path.read_bytes())
    change(content["data_list"])
    path.write_bytes(pickle.dumps(content))


@pytest.fixture
def copy(raw, tmp_path):
    """A copy of the raw scenes to break."""
    return shutil.copytree(raw, tmp_path / "raw", copy_function=shutil.copyfile)


def test_records_are_sound_and_point_to_rows_of_their_own_frames(prepared):
    folder, metadata = prepared
    with np.load(folder / METADATA, allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == ARRAYS
    total = 0
    for split in ("train", "val", "test"):
        for record in read(folder, split):
            assert records.check_record(record, folder) == []
            rows = record["scene"]["frames"]
            assert arrays["image"][rows].tolist() == record["image"] and len(rows) == FRAMES
            assert set(arrays["scene"][rows]) == {record["group"]}
            assert all((folder / name).is_file() for name in arrays["depth"][rows])
            total += 1
    assert total == sum(metadata["counts"]["questions"].values())
    assert np.isfinite(arrays["pose"]).all() and (arrays["depth_scale"] == 1000).all()
    assert (arrays["depth_size"] == (DEPTH.height, DEPTH.width)).all()
    assert (arrays["color_size"] == (COLOUR.height, COLOUR.width)).all()
    assert (arrays["depth_intrinsic"] == DEPTH.matrix[:3, :3]).all()
    assert (arrays["color_intrinsic"] == COLOUR.matrix[:3, :3]).all()


def test_splits_follow_the_infos_files_and_share_no_scene(prepared, raw):
    folder, _ = prepared
    for split in ("train", "val", "test"):
        named = {entry["sample_idx"].split("/")[1]
                 for entry in infos.load_pickle(raw / f"embodiedscan_infos_{split}.pkl")["data_list"]}
        assert {record["group"] for record in read(folder, split)} <= named


def test_all_kinds_of_questions_arrive_with_situation_and_type(prepared):
    rows = read(prepared[0], "train")
    assert {row["question_type"] for row in rows} == {
        "colour", "object", "count", "place", "height", "nearest", "direction", "distance"}
    situated = next(row for row in rows if row["question_type"] == "direction")
    assert "I stand at" in situated["conversations"][0]["value"]
    assert {row["task"] for row in rows} == {"what", "where"}


def test_a_lost_frame_is_listed_with_its_reason(prepared):
    dropped = prepared[1]["dropped"]
    lost = {"scene": "scene0005_00", "frame": f"{FRAMES:05d}.jpg", "reason": "pose is not finite"}
    assert dropped["frames"] == [lost]
    assert dropped["scenes"] == [] and dropped["questions"] == []


def test_turns_share_the_frames_of_a_scene_in_training_only(raw, tmp_path, prepared):
    prepare(unchecked(raw, output=tmp_path / "turns", num_frames=FRAMES, turns=3))
    single, together = read(prepared[0], "train"), read(tmp_path / "turns", "train")
    assert sum(len(row["question_types"]) if "question_types" in row else 1 for row in together) == len(single)
    first = together[0]
    assert len(first["conversations"]) == 6 and len(first["question_types"]) == 3
    assert first["conversations"][0]["value"].count("<image>") == FRAMES
    assert "<image>" not in first["conversations"][2]["value"]
    assert all(records.check_record(row, tmp_path / "turns") == [] for row in together)
    assert (tmp_path / "turns" / "test.jsonl").read_bytes() == (prepared[0] / "test.jsonl").read_bytes()


def test_frames_are_taken_by_linspace_over_the_usable_ones(raw, tmp_path):
    prepare(unchecked(raw, output=tmp_path / "two", num_frames=2))
    record = next(row for row in read(tmp_path / "two", "train") if row["group"] == "scene0005_00")
    assert [name.split("/")[-1] for name in record["image"]] == ["00000.jpg", f"{FRAMES - 1:05d}.jpg"]


def test_frames_whose_pictures_are_of_no_use_are_left_out_and_the_choice_made_anew(copy):
    place = copy / "posed_images" / "scene0000_00"
    Image.new("I;16", (20, 16)).save(place / "00000.png")
    (place / f"{FRAMES - 1:05d}.png").write_bytes(b"cut")
    scene = infos.read_infos(copy / "embodiedscan_infos_train.pkl", "train", copy)[0]
    assert [frame.image.name for frame, *_ in choose_frames(scene, 3)] == ["00001.jpg", "00002.jpg"]
    assert dict(scene.dropped) == {
        "00000.jpg": "depth intrinsics do not fit a picture of 20 x 16 (principal point 24, 23); --depth-size "
                     "WIDTHxHEIGHT says which they fit",
        f"{FRAMES - 1:05d}.jpg": "depth picture cannot be read"}


@pytest.mark.parametrize("mode, size, reason", [
    ("L", (DEPTH.width, DEPTH.height), "depth picture is no 16-bit PNG or PGM (PNG, mode L)"),
    ("I;16", (DEPTH.width + 2, DEPTH.height), "sizes of its pictures are not those of the scene's other frames"),
])
def test_depth_of_another_kind_or_size_is_listed(copy, mode, size, reason):
    Image.new(mode, size).save(copy / "posed_images" / "scene0000_00" / "00001.png")
    scene = infos.read_infos(copy / "embodiedscan_infos_train.pkl", "train", copy)[0]
    assert len(choose_frames(scene, 32)) == FRAMES - 1
    assert scene.dropped == [("00001.jpg", reason)]


def first_scene(folder):
    return infos.read_infos(folder / "embodiedscan_infos_train.pkl", "train", folder)[0]


def test_a_colour_picture_that_is_turned_when_shown_or_deeper_than_8_bits_is_listed(copy):
    place = copy / "posed_images" / "scene0000_00"
    with Image.open(place / "00001.jpg") as picture:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(place / "00001.jpg", exif=exif)
    Image.new("I;16", (COLOUR.width, COLOUR.height)).save(place / "00002.jpg", format="PNG")
    scene = first_scene(copy)
    assert len(choose_frames(scene, 32)) == FRAMES - 2
    assert dict(scene.dropped) == {
        "00001.jpg": "colour picture is turned by its EXIF orientation, unlike depth and intrinsics",
        "00002.jpg": "colour picture has more than 8 bits a channel (mode I;16)"}


def test_depth_of_the_colour_camera_at_another_size_gets_its_intrinsics_scaled(copy):
    scene, half = first_scene(copy), (COLOUR.height // 2, COLOUR.width // 2)
    scene.frames = [replace(frame, depth_intrinsic=frame.color_intrinsic, depth_like_color=True)
                    for frame in scene.frames]
    for frame in scene.frames:
        Image.new("I;16", half[::-1]).save(frame.depth)
    (frame, color, depth), *_ = choose_frames(scene, 1)
    assert (color, depth) == ((COLOUR.height, COLOUR.width), half)
    fx, fy = COLOUR.fx / 2, COLOUR.fy / 2
    # The edges of both pictures (half a pixel before the first centre) are the same rays.
    cx, cy = (COLOUR.cx + 0.5) / 2 - 0.5, (COLOUR.cy + 0.5) / 2 - 0.5
    np.testing.assert_allclose(frame.depth_intrinsic, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    Image.new("I;16", (half[1], half[0] + 2)).save(frame.depth)  # other proportions: another camera
    assert not any(other.image == frame.image for other, *_ in choose_frames(scene, 32))
    assert dict(scene.dropped)[frame.image.name].startswith("no depth intrinsics, and depth is")


def test_two_cameras_of_a_scene_may_have_different_sizes(copy):
    scene = first_scene(copy)
    other = scene.frames[1]
    Image.new("RGB", (2 * COLOUR.width, 2 * COLOUR.height)).save(other.image)
    scene.frames[1] = replace(other, color_intrinsic=other.color_intrinsic * 2)
    sizes = [color for _, color, _ in choose_frames(scene, 32)]
    assert not scene.dropped and sizes[1] == (2 * COLOUR.height, 2 * COLOUR.width) and len(set(sizes)) == 2


def rename(copy, change):
    """Move the pictures of scene0000_00: change(number, key, path) gives the new path."""
    def edit(entries):
        for number, image in enumerate(entries[0]["images"]):
            for key in ("img_path", "depth_path"):
                old = copy / image[key].removeprefix("scannet/")
                new = change(number, key, old)
                new.parent.mkdir(exist_ok=True)
                old.rename(new)
                image[key] = f"scannet/{new.relative_to(copy).as_posix()}"
        entries[0]["images"].append(entries[0]["images"][0])

    change_infos(copy, "train", edit)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("change, names", [
    (lambda number, key, path: path.parent / key[:5] / f"{number}.png", {"0.png", "depth_0.png"}),
    (lambda number, key, path: path.parent / f"cam{number}" / f"0{path.suffix}", {"0.jpg", "cam1_0.png"}),
])
def test_pictures_of_one_name_are_kept_apart_and_the_originals_stay_as_they_were(copy, tmp_path, monkeypatch, links,
                                                                                 change, names):
    def no_link(*_):
        raise OSError(errno.EXDEV, "other device")

    if not links:
        monkeypatch.setattr("os.link", no_link)
    rename(copy, change)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    metadata = prepare(unchecked(copy, output=tmp_path / "out"))
    assert {path: path.read_bytes() for path in before} == before
    assert {"scene": "scene0000_00", "frame": "0.png" if "0.png" in names else "0.jpg",
            "reason": "named before in its entry"} in metadata["dropped"]["frames"]
    with np.load(tmp_path / "out" / METADATA) as file:
        rows = np.flatnonzero(file["scene"] == "scene0000_00")
        images, depths = file["image"][rows].tolist(), file["depth"][rows].tolist()
    assert len({*images, *depths}) == 2 * FRAMES and names <= {name.split("/")[-1] for name in images + depths}
    sources = {path.read_bytes() for path in (copy / "posed_images/scene0000_00").rglob("*.*g")}
    assert {(tmp_path / "out" / name).read_bytes() for name in images + depths} == sources


def test_a_folder_that_takes_no_file_is_no_reason_to_copy(copy, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("os.link", full)
    with pytest.raises(OSError, match="(?i)no space left"):
        prepare(unchecked(copy, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_depth_units_that_are_given_are_used_and_told(raw, tmp_path):
    metadata = prepare(Settings(raw, output=tmp_path / "out", num_frames=1, depth_scale=5000,
                                contradictions="keep"))
    assert metadata["parameters"]["depth_scale"] == 5000
    assert metadata["counts"]["frames_by_depth_scale"] == {"5000": metadata["counts"]["frames"]}
    with np.load(tmp_path / "out" / METADATA) as file:
        assert (file["depth_scale"] == 5000).all()


def test_where_nothing_is_left_the_usual_reason_is_named(copy, tmp_path):
    for path in (copy / "posed_images").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"of 16 scenes: none of its 4 frames can be used \(depth picture is missing"):
        prepare(unchecked(copy, output=tmp_path / "out"))


def test_intrinsics_of_another_resolution_are_noticed(copy):
    scene = infos.read_infos(copy / "embodiedscan_infos_train.pkl", "train", copy)[0]
    scene.frames = [replace(frame, depth_intrinsic=frame.depth_intrinsic * 8.9) for frame in scene.frames]
    assert choose_frames(scene, 3) == []
    assert scene.problem.startswith("none of its frames can be used (depth intrinsics do not fit a picture of")


def test_scenes_without_metadata_or_frames_are_listed_with_their_questions(copy, tmp_path):
    change_infos(copy, "train", lambda entries: entries.pop(0))
    for path in (copy / "posed_images" / "scene0001_00").glob("*.png"):
        path.unlink()
    metadata = prepare(unchecked(copy, output=tmp_path / "out"))
    dropped = {row["scene"]: row for row in metadata["dropped"]["scenes"]}
    assert dropped["scene0000_00"]["reason"] == "no entry in any infos file"
    assert dropped["scene0001_00"]["reason"] == f"none of its {FRAMES} frames can be used (depth picture is missing)"
    assert all(row["questions"] >= 7 for row in dropped.values())
    groups = {row["group"] for split in ("train", "val", "test") for row in read(tmp_path / "out", split)}
    assert not groups & set(dropped)
    counts = metadata["counts"]
    assert counts["questions_read"] == sum(counts["questions"].values()) + sum(
        row["questions"] for row in dropped.values()) + len(metadata["dropped"]["questions"])
    assert sum(row["scene"] == "scene0001_00" for row in metadata["dropped"]["frames"]) == FRAMES


def test_a_scene_whose_pictures_turn_out_useless_is_listed_too(copy, tmp_path):
    for path in (copy / "posed_images" / "scene0002_00").glob("*.png"):
        path.write_bytes(b"no picture")
    metadata = prepare(unchecked(copy, output=tmp_path / "out"))
    row, = metadata["dropped"]["scenes"]
    assert row["scene"] == "scene0002_00" and "cannot be read" in row["reason"] and row["questions"] >= 7


def test_a_question_asked_twice_is_taken_once_and_like_ids_are_told_apart(copy, tmp_path):
    path = copy / "questions" / "scanqa" / "ScanQA_v1.0_train.json"
    rows = json.loads(path.read_text())
    other = rows[0]["answers"] + ["something else"]
    path.write_text(json.dumps([*rows, rows[0], {**rows[0], "question": "What is new?"},
                                {**rows[0], "answers": other[::-1]}]))
    metadata = prepare(unchecked(copy, output=tmp_path / "out"))
    own = f"scanqa-{rows[0]['question_id']}"
    assert metadata["dropped"]["questions"] == [
        {"id": own, "scene": rows[0]["scene_id"], "reason": reason}
        for reason in ("asked before", "asked before; its answers are added there")]
    found = {record["id"]: record for record in read(tmp_path / "out", "train")}
    assert found[own]["answers"] == other and found[own]["conversations"][1]["value"] == other[0]
    ids = [record["id"] for record in read(tmp_path / "out", "train")]
    assert len(ids) == len(set(ids)) and {own, f"{own}-2"} <= set(ids)


def test_splits_by_question_file_refuse_a_scene_on_two_sides(copy, tmp_path):
    prepare(unchecked(copy, output=tmp_path / "same", split="questions"))
    folder = copy / "questions" / "scanqa"
    rows = json.loads((folder / "ScanQA_v1.0_train.json").read_text())
    (folder / "ScanQA_v1.0_test.json").write_text(json.dumps(
        [{**row, "question": f"{row['question']} Say."} for row in rows]))
    with pytest.raises(UserError, match="have questions in train and in test"):
        prepare(unchecked(copy, output=tmp_path / "both", split="questions"))
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("settings, message", [
    (Settings(split="x"), "--split must be infos or questions"),
    (Settings(num_frames=0), "--num-frames must be at least 1"),
    (Settings(turns=0), "--turns must be at least 1"),
    (Settings(depth_scale=0), "--depth-scale must be a number above 0"),
    (Settings(depth_scale=float("nan")), "--depth-scale must be a number above 0"),
])
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        prepare(settings)


def test_what_is_missing_is_named(tmp_path, raw):
    with pytest.raises(UserError, match="there is no data folder"):
        prepare(unchecked(tmp_path / "none", output=tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no embodiedscan_infos"):
        prepare(unchecked(tmp_path / "empty", output=tmp_path / "out"))
    with pytest.raises(UserError, match="no question file or folder"):
        prepare(unchecked(raw, questions=(tmp_path / "q.json",), output=tmp_path / "out"))
    shutil.copy(raw / "embodiedscan_infos_train.pkl", tmp_path / "infos.pkl")
    with pytest.raises(UserError, match="says neither train, val nor test"):
        prepare(unchecked(raw, infos=(tmp_path / "infos.pkl",), output=tmp_path / "out"))
    write = tmp_path / "other"
    write.mkdir()
    (write / "file").touch()
    with pytest.raises(UserError, match="holds other files"):
        prepare(unchecked(raw, output=write))


def test_a_folder_of_the_llama_factory_line_is_prepared(copy, tmp_path):
    """Infos below embodiedscan/, merged training data beside it; then scenes by their own pickle alone."""
    (copy / "embodiedscan").mkdir()
    rows, scenes = [], {}
    for path in sorted(copy.glob("embodiedscan_infos_*.pkl")):
        for entry in infos.load_pickle(path)["data_list"]:
            images = [image["img_path"] for image in entry["images"]]
            rows.append({"instruction": "<image>" * len(images), "input": "What colour is the box?", "output": "red",
                         "images": images})
            scenes[entry["sample_idx"].split("/")[1]] = {
                "frames": [{"image_path": image["img_path"], "depth_path": image["depth_path"],
                            "pose": image["cam2global"]} for image in entry["images"]],
                "intrinsic": entry["cam2img"], "depth_intrinsic": entry["depth_cam2img"],
                "axis_align_matrix": entry["axis_align_matrix"]}
        path.rename(copy / "embodiedscan" / path.name)
    shutil.rmtree(copy / "questions")
    (copy / "merged_training_data.json").write_text(json.dumps(rows))
    metadata = prepare(unchecked(copy, output=tmp_path / "out"))
    assert metadata["counts"]["questions"] == {"train": 11, "val": 2, "test": 3}
    shutil.rmtree(copy / "embodiedscan")
    (copy / "scene_metadata.pkl").write_bytes(pickle.dumps(scenes))
    metadata = prepare(unchecked(copy, output=tmp_path / "own"))
    assert sum(metadata["counts"]["questions"].values()) == 16 and all(metadata["counts"]["questions"].values())
