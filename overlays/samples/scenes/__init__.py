"""A small data set of rendered rooms in the layout of ScanNet through EmbodiedScan, with question files."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from overlays.errors import UserError
from overlays.files import atomic_path, write_json
from overlays.samples.scenes import asking, cameras, render, rooms

VERSION = 2  # raised with every change of the rooms or their questions; an older sample is made anew
SPLITS = {"train": 0.75, "val": 0.05, "test": 0.2}
FRAMES = 4
# What prepare takes where the user names no parameters.
PREPARE = {"num_frames": FRAMES, "turns": 4}
# Two cameras side by side, as in ScanNet: different sizes, focal lengths and principal points.
COLOUR = render.Camera(64, 64, 58.0, 58.0, 31.2, 31.8)
DEPTH = render.Camera(48, 48, 41.0, 41.0, 23.9, 23.3)
QUESTIONS = {"colour": 1, "kind": 1, "count": 1, "wall": 1, "height": 3, "nearer": 1, "side": 1, "distance": 2}
SITUATED = ("side", "nearer")  # go into the SQA3D file
SCANQA = ("colour", "kind", "count")  # into the ScanQA file; the rest into the one in Video-3D-LLM's style


def write(folder: str | Path, seed: int = 0, *, scenes: int = 900, workers: int = os.cpu_count() or 1) -> Path:
    """Write the rooms; the same arguments give the same files.

    One scene in eight has a further frame whose pose is -inf; half of those are named in the infos file, half are not,
    as in the real one. Depth has holes of both codes (see `render.sensor`).

    Args:
        folder: gets posed_images/<scene>/{00000.jpg, .png, .txt, intrinsic.txt, depth_intrinsic.txt},
            embodiedscan_infos_{train,val,test}.pkl, questions/{sqa3d,scanqa,video3dllm}/*.json and sample.json.
        seed: of every random choice.
        scenes: number of rooms, at least 12.
        workers: processes.

    Returns:
        The folder.
    """
    if scenes < 12:
        raise UserError(f"a sample needs at least 12 scenes, {scenes} were asked for")
    if seed < 0:
        raise UserError(f"--seed must be 0 or above, not {seed}")
    output = Path(folder)
    with atomic_path(output) as folder:
        folder.mkdir()
        jobs = [(folder, index, seed) for index in range(scenes)]
        made = list(tqdm(_map(jobs, workers), total=scenes, desc="rendering rooms", unit="room"))
        start, number = 0, 0
        for split, count in _shares(scenes).items():
            part = made[start:start + count]
            rows = [row for _, found in part for row in found]
            _write_infos(folder / f"embodiedscan_infos_{split}.pkl", [info for info, _ in part], split)
            _write_questions(folder / "questions", split, number, rows)
            start, number = start + count, number + len(rows)
        write_json(folder / "sample.json", {"version": VERSION, "scenes": scenes, "seed": seed, "prepare": PREPARE})
    return output


def _map(jobs: list[tuple], workers: int) -> Iterator:
    # A round trip for every scene: which strings are one object decides a pickle's bytes, and processes change that.
    if workers == 1:
        yield from (pickle.loads(pickle.dumps(_scene(job))) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        yield from (pickle.loads(pickle.dumps(made)) for made in pool.map(_scene, jobs, chunksize=4))


def _shares(scenes: int) -> dict[str, int]:
    counts = {split: max(2, round(share * scenes)) for split, share in SPLITS.items()}
    counts["train"] += scenes - sum(counts.values())
    return counts


def draw_room(index: int, seed: int) -> tuple[rooms.Room, list[np.ndarray], np.random.Generator]:
    """Room number `index` with the poses (4, 4) of its frames in the axis-aligned frame, and the generator after it."""
    rng = np.random.default_rng([seed, index])
    while True:
        room = rooms.build_room(rng)
        poses = cameras.plan(rng, room, FRAMES, COLOUR) if len(room.things) == rooms.THINGS else None
        if poses is not None:
            scale = float(rng.choice(rooms.SCALES))
            for pose in poses:
                pose[:3, 3] *= scale
            return room.scaled(scale), poses, rng


def _scene(job: tuple[Path, int, int]) -> tuple[dict, list[tuple[str, asking.Asked]]]:
    """Write one scene's frames; (its entry for the infos file, its questions)."""
    folder, index, seed = job
    name = f"scene{index:04d}_00"
    room, poses, rng = draw_room(index, seed)
    turn = rng.uniform(0, 2 * np.pi)
    world = np.eye(4)  # axis-aligned frame -> the scan's own, which starts wherever the scan did
    world[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    world[:3, 3] = rng.uniform((1, 1, -0.3), (6, 6, 0.3))
    place = folder / "posed_images" / name
    place.mkdir(parents=True)
    _write_matrix(place / "intrinsic.txt", COLOUR.matrix)
    _write_matrix(place / "depth_intrinsic.txt", DEPTH.matrix)
    lost = (len(poses), index % 16 == 5) if index % 8 == 5 else None  # a frame whose tracking was lost; if it is named
    images = []
    for number, pose in enumerate([*poses, *([poses[0]] if lost else [])]):
        stem = f"{number:05d}"
        hits = render.trace(room, COLOUR, pose)
        Image.fromarray(render.picture(room, hits, rng)).save(place / f"{stem}.jpg", quality=92)
        Image.fromarray(render.sensor(render.trace(room, DEPTH, pose), rng)).save(place / f"{stem}.png")
        tracked = world @ pose if lost is None or number < lost[0] else np.full((4, 4), -np.inf)
        _write_matrix(place / f"{stem}.txt", tracked)
        if lost is None or number < lost[0] or lost[1]:
            images.append({
                "img_path": f"scannet/posed_images/{name}/{stem}.jpg",
                "depth_path": f"scannet/posed_images/{name}/{stem}.png", "cam2global": tracked,
                "visible_instance_ids": sorted(map(int, set(np.unique(hits.owner)) - {-1})),
            })
    info = {
        "sample_idx": f"scannet/{name}", "axis_align_matrix": np.linalg.inv(world), "cam2img": COLOUR.matrix,
        "depth_cam2img": DEPTH.matrix, "images": images,
        "instances": [{"bbox_3d": [*thing.centre.tolist(), *(np.array(thing.high) - thing.low).tolist(), 0.0, 0.0, 0.0],
                       "bbox_label_3d": rooms.KINDS.index(thing.kind), "bbox_id": number}
                      for number, thing in enumerate(room.things)],
    }
    return info, [(name, asked) for asked in asking.ask(room, rng, QUESTIONS)]


def _write_matrix(path: Path, matrix: np.ndarray) -> None:
    rows = (" ".join(f"{value:.6f}" for value in row) for row in matrix)
    path.write_text("\n".join(rows) + "\n", encoding="ascii")


def _write_infos(path: Path, scenes: list[dict], split: str) -> None:
    if split == "test":  # the published one keeps its boxes to itself too
        scenes = [{key: value for key, value in scene.items() if key != "instances"} for scene in scenes]
    categories = {kind: number for number, kind in enumerate(rooms.KINDS)}
    with path.open("wb") as stream:
        pickle.dump({"metainfo": {"categories": categories, "DATASET": "EmbodiedScan"}, "data_list": scenes}, stream)


def _write_questions(folder: Path, split: str, first: int, rows: list[tuple[str, asking.Asked]]) -> None:
    """The three layouts in which such questions are published; their numbers start at `first`."""
    situated = [(220_000_000 + number, *row) for number, row in enumerate(rows, first) if row[1].kind in SITUATED]
    name = f"{split}_scannetv2.json"
    write_json(folder / "sqa3d" / f"v1_balanced_questions_{name}", {
        "task_type": "Open-Ended", "data_type": "scannetv2", "data_subtype": split, "questions": [
            {"scene_id": scene, "situation": asked.situation, "alternative_situation": [], "question": asked.question,
             "question_id": number} for number, scene, asked in situated]})
    write_json(folder / "sqa3d" / f"v1_balanced_sqa_annotations_{name}", {
        "data_type": "scannetv2", "data_subtype": split, "annotations": [
            {"scene_id": scene, "question_type": "other", "answer_type": "other", "question_id": number,
             "answers": [{"answer": asked.answer, "answer_confidence": "yes", "answer_id": 1}]}
            for number, scene, asked in situated]})
    write_json(folder / "scanqa" / f"ScanQA_v1.0_{split}.json", [
        {"answers": [asked.answer], "object_ids": [], "object_names": [], "question": asked.question,
         "question_id": f"{split}-{scene.split('_')[0]}-{number}", "scene_id": scene}
        for number, (scene, asked) in enumerate(rows, first) if asked.kind in SCANQA])
    write_json(folder / "video3dllm" / f"rooms_{split}_llava_style.json", [
        {"id": number, "video": f"scannet/{scene}", "conversations": [
            {"value": f"<image>\n{asked.question} Answer the question using a single word or phrase.",
             "from": "human"}, {"value": asked.answer, "from": "gpt"}], "metadata": {"dataset": "rooms"}}
        for number, (scene, asked) in enumerate(rows, first) if asked.kind not in (*SITUATED, *SCANQA)])
