"""Rendered frames against geometry computed another way."""

import numpy as np

from overlays.samples.scenes import cameras, render, rooms

CAMERA = render.Camera(40, 30, 35.0, 35.0, 19.4, 14.7)


def empty_room(*blocks: rooms.Block) -> rooms.Room:
    return rooms.Room((2.0, 3.0), 2.5, (), blocks, np.full((6, 3), 200.0), np.array([0.0, 0.0, 1.0]))


def test_pose_is_a_camera_with_opencv_axes():
    pose = render.look_at(np.array([0.0, 0.0, 1.5]), np.array([1.0, 0.0, 1.5]))
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) > 0
    np.testing.assert_allclose(pose[:3, :3].T @ (0, 0, -1), (0, 1, 0), atol=1e-12)  # down in the room is down in view
    np.testing.assert_allclose(pose[:3, :3].T @ (0, -1, 0), (1, 0, 0), atol=1e-12)  # south is right of east


def test_depth_of_a_wall_is_its_distance_along_the_optical_axis():
    hits = render.trace(empty_room(), CAMERA, render.look_at(np.array([0.5, 0, 1.2]), np.array([2.0, 0, 1.2])))
    wall = np.isclose(hits.point[..., 0], 2.0, atol=1e-4)
    assert wall.mean() > 0.5
    np.testing.assert_allclose(hits.depth[wall], 1.5, atol=1e-5)


def test_back_projected_depth_lies_on_the_surfaces_of_room_and_block():
    block = rooms.Block((-0.5, 0.4, 0.0), (0.6, 1.1, 0.8), (200, 0, 0), owner=3)
    pose = render.look_at(np.array([1.4, -1.9, 1.6]), np.array([0.0, 0.7, 0.4]), roll=0.2)
    hits = render.trace(empty_room(block), CAMERA, pose)
    points = (CAMERA.rays() * hits.depth.reshape(-1, 1)) @ pose[:3, :3].T + pose[:3, 3]
    planes = np.array([-2, 2, -3, 3, 0, 2.5])
    off_room = np.abs(np.repeat(points, 2, axis=1) - planes).min(1)
    low, high = np.array(block.low), np.array(block.high)
    outside = np.maximum(np.maximum(low - points, points - high), 0).max(1)
    off_block = np.maximum(outside, np.minimum(np.abs(points - low), np.abs(points - high)).min(1))
    on_block = hits.owner.ravel() == 3
    assert on_block.mean() > 0.05
    assert off_block[on_block].max() < 1e-4
    assert off_room[~on_block].max() < 1e-4


def test_a_block_hides_what_is_behind_it_and_one_behind_the_camera_shows_nothing():
    near = rooms.Block((0.5, -0.5, 0.7), (0.7, 0.5, 1.7), (0, 0, 0), owner=0)
    far = rooms.Block((1.2, -0.3, 0.9), (1.5, 0.3, 1.5), (0, 0, 0), owner=1)
    behind = rooms.Block((-1.5, -1.0, 0.2), (-1.0, 1.0, 2.2), (0, 0, 0), owner=2)
    pose = render.look_at(np.array([-0.5, 0, 1.2]), np.array([2.0, 0, 1.2]))
    seen = set(np.unique(render.trace(empty_room(near, far, behind), CAMERA, pose).owner))
    assert seen == {-1, 0}
    assert 1 in np.unique(render.trace(empty_room(far, behind), CAMERA, pose).owner)


def test_scaled_camera_sees_the_same_field():
    half = CAMERA.scaled(0.5)
    corner = np.array([[-0.5, -0.5], [39.5, 29.5]])
    full = (corner - (CAMERA.cx, CAMERA.cy)) / (CAMERA.fx, CAMERA.fy)
    small = (np.array([[-0.5, -0.5], [19.5, 14.5]]) - (half.cx, half.cy)) / (half.fx, half.fy)
    np.testing.assert_allclose(small, full)


def test_sensor_is_true_to_millimetres_but_for_holes_of_both_codes():
    rng = np.random.default_rng(0)
    room = rooms.build_room(rng)
    big = render.Camera(160, 120, 140.0, 140.0, 79.5, 59.5)
    codes, errors = set(), []
    for pose in cameras.plan(rng, room, 5, big):
        hits = render.trace(room, big, pose)
        stored = render.sensor(hits, rng)
        assert stored.dtype == np.uint16
        valid = (stored != render.NO_RETURN) & (stored != render.SATURATED)
        codes |= set(np.unique(stored[~valid]).tolist())
        assert 0.5 < valid.mean() < 0.99
        errors.append(stored[valid] / 1000 - hits.depth[valid])
    assert codes == {0, 65535}
    assert np.abs(np.concatenate(errors).mean()) < 0.001 and np.concatenate(errors).std() < 0.02
