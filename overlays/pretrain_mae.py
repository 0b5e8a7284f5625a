"""Entry: masked-autoencoder pretraining of the vision tower. `python -m overlays.pretrain_mae --help`."""

from overlays.errors import run
from overlays.train import main

if __name__ == "__main__":
    run(lambda: main("MAE", "mae"))
