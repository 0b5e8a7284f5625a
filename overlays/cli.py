"""Console command `qwen-vl-overlays`: the entries of the package by one word each."""

import runpy
import sys
from collections.abc import Sequence

from overlays import __version__
from overlays.errors import UserError, run

COMMANDS = {  # word -> (module that runs, what it does)
    "prepare": ("overlays.prepare", "raw files of a domain -> records"),
    "check": ("overlays.check", "check data sets without a model"),
    "plan": ("overlays.plan", "memory of a fine-tuning, and flags that make it fit a GPU"),
    "train": ("overlays.train", "fine-tune on records"),
    "pretrain-mae": ("overlays.pretrain_mae", "pretrain the vision tower on rasters by masking"),
    "train-dpo": ("overlays.train_dpo", "optimise on preference pairs"),
    "predict": ("overlays.predict", "answer the questions of a data set"),
    "evaluate": ("overlays.evaluate", "score a checkpoint on a split, with a report"),
    "merge": ("overlays.merge", "merge an adapter into its base model"),
    "tiny": ("overlays.model.tiny", "build a tiny model with random weights"),
}


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that the first word names. Raises UserError where there is no such command."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        print("usage: qwen-vl-overlays COMMAND [flags]; COMMAND --help lists its flags\n")
        print("\n".join(f"  {word:<14}{text}" for word, (_, text) in COMMANDS.items()))
    elif words[0] == "--version" and len(words) > 1:
        raise UserError(f"--version takes nothing behind it, not {words[1]!r}")
    elif words[0] == "--version":
        print(f"qwen-vl-overlays {__version__}")
    elif words[0] not in COMMANDS:
        raise UserError(f"there is no command {words[0]!r}; there are {', '.join(COMMANDS)}")
    else:
        sys.argv = [f"qwen-vl-overlays {words[0]}", *words[1:]]
        runpy.run_module(COMMANDS[words[0]][0], run_name="__main__")


def console() -> None:
    """The installed command."""
    run(main)


if __name__ == "__main__":
    console()
