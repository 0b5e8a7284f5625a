"""Prepare posed RGB-D scenes: EmbodiedScan infos and question files -> records with frames, poses and intrinsics."""

import argparse
from collections import Counter
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors

SHOWN = 5  # dropped items named on the screen; metadata.json has them all


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Prepare questions about posed RGB-D scenes; without --data, from the sample rooms.")
    parser.add_argument("--data", type=Path, help="folder with embodiedscan_infos_*.pkl and posed_images or "
                        "scannet/posed_images (default: the sample, made in data/raw/scenes/sample)")
    parser.add_argument("--infos", nargs="+", type=Path, default=[], help="infos files that lie elsewhere")
    parser.add_argument("--questions", nargs="+", type=Path, default=[],
                        help="SQA3D, ScanQA or Video-3D-LLM files, or folders of them (default: DATA/questions)")
    parser.add_argument("--num-frames", type=int, help="frames of a scene at most (default: 32; 5 for the sample)")
    parser.add_argument("--turns", type=int, help="questions of a scene that share one training record, whose frames "
                        "are then seen once for all of them (default: 1; 5 for the sample)")
    parser.add_argument("--split", choices=("infos", "questions"), default="infos",
                        help="by the infos file of a scene, or by the name of the question file")
    parser.add_argument("--depth-scale", type=float, help="stored depth units per metre, e.g. 5000 for TUM, 6553.5 for "
                        "Replica (default: 1000; 4000 for Matterport3D)")
    parser.add_argument("--output", type=Path, help="folder (default: data/prepared/scenes of this project)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    from overlays.domains.scenes.prepare import OUTPUT, Settings, prepare

    output = options.output or OUTPUT
    report(prepare(Settings(options.data, tuple(options.infos), tuple(options.questions), output, options.num_frames,
                            options.turns, options.split, depth_scale=options.depth_scale)), output)


def report(metadata: dict, output: Path) -> None:
    counts, dropped = metadata["counts"], metadata["dropped"]
    print("scenes: " + ", ".join(f"{number} {split}" for split, number in counts["scenes"].items())
          + f"; {counts['frames']} frames, at most {metadata['parameters']['num_frames']} a scene"
          + f"; {counts['scenes_without_questions']} scenes of the infos files have no question")
    print("depth: " + ", ".join(f"{scale} units a metre in {number} frames"
                                for scale, number in counts["frames_by_depth_scale"].items()))
    types = list(dict.fromkeys(name for split in counts["by_type"].values() for name in split))
    print(f"{'questions':<20}" + "".join(f"{split:>8}" for split in counts["questions"]))
    for name in sorted(types):
        print(f"{name:<20}" + "".join(f"{split.get(name, 0):>8}" for split in counts["by_type"].values()))
    print(f"{'all':<20}" + "".join(f"{number:>8}" for number in counts["questions"].values()))
    print(f"{'records':<20}" + "".join(f"{number:>8}" for number in counts["records"].values()))
    for what, key in (("frames", "frame"), ("scenes", "scene"), ("questions", "id")):
        items = dropped[what]
        if not items:
            continue
        tally = Counter(item["reason"] for item in items).most_common()
        reasons = ", ".join(f"{number} {reason}" for reason, number in tally)
        lost = f" with {sum(item['questions'] for item in items)} questions" if what == "scenes" else ""
        print(f"dropped {len(items)} {what}{lost}: {reasons}")
        for item in items[:SHOWN]:
            where = f"{item['scene']} {item[key]}" if key != "scene" else item["scene"]
            print(f"  {where}: {item['reason']}")
        if len(items) > SHOWN:
            print(f"  and {len(items) - SHOWN} more, listed in metadata.json")
    if not counts["questions"]["test"]:
        print("note: no question falls into the test split; score with --split val, or prepare with --split questions")
    print(f"prepared data: {output}")


if __name__ == "__main__":
    errors.run(main)
