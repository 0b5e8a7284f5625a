"""A small sample scene and its prepared data, made once a session."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "hyperspectral"


@pytest.fixture(scope="session")
def hyperspectral():
    """Folder of the real hyperspectral files."""
    if not SHARED.is_dir():
        pytest.skip(f"real data are not here: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """Header of a sample scene of 120 x 144 pixels."""
    from overlays.samples.cuprite import write

    return write(tmp_path_factory.mktemp("cuprite") / "sample", lines=120, samples=144, seed=0)


@pytest.fixture(scope="session")
def prepared(scene, tmp_path_factory):
    """(folder, metadata) of that scene in tiles of 16 pixels."""
    from overlays.domains.cuprite.prepare import Settings, prepare

    folder = tmp_path_factory.mktemp("prepared") / "cuprite"
    return folder, prepare(Settings(cube=scene, output=folder, tile_size=16, stride=8, language="both", workers=1))
