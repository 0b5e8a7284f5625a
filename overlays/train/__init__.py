"""Training: `python -m overlays.train` (fine-tuning), `overlays.pretrain_mae`, `overlays.train_dpo`.

`arguments` reads the flags of all stages, `run` holds what stages share, `trainer` is the Trainer; `sft`, `mae` and
`dpo` are the stages.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from overlays import callable_module

STAGES = {"sft": "SFT", "mae": "MAE", "dpo": "DPO"}


def main(name: str, module: str) -> None:
    """Run a stage from the command line.

    Args:
        name: of its flags in `arguments`.
        module: of its code below this package.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*(pin_memory|gradient_checkpointing).*")
    from overlays.train import arguments

    groups = arguments.parse(stage=getattr(arguments, name))
    importlib.import_module(f"overlays.train.{module}").train(*groups)  # after the flags: the import takes seconds
    distributed = sys.modules["torch"].distributed
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def train(config: str | Path | Mapping | None = None, stage: str = "sft", **flags) -> Path:
    """Run a stage in this process.

    Args:
        config: YAML file, or mapping of flag names to values; None for flags alone.
        stage: "sft", "mae" or "dpo".
        flags: of the command line, which override those of `config`.

    Returns:
        the run folder.

    Raises:
        UserError: a wrong flag, or what else the user can fix.
    """
    from overlays.train import arguments

    words = [] if config is None or isinstance(config, Mapping) else [str(config)]
    for name, value in ((config if isinstance(config, Mapping) else {}) | flags).items():
        words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    groups = arguments.parse(words, getattr(arguments, STAGES[stage]))
    importlib.import_module(f"overlays.train.{stage}").train(*groups)
    return Path(groups[-1].output_dir)


callable_module(__name__)
