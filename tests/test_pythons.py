"""The oldest and the newest supported Python compile the code, import what needs no package, and read the flags."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OLDEST, NEWEST = "3.11", ("3.14", "3.13")  # the newest that torch supports, and the one before
IMPORTS = """
import importlib, pkgutil, overlays
for module in pkgutil.walk_packages(overlays.__path__, "overlays."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name.split(".")[0] not in ("overlays", *__import__("sys").stdlib_module_names), error
        else:
            print(module.name)
"""


def interpreter(version: str) -> str | None:
    """The interpreter of a version: on the path, or one that pyenv has installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for python in (shutil.which(f"python{version}"), *map(str, pyenv.glob(f"{version}.*/bin/python"))):
        if python and not subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
            return python
    return None


@pytest.fixture(scope="module", params=["oldest", "newest"])
def python(request):
    versions = (OLDEST,) if request.param == "oldest" else NEWEST
    this = ".".join(map(str, sys.version_info[:2]))
    if this in versions[:1]:
        pytest.skip(f"all tests run on Python {this}")
    found = next(filter(None, map(interpreter, versions)), None)
    if found is None:
        pytest.skip(f"Python {' or '.join(versions)} is not installed")
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Folder of the compiled files: none are left in the repository."""
    return str(tmp_path_factory.mktemp("compiled"))


def run(python, *words, **variables):
    names = ("PATH", "HOME", "TMPDIR", "LANG")
    environment = {name: os.environ[name] for name in names if name in os.environ} | variables
    return subprocess.run([python, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_code_compiles_and_imports(python, cache):
    cache = {"PYTHONPYCACHEPREFIX": cache, "PYTHONNOUSERSITE": "1"}
    done = run(python, "-W", "error", "-m", "compileall", "-q", "overlays", "scripts", **cache)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(python, "-W", "error", "-c", IMPORTS, **cache)
    assert done.returncode == 0, done.stderr
    assert {"overlays.cli", "overlays.data.records", "overlays.runs"} <= set(done.stdout.split())


@pytest.mark.parametrize("module", ["overlays.train", "overlays.train_dpo", "overlays.pretrain_mae"])
def test_flags_are_read(python, module, cache):
    """With the packages of this environment of which no compiled part is needed."""
    packages = {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONPYCACHEPREFIX": cache}
    done = run(python, "-m", module, "--help", **packages)
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and "--model_name_or_path" in done.stdout
    done = run(python, "-m", module, "--modell", "x", **packages)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown flag --modell"), done.stderr
