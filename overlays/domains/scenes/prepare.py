"""Scenes and question files -> records with frames, scene_metadata.npz with poses and intrinsics, split by scene.

A record names its pictures and, under "scene", the rows of scene_metadata.npz that belong to them:

    {"id", "image": [jpg, ...], "conversations", "task": "what" | "where", "question_type", "group": scene,
     "answers": [...], "scene": {"metadata": "scene_metadata.npz", "frames": [row, ...]}}

With `turns` above 1 a training record asks several questions of its scene one after the other, as "question_types"
lists them, because the frames cost far more than a question does. Validation and test always ask one.

scene_metadata.npz has one row per kept frame in each array: scene, image, depth (paths from the media root), pose
(4, 4) camera-to-world in metres with OpenCV axes, axis_align (4, 4) world to axis-aligned frame, depth_intrinsic and
color_intrinsic (3, 3) at depth_size and color_size (height, width), depth_scale (stored units per metre). Depth 0 and
65535 are invalid, and its bits are rotated by depth_rotated_bits. Both cameras of a frame share its pose. Depth without
intrinsics of its own is a picture of the colour camera, at its size or at another one of the same proportions.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from overlays import samples
from overlays.data.splits import split_groups
from overlays.domains.base import SPLITS, prepared_folder, write_metadata
from overlays.domains.scenes import consistency
from overlays.domains.scenes.cameras import IntrinsicSizes, Size, fit, parse_size, sizes
from overlays.domains.scenes.consistency import Agreement
from overlays.domains.scenes.infos import (
    CameraAxes,
    Conventions,
    DepthEncoding,
    Frame,
    Pose,
    PoseUnit,
    Scene,
    WorldUp,
    read_infos,
    read_scene_metadata,
)
from overlays.domains.scenes.question_files import Question, find_files, question_type, read_questions, task_of
from overlays.errors import UserError
from overlays.files import link, sha256, write_jsonl
from overlays.flags import check_choices, option

METADATA = "scene_metadata.npz"
INSTRUCTION = "Answer with a word or a phrase."
SCENE_METADATA = "scene_metadata.pkl"  # as the LLaMA-Factory line keeps its scenes
NUM_FRAMES = 32
ABSENT = "no entry in any infos file"
REREAD = 8  # scenes at most that are read again to find how they agree


@dataclass(frozen=True)
class Settings:
    """Prepare questions about posed RGB-D scenes; without --data, from the sample rooms."""

    data: Path | None = option(None, "folder with embodiedscan_infos_*.pkl, or scene_metadata.pkl, and posed_images or "
                               "scannet/posed_images (default: the sample, made in data/raw/scenes/sample)")
    infos: tuple[Path, ...] = option((), "infos files that lie elsewhere; their names hold train, val or test",
                                     listed=True)
    questions: tuple[Path, ...] = option((), "SQA3D, ScanQA, Video-3D-LLM or LLaMA-Factory files, or folders of them "
                                         "(default: DATA/questions, or DATA/merged_training_data.json)", listed=True)
    output: Path | None = option(None, "folder (default: data/prepared/scenes)")
    num_frames: int | None = option(None, "frames of a scene at most, evenly spaced (default: "
                                    f"{NUM_FRAMES}, or what suits the sample)")
    turns: int | None = option(None, "questions of a scene that share one training record, whose frames are then seen "
                               "once for all of them (default: 1, or what suits the sample)")
    split: Literal["infos", "questions"] = option("infos", "by the infos file of a scene, or by the name of the "
                                                  "question file, as published results need it")
    seed: int = option(0, "of the order in which questions share records")
    depth_scale: float | None = option(None, "stored depth units per metre, e.g. 5000 for TUM, 6553.5 for Replica "
                                       "(default: 1000; 4000 for Matterport3D)")
    depth_encoding: DepthEncoding = option("plain", "how depth pixels are stored; sun3d: with their bits rotated by "
                                           "three")
    pose: Pose = option("camera-to-world", "what a pose matrix maps to what")
    camera_axes: CameraAxes = option(
        "opencv", "axes of the camera: x right, y down, z forward; x right, y up, z back; x forward, y left, z up")
    pose_unit: PoseUnit = option("m", "unit of the translations of poses and axis_align_matrix")
    world_up: WorldUp = option("z", "axis of the world that points up, after axis_align_matrix; y: ARKit and OpenGL")
    color_size: tuple[int, int] | None = option(None, "width x height, such as 1296x968, that the colour intrinsics "
                                                "belong to (default: of the pictures, or what their middle says)",
                                                parse=parse_size)
    depth_size: tuple[int, int] | None = option(None, "the same of the depth intrinsics", parse=parse_size)
    contradictions: Literal["drop", "keep"] = option("drop", "what becomes of a scene whose depth and poses contradict "
                                                     "each other; keep: it is only listed")

    @property
    def conventions(self) -> Conventions:
        """Of poses and depth."""
        return Conventions.of(self)

    @property
    def intrinsic_sizes(self) -> IntrinsicSizes:
        """(height, width) of the intrinsics of the colour and the depth camera."""
        return self.color_size, self.depth_size


def prepare(settings: Settings) -> dict:
    """Prepare scenes and questions; the output folder appears complete or not at all.

    Writes {train,val,test}.jsonl, scene_metadata.npz, posed_images/ (hard links to the chosen frames, copies where the
    file system has none) and metadata.json with all counts and drops.

    Returns:
        metadata, as in metadata.json.

    Raises:
        UserError: something about the input or the settings that the user can fix.
    """
    settings, source = _resolve(settings)
    questions, files = _read_questions(settings)
    asked = Counter(question.scene for question in questions if not question.problem)
    scenes, repeated = _read_scenes(settings, asked)
    wanted = [scene for scene in scenes.values() if asked[scene.name] and not scene.problem]
    agreements = _check_agreement(wanted, settings)
    with prepared_folder(settings.output, "scenes") as folder:
        rows, frame_rows = _write_frames(folder, [scene for scene in wanted if not scene.problem], settings)
        lost = _unusable(scenes, questions)
        kept, more = _split(questions, {name: scene for name, scene in scenes.items() if name in frame_rows}, settings)
        _check_splits(kept, settings, lost, more)
        records = {split: [_record([item], frame_rows[item[1].scene], rows["image"]) for item in members]
                   for split, members in kept.items()}
        if settings.turns > 1:
            records["train"] = [_record(items, frame_rows[items[0][1].scene], rows["image"])
                                for items in _together(kept["train"], settings.turns, settings.seed)]
        for split in SPLITS:
            write_jsonl(folder / f"{split}.jsonl", records[split])
        np.savez_compressed(folder / METADATA, **rows)
        return write_metadata(folder, "scenes", {
            "source": source, "parameters": {
                **{name: getattr(settings, name) for name in ("num_frames", "turns", "split", "seed",
                                                              "contradictions")},
                "own_sizes": settings.intrinsic_sizes, **vars(settings.conventions), "instruction": INSTRUCTION},
            "files": files, "counts": _counts(kept, records, scenes, rows, questions),
            "consistency": {name: agreement.numbers() for name, agreement in agreements.items()},
            "upward": {scene.name: consistency.upward(scene) for scene in wanted if scene.frames},
            "contradictions_kept": {name: agreement.contradiction for name, agreement in agreements.items()
                                    if agreement.contradiction and settings.contradictions == "keep"},
            "dropped": {"frames": [{"scene": scene.name, "frame": frame, "reason": reason}
                                   for scene in scenes.values() for frame, reason in scene.dropped],
                        "scenes": lost + repeated, "questions": more},
        })


def _resolve(settings: Settings) -> tuple[Settings, str]:
    """Settings with nothing open, and where the data came from."""
    check_choices(settings)
    if settings.num_frames is not None and settings.num_frames < 1:
        raise UserError(f"--num-frames must be at least 1, not {settings.num_frames}")
    if settings.turns is not None and settings.turns < 1:
        raise UserError(f"--turns must be at least 1, not {settings.turns}")
    if settings.depth_scale is not None and not 0 < settings.depth_scale < math.inf:
        raise UserError(f"--depth-scale must be a number above 0, not {settings.depth_scale}")
    data, frames, turns, source = settings.data, settings.num_frames, settings.turns, "user"
    if data is None:
        source, data = "sample", samples.ensure("scenes")
        suited = samples.settings_beside(data)
        frames, turns = frames or suited["num_frames"], turns or suited["turns"]
    if not data.is_dir():
        raise UserError(f"there is no data folder {data}")
    infos = settings.infos or _first(sorted((data / folder).glob(name)) for name in (
        "embodiedscan_infos_*.pkl", SCENE_METADATA) for folder in (".", "embodiedscan"))
    if not infos:
        raise UserError(f"there is no embodiedscan_infos_*.pkl and no {SCENE_METADATA} in {data} or its folder "
                        "embodiedscan: name the files with --infos")
    questions = settings.questions or _first([path] if path.exists() else [] for path in (
        data / "questions", data / "merged_training_data.json")) or (data / "questions",)
    return replace(settings, data=data, infos=infos, questions=questions, num_frames=frames or NUM_FRAMES,
                   turns=turns or 1), source


def _first(choices: Iterable[list[Path]]) -> tuple[Path, ...]:
    return tuple(next(filter(None, choices), ()))


def _read_scenes(settings: Settings, asked: Counter) -> tuple[dict[str, Scene], list[dict]]:
    """(scenes by name, those that a second infos file names again)."""
    scenes: dict[str, Scene] = {}
    repeated = []
    for path in settings.infos:
        split = next((name for name in SPLITS if f"_{name}" in f"_{path.stem.lower()}"), None)
        if path.name == SCENE_METADATA:
            read = read_scene_metadata(path, settings.data, asked, settings.conventions)
            _assign([scene for scene in read if scene.split not in SPLITS and asked[scene.name]], settings.seed)
        elif split is None:
            raise UserError(f"the name of the infos file {path} says neither train, val nor test")
        else:
            read = read_infos(path, split, settings.data, asked, settings.conventions)
        for scene in read:
            if scene.name in scenes:
                repeated.append({"scene": scene.name, "reason": f"named again in {path.name}", "questions": 0})
            else:
                scenes[scene.name] = scene
    return scenes, repeated


def _assign(scenes: list[Scene], seed: int) -> None:
    """Assign at random a split to each scene, 80 %, 10 % and 10 %."""
    rows = [{"scene": scene.name} for scene in scenes]
    assigned = split_groups(rows, dict(zip(SPLITS, (0.8, 0.1, 0.1), strict=True)), "scene", seed)
    split_of = {row["scene"]: split for split, members in assigned.items() for row in members}
    for scene in scenes:
        scene.split = split_of[scene.name]


def _read_questions(settings: Settings) -> tuple[list[Question], list[dict]]:
    questions, files = [], []
    for path in find_files([Path(path) for path in settings.questions]):
        rows = read_questions(path)
        questions += rows
        files.append({"name": path.name, "sha256": sha256(path), "questions": len(rows)})
    return questions, files


def _unusable(scenes: dict[str, Scene], questions: list[Question]) -> list[dict]:
    """Scenes that questions ask about and that have no metadata or no frame, with the number of their questions."""
    asked = Counter(question.scene for question in questions if question.scene)
    rows = [{"scene": name, "reason": ABSENT, "questions": count}
            for name, count in asked.items() if name not in scenes]
    return rows + [{"scene": scene.name, "reason": scene.problem, "questions": asked[scene.name]}
                   for scene in scenes.values() if scene.problem]


# ---------------------------------------------------------------- frames

def _check_agreement(scenes: list[Scene], settings: Settings) -> dict[str, Agreement]:
    """Agreement of depth and poses by scene; a scene that contradicts itself gets its problem.

    Raises:
        UserError: most scenes contradict themselves, and they agree when they are read with other flags.
    """
    used, intrinsic_sizes = settings.conventions, settings.intrinsic_sizes
    found = {scene.name: consistency.Comparison(scene, used, intrinsic_sizes).agreements([used])[0]
             for scene in tqdm(scenes, desc="comparing depth and poses", unit="scene", disable=None)}
    if settings.contradictions == "keep" or not scenes:
        return found
    together = consistency.pool(list(found.values()))
    doubtful = [scene for scene in scenes if found[scene.name].contradiction or found[scene.name].value is None]
    unclear = together.contradiction or together.value is None
    if any(agreement.contradiction for agreement in found.values()) or unclear:
        overlapping = sorted(doubtful, key=lambda scene: -len(found[scene.name].near))
        remedy, value = consistency.remedy(overlapping[:REREAD], used, intrinsic_sizes)
        flags = " ".join(remedy)
        if flags and unclear:
            raise UserError(f"{together.contradiction or 'the frames of the scenes do not overlap'}; they agree in "
                            f"{value:.2f} of them when they are read with {flags}: run again with that")
        for scene in doubtful:
            contradiction = found[scene.name].contradiction or together.contradiction
            if contradiction:
                scene.problem = f"{contradiction}{f'; many such scenes agree with {flags}' if flags else ''}"
    return found


def _write_frames(folder: Path, scenes: list[Scene],
                  settings: Settings) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Link the chosen frames; (arrays of scene_metadata.npz, rows of each scene)."""
    rows: dict[str, list] = {name: [] for name in (
        "scene", "image", "depth", "pose", "axis_align", "depth_intrinsic", "color_intrinsic", "depth_size",
        "color_size", "depth_scale", "depth_rotated_bits")}
    frame_rows: dict[str, list[int]] = {}
    for scene in tqdm(scenes, desc="choosing frames", unit="scene", disable=None):
        folder_of_scene, names = Path("posed_images") / scene.name, {}
        for frame, color_size, depth_size in choose_frames(scene, settings.num_frames, settings.intrinsic_sizes):
            for source in (frame.image, frame.depth):
                if source not in names:
                    names[source] = _free_name(source, names.values())
                    link(source, folder / folder_of_scene / names[source])
            frame_rows.setdefault(scene.name, []).append(len(rows["scene"]))
            values = {"scene": scene.name, "image": (folder_of_scene / names[frame.image]).as_posix(),
                      "depth": (folder_of_scene / names[frame.depth]).as_posix(), "pose": frame.pose,
                      "axis_align": scene.axis_align, "depth_intrinsic": frame.depth_intrinsic,
                      "color_intrinsic": frame.color_intrinsic, "depth_size": depth_size, "color_size": color_size,
                      "depth_scale": scene.depth_scale, "depth_rotated_bits": settings.conventions.rotated_bits}
            for name, value in values.items():
                rows[name].append(value)
    kinds = {"scene": str, "image": str, "depth": str, "depth_size": np.int32, "color_size": np.int32,
             "depth_rotated_bits": np.int32}
    return {name: np.array(values, dtype=kinds.get(name, np.float64)) for name, values in rows.items()}, frame_rows


def choose_frames(scene: Scene, count: int,
                  intrinsic_sizes: IntrinsicSizes = (None, None)) -> list[tuple[Frame, Size, Size]]:
    """Up to `count` frames by linspace over those that can be used, with the sizes (height, width) of both pictures.

    Only chosen frames are opened; where one turns out unusable it moves to `scene.dropped` and the choice is made
    anew over the rest. Returns nothing, and sets `scene.problem`, where none is left.
    """
    opened: dict[Path, tuple] = {}  # (colour size, depth size, what is wrong, frame with fitting intrinsics)
    while scene.frames:
        number = len(scene.frames)
        places = np.linspace(0, number - 1, min(count, number)).round().astype(int)
        picked = [scene.frames[i] for i in places]
        for frame in picked:
            if frame.image not in opened:
                color, depth, problem = sizes(frame)
                fitted, problem = (frame, problem) if problem else fit(frame, color, depth, intrinsic_sizes)
                opened[frame.image] = color, depth, problem, fitted
        # The sizes of a camera are those of most of its frames that fit its intrinsics.
        sizes_of: dict[bytes, Counter] = {}
        for frame in scene.frames:
            if frame.image in opened and not opened[frame.image][2]:
                sizes_of.setdefault(_camera(frame), Counter())[opened[frame.image][:2]] += 1
        bad = {}
        for frame in picked:
            color, depth, problem, _ = opened[frame.image]
            if not problem and (color, depth) != sizes_of[_camera(frame)].most_common(1)[0][0]:
                problem = "sizes of its pictures are not those of the scene's other frames"
            if problem:
                bad[frame.image] = problem
        if not bad:
            return [(opened[frame.image][3], *opened[frame.image][:2]) for frame in picked]
        scene.dropped += [(image.name, reason) for image, reason in bad.items()]
        scene.frames = [frame for frame in scene.frames if frame.image not in bad]
    scene.problem = f"none of its frames can be used ({scene.dropped[-1][1]})"
    return []


def _camera(frame: Frame) -> bytes:
    return frame.color_intrinsic.tobytes() + frame.depth_intrinsic.tobytes()


def _free_name(source: Path, taken: Container[str]) -> str:
    """A file's own name, with those of folders above it where the scene has another file of that name."""
    names = chain(("_".join(source.parts[-parts:]) for parts in (1, 2, 3)),
                  (f"{number}_{source.name}" for number in count(2)))
    return next(name for name in names if name not in taken)


# ---------------------------------------------------------------- records

def _split(questions: list[Question], scenes: dict[str, Scene], settings: Settings) -> tuple[dict, list[dict]]:
    """((id, question) pairs by split, questions left out for a reason of their own)."""
    kept: dict[str, list[tuple[str, Question]]] = {split: [] for split in SPLITS}
    dropped, ids = [], Counter()
    seen: dict[tuple, tuple[str, int]] = {}  # where in `kept` a question is
    for question in questions:
        name_of_row = f"{question.dataset}-{question.id}"
        asked = (question.dataset, question.scene, question.situation, question.text)
        scene = scenes.get(question.scene)
        split = question.split if settings.split == "questions" else scene and scene.split
        problem = question.problem
        if not problem and asked in seen:
            problem = "asked before"
            before, position = seen[asked]
            name, first = kept[before][position]
            more = tuple(answer for answer in question.answers if answer not in first.answers)
            if more and before == split:
                problem = "asked before; its answers are added there"
                kept[before][position] = name, replace(first, answers=first.answers + more)
        if not problem and scene and split is None:
            problem = "its file's name says neither train, val nor test"
        if problem:
            dropped.append({"id": name_of_row, "scene": question.scene, "reason": problem})
        elif scene:
            seen[asked] = split, len(kept[split])
            ids[name_of_row] += 1  # files may number their questions alike
            kept[split].append((name_of_row + (f"-{ids[name_of_row]}" if ids[name_of_row] > 1 else ""), question))
    return kept, dropped


def _together(items: list[tuple[str, Question]], turns: int, seed: int) -> list[list[tuple[str, Question]]]:
    """Questions of one scene in groups of up to `turns`, in an order drawn by seed and scene."""
    by_scene: dict[str, list] = {}
    for item in items:
        by_scene.setdefault(item[1].scene, []).append(item)
    groups = []
    for name, members in by_scene.items():
        random.Random(f"{seed}:{name}").shuffle(members)
        groups += [members[start:start + turns] for start in range(0, len(members), turns)]
    return groups


def _record(items: list[tuple[str, Question]], rows: list[int], images: np.ndarray) -> dict:
    """A record that asks the questions of `items` in turn; rows are those of its scene's frames."""
    turns, types = [], [question_type(question.text) for _, question in items]
    for _, question in items:
        text = " ".join(filter(None, (question.situation, question.text)))
        if not turns:
            text = f"{'<image>' * len(rows)}\n{INSTRUCTION}\n{text}"
        turns += [{"from": "human", "value": text}, {"from": "gpt", "value": question.answers[0]}]
    name, first = items[0]
    asks = {"task": task_of(types[0]), "question_type": types[0], "answers": list(first.answers)}
    return {"id": name, "image": [str(images[row]) for row in rows], "conversations": turns,
            **(asks if len(items) == 1 else {"question_types": types}), "group": first.scene,
            "scene": {"metadata": METADATA, "frames": rows}}


def _check_splits(kept: dict[str, list], settings: Settings, lost: list[dict], dropped: list[dict]) -> None:
    if not any(kept.values()):
        scenes = [row for row in lost if row["questions"]]
        rows, what = (scenes, "scenes") if scenes else (dropped, "questions")
        (reason, number), = Counter(row["reason"] for row in rows).most_common(1) or [("there is none", 0)]
        same = reason in ("there is none", ABSENT)
        hint = "; see that --data, --infos and --questions belong to the same scans" if same else ""
        raise UserError("no question is about a scene with metadata and usable frames "
                        f"({number} of {len(rows)} {what}: {reason}){hint}")
    if not kept["train"]:
        raise UserError("no question falls into the training split; "
                        + ("try --split questions" if settings.split == "infos" else "try --split infos"))
    groups = {split: {question.scene for _, question in items} for split, items in kept.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = groups[one] & groups[other]
        if both:
            raise UserError(f"{len(both)} scenes have questions in {one} and in {other} (such as {min(both)}): "
                            "use --split infos")


def _counts(kept: dict, records: dict, scenes: dict[str, Scene], rows: dict, questions: list[Question]) -> dict:
    types = {split: Counter(map(question_type, (question.text for _, question in items)))
             for split, items in kept.items()}
    scales = Counter(rows["depth_scale"].tolist())
    return {
        "scenes": {split: len({question.scene for _, question in items}) for split, items in kept.items()},
        "questions": {split: len(items) for split, items in kept.items()},
        "records": {split: len(members) for split, members in records.items()},
        "by_type": {split: {f"{task_of(kind)}: {kind}": number for kind, number in sorted(counts.items())}
                    for split, counts in types.items()},
        "frames": len(rows["scene"]),
        "frames_by_depth_scale": {f"{scale:g}": number for scale, number in sorted(scales.items())},
        "questions_read": len(questions), "scenes_in_infos": len(scenes),
        "scenes_without_questions": len(scenes) - len({question.scene for question in questions} & set(scenes)),
    }
