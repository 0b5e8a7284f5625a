"""Entry: preference optimisation (DPO). `python -m overlays.train_dpo --help` lists the flags."""

from overlays.errors import run
from overlays.train import main

if __name__ == "__main__":
    run(lambda: main("DPO", "dpo"))
