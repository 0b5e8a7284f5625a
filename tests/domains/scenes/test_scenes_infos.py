"""Infos files from outside: read as data, never run; every defect has a reason."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from overlays.domains.scenes import infos
from overlays.errors import UserError


class Evil:
    """A pickle of this runs `print` into a file when it is loaded freely."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def write(folder, *entries, split="train"):
    path = folder / f"embodiedscan_infos_{split}.pkl"
    path.write_bytes(pickle.dumps({"metainfo": {}, "data_list": list(entries)}))
    return path


@pytest.fixture
def entry(tmp_path):
    """An entry with two sound frames whose pictures exist."""
    place = tmp_path / "posed_images" / "scene0000_00"
    place.mkdir(parents=True)
    images = []
    for number in range(2):
        Image.new("RGB", (96, 64)).save(place / f"{number:05d}.jpg")
        Image.fromarray(np.full((48, 72), 1500, np.uint16)).save(place / f"{number:05d}.png")
        images.append({"img_path": f"scannet/posed_images/scene0000_00/{number:05d}.jpg",
                       "depth_path": f"scannet/posed_images/scene0000_00/{number:05d}.png", "cam2global": np.eye(4)})
    matrix = np.array([[82.0, 0, 47, 0], [0, 82, 32, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    depth = np.array([[58.0, 0, 36, 0], [0, 58, 24, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return {"sample_idx": "scannet/scene0000_00", "axis_align_matrix": np.eye(4), "cam2img": matrix,
            "depth_cam2img": depth, "images": images}


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path):
    trace = tmp_path / "trace"
    path = write(tmp_path, Evil(trace))
    with pytest.raises(UserError, match=r"refused: it asks for (_io|io)\.open") as error:
        infos.read_infos(path, "train", tmp_path)
    assert not trace.exists() and "\n" not in str(error.value)
    pickle.loads(path.read_bytes())  # the test's pickle does run elsewhere
    assert trace.exists()


@pytest.mark.parametrize("name", [("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
                                  ("numpy.core.multiarray", "scalar"), ("numpy._core.numeric", "_frombuffer")])
def test_arrays_of_old_and_new_numpy_can_be_read(name):
    assert callable(infos._Unpickler.allowed[name])


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_scalars_and_plain_containers_survive_every_protocol(tmp_path, protocol):
    path = tmp_path / "values.pkl"
    values = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(0.5), "c": [np.int64(3), b"x", ("y", None)],
              "d": [b"", bytearray(b"z\xff"), {1, 2}, frozenset("a"), 1 + 2j, set(), bytearray()]}
    path.write_bytes(pickle.dumps(values | {"e": np.zeros((0, 3))}, protocol=protocol))
    found = infos.load_pickle(path)
    np.testing.assert_array_equal(found["a"], values["a"])
    assert found["e"].shape == (0, 3)
    assert all(found[key] == values[key] for key in "bcd")


def test_a_pickle_of_python_2_is_read(tmp_path):
    path = tmp_path / "old.pkl"  # numpy.array([0xfff0, 0xfff1, 0xfff2], "u2"), whose bytes are text there
    path.write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02u2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x06\xf0\xff\xf1\xff\xf2\xfftb.")
    np.testing.assert_array_equal(infos.load_pickle(path), [0xfff0, 0xfff1, 0xfff2])


@pytest.mark.parametrize("call", [(bytes, 1 << 40), (bytearray, 1 << 40), (set, range(3)), (frozenset, "ab"),
                                  (bytes, np.ndarray)])
def test_a_pickle_cannot_ask_for_more_memory_than_it_has_bytes(tmp_path, call):
    class Asks:
        def __reduce__(self):
            return call[0], (call[1],)

    with pytest.raises(UserError, match="is damaged|is refused"):
        infos.read_infos(write(tmp_path, Asks()), "train", tmp_path)


@pytest.mark.parametrize("content", [b"", b"nothing", pickle.dumps([1])[:-2], b"\x80\x04K\x01"])
def test_damaged_files_end_in_one_sentence(tmp_path, content):
    path = tmp_path / "embodiedscan_infos_train.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged or not a pickle"):
        infos.read_infos(path, "train", tmp_path)


def test_a_pickle_of_something_else_is_no_infos_file(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="has no data_list"):
        infos.read_infos(path, "train", tmp_path)


def test_a_sound_scene(tmp_path, entry):
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert (scene.name, scene.source, scene.split, scene.problem) == ("scene0000_00", "scannet", "train", "")
    assert len(scene.frames) == 2 and not scene.dropped and scene.depth_scale == 1000
    assert scene.frames[0].depth_intrinsic[0, 0] == 58 and scene.frames[0].color_intrinsic[0, 0] == 82


@pytest.mark.parametrize("pose, reason", [
    (np.full((4, 4), -np.inf), "pose is not finite"),
    (np.full((4, 4), np.nan), "pose is not finite"),
    (np.eye(3), "pose is 3 x 3, not 4 x 4"),
    (np.diag([2.0, 2, 2, 1]), "pose is not a rotation"),
    (np.diag([1.0, 1, -1, 1]), "pose is not a rotation"),
    (np.eye(4)[::-1], "pose is not a rotation"),
    ("text", "pose cannot be read"),
    ([[10**400] * 4] * 4, "pose cannot be read"),
    (np.eye(4) * 1j, "pose cannot be read"),
    (None, "no pose: neither cam2global nor a .txt file"),
])
def test_frames_with_broken_poses_are_listed_and_left_out(tmp_path, entry, pose, reason):
    entry["images"][1]["cam2global"] = pose
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert scene.dropped == [("00001.jpg", reason)]
    assert [frame.image.name for frame in scene.frames] == ["00000.jpg"]


@pytest.mark.filterwarnings("error")
def test_an_empty_pose_file_is_unreadable(tmp_path, entry):
    del entry["images"][1]["cam2global"]
    (tmp_path / "posed_images/scene0000_00/00001.txt").touch()
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert scene.dropped == [("00001.jpg", "pose cannot be read")]


@pytest.mark.parametrize("index", ["scannet//tmp/x", "/tmp/x", "scannet/../x", "scannet/./x", "scannet/", "a\\b",
                                   "a\0b", "a\ud83d", "x" * 5000, 3, None])
def test_a_scene_is_named_after_a_folder_below_the_output(tmp_path, entry, index):
    entry["sample_idx"] = index
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert "sample_idx" in scene.problem and not scene.frames
    assert scene.name == "entry 0 of embodiedscan_infos_train.pkl" and len(scene.problem.encode("utf-8")) < 200


def test_depth_units_are_those_asked_for_unless_the_scene_names_its_own(tmp_path, entry):
    tum = infos.Conventions(depth_scale=5000)
    assert infos.read_infos(write(tmp_path, entry), "train", tmp_path, None, tum)[0].depth_scale == 5000
    path = write(tmp_path, entry | {"depth_scale": 6553.5}, entry | {"depth_scale": -1}, entry | {"depth_scale": "x"})
    own, *broken = infos.read_infos(path, "train", tmp_path, None, tum)
    assert own.depth_scale == 6553.5 and own.frames
    assert {scene.problem for scene in broken} == {"its depth_scale is not a number above 0"}


def test_a_pose_left_out_of_the_entry_comes_from_its_text_file(tmp_path, entry):
    del entry["images"][0]["cam2global"]
    moved = np.eye(4)
    moved[0, 3] = 1.25
    np.savetxt(tmp_path / "posed_images/scene0000_00/00000.txt", moved)
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert scene.frames[0].pose[0, 3] == 1.25


@pytest.mark.parametrize("change, reason", [
    (lambda e, root: (root / "posed_images/scene0000_00/00001.png").unlink(), "depth picture is missing"),
    (lambda e, root: (root / "posed_images/scene0000_00/00001.jpg").unlink(), "colour picture is missing"),
    (lambda e, root: e["images"][1].update(img_path="../../etc/x.jpg"), "leaves the data folder"),
    (lambda e, root: e["images"][1].update(img_path="/etc/x.jpg"), "leaves the data folder"),
    (lambda e, root: e["images"][1].pop("img_path"), "no img_path"),
    (lambda e, root: e["images"][1].update(img_path="x" * 5000 + ".jpg"), "colour picture is missing"),
    (lambda e, root: e["images"][1].update(img_path="a\0.jpg"), "colour picture is missing"),
    (lambda e, root: e["images"][1].update(img_path="scannet/\udcff.jpg"), "holds half a character"),
    (lambda e, root: e["images"][1].update(e["images"][0]), "named before in its entry"),
    (lambda e, root: e["images"][1].update(depth_cam2img=np.diag([0.0, 5, 1])), "depth intrinsics are not finite and"),
    (lambda e, root: e["images"][1].update(cam2img=[1, 2]), "colour intrinsics are not a 3 x 3"),
])
def test_frames_that_lack_something_are_listed(tmp_path, entry, change, reason):
    change(entry, tmp_path)
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert len(scene.frames) == 1 and reason in scene.dropped[0][1]
    assert len(scene.dropped[0][0].encode("utf-8")) <= 100


def test_only_the_scenes_that_are_asked_about_are_looked_at(tmp_path, entry):
    path = write(tmp_path, entry)
    assert len(infos.read_infos(path, "train", tmp_path, {"scene0000_00"})[0].frames) == 2
    assert infos.read_infos(path, "train", tmp_path, set())[0].frames == []


def test_a_scene_without_any_usable_frame_says_why(tmp_path, entry):
    for image in entry["images"]:
        image["cam2global"] = np.full((4, 4), -np.inf)
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert scene.problem == "none of its 2 frames can be used (pose is not finite)"


def test_a_broken_alignment_makes_the_scene_unusable(tmp_path, entry):
    entry["axis_align_matrix"] = np.full((4, 4), np.nan)
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert scene.problem == "axis_align_matrix is not finite"


def test_intrinsics_missing_from_the_entry_come_from_the_text_files_of_each_camera(tmp_path, entry):
    matrix, depth = entry.pop("cam2img"), entry.pop("depth_cam2img")
    place = tmp_path / "posed_images/scene0000_00"
    np.savetxt(place / "intrinsic.txt", matrix)
    np.savetxt(place / "depth_intrinsic.txt", depth)
    frame = infos.read_infos(write(tmp_path, entry), "train", tmp_path)[0].frames[0]
    assert frame.color_intrinsic[0, 0] == 82 and frame.depth_intrinsic[0, 0] == 58 and not frame.depth_like_color


def test_one_camera_for_both_and_other_depth_units_as_in_matterport(tmp_path, entry):
    shutil.move(tmp_path / "posed_images", tmp_path / "matterport3d")
    entry["sample_idx"] = "matterport3d/17DRP5sb8fy/region0"
    del entry["depth_cam2img"]
    for image in entry["images"]:
        for key in ("img_path", "depth_path"):
            image[key] = image[key].replace("scannet/posed_images", "matterport3d")
        image["cam2img"] = entry["cam2img"]
    del entry["cam2img"]
    scene, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert (scene.source, scene.name) == ("matterport3d", "17DRP5sb8fy/region0") and scene.depth_scale == 4000
    assert scene.frames[0].depth_like_color and scene.frames[0].depth_intrinsic[0, 0] == 82


FORMS = {
    "by scene": lambda name, frames, rest: {name: {"frames": frames, **rest}},
    "below scenes": lambda name, frames, rest: {"scenes": {name: {"images": frames, **rest}}},
    "a list": lambda name, frames, rest: [{"scene_id": name, "frames": frames, **rest}],
    "columns": lambda name, frames, rest: {name: {
        "image_paths": [frame["image_path"] for frame in frames],
        "depth_paths": [frame["depth_path"] for frame in frames],
        "poses": np.array([frame["pose"] for frame in frames]), **rest}},
}


@pytest.mark.parametrize("form", FORMS)
def test_scene_metadata_of_the_llama_factory_line_is_read_as_data(tmp_path, entry, form):
    frames = [{"image_path": f"/home/me/{image['img_path']}", "depth_path": f"/home/me/{image['depth_path']}",
               "pose": image["cam2global"].tolist()} for image in entry["images"]]
    rest = {"intrinsic": entry["cam2img"], "depth_intrinsic": entry["depth_cam2img"], "axis_align_matrix": np.eye(4)}
    path = tmp_path / "scene_metadata.pkl"
    path.write_bytes(pickle.dumps(FORMS[form]("scene0000_00", frames, rest)))
    scene, = infos.read_scene_metadata(path, tmp_path)
    expected, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
    assert (scene.name, scene.split, scene.problem, scene.dropped) == ("scene0000_00", "", "", [])
    for one, other in zip(scene.frames, expected.frames, strict=True):
        assert (one.image, one.depth) == (other.image, other.depth)
        np.testing.assert_array_equal(one.pose, other.pose)
        np.testing.assert_array_equal(one.depth_intrinsic, other.depth_intrinsic)


def test_of_several_names_for_one_thing_the_first_of_the_table_counts(tmp_path, entry):
    frames = [{"file_path": "elsewhere.jpg", "image_path": image["img_path"], "depth_path": image["depth_path"],
               "extrinsic": np.linalg.inv(image["cam2global"]), "pose": image["cam2global"]}
              for image in entry["images"]]
    for order in (1, -1):
        path = tmp_path / "scene_metadata.pkl"
        path.write_bytes(pickle.dumps({"scene0000_00": {
            "frames": [dict(list(frame.items())[::order]) for frame in frames],
            **dict([("intrinsics", entry["depth_cam2img"]), ("intrinsic", entry["cam2img"])][::order]),
            "depth_intrinsic": entry["depth_cam2img"], "axis_align_matrix": np.eye(4)}}))
        scene, = infos.read_scene_metadata(path, tmp_path)
        expected, = infos.read_infos(write(tmp_path, entry), "train", tmp_path)
        assert scene.dropped == [] and [frame.image for frame in scene.frames] == [
            frame.image for frame in expected.frames]
        for one, other in zip(scene.frames, expected.frames, strict=True):
            np.testing.assert_array_equal(one.pose, other.pose)


def test_scene_metadata_with_code_or_of_another_shape_is_refused(tmp_path):
    path, trace = tmp_path / "scene_metadata.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"scene0000_00": Evil(trace)}))
    with pytest.raises(UserError, match="refused: it asks for"):
        infos.read_scene_metadata(path, tmp_path)
    assert not trace.exists()
    for content in ({}, [], 3, {"scene0000_00": 4}, [1]):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="is not a scene_metadata.pkl"):
            infos.read_scene_metadata(path, tmp_path)
