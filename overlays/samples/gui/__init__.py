"""A small raw data set in fingertip-20k's folder layout: users with habits tapping through drawn phone screens."""

import json
import os
import random
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from overlays.files import atomic_path, write_json
from overlays.samples.gui import screens

VERSION = 1  # raised with every change of the screens; an older sample is made anew
USERS = range(1, 84)
EPISODES = {"test": 12, "val": 2, "train": 8}
STEPS = 6
PREPARE = {"screenshot_pixels": 270 * 600}  # the drawn screens are flat: a quarter of their side loses nothing
TWINS = 0.6  # share of the screens on which the wanted element stands twice
REACHES = ("upper", "lower", "left", "right")
WORDINGS = {
    "en": ("tap the {name}", "open the {name}", "press the {name}", "choose the {name}"),
    "zh": ("点击{name}", "打开{name}", "按{name}", "选择{name}"),
}


@dataclass(frozen=True)
class Habit:
    """What one user always does.

    Attributes:
        reach: which of two equal elements: the upper, lower, left or right one.
        offset: (x, y) of the tap from an element's centre, in parts of its half side.
        language: "en" or "zh", of labels and wording.
        wording: the sentence of an instruction.
    """

    reach: str
    offset: tuple[float, float]
    language: str
    wording: str


def habit(user: int, seed: int = 0) -> Habit:
    """The habit of a user, the same in every sample of this seed."""
    rng = random.Random(f"{seed}:habit:{user}")
    language = "zh" if rng.random() < 0.4 else "en"
    return Habit(REACHES[user % len(REACHES)], (round(rng.uniform(-0.4, 0.4), 2), round(rng.uniform(-0.4, 0.4), 2)),
                 language, rng.choice(WORDINGS[language]))


def preferred(screen: screens.Screen, reach: str) -> screens.Element:
    """The element of a screen that a user with this reach taps."""
    if screen.twin is None:
        return screen.target
    side = {"upper": (1, 1), "lower": (1, -1), "left": (0, 1), "right": (0, -1)}[reach]
    return min((screen.target, screen.twin), key=lambda element: side[1] * element.centre[side[0]])


def write(folder: str | Path, seed: int = 0, *, users=USERS, episodes: dict[str, int] | None = None, steps: int = STEPS,
          workers: int = os.cpu_count() or 1) -> Path:
    """Write the sample; the folder appears complete or not at all.

    Layout: <folder>/<user>/<YYYYMMDD_HHMMSS>/{screenshots/<step>.jpg, <step>.xml, action.jsonl, survey_result.json}.
    habits.json beside the users says what each of them does; nothing but tests reads it.

    Args:
        users: numbers of the users.
        episodes: by split, of each of its users; see EPISODES.
        steps: taps of an episode.
        workers: processes.
    """
    output = Path(folder)
    counts = EPISODES | (episodes or {})
    shutil.rmtree(output, ignore_errors=True)
    with atomic_path(output) as folder:
        folder.mkdir(parents=True)
        write_json(folder / "habits.json", {user: asdict(habit(user, seed)) for user in users})
        jobs = [(user, counts["test" if user <= 10 else "train" if user <= 73 else "val"]) for user in users]
        draw_user = partial(_draw_user, folder, seed, steps)
        quiet = len(jobs) < 20
        with ProcessPoolExecutor(workers) as pool:
            for _ in tqdm(pool.map(draw_user, *zip(*jobs, strict=True)), total=len(jobs), desc="drawing users",
                          unit="user", file=sys.stderr, disable=quiet):
                pass
        write_json(folder / "sample.json", {"version": VERSION, "seed": seed, "prepare": PREPARE})
    return output


def _draw_user(folder: Path, seed: int, steps: int, user: int, episodes: int) -> None:
    own, rng = habit(user, seed), random.Random(f"{seed}:user:{user}")
    for number in range(episodes):
        episode = folder / str(user) / f"2025{1 + number % 12:02d}{1 + user % 28:02d}_{8 + number % 12:02d}3000"
        (episode / "screenshots").mkdir(parents=True)
        actions = []
        for step in range(steps):
            screen = screens.compose(rng, rng.random() < TWINS)
            element = preferred(screen, own.reach)
            half = (element.box[2] - element.box[0]) / 2
            click = [round(centre + half * (offset + rng.uniform(-0.15, 0.15)))
                     for centre, offset in zip(element.centre, own.offset, strict=True)]
            screens.draw(screen, own.language, rng).save(episode / "screenshots" / f"{step}.jpg", quality=75)
            (episode / f"{step}.xml").write_text(screens.hierarchy(screen, own.language), encoding="utf-8")
            instruction = own.wording.format(name=element.name(own.language))
            actions.append({"step": step, "action": "click", "coordinate": click, "screenshot": f"{step}.jpg",
                            "instruction": instruction})
        actions.append({"step": steps, "action": "finish"})
        lines = "".join(json.dumps(action, ensure_ascii=False) + "\n" for action in actions)
        (episode / "action.jsonl").write_text(lines, encoding="utf-8")
        write_json(episode / "survey_result.json", {"user_id": user, "intent": "; ".join(
            action["instruction"] for action in actions[:-1])})
