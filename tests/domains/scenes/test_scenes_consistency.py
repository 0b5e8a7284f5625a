"""Depth, poses and intrinsics that contradict each other are refused, and the flag that reads them is named."""

import json
import pickle

import numpy as np
import pytest

from overlays.domains.scenes import consistency
from overlays.domains.scenes.domain import DOMAIN
from overlays.domains.scenes.infos import CAMERA_AXES, WORLDS, Conventions, read_infos
from overlays.domains.scenes.prepare import METADATA, Settings, prepare
from overlays.errors import UserError
from tests.domains.scenes import walks


def in_millimetres(pose):
    return pose * np.where(np.arange(4) < 3, 1.0, 1000.0) + np.diag([0, 0, 0, -999.0])


def times(factor):
    def change(depth):
        return np.where((depth == 0) | (depth == 65535), depth, depth * factor).astype(np.uint16)

    return change


def rotated(depth):
    return (depth << np.uint16(3)) | (depth >> np.uint16(13))


def longer(factor):
    matrix = walks.CAMERA.matrix.copy()
    matrix[[0, 1], [0, 1]] *= factor
    return matrix


# What is done to a walk, and the flags that read it.
CONVENTIONS = {
    "world to camera": (dict(pose=np.linalg.inv), "--pose world-to-camera"),
    "OpenGL": (dict(pose=lambda pose: pose @ CAMERA_AXES["opengl"]), "--camera-axes opengl"),
    "ROS": (dict(pose=lambda pose: pose @ CAMERA_AXES["ros"].T), "--camera-axes ros"),
    "millimetres": (dict(pose=in_millimetres), "--pose-unit mm"),
    "TUM": (dict(depth=times(5)), "--depth-scale 5000"),
    "Replica": (dict(depth=times(6.5535)), "--depth-scale 6553.5"),
    "centimetres": (dict(depth=times(0.1)), "--depth-scale 100"),
    "SUN3D": (dict(depth=rotated), "--depth-encoding sun3d"),
    "two at once": (dict(pose=lambda pose: np.linalg.inv(pose @ CAMERA_AXES["opengl"])),
                    "--pose world-to-camera --camera-axes opengl"),
}


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A walk through two rooms whose depth and poses are right."""
    return walks.write(tmp_path_factory.mktemp("walk") / "right")


def settings_of(folder, output, flags=""):
    words = flags.replace("--", "").split()
    values = {name.replace("-", "_"): float(value) if name == "depth-scale" else value
              for name, value in zip(words[::2], words[1::2], strict=True)}
    return Settings(folder, output=output, **values)


def arrays(folder):
    with np.load(folder / METADATA) as file:
        return dict(file)


def test_right_scenes_agree_and_their_figures_are_kept_and_shown(right, tmp_path):
    metadata = prepare(settings_of(right, tmp_path / "out"))
    assert set(metadata["consistency"]) == {"scene0000_00", "scene0001_00"}
    for row in metadata["consistency"].values():
        assert row["agreement"] > 0.95 and row["agreement_far_apart"] > 0.95 and 0.9 < row["depth_coverage"] < 1
        assert row["pairs"] == 5
    shown = "\n".join(DOMAIN.summary(metadata, tmp_path / "out"))
    assert "agreement of depth and poses: median 1.00, lowest 1.00 (scene0000_00) in 2 scenes" in shown
    assert "valid depth: 95" in shown


@pytest.mark.parametrize("name", CONVENTIONS)
def test_another_convention_is_refused_with_its_flag_and_read_with_it(right, tmp_path, name):
    change, flags = CONVENTIONS[name]
    folder = walks.write(tmp_path / "raw", **change)
    with pytest.raises(UserError, match=f"when they are read with {flags}: run again with that"):
        prepare(settings_of(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    metadata = prepare(settings_of(folder, tmp_path / "out", flags))
    assert all(row["agreement"] > 0.9 for row in metadata["consistency"].values())
    prepare(settings_of(right, tmp_path / "right"))
    found, expected = arrays(tmp_path / "out"), arrays(tmp_path / "right")
    np.testing.assert_allclose(found["pose"], expected["pose"], atol=1e-9)
    from overlays.data import geometry

    points = []
    for rows, place in ((found, tmp_path / "out"), (expected, tmp_path / "right")):
        frame = {key: value[3] for key, value in rows.items()}
        depth = geometry.read_depth(place / str(frame["depth"]), tuple(frame["depth_size"]),
                                    int(frame["depth_rotated_bits"]))
        points.append(geometry.mean_points([depth], [frame], (3, 4), 20, 10.0))
    np.testing.assert_allclose(*points, atol=0.006 if name == "centimetres" else 0.002)  # half a stored unit


@pytest.mark.parametrize("change, reason", [
    (dict(poses=lambda number, frames: [walks.poses_of(number, frames)[0]] * frames), "all frames have one pose"),
    (dict(depth=lambda depth: depth * 0), "depth is empty: 0.0% of its pixels are valid"),
    (dict(intrinsic=longer(3)), "depth and poses agree in 0.3"),
    (dict(intrinsic=longer(1.5)), "the focal length is about 1.5 times that of depth and poses"),
    (dict(depth=lambda depth: (1e6 / np.maximum(depth, 20)).astype(np.uint16)), "depth and poses agree in 0.0"),
])
def test_what_no_flag_reads_is_refused_by_name(tmp_path, change, reason):
    folder = walks.write(tmp_path / "raw", **change)
    with pytest.raises(UserError, match=f"of 2 scenes: {reason}"):
        prepare(settings_of(folder, tmp_path / "out"))


def shift_depth(folder, scene):
    """Each frame of a scene gets the depth of the third one after it."""
    place = folder / "posed_images" / scene
    contents = [path.read_bytes() for path in sorted(place.glob("*.png"))]
    for number, path in enumerate(sorted(place.glob("*.png"))):
        path.write_bytes(contents[(number + 3) % len(contents)])


def test_one_scene_with_the_depth_of_other_frames_is_listed_and_can_be_kept(tmp_path):
    folder = walks.write(tmp_path / "raw", rooms=3)
    shift_depth(folder, "scene0001_00")
    metadata = prepare(settings_of(folder, tmp_path / "out"))
    row, = metadata["dropped"]["scenes"]
    assert row["scene"] == "scene0001_00" and "of the points that two frames see" in row["reason"]
    assert metadata["consistency"]["scene0001_00"]["agreement_far_apart"] < 0.6
    kept = prepare(Settings(folder, output=tmp_path / "kept", contradictions="keep"))
    assert kept["dropped"]["scenes"] == [] and list(kept["contradictions_kept"]) == ["scene0001_00"]
    assert "warning: scene0001_00 contradicts itself and is kept" in "\n".join(DOMAIN.summary(kept, tmp_path))


def test_frames_that_do_not_overlap_tell_nothing(raw):
    scenes = read_infos(raw / "embodiedscan_infos_train.pkl", "train", raw)
    agreement = consistency.Comparison(scenes[0], Conventions()).agreements([Conventions()])[0]
    assert agreement.value is None and not agreement.contradiction and agreement.coverage
    wrong = Conventions(pose="world-to-camera")
    scenes = read_infos(raw / "embodiedscan_infos_train.pkl", "train", raw, None, wrong)
    together = consistency.pool([consistency.Comparison(scene, wrong).agreements([wrong])[0] for scene in scenes])
    assert together.contradiction  # what no single scene tells, all of them do


@pytest.mark.parametrize("factor", [0.71, 1.67])
def test_intrinsics_of_pictures_before_they_were_resized_are_scaled(tmp_path, factor):
    matrix = walks.CAMERA.scaled(factor).matrix
    folder = walks.write(tmp_path / "raw", rooms=1, intrinsic=matrix)
    prepare(settings_of(folder, tmp_path / "out"))
    for name in ("color_intrinsic", "depth_intrinsic"):
        np.testing.assert_allclose(arrays(tmp_path / "out")[name][0], walks.CAMERA.matrix[:3, :3], rtol=0.02)
    size = round(walks.CAMERA.height * factor), round(walks.CAMERA.width * factor)
    prepare(Settings(folder, output=tmp_path / "told", color_size=size, depth_size=size))
    np.testing.assert_allclose(arrays(tmp_path / "told")["depth_intrinsic"][0], walks.CAMERA.matrix[:3, :3], rtol=0.012)


@pytest.mark.parametrize("off", [(0.03, 0.0), (0.03, 0.03)])
def test_a_principal_point_beyond_two_percent_of_the_middle_is_refused_unless_its_size_is_told(tmp_path, off):
    matrix = walks.CAMERA.matrix.copy()
    matrix[:2, 2] += np.array(off) * (walks.CAMERA.width, walks.CAMERA.height)
    folder = walks.write(tmp_path / "raw", rooms=1, intrinsic=matrix)
    with pytest.raises(UserError, match="colour intrinsics do not fit a picture of 80 x 60.*--color-size"):
        prepare(settings_of(folder, tmp_path / "out"))
    size = walks.CAMERA.height, walks.CAMERA.width
    prepare(Settings(folder, output=tmp_path / "out", color_size=size, depth_size=size))
    np.testing.assert_allclose(arrays(tmp_path / "out")["color_intrinsic"][0], matrix[:3, :3])


def test_normalised_intrinsics_are_refused(tmp_path):
    matrix = np.diag([0.9, 1.2, 1.0])
    matrix[:2, 2] = 0.5
    folder = walks.write(tmp_path / "raw", rooms=1, intrinsic=matrix, picture=lambda picture: picture.resize((64, 64)))
    with pytest.raises(UserError, match="colour intrinsics do not fit a picture of 64 x 64"):
        prepare(settings_of(folder, tmp_path / "out"))


def test_a_world_whose_y_axis_is_up_is_named_and_turned_by_its_flag(right, tmp_path):
    lying = np.linalg.inv(WORLDS["y"])
    folder = walks.write(tmp_path / "raw", pose=lambda pose: lying @ pose)
    metadata = prepare(settings_of(folder, tmp_path / "out"))
    assert "upright along another axis than +z: +y in 2 scenes (--world-up)" in "\n".join(
        DOMAIN.summary(metadata, tmp_path))
    assert set(prepare(settings_of(folder, tmp_path / "y", "--world-up y"))["upward"].values()) == {"+z"}
    prepare(settings_of(right, tmp_path / "right"))
    found, expected = (rows["axis_align"] @ rows["pose"] for rows in map(arrays, (tmp_path / "y", tmp_path / "right")))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_flags_of_the_command_line(right, tmp_path):
    from overlays import prepare as command

    command.main(["scenes", "--data", str(right), "--output", str(tmp_path / "out"), "--color-size", "80x60",
                  "--depth_size", "80x60", "--pose", "camera-to-world"])
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["parameters"]["own_sizes"] == [[60, 80], [60, 80]]
    with pytest.raises(UserError, match="a size is written 640x480"):
        command.main(["scenes", "--data", str(right), "--color-size", "640"])


def test_poses_as_stored_come_back(right):
    content = pickle.loads((right / "embodiedscan_infos_train.pkl").read_bytes())
    pose = content["data_list"][0]["images"][2]["cam2global"]
    for conventions in (Conventions(), Conventions("world-to-camera", "ros", "mm"), Conventions(camera_axes="opengl")):
        np.testing.assert_allclose(conventions.as_stored(conventions.camera_to_world(pose)), pose, atol=1e-9)
