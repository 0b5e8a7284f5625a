"""fingertip-20k folders, or JSONL with `messages` -> records of single taps with user and episode, split by user."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from overlays import samples
from overlays.data import records
from overlays.domains.base import SPLITS, prepared_folder, write_metadata
from overlays.domains.gui import answers, coordinates, desktop, fingertip, screenshots
from overlays.domains.gui.taps import CLICKS, Tap
from overlays.domains.gui.users import parse_users
from overlays.errors import UserError
from overlays.flags import option

PLACES = {"en": (("upper", "middle", "lower"), ("left", "centre", "right")),
          "zh": (("上", "中", "下"), ("左", "中", "右"))}
_PLACEHOLDER = re.compile("|".join(map(re.escape, records.PLACEHOLDERS.values())))


@dataclass(frozen=True)
class Settings:
    """Prepare GUI grounding data; without --raw and --jsonl, from drawn sample screens."""

    raw: Path | None = option(None, "folder of users in fingertip-20k's layout")
    jsonl: tuple[Path, ...] = option((), "files with `messages`, one tap a line", listed=True)
    output: Path | None = option(None, "folder (default: data/prepared/gui)")
    train_users: tuple[str, ...] = option(("11-73",), "ranges and lists such as 1-10 15", listed=True)
    val_users: tuple[str, ...] = option(("74-83",), "as --train-users", listed=True)
    test_users: tuple[str, ...] = option(("1-10",), "as --train-users", listed=True, also=("--users",))
    family: str = option("qwen3_vl", "model type the answers are for: qwen2_5_vl names pixels of the image it sees, "
                         "the others the 0-1000 grid")
    min_pixels: int = option(28 * 28 * 16, "of training, for qwen2_5_vl")
    max_pixels: int = option(28 * 28 * 1280, "of training, for qwen2_5_vl")
    screenshot_pixels: int | None = option(None, "store screenshots at no more pixels (default: as they are, or what "
                                           "suits the sample)")


@dataclass
class Finds:
    """What reading the sources brought beside taps.

    Attributes:
        drops: what was left out, each with its place and the reason.
        other: actions other than taps, by name.
        counts: of the JSONL files.
        elsewhere: taps of JSONL files by their user, where that user is in no split.
        shares: sources whose points are shares of the screen, from 0 to 1.
    """

    drops: list[dict] = field(default_factory=list)
    other: Counter = field(default_factory=Counter)
    counts: desktop.Counts = field(default_factory=desktop.Counts)
    elsewhere: Counter = field(default_factory=Counter)
    shares: list[str] = field(default_factory=list)

    def drop(self, where: str, reason: str) -> None:
        self.drops.append({"where": where, "reason": reason})


def prepare(settings: Settings) -> dict:
    """Prepare the data; the output folder appears complete or not at all.

    Writes {train,val,test}.jsonl, images/ and metadata.json.

    Returns:
        metadata: counts by split, users without data, drops by reason, and each drop with its place.

    Raises:
        UserError: no such folder or file, users in two splits, a split of users none of whom has data, or limits of
            pixels that cannot be.
    """
    wanted = {split: parse_users(getattr(settings, f"{split}_users")) for split in SPLITS}
    _check_splits(wanted)
    _check_pixels(settings)
    pixels, raw = settings.screenshot_pixels, settings.raw
    if raw is None and not settings.jsonl:
        raw = samples.ensure("gui")
        pixels = samples.settings_beside(raw)["screenshot_pixels"] if pixels is None else pixels
    users = {user: split for split, members in wanted.items() for user in members}
    finds = Finds()
    taps = list(_taps(raw, settings.jsonl, users, finds))
    users_with_taps = {tap.user for tap in taps}
    _check_found(wanted, users_with_taps, raw, settings.jsonl)
    with prepared_folder(settings.output, "gui") as folder:
        rows: dict[str, list[dict]] = {split: [] for split in wanted}
        stored = screenshots.store_all(taps, _base(raw, settings.jsonl), folder, pixels)
        for tap in taps:
            shot = stored[screenshots.key_of(tap)]
            record = shot if isinstance(shot, str) else _record(tap, shot, settings)
            if isinstance(record, str):
                finds.drop(tap.where, record)
            elif problems := records.check_record(record, folder):
                finds.drop(tap.where, "; ".join(problems))
            else:
                rows[users[tap.user]].append(record | {"split": users[tap.user]})
        for split, members in rows.items():
            if not members:
                raise UserError(f"no tap is left for the {split} split: {_reasons(finds.drops)}")
            records.write(folder / f"{split}.jsonl", members)
        return write_metadata(folder, "gui", _metadata(settings, rows, wanted, finds))


def _check_splits(wanted: dict[str, list[int]]) -> None:
    names = list(wanted)
    for i, first in enumerate(names):
        if not wanted[first]:
            raise UserError(f"no user is named for the {first} split")
        for second in names[i + 1:]:
            both = sorted(set(wanted[first]) & set(wanted[second]))
            if both:
                raise UserError(f"user {both[0]} is in the {first} and in the {second} split; a user belongs to one")


def _check_pixels(settings: Settings) -> None:
    if not 0 < settings.min_pixels <= settings.max_pixels:
        raise UserError(f"--min-pixels {settings.min_pixels} must be above 0 and not above --max-pixels "
                        f"{settings.max_pixels}")
    if settings.screenshot_pixels is not None and settings.screenshot_pixels < 1:
        raise UserError(f"--screenshot-pixels must be above 0, not {settings.screenshot_pixels}")


def _check_found(wanted: dict[str, list[int]], users_with_taps: set[int], raw: Path | None,
                 files: Sequence[Path]) -> None:
    sources = raw or ", ".join(str(file) for file in files)
    for split, members in wanted.items():
        if not users_with_taps & set(members):
            there = ", ".join(map(str, sorted(users_with_taps)[:20])) or "none"
            raise UserError(f"none of the {split} users has a tap in {sources}; users with taps: {there} "
                            f"(choose others by --{split}-users)")


def _base(raw: Path | None, files: Sequence[Path]) -> Path:
    """The folder that all sources lie in."""
    folders = [*([Path(raw)] if raw else []), *(Path(file).parent for file in files)]
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


def _taps(raw: Path | None, files: Sequence[Path], users: dict[int, str], finds: Finds) -> Iterator[Tap]:
    """Taps of the wanted users, in the order of user and episode."""
    if raw is not None:
        yield from _on_scale(list(_fingertip_taps(Path(raw), sorted(users), finds)), str(raw), finds)
    for file in files:
        taps = []
        for item in desktop.read(Path(file), finds.counts):
            if not isinstance(item, Tap):
                finds.drop(*item)
            elif item.user in users:
                taps.append(item)
            else:
                finds.elsewhere[item.user] += 1
        yield from _on_scale(taps, str(file), finds)


def _fingertip_taps(raw: Path, users: list[int], finds: Finds) -> Iterator[Tap]:
    if not raw.is_dir():
        raise UserError(f"there is no folder {raw}")
    there, others = fingertip.users(raw)
    for name in others:
        finds.drop(name, "folder is not a user, or one that is there before")
    for user in (user for user in users if user in there):
        episodes, others = fingertip.episodes(there[user])
        for name in others:
            finds.drop(f"{user}/{name}", "folder is not an episode (YYYYMMDD_HHMMSS)")
        for episode in episodes:
            yield from _episode_taps(user, episode, finds)


def _episode_taps(user: int, episode: Path, finds: Finds) -> Iterator[Tap]:
    for step in fingertip.read_episode(episode):
        where = f"{user}/{episode.name}"
        if isinstance(step, str):
            finds.drop(where, step)
            continue
        where = f"{where}, step {step.number}"
        if step.action not in CLICKS:
            finds.other[step.action] += 1
        elif step.click_px is None:
            finds.drop(where, "a click without a point")
        elif not step.instruction:
            finds.drop(where, "no instruction and no intent")
        elif "\0" in step.screenshot.name:
            finds.drop(where, "screenshot has a name that no file can have")
        else:
            yield Tap(user, episode.name, step.number, step.screenshot, step.click_px, step.instruction,
                      step.hierarchy, where)


def _on_scale(taps: list[Tap], source: str, finds: Finds) -> list[Tap]:
    """Taps of one source; where all its points lie within 0 and 1, they are shares of the screen and not pixels.

    A single such point among pixels is left out: it could be either.
    """
    pixels = [tap for tap in taps if tap.scale is None]
    doubtful = [tap for tap in pixels if all(0 <= value <= 1 for value in tap.click)
                and any(value % 1 for value in tap.click)]
    if not doubtful:
        return taps
    if all(0 <= value <= 1 for tap in pixels for value in tap.click):
        finds.shares.append(source)
        return [replace(tap, scale=(1.0, 1.0)) if tap.scale is None else tap for tap in taps]
    for tap in doubtful:
        finds.drop(tap.where, "click could be a share of the screen, but others of its source are pixels: "
                              f"({tap.click[0]:g}, {tap.click[1]:g})")
    unclear = set(map(id, doubtful))
    return [tap for tap in taps if id(tap) not in unclear]


def _record(tap: Tap, shot: screenshots.Stored, settings: Settings) -> dict | str:
    """The record of a tap; a clause where its point is not on the screen or nothing is asked."""
    scale, (x, y) = tap.scale or shot.size, tap.click
    if not (0 <= x <= scale[0] and 0 <= y <= scale[1]):
        return f"click outside the screen of {scale[0]:g} x {scale[1]:g}: ({x:g}, {y:g})"
    instruction = _plain(tap.instruction)
    if not instruction:
        return "no instruction"
    grid = coordinates.to_grid(tap.click, scale)
    convention, seen = coordinates.convention_of(settings.family), None
    if convention == coordinates.ABSOLUTE:
        seen = coordinates.resized(shot.stored, settings.family, settings.min_pixels, settings.max_pixels)
    answer_text = answers.answer(_plain(tap.referring or "") or _described(tap, grid, shot.size),
                          coordinates.to_answer(grid, seen))
    system = [{"from": "system", "value": _plain(tap.system)}] if _plain(tap.system or "") else []
    return {
        "id": f"{tap.user}-{tap.episode}-{tap.step:03d}", "image": shot.name, "user": tap.user, "episode": tap.episode,
        "task": "grounding", "group": str(tap.user), "grid": [round(value, 2) for value in grid],
        "screen": list(shot.size), **({"seen": list(seen)} if seen else {}),
        "conversations": [*system, {"from": "human", "value": answers.question(instruction, convention)},
                          {"from": "gpt", "value": answer_text}],
    }


def _plain(text: str) -> str:
    """A source's words without those that a record keeps for its media."""
    return _PLACEHOLDER.sub("", text).strip() if _PLACEHOLDER.search(text) else text


def _described(tap: Tap, grid: tuple[float, float], size: tuple[int, int]) -> str:
    point_px = grid[0] * size[0] / coordinates.GRID, grid[1] * size[1] / coordinates.GRID
    element = fingertip.element_at(tap.hierarchy, point_px if tap.scale else tap.click) if tap.hierarchy else None
    return referring(_plain(element.label) if element else None, grid)


def referring(label: str | None, grid: tuple[float, float]) -> str:
    """An element in words: its label, where the view hierarchy gives one, and the ninth of the screen it is in."""
    chinese = bool(label) and any("\u4e00" <= letter <= "\u9fff" for letter in label)
    rows, columns = PLACES["zh" if chinese else "en"]
    row, column = rows[min(2, int(grid[1] * 3 / 1000))], columns[min(2, int(grid[0] * 3 / 1000))]
    position = row + column if chinese else f"{row} {column}"
    return f"{label}{'，' if chinese else ', '}{position}" if label else f"element at the {position}"


def _reasons(drops: Sequence[dict]) -> str:
    counts = Counter(drop["reason"].split(":")[0].split("(")[0].strip() for drop in drops)
    return "; ".join(f"{count} x {reason}" for reason, count in counts.most_common()) or "nothing was dropped"


def _metadata(settings: Settings, rows: dict, wanted: dict, finds: Finds) -> dict:
    convention = coordinates.convention_of(settings.family)
    return {
        "family": settings.family, "convention": convention,
        "pixels": [settings.min_pixels, settings.max_pixels] if convention == coordinates.ABSOLUTE else None,
        "counts": {split: {"taps": len(members), "users": len({row["user"] for row in members}),
                           "episodes": len({(row["user"], row["episode"]) for row in members})}
                   for split, members in rows.items()},
        "users": {split: wanted[split] for split in rows},
        "users_without_taps": {split: sorted(set(wanted[split]) - {row["user"] for row in members})
                               for split, members in rows.items()},
        "users_in_no_split": dict(sorted(finds.elsewhere.items())),
        "shares_of_the_screen": finds.shares,
        "other_actions": dict(sorted((finds.other + finds.counts.other).items())),
        "other_roles": dict(sorted(finds.counts.roles.items())),
        "dropped": len(finds.drops), "drops": finds.drops,
    }
