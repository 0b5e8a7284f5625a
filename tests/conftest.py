"""What tests share: tiny models, built once a session."""

import os

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory):
    """Function: family -> folder of its tiny model."""
    from overlays.model import tiny

    folder, built = tmp_path_factory.mktemp("tiny"), {}

    def get(family: str):
        if family not in built:
            built[family] = tiny.build(family, folder / family)
        return built[family]

    return get
