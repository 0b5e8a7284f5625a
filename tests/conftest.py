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


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
