"""Score a fine-tuned model on held-out driving clips, beside four baselines: metrics.json and report.html."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, evaluate

if __name__ == "__main__":
    errors.run(lambda: evaluate.main(domain="driving"))
