"""Training: `python -m overlays.train` (fine-tuning), `overlays.pretrain_mae`, `overlays.train_dpo`.

`arguments` reads the flags of all stages, `run` holds what stages share, `trainer` is the Trainer; `sft`, `mae` and
`dpo` are the stages.
"""

import importlib
import os
import sys
import warnings


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
