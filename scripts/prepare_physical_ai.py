"""Prepare driving clips: one second of video -> velocity and curvature of the next second, split by clip."""

import argparse
import os
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors
from overlays.data import records


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Prepare driving clips with egomotion; without --raw, the sample clips.")
    parser.add_argument("--raw", type=Path, help="folder with camera/<camera> and labels/egomotion, archives or "
                        "unpacked (default: the sample clips, made in data/raw/driving/sample)")
    parser.add_argument("--camera", default="camera_front_wide_120fov")
    parser.add_argument("--output", type=Path, help="folder (default: data/prepared/driving of this project)")
    parser.add_argument("--pairs", type=int, help="pairs in an answer, spread evenly over the second "
                        "(default: one a frame, 30; 4 for the sample)")
    parser.add_argument("--past-motion", action="store_true", help="tell the pairs of the second that is seen")
    parser.add_argument("--stride", type=int, help="frames from one window to the next (default: one second)")
    parser.add_argument("--max-gap", dest="max_gap_s", type=float, help="seconds without egomotion that are still "
                        "interpolated (default: 0.1, or 1.5 times the usual step of a clip with fewer rows)")
    parser.add_argument("--cut", action="store_true", help="write every window as a video of its own")
    parser.add_argument("--cut-quality", type=int, default=0, help="x264 quality of these: 0 lossless, 18 looks so")
    parser.add_argument("--splits", choices=("auto", "index", "own"), default="auto",
                        help="whose splits: those of clip_index.parquet, own ones, or its where it names all clips")
    parser.add_argument("--split-fractions", default="0.8,0.1,0.1", help="train,val,test of own splits")
    parser.add_argument("--format", choices=("training", "messages"), default="training",
                        help="messages: write messages/*.jsonl in the Hugging Face layout as well")
    parser.add_argument("--motion-only", action="store_true", help="no videos: motion.jsonl with the pairs of every "
                        "window (default folder: data/prepared/driving_motion)")
    parser.add_argument("--limit", type=int, help="clips at most")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    from overlays.domains.driving.prepare import OUTPUT, Settings, prepare

    values = vars(options)
    values["output"] = options.output or (OUTPUT.with_name("driving_motion") if options.motion_only else OUTPUT)
    values["messages"] = values.pop("format") == "messages"
    values["split_fractions"] = records.parse_fractions(options.split_fractions)
    report(prepare(Settings(**values)), values["output"])


def report(metadata: dict, output: Path) -> None:
    counts, parameters, future = metadata["counts"], metadata["parameters"], metadata["future"]
    dropped = _listed(counts["clips_dropped"])
    refused = f", {counts['archives_refused']} archives refused" if counts["archives_refused"] else ""
    print(f"clips: {counts['clips_used']} of {counts['clips']} used{f' (dropped: {dropped})' if dropped else ''}"
          f"{refused}")
    dropped = _listed(counts["windows_dropped"])
    print(f"windows of one second: {counts['windows']} = {counts['train']} train + {counts['val']} val + "
          f"{counts['test']} test ({'the index' if metadata['splits_by'] == 'index' else 'own'} splits, by clip)"
          f"{f'; dropped: {dropped}' if dropped else ''}")
    if counts["curvature_fitted"]:
        bent = counts["curvature_out_of_range"]
        print(f"curvature fitted from yaw rate where the file has none: {counts['curvature_fitted']} clips"
              f"{f', {bent} rows of them for values that no car drives' if bent else ''}")
    print(f"next second: {future['v_min']:.1f} to {future['v_max']:.1f} m/s, curvature {future['k_min']:.5f} to "
          f"{future['k_max']:.5f} 1/m; {counts['low_speed']} windows with less than 1 m/s, scored apart")
    if parameters["pairs"] is not None:
        print(f"answers hold {parameters['pairs']} pairs, spread over the second (--pairs; one a frame is 30)")
    if parameters["messages"] and not parameters["cut"]:
        print("note: messages name frames of whole clips (video_start, video_end); for other trainers add --cut")
    if counts["clips_dropped"] or counts["windows_dropped"] or counts["archives_refused"]:
        print(f"every drop is listed in {output / 'metadata.json'}")
    print(f"prepared data: {output}")


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in numbers.items())


if __name__ == "__main__":
    errors.run(main)
