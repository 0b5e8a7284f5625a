"""`python -m overlays.upstream --check` lists every shadow and swap, and whether it still fits the tree."""

import argparse
import sys

from overlays.errors import run
from overlays.train import arguments
from overlays.upstream import engine, tree


def main() -> None:
    """Print the table; exit status 1 where something does not fit."""
    parser = argparse.ArgumentParser(prog="python -m overlays.upstream", description=__doc__)
    parser.add_argument("--check", action="store_true", required=True, help="list each shadow and swap, and its fit")
    parser.parse_args()
    folder = tree.require()
    _, rows = engine.check(folder, arguments.upstream_flags())
    print(engine.report(folder, rows))
    if any(row.problem for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
