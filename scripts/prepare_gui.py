"""Prepare GUI grounding data: users' taps on their own screens -> questions and points, split by user."""

import argparse
from collections import Counter
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Prepare GUI grounding data; without --raw and --jsonl, from drawn sample screens.")
    parser.add_argument("--raw", type=Path, help="folder of users in fingertip-20k's layout")
    parser.add_argument("--jsonl", type=Path, nargs="+", default=[], help="files with `messages`, one tap a line")
    parser.add_argument("--output", type=Path, help="folder (default: data/prepared/gui of this project)")
    parser.add_argument("--train-users", nargs="+", default=["11-73"], help="ranges and lists: 11-73, 1-10 15")
    parser.add_argument("--val-users", nargs="+", default=["74-83"])
    parser.add_argument("--test-users", "--users", nargs="+", default=["1-10"])
    parser.add_argument("--family", default="qwen3_vl",
                        help="model type the answers are for: qwen2_5_vl names pixels of the image it sees, the "
                             "others the 0-1000 grid")
    parser.add_argument("--min-pixels", type=int, default=28 * 28 * 16, help="of training, for qwen2_5_vl")
    parser.add_argument("--max-pixels", type=int, default=28 * 28 * 1280, help="of training, for qwen2_5_vl")
    parser.add_argument("--screenshot-pixels", type=int,
                        help="store screenshots at no more pixels (default: as they are; the sample at 270 x 600)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    from overlays.domains.gui.prepare import OUTPUT, Settings, prepare

    output = options.output or OUTPUT
    users = {"train": options.train_users, "val": options.val_users, "test": options.test_users}
    metadata = prepare(Settings(
        raw=options.raw, jsonl=options.jsonl, output=output, users={name: " ".join(x) for name, x in users.items()},
        family=options.family, min_pixels=options.min_pixels, max_pixels=options.max_pixels,
        screenshot_pixels=options.screenshot_pixels,
    ))
    for split, counts in metadata["counts"].items():
        print(f"{split:<6}{counts['taps']:>7} taps{counts['episodes']:>6} episodes{counts['users']:>5} users")
        missing = metadata["users_without_taps"][split]
        if missing:
            print(f"note: {split} users without taps: {', '.join(map(str, missing))}")
    other = ", ".join(f"{count} {name}" for name, count in metadata["other_actions"].items())
    if other:
        print(f"actions that are no taps: {other}")
    for source in metadata["shares_of_the_screen"]:
        print(f"note: the points of {source} lie between 0 and 1: taken as shares of the screen, not as pixels")
    for what, name in (("taps of users in no split", "users_in_no_split"), ("turns of other roles", "other_roles")):
        if metadata[name]:
            named = ", ".join(f"{count} of {key}" for key, count in list(metadata[name].items())[:20])
            print(f"note: {what} are left out: {named}")
    for reason, count in Counter(drop["reason"].split(":")[0].split("(")[0] for drop in metadata["drops"]).items():
        print(f"dropped: {count} x {reason.strip()} (each listed in metadata.json)")
    print(f"points on the {'0-1000 grid' if metadata['convention'] == 'relative' else 'pixels of the seen image'}; "
          f"prepared data: {output}")


if __name__ == "__main__":
    errors.run(main)
