"""Makes a script run from a bare interpreter: re-runs it in .venv where packages are missing, and finds `overlays`.

As a program (`python scripts/_bootstrap.py`): names what requirements.txt and requirements-dev.txt ask for and this
interpreter lacks, and exits with 1 if there is anything.
"""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def missing(*files: str) -> list[str]:
    """Requirements in the files that this interpreter does not meet."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"]
    lacking = []
    for line in "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files).splitlines():
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            if not requirement.specifier.contains(metadata.version(requirement.name), prereleases=True):
                lacking.append(line)
        except metadata.PackageNotFoundError:
            lacking.append(line)
    return lacking


def _enter_environment() -> None:
    if os.environ.get("OVERLAYS_BOOTSTRAPPED") or not missing("requirements.txt"):
        return
    done = subprocess.run([str(ROOT / "scripts" / "setup.sh")], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(2)
    python = done.stdout.split("\n")[-2]
    os.environ["OVERLAYS_BOOTSTRAPPED"] = "1"
    os.execv(python, [python, *sys.argv])


if __name__ == "__main__":
    lacking = missing("requirements.txt", "requirements-dev.txt")
    print("\n".join(lacking), file=sys.stderr)
    sys.exit(1 if lacking else 0)

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every start would compile all packages anew
sys.dont_write_bytecode = False
_enter_environment()
if sys.platform == "linux" and not any(map(shutil.which, ("nvidia-smi", "rocm-smi", "amd-smi", "npu-smi", "xpu-smi"))):
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns at every import that it found none
sys.path.insert(0, str(ROOT))
