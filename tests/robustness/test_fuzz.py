"""Damaged files of every kind: one sentence and status 2, or a sound result; no traceback, hang, leak or marker.

A part runs always; `--slow` runs more. The table by reader over N inputs:

    python -m tests.robustness.test_fuzz 2000
"""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.robustness import damage, isolated, readers

SEED = int(os.environ.get("FUZZ_SEED", 0))
QUICK = ("records .jsonl", "records .json", "other formats", "datasets.json", "images", "metrics",
         "archives", "taps", "saved data set")
CASES = st.tuples(st.sampled_from(damage.NAMES), st.integers(0, 10**6), st.integers(0, 10**6))


def sound(name: str, base: Path) -> Path:
    """The folder of a reader's sound files, made once; the command has to end well on them."""
    reader = readers.READERS[name]
    folder = base / f"{reader.make.__qualname__}-{name}".replace(" ", "_").replace("/", "_")
    if not folder.exists():
        folder.mkdir(parents=True)
        reader.make(folder)
        with tempfile.TemporaryDirectory(dir=base) as place:
            done = reader.command(copy(folder, Path(place) / "again"))
            assert done.returncode == 0, done.stderr
    return folder


def copy(folder: Path, target: Path) -> Path:
    """The folder with hard links to its files."""
    return Path(shutil.copytree(folder, target, copy_function=os.link))


def examine(name: str, folder: Path, case: tuple[str, int, int]) -> isolated.Outcome:
    """Damage one file of a copy of a reader's folder, and run its command in a process of its own."""
    reader, (how, which, number) = readers.READERS[name], case
    place = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        own = copy(folder, place / "own")
        files = sorted(file for pattern in reader.targets for file in own.glob(pattern))
        target = files[which % len(files)]
        damage.apply(target, how, number)
        outcome = isolated.call(lambda: readers.problem(reader, own))
        return isolated.Outcome(outcome.value, outcome.failure, f"{target.relative_to(own)}, {case}: {outcome.detail}")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def fuzz(name: str, base: Path, examples: int, found: list) -> None:
    """Run so many damaged inputs on a reader; every outcome goes into `found`."""
    folder = sound(name, base)

    @seed(SEED)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(CASES)
    def run(case):
        found.append(examine(name, folder, case))

    run()


def failures(found: list) -> list[str]:
    """The outcomes that must not be, as text."""
    return [f"{outcome.failure or 'ending'} {outcome.value or ''} {outcome.detail}" for outcome in found
            if outcome.failure or outcome.value]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model_dir):
    readers._model.tiny = tiny_model_dir("qwen3_vl")
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", QUICK)
def test_damaged_files_end_in_one_sentence(name, base):
    found = []
    fuzz(name, base, 4, found)
    assert not failures(found), "\n".join(failures(found))


@pytest.mark.slow
@pytest.mark.skipif(torch.get_num_threads() > 1, reason="a fork of a process that computed in several threads may wait "
                                                        "for ever: OMP_NUM_THREADS=1, as scripts/test.sh sets it")
@pytest.mark.parametrize("name", readers.READERS)
def test_many_damaged_files_end_in_one_sentence(name, base):
    found = []
    fuzz(name, base, 20 if readers.READERS[name].heavy else 80, found)
    assert not failures(found), "\n".join(failures(found))


def main(words: list[str]) -> None:
    """Print the table of so many inputs, spread over all readers or those whose names hold a word."""
    from overlays.model import tiny

    sys.path.insert(0, "scripts")  # as pytest does
    names = [name for name in readers.READERS if not words[1:] or any(word in name for word in words[1:])]
    heavy = sum(readers.READERS[name].heavy for name in names)
    each = -(-int(words[0]) // (len(names) - heavy + heavy / 4))
    with tempfile.TemporaryDirectory() as place:
        readers._model.tiny = tiny.build("qwen3_vl", Path(place) / "tiny")
        print(f"{'reader':<20}{'inputs':>8}{'sentence or sound':>20}{'traceback':>11}{'hang':>6}{'> 2 GB':>8}"
              f"{'other':>7}{'seconds':>9}")
        total: Counter = Counter()
        for name in names:
            found, start = [], time.monotonic()
            try:
                fuzz(name, Path(place), int(each / 4 if readers.READERS[name].heavy else each) or 1, found)
            except Exception as error:
                print(f"{name}: the sound files do not go through: {error}", flush=True)
            kinds = Counter(outcome.failure or ("other" if outcome.value else "good") for outcome in found)
            kinds["other"] += kinds["crash"]
            total += kinds + Counter(inputs=len(found))
            print(f"{name:<20}{len(found):>8}{kinds['good']:>20}{kinds['traceback']:>11}{kinds['hang']:>6}"
                  f"{kinds['memory']:>8}{kinds['other']:>7}{time.monotonic() - start:>9.0f}", flush=True)
            for text in failures(found):
                print(text, file=sys.stderr, flush=True)
        print(f"{'all':<20}{total['inputs']:>8}{total['good']:>20}{total['traceback']:>11}{total['hang']:>6}"
              f"{total['memory']:>8}{total['other']:>7}")


if __name__ == "__main__":
    main(sys.argv[1:])
