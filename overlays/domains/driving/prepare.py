"""Clips with egomotion -> windows of one second with the velocity and curvature of the next, split by clip."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from overlays import samples
from overlays.data import records as annotation
from overlays.data.splits import parse_fractions, split_groups
from overlays.domains.base import SPLITS, check_output, parameters, unfinished_mark, write_metadata
from overlays.domains.driving import clips, consistency, egomotion
from overlays.domains.driving.answers import MAX_SPEED_MPS, format_pairs, question
from overlays.domains.driving.clips import CAMERA, SPLIT_NAMES, Clip
from overlays.domains.driving.consistency import Agreement
from overlays.domains.driving.egomotion import (
    SPEED_UNITS,
    Conventions,
    CurvatureSign,
    Egomotion,
    QuaternionOrder,
    RigAxes,
    SpeedUnit,
    VelocityFrame,
)
from overlays.domains.driving.skips import ClipSkip, no_room
from overlays.domains.driving.windows import PAIRS, Drop, Pairs, Window, cut, frame_rate
from overlays.errors import UserError
from overlays.files import sweep, temporary_folder, write_jsonl
from overlays.flags import check_choices, option

# What reads a file as well whose yaw rate and curvature have opposite signs.
OR_FRD = ", or with --rig-axes frd where the rig's y axis points right (NED, left-handed axes)"


@dataclass(frozen=True)
class Settings:
    """Prepare driving clips with egomotion; without --raw, the sample clips."""

    raw: Path | None = option(None, "folder with camera/<camera> and labels/egomotion, archives or unpacked (default: "
                              "the sample clips, made in data/raw/driving/sample)")
    camera: str = option(CAMERA, "which camera")
    output: Path | None = option(None, "folder (default: data/prepared/driving; driving_motion with --motion-only)")
    pairs: int | None = option(None, "pairs in an answer, spread evenly over the second, whatever the frame rate "
                               f"(default: {PAIRS}, or what suits the sample)")
    past_motion: bool = option(False, "tell the pairs of the second that is seen")
    stride: int | None = option(None, "frames from one window to the next (default: one second)")
    max_gap_s: float | None = option(None, "seconds without egomotion that are still interpolated (default: 0.1, or "
                                     "1.5 times the usual step of a clip with fewer rows)", flag="max-gap")
    max_frame_gap_s: float | None = option(None, "seconds between two frames, where some are missing (default: 0.1, or "
                                           "1.5 times the usual step)", flag="max-frame-gap")
    velocity_frame: VelocityFrame = option("start", "frame of vx vy vz: the rig's at t = 0, or the car's own at the "
                                           "time of the row")
    quaternion_order: QuaternionOrder = option("xyzw", "order of the columns qx qy qz qw; wxyz: the first one holds w")
    curvature_sign: CurvatureSign = option("left", "the side to which curvature is positive")
    speed_unit: SpeedUnit = option("m/s", "unit of vx vy vz")
    rig_axes: RigAxes = option("flu", "axes of the rig that the quaternion turns: x forward, y left, z up; frd: x "
                               "forward, y right, z down (NED, comma2k19), or left-handed ones")
    contradictions: Literal["drop", "keep"] = option("drop", "what becomes of a clip whose heading, velocity, position "
                                                     "and curvature contradict each other; keep: it is only listed")
    cut: bool = option(False, "write every window as a video of its own")
    cut_quality: int = option(0, "x264 quality of these: 0 lossless, 18 looks so")
    splits: Literal["auto", "index", "own"] = option(
        "auto", "index: the splits of clip_index.parquet; own: clips assigned at random; auto: those of the index "
        "where it names all clips")
    split_fractions: tuple[float, float, float] = option((0.8, 0.1, 0.1), "train,val,test of own splits",
                                                         parse=parse_fractions)
    messages: bool = option(False, "messages: write messages/*.jsonl in the Hugging Face layout as well",
                            flag="format", values={"training": False, "messages": True})
    motion_only: bool = option(False, "no videos: motion.jsonl with the pairs of every window, for logs without "
                               "pictures")
    limit: int | None = option(None, "clips at most, the first by name")
    workers: int = option(os.cpu_count() or 1, "processes")
    seed: int = option(0, "of own splits")


@dataclass
class Outcome:
    """What became of one clip: its records, or why it was left out."""

    clip: str
    records: list[dict] = field(default_factory=list)
    skip_reason: tuple[str, str] | None = None
    dropped: list[Drop] = field(default_factory=list)
    fps: int = 0
    repairs: dict[str, int] = field(default_factory=dict)
    bent: int = 0
    fitted: bool = False
    agreement: Agreement | None = None
    remedy: tuple[str, ...] = ()  # flags under which a clip that contradicts itself agrees


def prepare(settings: Settings) -> dict:
    """Prepare clips. Videos are put below `output` first and stay where a run is interrupted; the annotation files
    and then metadata.json are replaced at the end. Videos are named by clip and source, so that annotation of another
    camera or folder, which such a run has not replaced, names its own pictures still.

    Writes {train,val,test}.jsonl, clips/*.mp4 (or segments/*.mp4) and metadata.json, with every dropped clip, window
    and archive. A record holds, beside the question and answer: `video`, `video_start`, `video_end` (frames, end
    exclusive; not for segments), `clip`, `start_us`, `times` (seconds of the pairs from the last frame seen),
    `future` {"v", "k"}, `past` {"times", "v", "k"}, `low_speed`, `task`, `split`.

    Returns:
        metadata, as in metadata.json.

    Raises:
        UserError: something about the input or the settings that the user can fix, or not one window.
    """
    settings = _resolve(settings)
    all_clips, refused = clips.find(settings.raw, settings.camera)
    all_clips = all_clips[:settings.limit]
    output = Path(settings.output)
    check_output(output, "driving")
    output.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_mark(output, "driving")
    if not (output / "metadata.json").is_file():
        unfinished.touch()
    for folder in (output, *(output / name for name in ("clips", "segments", "messages"))):
        sweep(folder)
    outcomes = list(_run(all_clips, settings))
    _check_conventions(outcomes, settings)
    split_of, splits_by = _splits(all_clips, outcomes, settings)
    records: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for outcome in outcomes:
        split = split_of.get(outcome.clip)
        for record in outcome.records:
            record["split"] = split
            records[split].append(record)
    metadata = _metadata(settings, outcomes, refused, records, splits_by)
    if not metadata["counts"]["windows"]:
        reasons = metadata["dropped"]["archives"] + metadata["dropped"]["clips"] + metadata["dropped"]["windows"]
        first = "".join(f": {row['reason']}, {row['detail']}" for row in reasons[:1])
        raise UserError(f"not one window could be made of {len(all_clips)} clips in {settings.raw} "
                        f"({len(reasons)} drops{first})")
    _write(output, settings, records)
    metadata = write_metadata(output, "driving", metadata)
    unfinished.unlink(missing_ok=True)
    return metadata


def _resolve(settings: Settings) -> Settings:
    """Fill in the sample and its defaults, and check the parameters."""
    values = {**settings.__dict__}
    if settings.raw is None:
        values["raw"] = samples.ensure("driving")
    if settings.pairs is None:
        values["pairs"] = samples.settings_beside(Path(values["raw"])).get("pairs", PAIRS)
    for name in ("pairs", "stride", "limit", "workers"):
        if values[name] is not None and values[name] < 1:
            raise UserError(f"--{name} must be at least 1, got {values[name]}")
    for flag, gap in (("max-gap", settings.max_gap_s), ("max-frame-gap", settings.max_frame_gap_s)):
        if gap is not None and not 0 < gap < math.inf:
            raise UserError(f"--{flag} must be a number of seconds above 0, got {gap}")
    if not 0 <= settings.cut_quality <= 51:
        raise UserError(f"--cut-quality must lie between 0 (lossless) and 51, got {settings.cut_quality}")
    check_choices(settings)
    fractions = settings.split_fractions
    if (len(fractions) != 3 or not all(map(math.isfinite, fractions)) or min(fractions) < 0 or fractions[0] <= 0
            or abs(sum(fractions) - 1) > 1e-6):
        raise UserError(f"split fractions {fractions} must be three numbers that sum to 1, the first above 0")
    return Settings(**values)


def _run(all_clips: list[Clip], settings: Settings) -> Iterator[Outcome]:
    """Outcomes in the order of the clips."""
    work = partial(_prepare_clip, settings=settings)
    workers = min(settings.workers, len(all_clips) or 1)
    with tqdm(total=len(all_clips), desc="clips", unit="clip") as bar:
        if workers == 1:
            for clip in all_clips:
                yield work(clip)
                bar.update()
            return
        try:
            with ProcessPoolExecutor(workers) as pool:
                for outcome in pool.map(work, all_clips, chunksize=4):
                    yield outcome
                    bar.update()
        except BrokenProcessPool:
            raise UserError("a worker process was killed, perhaps for want of memory: run again with fewer "
                            f"--workers than {workers}") from None


def _prepare_clip(clip: Clip, settings: Settings) -> Outcome:
    outcome = Outcome(clip.name)
    try:
        _fill(outcome, clip, settings)
    except ClipSkip as skip:
        outcome.skip_reason, outcome.records = (skip.reason, skip.detail), []
    except UserError as error:
        outcome.skip_reason, outcome.records = ("damaged archive", str(error)), []
    except Exception as error:  # one odd clip of thousands must not stop the others
        message = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"
        if no_room(error):
            raise UserError(f"disk or memory ran out at clip {clip.name} ({message}): make room and run again; what is "
                            "there is kept") from None
        outcome.skip_reason, outcome.records = ("cannot be prepared", f"{clip.name}: {message}"), []
    return outcome


def _fill(outcome: Outcome, clip: Clip, settings: Settings) -> None:
    """Windows and media of one clip. Raises ClipSkip or UserError."""
    if not clip.valid:
        raise ClipSkip("marked invalid", f"clip_index.parquet says that {clip.name} is not valid")
    if clip.split is not None and settings.splits != "own" and clip.split not in SPLIT_NAMES:
        raise ClipSkip("unknown split", f"clip_index.parquet puts {clip.name} into {clip.split!r}")
    if clip.egomotion is None:
        raise ClipSkip("no egomotion", f"{clip.name} has no .egomotion.parquet")
    if clip.timestamps is None:
        raise ClipSkip("no timestamps", f"{clip.name} has no .{settings.camera}.timestamps.parquet")
    if clip.video is None and not settings.motion_only:
        raise ClipSkip("no video", f"{clip.name} has no .{settings.camera}.mp4, "
                                   f"{', '.join(clips.VIDEO_SUFFIXES[1:-1])} or {clips.VIDEO_SUFFIXES[-1]}")
    motion = _read_motion(clip.egomotion.read(), f"{clip.name}.egomotion.parquet", settings)
    outcome.repairs, outcome.fitted, outcome.bent = motion.repairs, bool(motion.fitted.any()), int(
        motion.bent.sum())
    outcome.agreement = consistency.measure(motion)
    contradiction = outcome.agreement.contradiction
    if contradiction and settings.contradictions == "drop":
        outcome.remedy = consistency.remedy(motion, outcome.agreement, Conventions.of(settings))
        agrees = f"; it agrees with {' '.join(outcome.remedy)}" if outcome.remedy else ""
        raise ClipSkip(contradiction[0], f"{clip.name}: {contradiction[1]}{agrees}")
    times = clips.read_timestamps(clip.timestamps, clip.name)
    outcome.fps = frame_rate(times, clip.name)
    windows, outcome.dropped = cut(times, motion, settings.pairs, settings.stride, settings.max_gap_s,
                                   settings.max_frame_gap_s, clip.name)
    if settings.motion_only:
        outcome.records = [_motion(clip, window) for window in windows]
        return
    if not windows:
        return
    name = f"{clip.name}.{clip.video.digest()}"
    if settings.cut:
        with temporary_folder(settings.output, f"video.{clip.name}") as temporary:
            video = temporary / f"{clip.name}{clip.video.suffix}"
            clip.video.place(video)
            stamps, _ = _stamps(video, times)
            names = {window.start: f"segments/{name}-{window.start:05d}.mp4" for window in windows}
            lost = clips.cut(video, stamps, [(window.start, window.end) for window in windows],
                             [settings.output / name for name in names.values()], settings.cut_quality)
        media = {start: {"video": name} for start, name in names.items()}
    else:
        name += clip.video.suffix
        video = settings.output / "clips" / name
        clip.video.place(video)
        _, leading = _stamps(video, times)
        lost = [window.start for window in windows if window.start < leading]
        media = {window.start: {"video": f"clips/{name}", "video_start": window.start, "video_end": window.end}
                 for window in windows}
    outcome.dropped += [(window.start, "frames that cannot be decoded", f"frames {window.start} to {window.end - 1}")
                        for window in windows if window.start in lost]
    outcome.records = [_record(clip, window, outcome.fps, settings, media[window.start]) for window in windows
                       if window.start not in lost]


def _read_motion(content: bytes, name: str, settings: Settings) -> Egomotion:
    """An egomotion file without rows that are too fast, unless they are so for their unit. Raises ClipSkip."""
    used = Conventions.of(settings)
    if settings.contradictions == "drop":
        motion = egomotion.read(content, name, used, MAX_SPEED_MPS / min(SPEED_UNITS.values()))
        if np.linalg.norm(motion.velocity, axis=1).max() <= MAX_SPEED_MPS:
            return motion
        agreement = consistency.measure(motion)
        if agreement.contradiction and any(flag.startswith("--speed-unit") for flag in
                                           consistency.remedy(motion, agreement, used)):
            return motion
    return egomotion.read(content, name, used)


def _check_conventions(outcomes: list[Outcome], settings: Settings) -> None:
    """Refuse a set whose clips follow other conventions: those that go straight would be kept, and be wrong.

    Raises:
        UserError: for a flag that is not given, more clips contradict themselves without it than do not, and more
            than one does or there is no other clip: a clip that is odd for itself has no say over straight ones.
    """
    other = [outcome for outcome in outcomes if outcome.remedy]
    least = min(2, sum(outcome.agreement is not None for outcome in outcomes))
    wanted = []
    for flag in sorted({flag for outcome in other for flag in outcome.remedy}):
        without = sum(flag not in outcome.remedy and outcome.agreement.tells(flag) for outcome in outcomes
                      if outcome.agreement and (outcome.remedy or not outcome.agreement.contradiction))
        if (wanting := sum(flag in outcome.remedy for outcome in other)) > without and wanting >= least:
            wanted.append(flag)
    if wanted:
        reason, detail = other[0].agreement.contradiction
        raise UserError(f"{len(other)} of {len(outcomes)} clips in {settings.raw} contradict themselves ({reason}: "
                        f"{other[0].clip}: {detail}) and agree when they are read with {' '.join(wanted)}: run again "
                        f"with that{OR_FRD if wanted == ['--curvature-sign right'] else ''}")


def _stamps(video: Path, times: np.ndarray) -> tuple[np.ndarray, int]:
    """As `clips.frame_stamps`, one for every timestamp of the camera. Raises ClipSkip."""
    stamps, leading = clips.frame_stamps(video)
    if len(stamps) != len(times):
        raise ClipSkip("frames and timestamps differ",
                        f"{video.name} has {len(stamps)} frames, {len(times)} timestamps")
    return stamps, leading


def _numbers(values: np.ndarray, decimals: int) -> list[float]:
    return [round(float(value), decimals) + 0.0 for value in values]


def _pairs(pairs: Pairs) -> dict:
    return {"v": _numbers(pairs.v, 4), "k": _numbers(pairs.k, 7)}


def _motion(clip: Clip, window: Window) -> dict:
    return {
        "id": f"{clip.name}-{window.start:05d}", "clip": clip.name, "start_us": window.start_us,
        "times": _numbers(window.future.times, 6), "future": _pairs(window.future),
        "past": {"times": _numbers(window.past.times, 6), **_pairs(window.past)}, "low_speed": window.low_speed,
        **({"road": clip.road} if clip.road else {}),
    }


def _record(clip: Clip, window: Window, fps: int, settings: Settings, media: dict) -> dict:
    told = (window.past.v, window.past.k) if settings.past_motion else None
    asked = question(fps, len(window.future.v), told)
    motion = _motion(clip, window)
    return {
        "id": motion.pop("id"), **media,
        "conversations": [
            {"from": "human", "value": f"<video>\n{asked}"},
            {"from": "gpt", "value": format_pairs(window.future.v, window.future.k)},
        ],
        "task": "past_motion" if settings.past_motion else "video_only", **motion,
    }


def _splits(all_clips: list[Clip], outcomes: list[Outcome], settings: Settings) -> tuple[dict[str, str], str]:
    """Clip -> split for every clip with a window, and whose splits they are: "index" or "own"."""
    used = {outcome.clip: len(outcome.records) for outcome in outcomes if outcome.records}
    given = {clip.name: SPLIT_NAMES[clip.split] for clip in all_clips
             if clip.name in used and clip.split in SPLIT_NAMES}
    if settings.splits == "index" and len(given) < len(used):
        lacking = sorted(set(used) - set(given))
        raise UserError(f"clip_index.parquet of {settings.raw} gives no split for {len(lacking)} of {len(used)} clips, "
                        f"{lacking[0]} first: use --splits own")
    if settings.splits != "own" and used and len(given) == len(used):
        return given, "index"
    rows = [{"clip": name} for name, number in used.items() for _ in range(number)]
    shares = dict(zip(SPLITS, settings.split_fractions, strict=True))
    assigned = split_groups(rows, shares, "clip", settings.seed)
    return {row["clip"]: split for split, members in assigned.items() for row in members}, "own"


def _metadata(settings: Settings, outcomes: list[Outcome], refused: list[dict], records: dict[str, list[dict]],
              splits_by: str) -> dict:
    every = [record for split in SPLITS for record in records[split]]
    lost_clips = [{"clip": o.clip, "reason": o.skip_reason[0], "detail": o.skip_reason[1]} for o in outcomes
                  if o.skip_reason]
    lost_windows = [{"clip": o.clip, "start": start, "reason": reason, "detail": detail} for o in outcomes
                    for start, reason, detail in sorted(o.dropped) if not o.skip_reason]
    repairs: Counter[str] = Counter()
    for outcome in outcomes:
        repairs.update(outcome.repairs)
    future = np.array([pair for record in every for pair in zip(record["future"]["v"], record["future"]["k"],
                                                                strict=True)]).reshape(-1, 2)
    return {
        "format": 1, "parameters": parameters(settings), "splits_by": splits_by,
        "fps": sorted({outcome.fps for outcome in outcomes if outcome.records}),
        "consistency": {outcome.clip: outcome.agreement.numbers() for outcome in outcomes if outcome.agreement},
        "contradictions_kept": {} if settings.contradictions == "drop" else {
            outcome.clip: ", ".join(outcome.agreement.contradiction) for outcome in outcomes
            if outcome.agreement and outcome.agreement.contradiction},
        "counts": {
            "clips": len(outcomes), "clips_used": sum(bool(outcome.records) for outcome in outcomes),
            "clips_dropped": dict(Counter(row["reason"] for row in lost_clips)),
            "archives_refused": len(refused), "windows": len(every),
            **{split: len(records[split]) for split in SPLITS},
            "windows_dropped": dict(Counter(row["reason"] for row in lost_windows)),
            "low_speed": sum(record["low_speed"] for record in every),
            "curvature_fitted": sum(outcome.fitted for outcome in outcomes),
            "curvature_out_of_range": sum(outcome.bent for outcome in outcomes), "rows_left_out": dict(repairs),
        },
        "future": {} if not len(future) else {
            "v_mean": float(future[:, 0].mean()), "v_min": float(future[:, 0].min()),
            "v_max": float(future[:, 0].max()), "k_min": float(future[:, 1].min()),
            "k_max": float(future[:, 1].max()), "k_mean_abs": float(np.abs(future[:, 1]).mean()),
        },
        "dropped": {"archives": refused, "clips": lost_clips, "windows": lost_windows},
    }


def _write(output: Path, settings: Settings, records: dict[str, list[dict]]) -> None:
    """Annotation files; then what earlier ones named and they no longer do is deleted."""
    if settings.motion_only:
        write_jsonl(output / "motion.jsonl", [row for split in SPLITS for row in records[split]])
        return
    earlier = _named(output)
    for split in SPLITS:
        write_jsonl(output / f"{split}.jsonl", records[split])
        if settings.messages:
            from overlays.data.messages import to_messages

            write_jsonl(output / "messages" / f"{split}.jsonl", map(to_messages, records[split]))
    named = {record["video"] for split in SPLITS for record in records[split]}
    for folder in ("clips", "segments"):
        kept, dropped = ({Path(name).name for name in names if name.startswith(f"{folder}/")}
                         for names in (named, earlier))
        clips.remove_other(output / folder, kept, dropped)
    if not settings.messages:
        clips.remove_other(output / "messages", set(), {f"{split}.jsonl" for split in SPLITS})


def _named(output: Path) -> set[str]:
    """Videos that the annotation files of a folder name."""
    files = [output / f"{split}.jsonl" for split in SPLITS]
    rows = (row for file in files if file.is_file() for _, row in annotation.scan(file) if isinstance(row, dict))
    return {row["video"] for row in rows if isinstance(row.get("video"), str)}
