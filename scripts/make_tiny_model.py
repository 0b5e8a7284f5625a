"""A tiny Qwen-VL of a real architecture with random weights, for machines without GPU and for tests."""

import argparse
import time
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays.errors import run
from overlays.model import tiny


def main() -> None:
    """Parse flags and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="qwen3_vl", help=", ".join(tiny.SIZES))
    parser.add_argument("--output", type=Path, help="folder; default: data/models/tiny-FAMILY")
    flags = parser.parse_args()
    start = time.perf_counter()
    folder = flags.output or tiny.ROOT / "data" / "models" / f"tiny-{flags.family}"
    if tiny.is_current(flags.family, folder):
        print(f"{folder}: up to date")
        return
    tiny.build(flags.family, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
