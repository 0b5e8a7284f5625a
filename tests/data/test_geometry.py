"""Visual tokens lie where the surfaces are that they show."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from overlays.data import geometry
from overlays.errors import UserError

ROOM = np.array([5.0, 4.0, 2.5])  # metres: the walls, floor and ceiling of a box from 0 to here
COLOR, DEPTH = (242, 324), (120, 160)  # height, width: a quarter of ScanNet's
COLOR_K = np.array([[292.5, 0, 161.9], [0, 292.9, 120.9], [0, 0, 1]])
DEPTH_K = np.array([[144.5, 0, 79.9], [0, 144.7, 59.5], [0, 0, 1]])
PROCESSOR = SimpleNamespace(image_processor=SimpleNamespace(merge_size=2, patch_size=16))


def look(at, target):
    """Camera-to-world pose, OpenCV axes, of a camera at `at` that looks at `target`; z is up."""
    forward = np.subtract(target, at) / np.linalg.norm(np.subtract(target, at))
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(forward, right), forward, at], axis=1)
    return pose


def surface(pose, k, size, pixels=None):
    """(H, W, 3) points of the room that a camera sees, and (H, W) depth; optionally at a resized image's pixels."""
    height, width = pixels or size
    u = (np.arange(width) + 0.5) * size[1] / width - 0.5
    v = (np.arange(height) + 0.5) * size[0] / height - 0.5
    rays = np.stack(np.broadcast_arrays((u - k[0, 2]) / k[0, 0], ((v - k[1, 2]) / k[1, 1])[:, None], 1.0), axis=-1)
    rays = rays @ pose[:3, :3].T
    with np.errstate(divide="ignore"):
        far = np.maximum((0 - pose[:3, 3]) / rays, (ROOM - pose[:3, 3]) / rays)
    depth = far.min(axis=-1)
    return pose[:3, 3] + rays * depth[..., None], depth


def plane(pose, k, size, pixels=None):
    """The same for the floor alone, seen from above."""
    height, width = pixels or size
    u = (np.arange(width) + 0.5) * size[1] / width - 0.5
    v = (np.arange(height) + 0.5) * size[0] / height - 0.5
    rays = np.stack(np.broadcast_arrays((u - k[0, 2]) / k[0, 0], ((v - k[1, 2]) / k[1, 1])[:, None], 1.0), axis=-1)
    rays = rays @ pose[:3, :3].T
    depth = -pose[2, 3] / rays[..., 2]
    return pose[:3, 3] + rays * depth[..., None], depth


def block_means(points, block):
    h, w = points.shape[0] // block, points.shape[1] // block
    return points.reshape(h, block, w, block, 3).mean(axis=(1, 3))


def millimetres(depth):
    return np.round(depth * 1000).astype(np.uint16)


def frame(pose, **changes):
    return {"pose": pose, "axis_align": np.eye(4), "depth_intrinsic": DEPTH_K, "color_intrinsic": COLOR_K,
            "depth_size": np.array(DEPTH), "color_size": np.array(COLOR), "depth_scale": 1000.0, **changes}


POSES = [look((1.0, 0.8, 1.5), (4.0, 3.5, 0.6)), look((4.2, 3.2, 1.3), (0.5, 1.0, 0.4)),
         look((2.5, 0.7, 1.6), (2.4, 3.9, 1.0))]


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize("grid", [(6, 8), (15, 20)])
def test_tokens_of_a_room_are_its_block_means(pose, grid):
    _, depth = surface(pose, DEPTH_K, DEPTH)
    found = geometry.mean_points([millimetres(depth)], [frame(pose)], grid, 32, 10.0)
    truth = block_means(surface(pose, COLOR_K, COLOR, (grid[0] * 32, grid[1] * 32))[0], 32)
    # Blocks on an edge of the room count: a depth pixel there is one side or the other.
    assert np.linalg.norm(found - truth, axis=-1).max() < 0.01


def test_tokens_of_a_plane_are_its_block_means():
    pose = look((0.0, 0.0, 2.0), (0.9, 0.2, 0.0))
    _, depth = plane(pose, DEPTH_K, DEPTH)
    found = geometry.mean_points([millimetres(depth)], [frame(pose)], (4, 6), 32, 10.0)
    truth = block_means(plane(pose, COLOR_K, COLOR, (128, 192))[0], 32)
    assert np.linalg.norm(found - truth, axis=-1).max() < 0.01
    assert abs(found[..., 2]).max() < 0.005


def test_each_camera_counts_with_its_own_field_of_view():
    # A depth camera that sees twice the width: taking its image as the colour image's would be metres off.
    wide = np.array([[72.0, 0, 80.0], [0, 72.0, 59.5], [0, 0, 1]])
    _, depth = surface(POSES[0], wide, DEPTH)
    found = geometry.mean_points([millimetres(depth)], [frame(POSES[0], depth_intrinsic=wide)], (6, 8), 32, 10.0)
    truth = block_means(surface(POSES[0], COLOR_K, COLOR, (192, 256))[0], 32)
    assert np.linalg.norm(found - truth, axis=-1).max() < 0.02  # its pixels are twice as large
    narrow = np.array([[289.0, 0, 79.9], [0, 289.4, 59.5], [0, 0, 1]])
    _, depth = surface(POSES[0], narrow, DEPTH)
    found = geometry.mean_points([millimetres(depth)], [frame(POSES[0], depth_intrinsic=narrow)], (6, 8), 32, 10.0)
    assert not found[0].any() and not found[:, 0].any() and found[2:4, 2:6].all()


def test_the_axis_aligned_frame_is_used():
    turn = np.array([[0, -1, 0, 3.0], [1, 0, 0, -2.0], [0, 0, 1, 0.25], [0, 0, 0, 1]])
    depth = millimetres(surface(POSES[0], DEPTH_K, DEPTH)[1])
    plain = geometry.mean_points([depth], [frame(POSES[0])], (6, 8), 32, 10.0)
    moved = geometry.mean_points([depth], [frame(POSES[0], axis_align=turn)], (6, 8), 32, 10.0)
    assert np.allclose(moved, plain @ turn[:3, :3].T + turn[:3, 3], atol=1e-5)


def test_invalid_pixels_take_no_part():
    points, depth = surface(POSES[0], DEPTH_K, DEPTH)
    holed = millimetres(depth)
    generator = np.random.default_rng(0)
    holed[generator.random(DEPTH) < 0.3] = 0
    holed[generator.random(DEPTH) < 0.2] = 65535
    holed[generator.random(DEPTH) < 0.1] = 12000  # beyond range
    truth = block_means(surface(POSES[0], COLOR_K, COLOR, (192, 256))[0], 32)
    found = geometry.mean_points([holed], [frame(POSES[0])], (6, 8), 32, 10.0)
    assert np.linalg.norm(found - truth, axis=-1).max() < 0.1  # what is left of a block shifts its mean
    holed[:40, :80] = 0
    holed[80:, 120:] = 65535
    found = geometry.mean_points([holed], [frame(POSES[0])], (6, 8), 32, 10.0)
    assert np.array_equal(found[:1, :3], np.zeros((1, 3, 3))) and np.array_equal(found[5:, 7:], np.zeros((1, 1, 3)))
    assert (found[2:4, 4:5] != 0).all()
    nothing = geometry.mean_points([np.zeros(DEPTH, np.uint16)], [frame(POSES[0])], (6, 8), 32, 10.0)
    assert nothing.dtype == np.float32 and not nothing.any()


def test_two_views_of_a_point_agree_within_a_voxel():
    """A block of one view, where its middle appears in the other view: the token there holds the same place."""
    first, second = POSES[0], look((1.6, 1.3, 1.2), (4.2, 3.3, 0.5))
    grid = (30, 40)  # fine blocks: a token is a place
    one, two = (
        geometry.mean_points([millimetres(surface(pose, DEPTH_K, DEPTH)[1])], [frame(pose)], grid, 8, 10.0)
        for pose in (first, second)
    )
    middles, depth = surface(first, COLOR_K, COLOR, grid)
    camera = (middles - second[:3, 3]) @ second[:3, :3]
    pixel = camera @ COLOR_K.T
    u = (pixel[..., 0] / pixel[..., 2] + 0.5) * grid[1] / COLOR[1] - 0.5
    v = (pixel[..., 1] / pixel[..., 2] + 0.5) * grid[0] / COLOR[0] - 0.5
    shared = (camera[..., 2] > 0.3) & (abs(u - np.round(u)) < 0.15) & (abs(v - np.round(v)) < 0.15)
    shared &= (np.round(u) >= 0) & (np.round(u) < grid[1]) & (np.round(v) >= 0) & (np.round(v) < grid[0])
    there = two[np.round(v[shared]).astype(int), np.round(u[shared]).astype(int)]
    assert shared.sum() > 20
    assert np.linalg.norm(one[shared] - there, axis=-1).max() < 0.1


def test_both_frames_of_a_pair_share_a_token():
    depth = [millimetres(surface(pose, DEPTH_K, DEPTH)[1]) for pose in POSES[:2]]
    frames = [frame(pose) for pose in POSES[:2]]
    single = [geometry.mean_points([d], [f], (6, 8), 32, 10.0) for d, f in zip(depth, frames, strict=True)]
    pair = geometry.mean_points(depth, frames, (6, 8), 32, 10.0)
    assert np.allclose(pair, (single[0] + single[1]) / 2, atol=1e-4)
    half = [depth[0], np.zeros_like(depth[1])]
    assert np.allclose(geometry.mean_points(half, frames, (6, 8), 32, 10.0), single[0], atol=1e-6)
    assert np.allclose(geometry.mean_points([depth[0], None], [frames[0], None], (6, 8), 32, 10.0), single[0])


# ---- records


def write_scene(folder, poses=POSES, **changes):
    """Depth images and metadata of the room; returns a record of all frames."""
    rows = [frame(pose) for pose in poses]
    for number, pose in enumerate(poses):
        Image.fromarray(millimetres(surface(pose, DEPTH_K, DEPTH)[1])).save(folder / f"{number}.png")
        Image.new("RGB", COLOR[::-1], (40 * number, 90, 120)).save(folder / f"{number}.jpg")
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays |= {"depth": np.array([f"{i}.png" for i in range(len(poses))]),
               "image": np.array([f"{i}.jpg" for i in range(len(poses))])}
    np.savez(folder / "scene.npz", **(arrays | changes))
    count = len(poses)
    return {
        "id": "room-1", "image": [f"{i}.jpg" for i in range(count)],
        "scene": {"metadata": "scene.npz", "frames": list(range(count))},
        "conversations": [{"from": "human", "value": "<image>" * count + "\nWhere?"}, {"from": "gpt", "value": "here"}],
    }


SAMPLE = {"image_grid_thw": torch.tensor([[1, 12, 16]] * len(POSES))}


def coordinates(record, folder, sample=SAMPLE):
    return geometry.token_coordinates(record, sample, PROCESSOR, folder)


def test_a_record_gives_its_tokens_row_by_row(tmp_path):
    record = write_scene(tmp_path)
    found = coordinates(record, tmp_path)
    assert found.shape == (3 * 6 * 8, 3) and found.dtype == np.float32
    for i, pose in enumerate(POSES):
        truth = block_means(surface(pose, COLOR_K, COLOR, (192, 256))[0], 32).reshape(-1, 3)
        assert np.linalg.norm(found[i * 48:(i + 1) * 48] - truth, axis=-1).max() < 0.01
    other = record | {"image": ["2.jpg"], "scene": {"metadata": "scene.npz", "frames": [2]}}
    assert np.array_equal(coordinates(other, tmp_path, {"image_grid_thw": SAMPLE["image_grid_thw"][:1]}), found[96:])


def test_frames_without_depth_are_zero(tmp_path):
    record = write_scene(tmp_path, depth=np.array(["0.png", "", "2.png"]))
    found = coordinates(record, tmp_path)
    assert found[:48].all() and not found[48:96].any() and found[96:].any()
    record["scene"]["frames"] = [0, 1, None]
    assert not coordinates(record, tmp_path)[48:].any()
    geometry.check_scene(record, tmp_path)


def turned(path, orientation=6):
    with Image.open(path) as image:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)


def infinite(poses):
    return np.stack([poses[0], np.full((4, 4), -np.inf), poses[2]])


@pytest.mark.parametrize(("breaks", "words"), [
    (lambda f, r: (f / "1.png").unlink(), "depth image .*1.png is missing"),
    (lambda f, r: Image.new("I;16", (80, 60)).save(f / "1.png"),
     "1.png is 80 x 60 pixels, but its intrinsics are for 160 x 120"),
    (lambda f, r: Image.new("L", (160, 120)).save(f / "1.png"), r"1.png is no 16-bit PNG or PGM \(PNG, mode L\)"),
    (lambda f, r: turned(f / "1.jpg"), "1.jpg is turned by its EXIF orientation"),
    (lambda f, r: (f / "1.png").write_bytes(b"no picture"), "1.png is no depth image"),
    (lambda f, r: (f / "scene.npz").unlink(), "scene metadata .*scene.npz is missing"),
    (lambda f, r: (f / "scene.npz").write_bytes(b"PK\3\4 no archive"), "scene.npz cannot be read"),
    (lambda f, r: np.savez(f / "scene.npz", pose=np.array([{}], dtype=object)), "scene.npz cannot be read"),
    (lambda f, r: np.savez(f / "scene.npz", pose=np.zeros((3, 4, 4))), "lacks depth, axis_align"),
    (lambda f, r: write_scene(f, pose=np.zeros((2, 4, 4))), "has shape"),
    (lambda f, r: write_scene(f, pose=infinite(POSES)), r"row 1 \(1.jpg\): pose holds numbers that are not finite"),
    (lambda f, r: write_scene(f, depth_intrinsic=np.zeros((3, 3, 3))), "depth_intrinsic is no camera matrix"),
    (lambda f, r: write_scene(f, depth=np.array(["0.png", "../out.png", "2.png"])), "leaves the media root"),
    (lambda f, r: r["scene"].update(frames=[0, 7, 2]), "has no row 7"),
    (lambda f, r: r["scene"].update(frames=[0, 2, 1]), "is not of the record's image 1.jpg"),
    (lambda f, r: r["scene"].update(frames=[0, 1]), "2 frames, but the record 3 images"),
    (lambda f, r: r["scene"].update(frames=[0, [1], 2]), "a row for an image and a list of rows for a video"),
    (lambda f, r: r.update(scene="scene.npz"), "scene must be"),
])
def test_a_broken_scene_is_one_sentence_before_training_and_in_it(tmp_path, breaks, words):
    record = write_scene(tmp_path)
    breaks(tmp_path, record)
    with pytest.raises(UserError, match=words):
        coordinates(record, tmp_path)
    with pytest.raises(UserError, match=words):
        geometry.check_scene(record, tmp_path)


def test_a_depth_image_cut_short_is_named(tmp_path):
    record = write_scene(tmp_path)
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="2.png is damaged or cut short"):
        coordinates(record, tmp_path)


def test_an_orientation_that_turns_nothing_is_no_reason_to_refuse(tmp_path):
    record = write_scene(tmp_path)
    before = coordinates(record, tmp_path)
    for number, orientation in enumerate((0, 1, 9)):
        turned(tmp_path / f"{number}.jpg", orientation)
    assert np.array_equal(coordinates(record, tmp_path), before)


@pytest.mark.parametrize("largest", [400, 5000, 65535])
def test_a_pgm_holds_the_numbers_that_were_stored(tmp_path, largest):
    stored = np.random.default_rng(0).integers(0, largest + 1, (6, 8)).astype(np.uint16)
    path = tmp_path / "depth.pgm"
    path.write_bytes(b"P5\n# a scanner\n8 6\n%d\n" % largest + stored.astype(">u2").tobytes())
    assert np.array_equal(geometry.read_depth(path, (6, 8)), stored)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="depth.pgm is damaged or cut short"):
        geometry.read_depth(path, (6, 8))


@pytest.mark.parametrize(("name", "pixels", "words"), [
    ("d.tif", np.full((6, 8), 70000, np.int32), r"\(TIFF, mode I\)"),
    ("d.tif", np.full((6, 8), 1.5, np.float32), r"\(TIFF, mode F\)"),
    ("d.pgm", np.full((6, 8), 15, np.uint8), r"\(PPM, mode L\)"),
])
def test_depth_in_another_format_is_refused_and_not_wrapped_or_stretched(tmp_path, name, pixels, words):
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no 16-bit PNG or PGM {words}"):
        geometry.read_depth(tmp_path / name, (6, 8))


# ---- through data set and processor


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.model import load, parts

    folder = tiny_model_dir("qwen3_vl")
    processor = load.load_processor(folder)
    apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=256 * 192))
    return processor, parts.position_function(load.load_config(folder))


def data_set(folder, rows, tiny, **options):
    from overlays.data.dataset import SupervisedDataset
    from overlays.data.media import MediaOptions
    from overlays.registry import Dataset

    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SupervisedDataset([Dataset("rows", file, folder)], *tiny, MediaOptions(), **options)


def test_samples_have_coordinates_where_the_model_takes_them(tmp_path, tiny):
    record = write_scene(tmp_path)
    plain = {**record, "id": "plain"}
    del plain["scene"]
    samples = data_set(tmp_path, [record, plain], tiny, max_depth_m=10.0)
    tokens = int(samples[0]["image_grid_thw"].prod(dim=1).sum()) // 4
    assert samples[0]["coordinates"].shape == (tokens, 3) and samples[0]["coordinates"].dtype == torch.float32
    assert "coordinates" not in samples[1]
    assert "coordinates" not in data_set(tmp_path, [record], tiny)[0]


def test_a_broken_scene_stops_before_training_or_is_listed(tmp_path, tiny):
    record = write_scene(tmp_path)
    broken = {**record, "id": "room-2", "scene": {"metadata": "scene.npz", "frames": [0, 1, 9]}}
    with pytest.raises(UserError, match=r"row 2 \(id room-2\): .* has no row 9"):
        data_set(tmp_path, [record, broken], tiny, max_depth_m=10.0)
    report = data_set(tmp_path, [record, broken], tiny, max_depth_m=10.0, on_bad_sample="skip").report
    assert report["bad"] == 1 and "no row 9" in report["dropped"][0]["reason"]


def test_the_order_of_tokens_is_that_of_the_patches(tmp_path, tiny):
    """Each block has its own brightness and its own depth: token by token they belong together."""
    height, width = 6 * 32, 8 * 32
    level = np.arange(48).reshape(6, 8).repeat(32, axis=0).repeat(32, axis=1)
    Image.fromarray(np.stack([level * 5] * 3, axis=-1).astype(np.uint8)).save(tmp_path / "0.png")
    Image.fromarray((1000 + 100 * level).astype(np.uint16)).save(tmp_path / "d.png")
    k = np.array([[200.0, 0, 127.5], [0, 200.0, 95.5], [0, 0, 1]])
    row = frame(np.eye(4), depth_intrinsic=k, color_intrinsic=k, depth_size=np.array([height, width]),
                color_size=np.array([height, width]))
    arrays = {name: np.asarray(value)[None] for name, value in row.items()}
    np.savez(tmp_path / "scene.npz", depth=np.array(["d.png"]), image=np.array(["0.png"]), **arrays)
    record = {"image": "0.png", "scene": {"metadata": "scene.npz", "frames": [0]}, "conversations": [
        {"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "here"}]}
    sample = data_set(tmp_path, [record], tiny, max_depth_m=10.0)[0]
    brightness = sample["pixel_values"].reshape(48, -1).mean(dim=1)  # a merged token is 4 patches in a row
    level = torch.round((brightness + 1) * 127.5 / 5)
    assert torch.equal(level, torch.arange(48.0))
    assert torch.allclose(sample["coordinates"][:, 2], 1 + 0.1 * level, atol=1e-4)


def test_a_video_takes_the_frames_that_are_shown(tmp_path, tiny):
    import av

    processor, _ = tiny
    with av.open(str(tmp_path / "walk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(12):
            picture = np.full((64, 96, 3), 20 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    k = np.array([[80.0, 0, 47.5], [0, 80.0, 31.5], [0, 0, 1]])
    size = np.array([64, 96])
    for number in range(12):  # a wall that comes nearer: 3.0, 2.9, ... metres
        Image.fromarray(np.full((64, 96), 3000 - 100 * number, np.uint16)).save(tmp_path / f"{number}.png")
    row = frame(np.eye(4), depth_intrinsic=k, color_intrinsic=k, depth_size=size, color_size=size)
    arrays = {name: np.stack([np.asarray(value)] * 12) for name, value in row.items()}
    np.savez(tmp_path / "scene.npz", depth=np.array([f"{i}.png" for i in range(12)]), **arrays)
    record = {"video": "walk.mp4", "scene": {"metadata": "scene.npz", "frames": [list(range(12))]}, "conversations": [
        {"from": "human", "value": "<video>\nWhere?"}, {"from": "gpt", "value": "here"}]}
    from overlays.data.media import video_grid

    for limits, segment in (({}, None), ({"video_start": 4, "video_end": 10}, (4, 10))):
        sample = data_set(tmp_path, [record | limits], tiny, max_depth_m=10.0)[0]
        (pairs, height, width), metadata = video_grid(tmp_path / "walk.mp4", processor.video_processor, "pyav", segment)
        shown = np.array(metadata.frames_indices) + (segment[0] if segment else 0)
        expected = (3.0 - 0.1 * shown).reshape(pairs, 2).mean(axis=1)
        z = sample["coordinates"][:, 2].reshape(pairs, -1)
        assert z.shape[1] == height * width // 4
        assert np.allclose(z, expected[:, None], atol=1e-4)
    record["scene"]["frames"] = [list(range(5))]
    samples = data_set(tmp_path, [record], tiny, max_depth_m=10.0)
    with pytest.raises(UserError, match="frames or more, but its scene 5"):
        samples[0]
