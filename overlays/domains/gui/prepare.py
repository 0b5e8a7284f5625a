"""fingertip-20k folders, or JSONL with `messages` -> records of single taps with user and episode, split by user."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from overlays import samples
from overlays.data import records
from overlays.domains.base import SPLITS, prepared_folder, write_metadata
from overlays.domains.gui import answers, conventions, coordinates, desktop, fingertip, screenshots, trees
from overlays.domains.gui.conventions import Convention, Observed
from overlays.domains.gui.taps import CLICKS, Tap, size_of
from overlays.domains.gui.users import parse_users
from overlays.errors import UserError
from overlays.flags import check_choices, option

PLACES = {"en": (("upper", "middle", "lower"), ("left", "centre", "right")),
          "zh": (("上", "中", "下"), ("左", "中", "右"))}
EPISODES_NAMED = 20  # of those in two splits; metadata.json lists every tap
_PLACEHOLDER = re.compile("|".join(map(re.escape, records.PLACEHOLDERS.values())))


@dataclass(frozen=True)
class Settings:
    """Prepare GUI grounding data; without --raw and --jsonl, from drawn sample screens."""

    raw: Path | None = option(None, "folder of users in fingertip-20k's layout")
    jsonl: tuple[Path, ...] = option((), "files with `messages`, one tap a line", listed=True)
    output: Path | None = option(None, "folder (default: data/prepared/gui)")
    train_users: tuple[str, ...] = option(("11-73",), "ranges and lists such as 1-10 15, or none", listed=True)
    val_users: tuple[str, ...] = option(("74-83",), "as --train-users", listed=True)
    test_users: tuple[str, ...] = option(("1-10",), "as --train-users", listed=True, also=("--users",))
    family: str = option("qwen3_vl", "model type the answers are for: qwen2_5_vl names pixels of the image it sees, "
                         "the others the 0-1000 grid")
    min_pixels: int = option(28 * 28 * 16, "of training, for qwen2_5_vl")
    max_pixels: int = option(28 * 28 * 1280, "of training, for qwen2_5_vl")
    screenshot_pixels: int | None = option(None, "store screenshots at no more pixels (default: as they are, or what "
                                           "suits the sample)")
    point_order: Literal["auto", "xy", "yx"] = option("auto", "of two numbers without names; auto: xy, checked")
    point_scale: Literal["auto", "pixels", "1", "100", "1000"] = option(
        "auto", "what points are measured on; auto: pixels, or 1 where all lie between 0 and 1, checked")
    answer_scale: Literal["auto", "pixels", "1", "100", "1000"] = option(
        "auto", "what click_1000 and the points of answers are measured on; auto: 1000, checked")
    box_order: Literal["auto", "ltrb", "ltwh", "lrtb"] = option(
        "auto", "of four numbers: left, top, right, bottom, width, height; auto: ltrb, checked")
    tap_size: str | None = option(None, "WIDTHxHEIGHT that taps are measured on, or screenshot (default: that of "
                                  "image_size or of the tree where they have the screenshot's proportions, else its)")


@dataclass
class Finds:
    """What reading the sources brought beside taps.

    Attributes:
        drops: what was left out, each with its place and the reason.
        other: actions other than taps, by name.
        counts: of the JSONL files.
        elsewhere: taps of JSONL files by their user, where that user is in no split.
        notes: what was decided without a flag, in sentences.
        broken_trees: view hierarchies that cannot be used, each with its place and the reason; their taps stay.
        observed: every tap with its convention, for the measurements.
    """

    drops: list[dict] = field(default_factory=list)
    other: Counter = field(default_factory=Counter)
    counts: desktop.Counts = field(default_factory=desktop.Counts)
    elsewhere: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    broken_trees: list[dict] = field(default_factory=list)
    observed: list[tuple[Observed, Convention]] = field(default_factory=list)

    def drop(self, where: str, reason: str) -> None:
        self.drops.append({"where": where, "reason": reason})


def prepare(settings: Settings) -> dict:
    """Prepare the data; the output folder appears complete or not at all.

    Writes {train,val,test}.jsonl, images/ and metadata.json.

    Returns:
        metadata: counts by split, users without data, how far the measurements of each user agree, drops by reason, and
            each drop with its place.

    Raises:
        UserError: no such folder or file, users in two splits, a split of users none of whom has data, limits of pixels
            that cannot be, or a source whose points contradict its screens.
    """
    check_choices(settings)
    wanted = _wanted_users(settings)
    _check_pixels(settings)
    pixels, raw = settings.screenshot_pixels, settings.raw
    if raw is None and not settings.jsonl:
        raw = samples.ensure("gui")
        pixels = samples.settings_beside(raw)["screenshot_pixels"] if pixels is None else pixels
    users = {user: split for split, members in wanted.items() for user in members}
    finds = Finds()
    sources = list(_sources(raw, settings.jsonl, users, finds, conventions.ANSWER_SCALES[settings.answer_scale]))
    taps = [tap for _, members in sources for tap in members]
    _check_found(settings, wanted, {tap.user for tap in taps}, ", ".join(name for name, _ in sources), finds)
    with prepared_folder(settings.output, "gui") as folder:
        stored = screenshots.store_all(taps, folder, pixels)
        made: list[tuple[Tap, screenshots.Stored, dict]] = []
        for source, members in sources:
            made += _source_records(source, members, stored, settings, finds)
        rows: dict[str, list[dict]] = {split: [] for split in wanted}
        for tap, record in _without_copies(made, users, finds):
            if problems := records.check_record(record, folder):
                finds.drop(tap.where, "; ".join(problems))
            else:
                rows[users[tap.user]].append(record | {"split": users[tap.user]})
        for split, members in rows.items():
            if not members and set(wanted[split]) & {tap.user for tap in taps}:
                raise UserError(f"no tap is left for the {split} split: {reasons(finds.drops)}")
            records.write(folder / f"{split}.jsonl", members)
        return write_metadata(folder, "gui", _metadata(settings, rows, wanted, finds))


def _wanted_users(settings: Settings) -> dict[str, list[int]]:
    """Users of each split. Those that are named go before the defaults of other splits."""
    wanted = {split: parse_users(getattr(settings, f"{split}_users")) for split in SPLITS}
    named = {split: members for split, members in wanted.items() if _is_named(settings, split)}
    taken = {user for members in named.values() for user in members}
    wanted = {split: members if split in named else [user for user in members if user not in taken]
              for split, members in wanted.items()}
    _check_splits(wanted)
    return wanted


def _is_named(settings: Settings, split: str) -> bool:
    """Whether the users of a split are others than the default."""
    return tuple(getattr(settings, f"{split}_users")) != Settings.__dataclass_fields__[f"{split}_users"].default


def _check_splits(wanted: dict[str, list[int]]) -> None:
    names = list(wanted)
    if not any(wanted.values()):
        raise UserError("no user is named for any split")
    for i, first in enumerate(names):
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
    if settings.tap_size not in (None, "screenshot") and size_of(settings.tap_size) is None:
        raise UserError(f"--tap-size is screenshot, or WIDTHxHEIGHT such as 1080x2400, not {settings.tap_size!r}")


def _check_found(settings: Settings, wanted: dict[str, list[int]], users_with_taps: set[int], sources: str,
                 finds: Finds) -> None:
    """Refuse a split without taps, but for training and validation users that nobody named: zero-shot needs none."""
    for split, members in reversed(wanted.items()):
        if users_with_taps & set(members):
            continue
        if users_with_taps and (not members or split != "test" and not _is_named(settings, split)):
            if members or not _is_named(settings, split):
                words = " ".join(getattr(settings, f"{split}_users"))
                finds.notes.append(f"there is no tap of a {split} user ({words})")
            continue
        there = ", ".join(map(str, sorted({*users_with_taps, *finds.elsewhere})[:20])) or "none"
        why = f"; left out: {reasons(finds.drops)}" if finds.drops else ""
        raise UserError(f"none of the {split} users has a tap in {sources}; users with taps: {there} "
                        f"(choose others by --{split}-users){why}")


def _sources(raw: Path | None, files: Sequence[Path], users: dict[int, str], finds: Finds,
             answer_scale: tuple[float, float] | None) -> Iterator[tuple[str, list[Tap]]]:
    """(name, taps of the wanted users in the order of user and episode) of each source."""
    if raw is not None:
        yield str(raw), list(_fingertip_taps(Path(raw), sorted(users), finds, answer_scale))
    for file in files:
        taps = []
        for item in desktop.read(Path(file), finds.counts, answer_scale):
            if not isinstance(item, Tap):
                finds.drop(*item)
            elif item.user in users:
                taps.append(item)
            else:
                finds.elsewhere[item.user] += 1
        yield str(file), taps


def _fingertip_taps(raw: Path, users: list[int], finds: Finds,
                    answer_scale: tuple[float, float] | None) -> Iterator[Tap]:
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
            yield from _episode_taps(user, episode, finds, answer_scale)


def _episode_taps(user: int, episode: Path, finds: Finds, answer_scale: tuple[float, float] | None) -> Iterator[Tap]:
    for step in fingertip.read_episode(episode, answer_scale):
        where = f"{user}/{episode.name}"
        if isinstance(step, str):
            finds.drop(where, step)
            continue
        where = f"{where}, step {step.number}"
        if step.action not in CLICKS:
            finds.other[step.action] += 1
        elif not step.points:
            finds.drop(where, "a click without a point")
        elif not step.instruction:
            finds.drop(where, "no instruction and no intent")
        elif "\0" in step.screenshot.name:
            finds.drop(where, "screenshot has a name that no file can have")
        else:
            yield Tap(user, episode.name, step.number, step.screenshot, step.points, step.instruction,
                      step.hierarchy, where, space=step.space)


def _source_records(source: str, taps: Sequence[Tap], stored: dict, settings: Settings,
                    finds: Finds) -> Iterator[tuple[Tap, screenshots.Stored, dict]]:
    """(tap, its screenshot, record) of every tap of a source that can be used."""
    observed = []
    for tap in taps:
        shot = stored[screenshots.key_of(tap)]
        if isinstance(shot, str):
            finds.drop(tap.where, shot)
            continue
        item = _observed(tap, shot, settings, finds)
        if isinstance(item, str):
            finds.drop(tap.where, item)
        else:
            observed.append((item, shot))
    observed = _with_space_of_others(observed)
    if settings.answer_scale == "auto":
        conventions.check_grid([item for item, _ in observed], source)
    convention = conventions.resolve([item for item, _ in observed], source, settings.point_order,
                                     settings.point_scale, settings.box_order)
    finds.notes += _scale_notes(source, [item for item, _ in observed], settings.point_scale, convention)
    if settings.point_scale == "auto" and not settings.tap_size:
        finds.notes += conventions.check_corner([item for item, _ in observed], convention, source)
    trusted = "auto" not in (settings.point_order, settings.point_scale, settings.box_order)
    for item, shot in observed:
        finds.observed.append((item, convention))
        record = _record(item, shot, convention, settings)
        if not isinstance(record, str) and not trusted:
            record = _doubt(item, convention, settings) or record
        if isinstance(record, str):
            finds.drop(item.tap.where, record)
        else:
            yield item.tap, shot, record


def _observed(tap: Tap, shot: screenshots.Stored, settings: Settings, finds: Finds) -> Observed | str:
    """A tap with the space of its pixels and its tree; a clause where that space is not known."""
    size = shot.size if settings.tap_size == "screenshot" else size_of(settings.tap_size)
    tree = trees.read(tap.hierarchy) if tap.hierarchy else None
    tree_space = trees.space_of(tree, shot.size) if isinstance(tree, trees.Tree) else None
    if isinstance(tree_space, str) and size and tree.root[2] <= size[0] and tree.root[3] <= size[1]:
        tree_space = size
    if problem := next((value for value in (tree, tree_space) if isinstance(value, str)), None):
        finds.broken_trees.append({"where": f"{tap.where}, {tap.hierarchy.name}", "reason": problem})
        tree = None
    if settings.point_scale in ("auto", "pixels") and any(
            point.scale is None and max(point.numbers) > 1 for point in tap.points):
        named, given = ("--tap-size", size) if size else ("image_size", tap.space)
        if given and not trees.fits(given, shot.size):
            return (f"{named} {given[0]:g} x {given[1]:g} does not fit the screenshot of {shot.size[0]} x "
                    f"{shot.size[1]} (--tap-size says what taps are measured on)")
        if isinstance(tree_space, str) and not given:
            return f"{tree_space} (--tap-size says what taps are measured on)"
    space = size or tap.space or (tree_space if tree else None) or shot.size
    return Observed(tap, space, shot.size, tree, tree_space if tree else shot.size)


def _with_space_of_others(observed: list[tuple[Observed, screenshots.Stored]]) -> list:
    """Taps without a space of their own take that of most taps of their user on screenshots of the same size."""
    spaces: dict[tuple, Counter] = {}
    for item, shot in observed:
        if item.tree or item.tap.space:
            spaces.setdefault((item.tap.user, shot.size), Counter())[item.space] += 1
    usual = {key: counts.most_common(1)[0][0] for key, counts in spaces.items()}
    return [(item if item.tree or item.tap.space else
             replace(item, space=usual.get((item.tap.user, shot.size), item.space)), shot) for item, shot in observed]


def _scale_notes(source: str, observed: Sequence[Observed], asked: str, convention: Convention) -> list[str]:
    """What was decided about the scale of a source's points without a word of it or a flag."""
    unscaled = [item for item in observed if item.tap.points[0].scale is None]
    numbers = [number for item in unscaled for number in item.tap.points[0].numbers]
    if asked != "auto" or not numbers or max(numbers) > coordinates.GRID or min(numbers) < 0:
        return []
    if convention.scale == "1":
        return [f"the points of {source} lie between 0 and 1: taken as shares of the screen, not as pixels"
                f"{', the first of two as x (--point-order yx: y)' if convention.order == 'xy' else ''}"]
    beyond = conventions.measure(unscaled, convention)["beyond_screen"]
    larger = max(max(item.space) for item in unscaled) > 1.2 * coordinates.GRID
    if not beyond and not (larger and len(unscaled) >= conventions.LEAST):
        return []
    return [f"the points of {source} lie between 0 and 1000 and are taken as pixels; {beyond:.0%} of {len(unscaled)} "
            "lie beyond the screen: give --point-scale 1000 if they are on the 0-1000 grid, or --point-scale pixels"]


def _doubt(item: Observed, convention: Convention, settings: Settings) -> str | None:
    """Why the point of a tap cannot be relied on; None where nothing speaks against it."""
    first = item.tap.points[0]
    if settings.point_scale == "auto" and convention.scale == "pixels" and first.scale is None \
            and conventions.are_shares([item]):
        return f"click could be a share of the screen, but others of its source are pixels: {first}"
    return item.contradiction(convention)


def _record(item: Observed, shot: screenshots.Stored, convention: Convention, settings: Settings) -> dict | str:
    """The record of a tap; a clause where its point is not on the screen or nothing is asked."""
    tap, first = item.tap, item.tap.points[0]
    scale, point = convention.scale_of(first, item.space), convention.centre(first)
    if point is None:
        return f"{first.name} is not a box in the order {convention.box}: {first}"
    if not all(0 <= value <= size for value, size in zip(point, scale, strict=True)):
        return f"click outside the screen of {scale[0]:g} x {scale[1]:g}: ({point[0]:g}, {point[1]:g})"
    instruction = _plain(tap.instruction)
    if not instruction:
        return "no instruction"
    grid = coordinates.to_grid(point, scale)
    answer_convention, seen = coordinates.convention_of(settings.family), None
    if answer_convention == coordinates.ABSOLUTE:
        seen = coordinates.resized(shot.stored, settings.family, settings.min_pixels, settings.max_pixels)
    label = None
    if item.tree:
        in_tree = point if scale == item.tree_space else [
            value * size / coordinates.GRID for value, size in zip(grid, item.tree_space, strict=True)]
        element = item.tree.labelled_at(in_tree)
        label = _plain(element[0]) if element else None
    answer_text = answers.answer(_plain(tap.referring or "") or referring(label, grid),
                                 coordinates.to_answer(grid, seen))
    system = [{"from": "system", "value": _plain(tap.system)}] if _plain(tap.system or "") else []
    return {
        "id": f"{tap.user}-{tap.episode}-{tap.step:03d}", "image": shot.name, "user": tap.user, "episode": tap.episode,
        "task": "grounding", "group": str(tap.user), "grid": [round(value, 2) for value in grid],
        "screen": list(shot.size), **({"seen": list(seen)} if seen else {}),
        "conversations": [*system, {"from": "human", "value": answers.question(instruction, answer_convention)},
                          {"from": "gpt", "value": answer_text}],
    }


def _without_copies(made: Sequence[tuple[Tap, screenshots.Stored, dict]], users: dict[int, str],
                    finds: Finds) -> list[tuple[Tap, dict]]:
    """(tap, record) of each tap once, and of each screenshot in one split alone: test before val before train.

    A screenshot counts by its content, whatever its file, user and episode.
    """
    first_split: dict[str, Tap] = {}
    first_tap: dict[tuple, Tap] = {}
    shared, kept = Counter(), set()
    for tap, shot, record in sorted(made, key=lambda row: -SPLITS.index(users[row[0].user])):
        owner = first_split.setdefault(shot.digest, tap)
        key = shot.digest, tuple(record["grid"]), tap.instruction
        if users[owner.user] != users[tap.user]:
            finds.drop(tap.where, f"same screenshot in the {users[owner.user]} split: {owner.where}")
            shared[f"{tap.user}/{tap.episode}", f"{owner.user}/{owner.episode}", users[owner.user]] += 1
        elif key in first_tap:
            finds.drop(tap.where, f"same tap as {first_tap[key].where}")
        else:
            first_tap[key] = tap
            kept.add(id(record))
    finds.notes += [f"episode {copy} has {count} taps on screenshots of {episode} in the {split} split, kept there"
                    for (copy, episode, split), count in shared.most_common(EPISODES_NAMED)]
    return [(tap, record) for tap, _, record in made if id(record) in kept]


def _plain(text: str) -> str:
    """A source's words without those that a record keeps for its media."""
    return _PLACEHOLDER.sub("", text).strip() if _PLACEHOLDER.search(text) else text


def referring(label: str | None, grid: tuple[float, float]) -> str:
    """An element in words: its label, where the view hierarchy gives one, and the ninth of the screen it is in."""
    chinese = bool(label) and any("\u4e00" <= letter <= "\u9fff" for letter in label)
    rows, columns = PLACES["zh" if chinese else "en"]
    row, column = rows[min(2, int(grid[1] * 3 / 1000))], columns[min(2, int(grid[0] * 3 / 1000))]
    position = row + column if chinese else f"{row} {column}"
    return f"{label}{'，' if chinese else ', '}{position}" if label else f"element at the {position}"


def reasons(drops: Iterable[dict]) -> str:
    """Reasons of drops, each with its count."""
    counts = Counter(re.split(r"[:(]", drop["reason"])[0].strip() for drop in drops)
    return "; ".join(f"{count} x {reason}" for reason, count in counts.most_common()) or "nothing was dropped"


def _metadata(settings: Settings, rows: dict, wanted: dict, finds: Finds) -> dict:
    convention = coordinates.convention_of(settings.family)
    by_user: dict[int, list] = {}
    for item, read_as in finds.observed:
        by_user.setdefault(item.tap.user, []).append((item, read_as))
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
        "consistency": {user: _consistency(members) for user, members in sorted(by_user.items())},
        "broken_view_hierarchies": finds.broken_trees,
        "notes": finds.notes,
        "other_actions": dict(sorted((finds.other + finds.counts.other).items())),
        "other_roles": dict(sorted(finds.counts.roles.items())),
        "dropped": len(finds.drops), "drops": finds.drops,
    }


def _consistency(members: Sequence[tuple[Observed, Convention]]) -> dict:
    """`conventions.measure` of one user, whose taps may come from several sources."""
    parts = [conventions.measure([item for item, other in members if other == convention], convention)
             for convention in dict.fromkeys(convention for _, convention in members)]
    return parts[0] if len(parts) == 1 else conventions.together(parts)
