"""What tests share: tiny models, built once for all processes of pytest-xdist, and the order of the files."""

import os

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:  # one core each
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def messages():
    """What the package logs goes to stdout and stderr, as in a command."""
    from overlays import errors

    with errors.messages():
        yield


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory):
    """Function: family -> folder of its tiny model."""
    from filelock import FileLock

    from overlays.model import tiny

    folder, built = tmp_path_factory.getbasetemp(), {}
    folder = (folder.parent if WORKER else folder) / "tiny"
    folder.mkdir(exist_ok=True)

    def get(family: str):
        if family not in built:
            with FileLock(folder / f"{family}.lock"):
                current = tiny.is_current(family, folder / family)  # another process has built it
                built[family] = folder / family if current else tiny.build(family, folder / family)
        return built[family]

    return get


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def group(item) -> str:
    """Tests of one group run in one process of pytest-xdist: those of a domain, which share a sample, or of a file."""
    file = item.path.relative_to(item.config.rootpath / "tests")
    return str(file.parent if len(file.parts) > 2 and file.parts[0] == "domains" else file)


def pytest_collection_modifyitems(config, items):
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    # Whole runs, the longest tests, lie in tests/ itself: they start first, so that no process ends long after others.
    items.sort(key=lambda item: item.path.parent != config.rootpath / "tests")
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
