"""Rooms seen on a walk, whose neighbouring frames overlap as those of a scan do, in any convention."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from overlays.samples import scenes as sampling
from overlays.samples.scenes import render

FRAMES = 8
CAMERA = render.Camera(80, 60, 70.0, 70.0, 39.5, 29.5)


def poses_of(number: int, frames: int = FRAMES) -> list[np.ndarray]:
    """Camera to world, OpenCV axes, metres: into a room and across it, looking ahead."""
    return [world_of(number) @ pose for pose in walk(frames)]


def walk(frames: int) -> list[np.ndarray]:
    """The same in the frame of the room."""
    return [render.look_at(np.array([-1.2 + 2.2 * at, -1.9 + 2.4 * at, 1.3 + 0.4 * at]),
                           np.array([-0.4 + 1.6 * at, 2.6, 0.9]), 0.05 * at) for at in np.linspace(0, 1, frames)]


def world_of(number: int) -> np.ndarray:
    """(4, 4) frame of the room -> that of the scan."""
    turn, world = 0.7 * number, np.eye(4)
    world[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    world[:3, 3] = 2.0, 3.0 + number, 0.2
    return world


def write(folder: Path, rooms: int = 2, frames: int = FRAMES, *, pose=lambda pose: pose, depth=lambda depth: depth,
          intrinsic=None, picture=None, poses=None) -> Path:
    """A raw folder. `pose` and `depth` are what is done to each matrix and each (H, W) uint16 picture."""
    entries, questions = [], []
    for number in range(rooms):
        name = f"scene{number:04d}_00"
        place = folder / "posed_images" / name
        place.mkdir(parents=True)
        room, _, rng = sampling.draw_room(number, 0)
        room = room.scaled(1 / room.scale)
        true = (poses or poses_of)(number, frames)
        images = []
        for frame, matrix in enumerate(true):
            seen = walk(frames)[frame]
            colour = Image.fromarray(render.picture(room, render.trace(room, CAMERA, seen), rng))
            (picture(colour) if picture else colour).save(place / f"{frame:05d}.jpg")
            stored = render.sensor(render.trace(room, CAMERA, seen), rng)
            Image.fromarray(depth(stored)).save(place / f"{frame:05d}.png")
            images.append({"img_path": f"scannet/posed_images/{name}/{frame:05d}.jpg",
                           "depth_path": f"scannet/posed_images/{name}/{frame:05d}.png", "cam2global": pose(matrix)})
        matrix = CAMERA.matrix if intrinsic is None else intrinsic
        entries.append({"sample_idx": f"scannet/{name}", "axis_align_matrix": np.eye(4), "cam2img": matrix,
                        "depth_cam2img": matrix, "images": images})
        questions.append({"scene_id": name, "question_id": f"q{number}", "question": "What is in the room?",
                          "answers": ["a box"]})
    (folder / "questions").mkdir()
    (folder / "questions" / "ScanQA_v1.0_train.json").write_text(json.dumps(questions))
    (folder / "embodiedscan_infos_train.pkl").write_bytes(pickle.dumps({"data_list": entries}))
    return folder
