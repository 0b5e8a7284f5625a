"""Fetch a real Cuprite scene (the sample scene needs no download: scripts/prepare_cuprite.py makes it)."""

from pathlib import Path

import _bootstrap  # (re-runs in .venv, puts the repository on the path)

from overlays import errors
from overlays.archives import unpack_beside
from overlays.domains.cuprite.download import SCENES, fetch
from overlays.errors import UserError
from overlays.flags import Parser


def main() -> None:
    parser = Parser(description="Fetch a real Cuprite scene; an interrupted download is continued.")
    parser.add_argument("--scene", choices=SCENES, default="cuprite95",
                        help="; ".join(f"{name}: {scene.about}" for name, scene in SCENES.items()))
    parser.add_argument("--url", action="append", help="fetch this address instead (may be repeated)")
    parser.add_argument("--sha256", help="checksum of the file at --url; without it the first download's is recorded")
    parser.add_argument("--output", type=Path, help="folder (default: data/raw/cuprite/SCENE)")
    options = parser.parse_args()
    if options.sha256 and len(options.url or ()) != 1:
        raise UserError("--sha256 goes with exactly one --url")
    scene = SCENES[options.scene]
    folder = options.output or _bootstrap.ROOT / "data" / "raw" / "cuprite" / options.scene
    for url in options.url or scene.urls:
        path = fetch(url, folder, options.sha256, "" if options.url else f"see {scene.page}")
        unpacked = unpack_beside(path)
        print(f"{path}: {path.stat().st_size} bytes" + (f", unpacked to {unpacked}" if unpacked else ""))
    if not options.url:
        print(f"next: {scene.next_step.format(folder=folder)}")


if __name__ == "__main__":
    errors.run(main)
