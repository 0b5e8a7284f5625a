"""Entry: check data sets without a model: every record, placeholder and media file. Exit status 0 or, with defects, 2.

    python -m overlays.check --dataset-use cuprite_train,path/to/own.jsonl
    python -m overlays.check --prepared data/prepared/cuprite
    python -m overlays.check --config scripts/configs/driving_lora.yaml    # tokens as that recipe trains
"""

import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

from tqdm import tqdm

from overlays import errors, paths, registry, runs
from overlays.data import media, records
from overlays.errors import UserError
from overlays.files import misfit
from overlays.flags import Parser, at_least
from overlays.train import arguments
from overlays.train.config_file import read_config

AHEAD = 256  # records whose media are being opened at a time
RESOLUTION = {
    "min_pixels": "pixels of one image at least", "max_pixels": "pixels of one image at most",
    "video_fps": "frames taken a second of clip", "video_min_frames": "frames of one clip at least",
    "video_max_frames": "frames of one clip at most", "video_min_pixels": "pixels of one frame at least",
    "video_max_pixels": "pixels of one frame at most",
}
DEFAULTS = {item.name: item.default for group in (arguments.DataArguments, arguments.TrainingFlags)
            for item in fields(group) if item.name in (*RESOLUTION, "video_backend", "model_max_length")}
COUNTING = threading.Lock()  # a tokenizer changes its settings while it writes control tokens as text


@dataclass
class Counts:
    """What was seen of one data set."""

    records: int = 0
    bad: int = 0
    too_long: int = 0
    empty: int = 0
    tasks: Counter = field(default_factory=Counter)
    tokens: list[int] = field(default_factory=list)


def open_all(record: dict, source: registry.Dataset, backend: str) -> list[str]:
    """What is wrong with the media of a record, each decoded (of a video the first, middle and last frame)."""
    problems = []
    for name in records.media_names(record, "image"):
        try:
            path = records.media_file(source.media_root, name)
            media.opener_of(path).open(path)
        except UserError as error:
            problems.append(str(error))
    for name, segment in zip(records.media_names(record, "video"), records.video_segments(record), strict=True):
        try:
            media.probe_video(records.media_file(source.media_root, name), backend, segment)
        except UserError as error:
            problems.append(str(error))
    return problems


def examine(record: dict, defects: list, source: registry.Dataset, backend: str, processor) -> tuple[list[str], int]:
    """(all problems of a record, its tokens or 0)."""
    if defects:
        return [defect.problem for defect in defects], 0
    problems, tokens = open_all(record, source, backend), 0
    if processor is not None and not problems:
        from overlays.data import chat

        try:
            with COUNTING:
                tokens, _ = chat.count_tokens(record, processor, source.media_root, backend)
        except UserError as error:
            problems.append(str(error))
    return problems, tokens


def check_source(source: registry.Dataset, args, processor) -> Counts:
    """Check one data set; bad rows are printed as they are found."""
    counts = Counts()

    def finish(job) -> None:
        row, record, own, future = job
        problems, tokens = future.result()
        counts.records += 1
        counts.tasks[str((record or {}).get("task") or "-")] += 1
        for problem in problems:
            tqdm.write(str(records.Defect(source.annotation, row, None if own is None else str(own), problem)))
        counts.bad += bool(problems)
        for turn in records.empty_answers(record or {}):
            counts.empty += 1
            tqdm.write(f"warning: {records.Defect(source.annotation, row, None if own is None else str(own), '')}"
                       f"the answer in turn {turn} is empty, which teaches to say nothing")
        if tokens:
            counts.tokens.append(tokens)
        if tokens > args.model_max_length:
            counts.too_long += 1
            tqdm.write(f"{source.annotation}, row {row}: {tokens} tokens, more than {args.model_max_length}; "
                       "training leaves it out")
        bar.update()

    total = sum(1 for _ in records.scan(source.annotation, convert=False))
    with ThreadPoolExecutor(args.workers) as pool, tqdm(total=total, desc=source.name, unit=" rows") as bar:
        waiting = []
        for row, record, defects in records.check(source.annotation, source.media_root):
            job = pool.submit(examine, record, defects, source, args.video_backend, processor)
            own = record.get("id") if record is not None else defects[0].id
            waiting.append((row, record, own, job))
            if len(waiting) >= AHEAD:
                finish(waiting.pop(0))
        for job in waiting:
            finish(job)
    return counts


def _settings(args) -> dict:
    """Every setting of training that counts here: the flag, else that of --config or --run, else training's default."""
    given = {}
    if args.config:
        given = read_config(args.config, {item.name for group in arguments.SFT.classes() for item in fields(group)})
    if args.run:
        described = runs.read_run(args.run)
        if described is None:
            raise UserError(f"--run {args.run}: there is no run.json")
        given = described.get("arguments", {}) | given
    problem = misfit(given, {**{f"{name}?": type(default) for name, default in DEFAULTS.items()},
                             "dataset_use?": (str, [str]), "model_name_or_path?": str})
    if problem:
        raise UserError(f"{args.config or args.run}: {problem}")
    if isinstance(given.get("dataset_use"), list):
        given["dataset_use"] = ",".join(given["dataset_use"])
    wanted = {"dataset_use": None, "model_name_or_path": None, **DEFAULTS}
    for name, default in wanted.items():
        own = getattr(args, name)
        wanted[name] = own if own is not None else default if given.get(name) is None else given[name]
    if not wanted["dataset_use"]:
        raise UserError("no data set is given: use --dataset-use, or --config or --run that names one")
    return wanted


def main(words: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = Parser(description=__doc__.split("\n")[0].removeprefix("Entry: "))
    parser.add_argument("--prepared", type=Path, help="a prepared folder, in seven steps: metadata, splits, records, "
                        "media, separation of the splits, answers, balance")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML of a training stage, whose data sets, model, "
                        "lengths and resolutions are taken; flags win over it")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="the same from the run.json of a run")
    parser.add_argument("--dataset-use", help="names or annotation files, by comma")
    parser.add_argument("--model-name-or-path", help="also count tokens with this model's processor")
    parser.add_argument("--model-max-length", type=at_least(1), help="report samples of more tokens (default: "
                        f"{DEFAULTS['model_max_length']})")
    for name, meaning in RESOLUTION.items():
        parser.add_argument(f"--{name}", type=float if name == "video_fps" else at_least(1),
                            help=f"{meaning}, for the token count (default: {DEFAULTS[name]:g})")
    parser.add_argument("--video-backend", choices=sorted(media.BACKENDS), help="what decodes clips (default: pyav)")
    parser.add_argument("--allow-symlinks", action="store_true", help=paths.SYMLINKS_HELP)
    parser.add_argument("--workers", type=at_least(1), default=4, help="threads that open media")
    args = parser.parse_args(words)
    if args.prepared is not None:
        from overlays.verify import annotations

        if args.dataset_use or args.config or args.run:
            raise UserError("--prepared takes no other data: leave out --dataset-use, --config and --run")
        args.dataset_use = ",".join(map(str, annotations(args.prepared)))
    for name, value in _settings(args).items():
        setattr(args, name, value)
    paths.allow_symlinks(args.allow_symlinks)
    processor = None
    if args.model_name_or_path:
        from overlays.model.load import load_processor

        processor = load_processor(args.model_name_or_path)
        media.apply_resolution(processor, media.MediaOptions(**{name: getattr(args, name) for name in RESOLUTION}))

    bad = seen = 0
    for source in registry.resolve(args.dataset_use):
        counts = check_source(source, args, processor)
        bad, seen = bad + counts.bad, seen + counts.records
        print(f"{source.name}: {counts.records} records, {counts.bad} bad ({source.annotation})")
        if counts.tasks.keys() - {"-"}:
            print("  by task: " + ", ".join(f"{task} {n}" for task, n in sorted(counts.tasks.items())))
        if counts.empty:
            print(f"  empty answers: {counts.empty}")
        if counts.tokens:
            print(f"  tokens: {min(counts.tokens)} to {max(counts.tokens)}, {sum(counts.tokens)} in all, "
                  f"{counts.too_long} records above {args.model_max_length}")
        if not counts.records:
            raise UserError(f"{source.annotation} holds no records")
    sys.stdout.flush()
    if bad:
        raise UserError(f"{bad} of {seen} records are bad; the rows are listed above")
    if args.prepared is not None:
        print(f"records: ok ({seen} rows)\nmedia: ok (each file opened)")
        verify_prepared(args.prepared)


def verify_prepared(folder: Path) -> None:
    """Print what the other steps find. Raises UserError where one finds a problem."""
    from overlays.verify import verify

    failed = []
    for step, problems, found in verify(folder):
        print(f"{step}: {'ok' if not problems else f'{len(problems)} problems'} ({found})")
        for problem in problems[:10]:
            print(f"  {problem}")
        failed += [step] if problems else []
    sys.stdout.flush()
    if failed:
        raise UserError(f"{folder} fails at {', '.join(failed)}; the problems are listed above")


if __name__ == "__main__":
    errors.run(main)
