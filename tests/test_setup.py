"""Set-up: what it uses, what it makes, and that neither a kill nor a second start leaves half an environment.

A stand-in for python3 notes what it is asked to do, so nothing is installed here.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
PYTHON = """#!/bin/bash
echo "$*" >> "{log}"
case "$*" in
    *_bootstrap.py) test -e "{root}/complete-$(basename "$0")" ;;
    "-c "*) exit {old} ;;
    *"-m venv --clear "*) rm -rf "${{@: -1}}"; mkdir -p "${{@: -1}}/bin"; cp "$0" "${{@: -1}}/bin/python" ;;
    *"pip config list") cat "{root}/pip.conf" 2> /dev/null ;;
    *"pip install"*" uv") test -e "{root}/uv" && cp "{root}/uv" "$(dirname "$0")/uv" ;;
    *"pip install"*) sleep {seconds}; exit {fails} ;;
    --version) echo "Python 3.11.0" ;;
esac
"""


@pytest.fixture
def place(tmp_path):
    """A folder with set-up and requirements, and a function that gives it a python3."""
    (tmp_path / "scripts").mkdir()
    for name in ("setup.sh", "_bootstrap.py"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts" / name)
    (tmp_path / "requirements.txt").write_text("torch\n")
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\npytest\n")
    (tmp_path / "requirements-gpu.txt").write_text("# optional\nflash-attn>=2.7\nbitsandbytes\n")
    (tmp_path / "bin").mkdir()

    def python3(seconds=0, fails=0, old=0, folder=tmp_path / "bin", name="python3"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PYTHON.format(log=tmp_path / "log", root=tmp_path, seconds=seconds, fails=fails, old=old))
        file.chmod(0o755)

    python3()
    for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
        python3(old=1, name=name)
    return tmp_path, python3


def start(root, *flags, **variables):
    environment = {"PATH": f"{root}/bin:/usr/bin:/bin", "HOME": str(root)} | variables
    return subprocess.Popen(["bash", f"{root}/scripts/setup.sh", *flags], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def set_up(root, *flags, **variables):
    process = start(root, *flags, **variables)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err


def calls(root, word):
    log = root / "log"
    return sum(word in line for line in log.read_text().splitlines()) if log.exists() else 0


def test_it_installs_once_and_is_quick_after(place):
    root, _ = place
    assert set_up(root)[:2] == (0, f"{root}/.venv/bin/python")
    begin = time.perf_counter()
    assert set_up(root)[:2] == (0, f"{root}/.venv/bin/python")
    assert time.perf_counter() - begin < 1
    assert calls(root, "requirements-dev.txt") == 1


def test_uv_is_used_with_pips_settings_and_pip_where_it_fails(place):
    root, _ = place
    settings = {"index-url": "https://a/simple", "extra-index-url": "\\nfile:///b\\nfile:///c", "find-links": "/d /e"}
    lines = [f"global.{name}='{value}'\n" for name, value in settings.items()]
    (root / "pip.conf").write_text("".join([":env:.cert='/mine.pem'\n", "global.cert='/all.pem'\n", *lines]))
    uv = root / "uv"
    handed_on = "$UV_DEFAULT_INDEX|$UV_INDEX|$UV_FIND_LINKS|$SSL_CERT_FILE"
    uv.write_text(f'#!/bin/bash\necho "{handed_on}" >> {root}/uv.log\n')
    uv.chmod(0o755)
    assert set_up(root)[:2] == (0, f"{root}/.venv/bin/python")
    assert (root / "uv.log").read_text() == "https://a/simple|file:///b file:///c|/d,/e|/mine.pem\n"
    assert calls(root, "requirements-dev.txt") == 0
    uv.write_text("#!/bin/bash\nexit 1\n")
    shutil.rmtree(root / ".venv")
    assert set_up(root)[:2] == (0, f"{root}/.venv/bin/python")
    assert calls(root, "requirements-dev.txt") == 1


def test_changed_requirements_are_installed(place):
    root, _ = place
    set_up(root)
    (root / "requirements.txt").write_text("torch>=2\n")
    set_up(root)
    assert calls(root, "requirements-dev.txt") == 2 and calls(root, "-m venv") == 1


def test_an_environment_that_has_the_packages_is_used_as_it_is(place):
    root, python3 = place
    python3(folder=root / "mine" / "bin", name="python")
    (root / "complete-python").touch()
    assert set_up(root, VIRTUAL_ENV=f"{root}/mine")[:2] == (0, f"{root}/mine/bin/python")
    assert set_up(root, CONDA_PREFIX=f"{root}/mine")[:2] == (0, f"{root}/mine/bin/python")
    (root / "complete-python").unlink()
    (root / "complete-python3").touch()
    assert set_up(root, VIRTUAL_ENV=f"{root}/mine")[:2] == (0, f"{root}/bin/python3")
    assert not (root / ".venv").exists()


def test_a_killed_set_up_is_made_anew(place):
    root, python3 = place
    python3(seconds=30)
    process = start(root)
    while not calls(root, "requirements-dev.txt"):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (root / ".venv" / "half").touch()
    python3()
    assert set_up(root)[0] == 0
    assert not (root / ".venv" / "half").exists() and calls(root, "-m venv") == 2


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_at_once_install_once(place):
    root, python3 = place
    python3(seconds=1)
    both = [start(root), start(root)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert {out.strip() for out, _ in results} == {f"{root}/.venv/bin/python"}
    assert calls(root, "requirements-dev.txt") == 1
    assert sum("waiting for another" in err for _, err in results) == 1


def test_no_python_ends_in_one_sentence(place):
    root, python3 = place
    python3(old=1)
    code, out, err = set_up(root)
    assert (code, out) == (2, "")
    assert err.startswith("error: no Python 3.11 or newer") and err.count("\n") == 1


def test_a_failed_installation_is_no_environment(place):
    root, python3 = place
    python3(fails=1)
    code, out, err = set_up(root)
    assert (code, out) == (2, "") and "error: the packages could not be installed" in err
    python3()
    assert set_up(root)[0] == 0


def test_gpu_packages_that_fail_are_named_and_left_out(place):
    root, python3 = place
    set_up(root)
    python3(fails=1, folder=root / ".venv" / "bin", name="python")
    code, out, err = set_up(root, "--gpu")
    assert (code, out) == (0, f"{root}/.venv/bin/python")
    assert "left out: flash-attn>=2.7" in err and "left out: bitsandbytes" in err
