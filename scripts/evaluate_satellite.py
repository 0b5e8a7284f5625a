"""Score a model's city numbers on the held-out cities, beside the training mean and ridge on mean embeddings."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, evaluate

if __name__ == "__main__":
    errors.run(lambda: evaluate.main(domain="satellite"))
