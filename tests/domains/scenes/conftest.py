"""A small sample of rooms, made and prepared once a session."""

import pytest

from overlays.domains.scenes import prepare as preparing
from overlays.samples import scenes as sampling

SCENES = 16


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Folder of 16 rooms in the raw layout."""
    return sampling.write(tmp_path_factory.mktemp("scenes") / "sample", 1, scenes=SCENES, workers=1)


@pytest.fixture(scope="session")
def prepared(raw, tmp_path_factory):
    """(folder, metadata) of the rooms prepared."""
    output = tmp_path_factory.mktemp("prepared") / "scenes"
    return output, preparing.prepare(preparing.Settings(raw, output=output, num_frames=sampling.FRAMES, turns=1))
