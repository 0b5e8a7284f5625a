"""Score a model on held-out scenes: EM, EM-R, CIDEr by question type, beside other methods; --table compares runs."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, evaluate

if __name__ == "__main__":
    errors.run(lambda: evaluate.main(domain="scenes"))
