"""Prepare GUI grounding data: users' taps on their own screens -> questions and points, split by user."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, prepare

if __name__ == "__main__":
    errors.run(lambda: prepare.main(domain="gui"))
