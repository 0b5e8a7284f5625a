"""Video alone against video and past motion: the same clips prepared both ways, and both scores as one table.

    python -m overlays.domains.driving.compare prepare
    python -m overlays.domains.driving.compare table outputs/driving_compare
"""

from __future__ import annotations

import os
from pathlib import Path

from overlays import errors, paths
from overlays.domains.driving import prepare
from overlays.errors import UserError
from overlays.files import OWN_JSON_BYTES, read_json
from overlays.flags import Parser

MEASURED = ("mae_v", "mae_k", "rmse_v", "rmse_k", "ade", "fde", "turn_sign_accuracy", "parse_rate")


def prepare_past(video: Path, past: Path, workers: int = 2) -> None:
    """Make `past` what `video` is, but with the last second's motion in the questions; the sample where neither is.

    Args:
        video: prepared data without past motion; its metadata says of which clips and how.
        past: gets them with past motion, unless it holds them already.

    Raises:
        UserError: `video` tells past motion itself, or the same settings do not give the same windows any more.
    """
    if not (video / "metadata.json").is_file():
        prepare.prepare(prepare.Settings(output=video, workers=workers))
    asked = _metadata(video)
    parameters = asked["parameters"]
    if parameters["past_motion"]:
        raise UserError(f"{video} was prepared with --past-motion: prepare it without")
    if (past / "metadata.json").is_file() and not _differences(asked, _metadata(past)):
        return
    raw = paths.ROOT / parameters["raw"]  # an absolute path stays one
    prepare.prepare(prepare.Settings(**{
        **parameters, "raw": None if raw == paths.RAW / "driving" / "sample" else raw, "past_motion": True,
        "output": past, "split_fractions": tuple(parameters["split_fractions"]), "workers": workers,
    }))
    differing = _differences(asked, _metadata(past))
    if differing:
        raise UserError(f"{video} and {past} differ in {', '.join(differing)}, so their scores cannot be compared: "
                        f"prepare {video} again")


def _metadata(folder: Path) -> dict:
    file = folder / "metadata.json"
    metadata = read_json(file, {"domain": str, "parameters": dict, "counts": dict}, "prepare the clips again",
                         OWN_JSON_BYTES)
    if metadata["domain"] != "driving":
        raise UserError(f"{file} is not that of prepared driving clips: prepare them again")
    return metadata


def _differences(one: dict, other: dict) -> list[str]:
    """Keys in which two metadata differ; past_motion does not count, and none is as good as a zero."""
    one, other = ({**metadata, **metadata["parameters"], **metadata["counts"], "parameters": None, "counts": None,
                   "past_motion": None} for metadata in (one, other))
    return sorted(key for key in one.keys() | other.keys() if (one.get(key) or None) != (other.get(key) or None))


def table(folder: Path) -> str:
    """The metrics of the runs `video` and `past` below a folder beside the baselines, as text."""
    row = dict.fromkeys(MEASURED, (float, None))
    metrics = {name: read_json(folder / name / "test" / "metrics.json", {**row, "baseline": {str: (row, None)}},
                               "score the run again") for name in ("video", "past")}
    rows = {"video only": metrics["video"], "video and past motion": metrics["past"], **metrics["past"]["baseline"]}
    lines = [f"{'':<24}" + "".join(f"{key.replace('turn_sign_accuracy', 'turn sign'):>12}" for key in MEASURED)]
    for name, row in rows.items():
        if row:
            cells = ("-" if row[key] is None else f"{row[key]:.5f}" for key in MEASURED)
            lines.append(f"{name.replace('_', ' '):<24}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Command line of the comparison."""
    parser = Parser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("prepare", help="prepare data/prepared/driving_past as data/prepared/driving is")
    steps.add_parser("table", help="print the metrics of both runs").add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.step == "prepare":
        prepare_past(paths.PREPARED / "driving", paths.PREPARED / "driving_past", os.cpu_count() or 1)
    else:
        print(table(options.folder))


if __name__ == "__main__":
    errors.run(main)
