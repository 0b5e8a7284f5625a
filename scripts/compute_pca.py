"""Three principal components of the training cities: for RGB pictures, and for --channel_init project."""

from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, paths
from overlays.flags import Parser


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--data", type=Path, help="prepared folder (default: data/prepared/satellite)")
    folder = parser.parse_args().data
    from overlays.domains.satellite.pca import NAME, PROJECTION, compute

    folder = folder or paths.PREPARED / "satellite"
    pca = compute(folder)
    for number, (share, low, high) in enumerate(zip(pca.explained, pca.low, pca.high, strict=True), start=1):
        print(f"component {number}: {share:.1%} of the variance; shown from {low:+.3f} to {high:+.3f}")
    print(f"together {pca.explained.sum():.1%}, fitted on the training cities alone\n"
          f"{folder / NAME}: for prepare_satellite.py --rgb-pca\n"
          f"{folder / PROJECTION}: for --channel_init project --channel_projection")


if __name__ == "__main__":
    errors.run(main)
