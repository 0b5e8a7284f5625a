"""fingertip-20k folders, or JSONL with `messages` -> records of single taps with user and episode, split by user."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from overlays.data import records
from overlays.domains.gui import answers, coordinates, desktop, fingertip
from overlays.domains.gui.taps import Tap
from overlays.errors import UserError
from overlays.files import whole_folder, write_json

ROOT = Path(__file__).resolve().parents[3]
SAMPLE = ROOT / "data" / "raw" / "gui" / "sample"
OUTPUT = ROOT / "data" / "prepared" / "gui"
SPLIT_USERS = {"train": "11-73", "val": "74-83", "test": "1-10"}
SAMPLE_SCREENSHOT_PIXELS = 270 * 600  # the drawn screens are flat: a quarter of their side loses nothing
PLACES = {"en": (("upper", "middle", "lower"), ("left", "centre", "right")),
          "zh": (("上", "中", "下"), ("左", "中", "右"))}


@dataclass(frozen=True)
class Settings:
    """What `prepare` is asked to do.

    Attributes:
        raw: folder of users in fingertip-20k's layout; None with no jsonl makes the sample and takes it.
        jsonl: files with `messages`, one tap a line (see desktop.py).
        output: folder of the prepared data.
        users: by split, ranges and lists such as "1-10 15".
        family: model type that the answers are written for; it decides the convention of coordinates.
        min_pixels, max_pixels: of the image as the model sees it; they matter where the family names pixels.
        screenshot_pixels: store screenshots at no more pixels than this; 0 keeps the files as they are.
    """

    raw: Path | None = None
    jsonl: Sequence[Path] = ()
    output: Path = OUTPUT
    users: dict[str, str] = field(default_factory=lambda: dict(SPLIT_USERS))
    family: str = "qwen3_vl"
    min_pixels: int = 28 * 28 * 16
    max_pixels: int = 28 * 28 * 1280
    screenshot_pixels: int | None = None


def parse_users(text: str | Iterable[str]) -> list[int]:
    """User numbers of ranges and lists: "1-10 15", "1,3,5-7". Raises UserError where a word is neither."""
    words = (text if isinstance(text, str) else " ".join(text)).replace(",", " ").split()
    users: set[int] = set()
    for word in words:
        first, dash, last = word.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise UserError(f"users are numbers and ranges such as 1-10 15, not {word!r}")
        users.update(range(int(first), int(last or first) + 1))
    return sorted(users)


def prepare(settings: Settings) -> dict:
    """Prepare the data; the output folder appears whole or not at all.

    Writes {train,val,test}.jsonl, images/ and metadata.json.

    Returns:
        metadata: counts by split, users without data, drops by reason, and each drop with its place.

    Raises:
        UserError: no such folder or file, users in two splits, or a split of users none of whom has data.
    """
    wanted = {split: parse_users(text) for split, text in settings.users.items()}
    _check_splits(wanted)
    convention = coordinates.convention_of(settings.family)
    pixels, raw = settings.screenshot_pixels, settings.raw
    if raw is None and not settings.jsonl:
        raw = _sample()
        pixels = SAMPLE_SCREENSHOT_PIXELS if pixels is None else pixels
    drops: list[dict] = []
    other: Counter = Counter()
    users = {user: split for split, members in wanted.items() for user in members}
    taps = [tap for tap in _taps(raw, settings.jsonl, users, drops, other)]
    found = {tap.user for tap in taps}
    _check_found(wanted, found, raw, settings.jsonl)
    with whole_folder(settings.output) as folder:
        rows: dict[str, list[dict]] = {split: [] for split in wanted}
        stored = _store_all(taps, folder, pixels or 0)
        for tap in taps:
            result = stored[_name(tap)]
            record = result if isinstance(result, str) else _record(tap, *result, settings, convention)
            if isinstance(record, str):
                drops.append({"where": tap.where, "reason": record})
            else:
                rows[users[tap.user]].append(record | {"split": users[tap.user]})
        for split, members in rows.items():
            if not members:
                raise UserError(f"no tap is left for the {split} split: {_reasons(drops)}")
            records.write(folder / f"{split}.jsonl", members)
        metadata = _metadata(settings, convention, rows, wanted, drops, other)
        write_json(folder / "metadata.json", metadata)
    return metadata


def _sample() -> Path:
    from overlays.domains.gui.sample import sample

    if not (SAMPLE / "habits.json").is_file():
        sample(SAMPLE)
    return SAMPLE


def _check_splits(wanted: dict[str, list[int]]) -> None:
    names = list(wanted)
    for i, first in enumerate(names):
        if not wanted[first]:
            raise UserError(f"no user is named for the {first} split")
        for second in names[i + 1:]:
            both = sorted(set(wanted[first]) & set(wanted[second]))
            if both:
                raise UserError(f"user {both[0]} is in the {first} and in the {second} split; a user belongs to one")


def _check_found(wanted: dict[str, list[int]], found: set[int], raw: Path | None, files: Sequence[Path]) -> None:
    place = raw or ", ".join(str(file) for file in files)
    for split, members in wanted.items():
        if not found & set(members):
            there = ", ".join(map(str, sorted(found)[:20])) or "none"
            raise UserError(f"none of the {split} users has a tap in {place}; users with taps: {there} "
                            f"(choose others by --{split}-users)")


def _taps(raw: Path | None, files: Sequence[Path], users: dict[int, str], drops: list[dict],
          other: Counter) -> Iterator[Tap]:
    """Taps of the wanted users, in the order of user and episode."""
    if raw is not None:
        yield from _fingertip_taps(Path(raw), sorted(users), drops, other)
    for file in files:
        for item in desktop.read(Path(file)):
            if not isinstance(item, Tap):
                drops.append({"where": item[0], "reason": item[1]})
            elif item.user in users:
                yield item


def _fingertip_taps(raw: Path, users: list[int], drops: list[dict], other: Counter) -> Iterator[Tap]:
    if not raw.is_dir():
        raise UserError(f"there is no folder {raw}")
    for user in users:
        folder = raw / str(user)
        if not folder.is_dir():
            continue
        for episode in fingertip.episodes(folder):
            where = f"{user}/{episode.name}"
            for step in fingertip.read_episode(episode):
                if isinstance(step, str):
                    drops.append({"where": where, "reason": step})
                elif step.action not in fingertip.CLICKS:
                    other[step.action] += 1
                elif step.click_px is None:
                    drops.append({"where": f"{where}, step {step.number}", "reason": "a click without a point"})
                elif not step.instruction:
                    drops.append({"where": f"{where}, step {step.number}", "reason": "no instruction and no intent"})
                else:
                    element = fingertip.element_at(step.hierarchy, step.click_px)
                    yield Tap(user, episode.name, step.number, step.screenshot, step.click_px, step.instruction,
                              element.label if element else None, f"{where}, step {step.number}")


def _name(tap: Tap) -> str:
    """Path of a tap's screenshot below the media root; several taps may share one."""
    return (Path("images") / str(tap.user) / f"{tap.episode}_{tap.screenshot.name}").as_posix()


def _store_all(taps: Sequence[Tap], folder: Path, pixels: int) -> dict[str, tuple | str]:
    """`_store` of every screenshot once, by its name."""
    wanted = {_name(tap): tap for tap in taps}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda tap: _store(tap, folder, pixels), wanted.values())
        bar = tqdm(found, total=len(wanted), desc="reading screenshots", unit="screen", file=sys.stderr,
                   disable=len(wanted) < 200)
        return dict(zip(wanted, bar, strict=True))


def _store(tap: Tap, folder: Path, pixels: int) -> tuple[str, tuple[int, int]] | str:
    """(path below the media root, size before any change) of a tap's screenshot; a clause where there is none."""
    name = _name(tap)
    target = folder / name
    if not tap.screenshot.is_file():
        return "screenshot is missing"
    try:
        with Image.open(tap.screenshot) as image:
            size = image.size
            if pixels and size[0] * size[1] > pixels:
                shrink = (pixels / (size[0] * size[1])) ** 0.5
                # Also decodes at a lower resolution where the format can.
                image.thumbnail((round(size[0] * shrink), round(size[1] * shrink)), reducing_gap=2.0)
                target.parent.mkdir(parents=True, exist_ok=True)
                image.convert("RGB").save(target, quality=95)
                return name, size
            image.load()  # a file cut short is noticed here and not in the middle of training
            target.parent.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # decoders raise what they like on bad bytes
        return f"screenshot cannot be read: {' '.join(str(error).split())[:120]}"
    try:
        os.link(tap.screenshot, target)  # no second copy of a large data set
    except OSError:
        shutil.copyfile(tap.screenshot, target)
    return name, size


def _record(tap: Tap, image: str, size: tuple[int, int], settings: Settings, convention: str) -> dict | str:
    """The record of a tap; a clause where its point is not on the screen."""
    x, y = tap.click_px
    if not (0 <= x <= size[0] and 0 <= y <= size[1]):
        return f"click ({x:g}, {y:g}) is outside the screen of {size[0]} x {size[1]}"
    grid = coordinates.to_grid(tap.click_px, size)
    seen = None
    if convention == coordinates.ABSOLUTE:
        seen = coordinates.resized(size, settings.family, settings.min_pixels, settings.max_pixels)
    said = answers.answer(tap.referring or referring(tap.label, grid), coordinates.to_answer(grid, seen))
    system = [{"from": "system", "value": tap.system}] if tap.system else []
    return {
        "id": f"{tap.user}-{tap.episode}-{tap.step:03d}", "image": image, "user": tap.user, "episode": tap.episode,
        "task": "grounding", "group": str(tap.user), "grid": [round(value, 2) for value in grid],
        "screen": list(size), **({"seen": list(seen)} if seen else {}),
        "conversations": [*system, {"from": "human", "value": answers.question(tap.instruction, convention)},
                          {"from": "gpt", "value": said}],
    }


def referring(label: str | None, grid: tuple[float, float]) -> str:
    """An element in words: its label, where the view hierarchy gives one, and the ninth of the screen it is in."""
    chinese = bool(label) and any("\u4e00" <= letter <= "\u9fff" for letter in label)
    rows, columns = PLACES["zh" if chinese else "en"]
    row, column = rows[min(2, int(grid[1] * 3 / 1000))], columns[min(2, int(grid[0] * 3 / 1000))]
    place = row + column if chinese else f"{row} {column}"
    return f"{label}{'，' if chinese else ', '}{place}" if label else f"element at the {place}"


def _reasons(drops: Sequence[dict]) -> str:
    counts = Counter(drop["reason"].split(":")[0].split("(")[0].strip() for drop in drops)
    return "; ".join(f"{count} x {reason}" for reason, count in counts.most_common()) or "nothing was dropped"


def _metadata(settings: Settings, convention: str, rows: dict, wanted: dict, drops: list, other: Counter) -> dict:
    return {
        "family": settings.family, "convention": convention,
        "pixels": [settings.min_pixels, settings.max_pixels] if convention == coordinates.ABSOLUTE else None,
        "counts": {split: {"taps": len(members), "users": len({row["user"] for row in members}),
                           "episodes": len({(row["user"], row["episode"]) for row in members})}
                   for split, members in rows.items()},
        "users": {split: wanted[split] for split in rows},
        "users_without_taps": {split: sorted(set(wanted[split]) - {row["user"] for row in members})
                               for split, members in rows.items()},
        "other_actions": dict(sorted(other.items())), "dropped": len(drops), "drops": drops,
    }
