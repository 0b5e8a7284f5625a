"""Fetch chunks of PhysicalAI-Autonomous-Vehicles (gated: needs a login; the sample clips need no download)."""

from pathlib import Path

import _bootstrap  # (re-runs in .venv, puts the repository on the path)

from overlays import errors
from overlays.flags import Parser


def main() -> None:
    parser = Parser(
        description="Fetch chunks of nvidia/PhysicalAI-Autonomous-Vehicles: one camera and the egomotion. The set is "
        "gated: accept its licence on the hub and run `hf auth login` once. An interrupted download is continued.")
    parser.add_argument("--chunks", default="0", help="numbers and ranges: 0-2,7 (default: 0; about 100 clips each)")
    parser.add_argument("--camera", default="camera_front_wide_120fov")
    parser.add_argument("--revision", help="commit or branch of the data set (default: the newest)")
    parser.add_argument("--unpack", action="store_true", help="unpack each archive and delete it; prepare reads both")
    parser.add_argument("--output", type=Path, help="folder (default: data/raw/driving/physical_ai)")
    options = parser.parse_args()
    from overlays.domains.driving.download import chunk_numbers, fetch

    folder = options.output or _bootstrap.ROOT / "data" / "raw" / "driving" / "physical_ai"
    for path in fetch(folder, chunk_numbers(options.chunks), options.camera, options.revision, options.unpack):
        print(path)
    print(f"next: python scripts/prepare_physical_ai.py --raw {folder}"
          f"{f' --camera {options.camera}' if options.camera != parser.get_default('camera') else ''}")


if __name__ == "__main__":
    errors.run(main)
