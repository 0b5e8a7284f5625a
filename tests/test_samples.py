"""Samples are the same files whenever they are written."""

import time

import pytest

from overlays.files import sha256
from overlays.samples import cuprite, driving, gui, satellite, scenes

SMALL = {
    "cuprite": lambda folder: cuprite.write(folder, lines=96, samples=96),
    "driving": lambda folder: driving.write(folder, clips=2, seconds=2.0, workers=1),
    "gui": lambda folder: gui.write(folder, users=[1], episodes={"test": 1, "train": 1, "val": 1}, steps=2, workers=1),
    "satellite": lambda folder: satellite.write(folder, cities=20),
    "scenes": lambda folder: scenes.write(folder, scenes=12, workers=1),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{name: checksums of two folders}, written more than two seconds apart: the resolution of a time in a zip."""
    folder, found = tmp_path_factory.mktemp("samples"), {name: [] for name in SMALL}
    for turn in ("first", "second"):
        start = time.monotonic()
        for name, write in SMALL.items():
            write(folder / turn / name)
            found[name].append({file.relative_to(folder / turn).as_posix(): sha256(file)
                                for file in (folder / turn).rglob("*") if file.is_file()})
        time.sleep(max(0.0, 2.1 - (time.monotonic() - start)) if turn == "first" else 0)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_a_sample_written_later_is_equal_byte_for_byte(written, name):
    first, second = written[name]
    assert first == second and len(first) > 1
