"""Adapter and fully trained parts merged into the base model: a folder that plain transformers loads."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, merge

if __name__ == "__main__":
    errors.run(merge.main)
