"""Benchmarks: ratios measured in one run, and peak memory. `scripts/bench.py NAME [--json FILE]`."""

import argparse
import importlib
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays.errors import run
from overlays.files import write_json

NAMES = sorted(file.stem for file in (Path(__file__).parent / "benches").glob("*.py"))


def main() -> None:
    """Run one benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, help="write the figures by name")
    flags = parser.parse_args()
    figures = importlib.import_module(f"benches.{flags.name}").run()
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:.4g}")
    if flags.json:
        write_json(flags.json, figures)


if __name__ == "__main__":
    run(main)
