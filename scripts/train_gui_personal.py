"""Personal stage of GUI grounding: K folds for each user, a small adapter each, on the global model."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors


def main() -> None:
    from overlays.domains.gui import train_personal

    train_personal.main()


if __name__ == "__main__":
    errors.run(main)
