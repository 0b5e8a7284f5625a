"""Check data sets without a model: every record, placeholder and media file. Exit status 0 or, with defects, 2."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import check, errors

if __name__ == "__main__":
    errors.run(check.main)
