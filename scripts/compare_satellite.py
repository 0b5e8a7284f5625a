"""Metrics of several satellite runs on held-out cities, one below the other, with baselines and noise ceiling."""

from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, report
from overlays.errors import UserError
from overlays.files import read_json
from overlays.flags import Parser

MEASURED = {"r2": "R2", "rmse": "RMSE", "mae": "MAE", "pearson": "Pearson"}


ROW = dict.fromkeys((f"{key}?" for key in MEASURED), float)
METRICS = {**ROW, "n": int, "ceiling?": float, "baseline?": {str: (ROW, None)}}
PREFERENCES = {"n": int, **dict.fromkeys(("accuracy", "margin", "beta"), float)}


def read(file: Path, form: dict) -> dict | None:
    return read_json(file, form, "score the run again") if file.exists() else None


def line(label: str, metrics: dict | None, extra: str = "") -> str:
    return f"{label:<34}" + "".join(f"{report.number((metrics or {}).get(key)):>9}" for key in MEASURED) + extra


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=FOLDER", help="run folders that evaluate_satellite.py scored")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    flags = parser.parse_args()
    rows = []
    for word in flags.runs:
        label, _, folder = word.rpartition("=")
        metrics = read(Path(folder) / flags.split / "metrics.json", METRICS)
        if metrics is None:
            raise UserError(f"{folder} is not scored: run scripts/evaluate_satellite.py --checkpoint {folder} first")
        rows.append((label or folder, Path(folder), metrics))
    print(f"{'':<34}" + "".join(f"{name:>9}" for name in MEASURED.values()))
    for label, folder, metrics in rows:
        steps = (read(folder / "trainer_state.json", {"global_step": int}) or {}).get("global_step")
        print(line(label, metrics, f"   {steps} steps" if steps else ""))
    last = rows[-1][2]
    for name, label in (("mean", "training mean"), ("ridge", "ridge on mean embeddings")):
        print(line(label, (last.get("baseline") or {}).get(name)))
    if last.get("ceiling") is not None:
        print(f"{'noise ceiling of the sample':<34}{last['ceiling']:>9.3f}")
    print(f"{last['n']} cities of the {flags.split} split")
    for label, folder, _ in rows:
        pairs = read(folder / "preferences.json", PREFERENCES)
        if pairs:
            print(f"{label}: preference accuracy {pairs['accuracy']:.3f} on {pairs['n']} held-out pairs, mean margin "
                  f"{pairs['margin']:.3f} (beta {pairs['beta']:g})")


if __name__ == "__main__":
    errors.run(main)
