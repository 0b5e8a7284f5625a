"""Prepare the mineral data set: a hyperspectral cube -> labelled tiles with questions and answers, split by area."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, prepare

if __name__ == "__main__":
    errors.run(lambda: prepare.main(domain="cuprite"))
