"""Prepare driving clips: one second of video -> velocity and curvature of the next second, split by clip."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, prepare

if __name__ == "__main__":
    errors.run(lambda: prepare.main(domain="driving"))
