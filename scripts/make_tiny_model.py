"""A tiny Qwen-VL of a real architecture with random weights, for machines without GPU and for tests."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors
from overlays.model import tiny

if __name__ == "__main__":
    errors.run(tiny.main)
