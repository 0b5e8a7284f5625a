"""Clips with egomotion -> windows of one second with the velocity and curvature of the next, split by clip."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from overlays.data import records as annotation
from overlays.domains.driving import clips, egomotion
from overlays.domains.driving.answers import format_pairs, question
from overlays.domains.driving.clips import CAMERA, SPLIT_NAMES, Clip
from overlays.domains.driving.faults import ClipFault, no_room
from overlays.domains.driving.windows import Drop, Pairs, Window, cut, frame_rate
from overlays.errors import UserError
from overlays.files import write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "data" / "raw" / "driving" / "sample"
OUTPUT = ROOT / "data" / "prepared" / "driving"
SPLITS = ("train", "val", "test")
MARKER = ".driving"  # in a folder that a run began to fill: one that was killed may go on there


@dataclass(frozen=True)
class Settings:
    """What `prepare` is asked to do.

    Attributes:
        raw: folder with camera/ and labels/; None makes the sample clips and takes them.
        camera: which camera.
        output: folder of the prepared data.
        pairs: pairs in an answer, spread evenly over the second; None takes the sample's value, or one a frame.
        past_motion: the prompt tells the pairs of the second that is seen.
        stride: frames from one window to the next; None takes one second.
        max_gap_s: longest gap in the egomotion that is interpolated; None takes 0.1 s, or for a clip whose rows are
            further apart one and a half of its usual steps.
        cut: write every window as a file of its own instead of naming frames of the clip.
        cut_quality: x264's; 0 is lossless.
        splits: "index" takes the index's, "own" deals the clips out, "auto" is "index" where every clip has one.
        split_fractions: of train, val and test, for own splits.
        messages: write messages/{train,val,test}.jsonl in the Hugging Face layout as well.
        motion_only: no videos: motion.jsonl with the pairs of every window, for logs without pictures.
        limit: clips at most, the first by name.
        workers: processes.
        seed: of own splits.
    """

    raw: Path | None = None
    camera: str = CAMERA
    output: Path = OUTPUT
    pairs: int | None = None
    past_motion: bool = False
    stride: int | None = None
    max_gap_s: float | None = None
    cut: bool = False
    cut_quality: int = 0
    splits: str = "auto"
    split_fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    messages: bool = False
    motion_only: bool = False
    limit: int | None = None
    workers: int = 2
    seed: int = 0


@dataclass
class Outcome:
    """What became of one clip: its records, or why it was left out."""

    clip: str
    records: list[dict] = field(default_factory=list)
    fault: tuple[str, str] | None = None
    dropped: list[Drop] = field(default_factory=list)
    fps: int = 0
    repairs: dict[str, int] = field(default_factory=dict)
    bent: int = 0
    fitted: bool = False


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
        UserError: something about the input or the settings that the user can mend, or not one window.
    """
    settings = _settle(settings)
    found, refused = clips.find(settings.raw, settings.camera)
    found = found[:settings.limit]
    output = Path(settings.output)
    _check_output(output)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / "metadata.json").is_file():
        (output / MARKER).touch()
    clips.remove_leftovers(output)
    outcomes = list(_run(found, settings))
    split_of, splits_by = _splits(found, outcomes, settings)
    records: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for outcome in outcomes:
        split = split_of.get(outcome.clip)
        for record in outcome.records:
            record["split"] = split
            records[split].append(record)
    metadata = _metadata(settings, outcomes, refused, records, splits_by)
    if not metadata["counts"]["windows"]:
        reasons = metadata["dropped"]["archives"] + metadata["dropped"]["clips"] + metadata["dropped"]["windows"]
        first = f": {reasons[0].get('detail') or reasons[0]['reason']}" if reasons else ""
        raise UserError(f"not one window could be made of {len(found)} clips in {settings.raw} "
                        f"({len(reasons)} drops{first})")
    _write(output, settings, records)
    write_json(output / "metadata.json", metadata)
    (output / MARKER).unlink(missing_ok=True)
    return metadata


def _settle(settings: Settings) -> Settings:
    """Fill in the sample and its defaults, and check the parameters."""
    values = {**settings.__dict__}
    if settings.raw is None:
        values["raw"] = ensure_sample(SAMPLE)
    note = Path(values["raw"]) / "sample.json"
    if note.is_file() and settings.pairs is None:
        values["pairs"] = json.loads(note.read_text(encoding="utf-8")).get("prepare", {}).get("pairs")
    for name in ("pairs", "stride", "limit", "workers"):
        if values[name] is not None and values[name] < 1:
            raise UserError(f"--{name} must be at least 1, got {values[name]}")
    if settings.max_gap_s is not None and not 0 < settings.max_gap_s < math.inf:
        raise UserError(f"--max-gap must be a number of seconds above 0, got {settings.max_gap_s}")
    if not 0 <= settings.cut_quality <= 51:
        raise UserError(f"--cut-quality must lie between 0 (lossless) and 51, got {settings.cut_quality}")
    if settings.splits not in ("auto", "index", "own"):
        raise UserError(f"--splits must be auto, index or own, got {settings.splits!r}")
    fractions = settings.split_fractions
    if (len(fractions) != 3 or not all(map(math.isfinite, fractions)) or min(fractions) < 0 or fractions[0] <= 0
            or abs(sum(fractions) - 1) > 1e-6):
        raise UserError(f"split fractions {fractions} must be three numbers that sum to 1, the first above 0")
    return Settings(**values)


def ensure_sample(folder: Path) -> Path:
    """The folder of the sample clips, made where it is missing, unfinished or of another version."""
    from overlays.domains.driving.sample import VERSION, sample

    note = folder / "sample.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")).get("version") == VERSION:
        return folder
    return sample(folder)


def _check_output(output: Path) -> None:
    """Refuse a folder with other files than prepared clips, known by their metadata, or what a killed run left."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output} is a file: give a folder")
    there = sorted(path.name for path in output.iterdir() if path.name[0] != ".") if output.is_dir() else []
    if there and not (output / MARKER).is_file() and _domain(output / "metadata.json") != "driving":
        raise UserError(f"output folder {output} holds other files ({there[0]}): give an empty or new folder")


def _domain(metadata: Path) -> str | None:
    try:
        return json.loads(metadata.read_text(encoding="utf-8"))["domain"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(found: list[Clip], settings: Settings) -> Iterator[Outcome]:
    """Outcomes in the order of the clips."""
    work = partial(_prepare_clip, settings=settings)
    workers = min(settings.workers, len(found) or 1)
    with tqdm(total=len(found), desc="clips", unit="clip") as bar:
        if workers == 1:
            for clip in found:
                yield work(clip)
                bar.update()
            return
        try:
            with ProcessPoolExecutor(workers) as pool:
                for outcome in pool.map(work, found, chunksize=4):
                    yield outcome
                    bar.update()
        except BrokenProcessPool:
            raise UserError("a worker process was killed, perhaps for want of memory: run again with fewer "
                            f"--workers than {workers}") from None


def _prepare_clip(clip: Clip, settings: Settings) -> Outcome:
    outcome = Outcome(clip.name)
    try:
        _fill(outcome, clip, settings)
    except ClipFault as fault:
        outcome.fault, outcome.records = (fault.reason, fault.detail), []
    except UserError as error:
        outcome.fault, outcome.records = ("damaged archive", str(error)), []
    except Exception as error:  # one odd clip of thousands must not stop the others
        said = (str(error).strip().splitlines() or ["no message"])[0][:200]
        if no_room(error):
            raise UserError(f"disk or memory ran out at clip {clip.name} ({type(error).__name__}: {said}): make room "
                            "and run again; what is there is kept") from None
        outcome.fault, outcome.records = ("cannot be prepared", f"{clip.name}: {type(error).__name__}: {said}"), []
    return outcome


def _fill(outcome: Outcome, clip: Clip, settings: Settings) -> None:
    """Windows and media of one clip. Raises ClipFault or UserError."""
    if not clip.valid:
        raise ClipFault("marked invalid", f"clip_index.parquet says that {clip.name} is not valid")
    if clip.split is not None and settings.splits != "own" and clip.split not in SPLIT_NAMES:
        raise ClipFault("unknown split", f"clip_index.parquet puts {clip.name} into {clip.split!r}")
    if clip.egomotion is None:
        raise ClipFault("no egomotion", f"{clip.name} has no .egomotion.parquet")
    if clip.timestamps is None:
        raise ClipFault("no timestamps", f"{clip.name} has no .{settings.camera}.timestamps.parquet")
    if clip.video is None and not settings.motion_only:
        raise ClipFault("no video", f"{clip.name} has no .{settings.camera}.mp4")
    motion = egomotion.read(clip.egomotion.read(), f"{clip.name}.egomotion.parquet")
    outcome.repairs, outcome.fitted, outcome.bent = motion.repairs, bool(motion.fitted.any()), motion.bent
    times = clips.read_timestamps(clip.timestamps, clip.name)
    outcome.fps = frame_rate(times, clip.name)
    windows, outcome.dropped = cut(times, motion, settings.pairs, settings.stride, settings.max_gap_s, clip.name)
    if settings.motion_only:
        outcome.records = [_motion(clip, window) for window in windows]
        return
    if not windows:
        return
    name = f"{clip.name}.{clip.video.digest()}"
    length = windows[0].end - windows[0].start
    if settings.cut:
        with TemporaryDirectory(dir=settings.output, prefix=".video.") as place:
            video = Path(place) / f"{clip.name}.mp4"
            clip.video.place(video)
            stamps, _ = _stamps(video, times)
            names = {window.start: f"segments/{name}-{window.start:05d}.mp4" for window in windows}
            lost = clips.cut(video, stamps, list(names), length, [settings.output / name for name in names.values()],
                             settings.cut_quality)
        media = {start: {"video": name} for start, name in names.items()}
    else:
        video = settings.output / "clips" / f"{name}.mp4"
        clip.video.place(video)
        _, leading = _stamps(video, times)
        lost = [window.start for window in windows if window.start < leading]
        media = {window.start: {"video": f"clips/{name}.mp4", "video_start": window.start, "video_end": window.end}
                 for window in windows}
    outcome.dropped += [(start, "frames that cannot be decoded", f"frames {start} to {start + length - 1}")
                        for start in lost]
    outcome.records = [_record(clip, window, outcome.fps, settings, media[window.start]) for window in windows
                       if window.start not in lost]


def _stamps(video: Path, times: np.ndarray) -> tuple[np.ndarray, int]:
    """As `clips.frame_stamps`, one for every timestamp of the camera. Raises ClipFault."""
    stamps, leading = clips.frame_stamps(video)
    if len(stamps) != len(times):
        raise ClipFault("frames and timestamps differ",
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


def _splits(found: list[Clip], outcomes: list[Outcome], settings: Settings) -> tuple[dict[str, str], str]:
    """Clip -> split for every clip with a window, and whose splits they are: "index" or "own"."""
    used = {outcome.clip: len(outcome.records) for outcome in outcomes if outcome.records}
    given = {clip.name: SPLIT_NAMES[clip.split] for clip in found
             if clip.name in used and clip.split in SPLIT_NAMES}
    if settings.splits == "index" and len(given) < len(used):
        lacking = sorted(set(used) - set(given))
        raise UserError(f"clip_index.parquet of {settings.raw} gives no split for {len(lacking)} of {len(used)} clips, "
                        f"{lacking[0]} first: use --splits own")
    if settings.splits != "own" and used and len(given) == len(used):
        return given, "index"
    rows = [{"clip": name} for name, number in used.items() for _ in range(number)]
    shares = dict(zip(SPLITS, settings.split_fractions, strict=True))
    dealt = annotation.split_groups(rows, shares, "clip", settings.seed)
    return {row["clip"]: split for split, members in dealt.items() for row in members}, "own"


def _metadata(settings: Settings, outcomes: list[Outcome], refused: list[dict], records: dict[str, list[dict]],
              splits_by: str) -> dict:
    def shown(path: Path) -> str:
        path = Path(path).resolve()
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)

    every = [record for split in SPLITS for record in records[split]]
    lost_clips = [{"clip": o.clip, "reason": o.fault[0], "detail": o.fault[1]} for o in outcomes if o.fault]
    lost_windows = [{"clip": o.clip, "start": start, "reason": reason, "detail": detail} for o in outcomes
                    for start, reason, detail in sorted(o.dropped) if not o.fault]
    repairs: Counter[str] = Counter()
    for outcome in outcomes:
        repairs.update(outcome.repairs)
    future = np.array([pair for record in every for pair in zip(record["future"]["v"], record["future"]["k"],
                                                                strict=True)]).reshape(-1, 2)
    parameters = {key: shown(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
                  for key, value in asdict(settings).items() if key not in ("workers", "output")}
    return {
        "domain": "driving", "format": 1, "parameters": parameters, "splits_by": splits_by,
        "fps": sorted({outcome.fps for outcome in outcomes if outcome.records}),
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
