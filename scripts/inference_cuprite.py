"""Ask a fine-tuned model about mineral tiles: the held-out area with scores, a picture, a window of a cube."""

import sys
from collections.abc import Sequence

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors


def main(words: Sequence[str]) -> None:
    """--test scores the test split; everything else asks."""
    if "--test" in words and not {"-h", "--help"} & set(words):
        from overlays import evaluate

        evaluate.main([word for word in words if word != "--test"], domain="cuprite")
    else:
        from overlays.domains.cuprite import ask

        ask.main(words)


if __name__ == "__main__":
    errors.run(lambda: main(sys.argv[1:]))
