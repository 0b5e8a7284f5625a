"""Prepare posed RGB-D scenes: EmbodiedScan infos and question files -> records with frames, poses and intrinsics."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, prepare

if __name__ == "__main__":
    errors.run(lambda: prepare.main(domain="scenes"))
