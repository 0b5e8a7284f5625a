"""A tiny Qwen-VL of a real architecture with random weights, for machines without GPU and for tests."""

import argparse
import json
import time
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays.errors import run
from overlays.families import FAMILIES
from overlays.files import atomic_path
from overlays.model import tiny
from overlays.paths import MODELS


def main() -> None:
    """Parse flags and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="qwen3_vl", help=", ".join(FAMILIES))
    parser.add_argument("--output", type=Path, help="folder; default: data/models/tiny-FAMILY")
    parser.add_argument(
        "--count-words", action="store_true",
        help="take the tokenizer's words from the domains' code as it stands; changes what every tiny model scores",
    )
    flags = parser.parse_args()
    if flags.count_words:
        counts = tiny.count_words(tiny.domain_strings())
        lines = (f"{json.dumps(word, ensure_ascii=False)}: {count}" for word, count in counts.items())
        with atomic_path(tiny.WORD_COUNTS) as file:
            file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"{tiny.WORD_COUNTS}: {len(counts)} words")
    start = time.perf_counter()
    folder = flags.output or MODELS / f"tiny-{flags.family}"
    if tiny.is_current(flags.family, folder):
        print(f"{folder}: up to date")
        return
    tiny.build(flags.family, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
