"""What tests of the driving domain share: a handful of sample clips, made once."""

from pathlib import Path

import pytest

from overlays.samples.driving import write

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "driving"


@pytest.fixture(scope="session")
def sample_clips(tmp_path_factory):
    """Folder of ten sample clips of three seconds, one of each kind."""
    return write(tmp_path_factory.mktemp("driving") / "sample", clips=10, seconds=3, workers=1)


@pytest.fixture
def real_clips():
    """Folder of real recordings; the test is skipped where they are absent."""
    if not REAL.is_dir():
        pytest.skip(f"real recordings are not in {REAL}")
    return REAL
