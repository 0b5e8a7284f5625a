"""Entry: supervised fine-tuning. `python -m overlays.train --help` lists the flags."""

from overlays.errors import run
from overlays.train import main

if __name__ == "__main__":
    run(lambda: main("SFT", "sft"))
