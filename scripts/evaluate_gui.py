"""Score a model on users' taps: click accuracy within 140 of the 0-1000 grid, L2 distances, per user and overall."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, evaluate

if __name__ == "__main__":
    errors.run(lambda: evaluate.main(domain="gui"))
