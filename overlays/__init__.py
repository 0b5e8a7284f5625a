"""An overlay on the official Qwen3-VL fine-tuning code, for inputs and answers it was not made for.

    import overlays

    overlays.prepare("cuprite", cube="scene.hdr")                   # raw files -> records; returns metadata.json
    run = overlays.train("scripts/configs/cuprite.yaml", output_dir="outputs/mine")    # returns the run folder
    model, processor = overlays.load(run)
    rows = overlays.predict(model, processor, records, media_root)  # each row holds "question" and "prediction"
    metrics = overlays.evaluate(run, "cuprite", "test")             # also writes metrics.json and report.html

`prepare`, `train`, `predict` and `evaluate` are modules of these names, whose function of the same name is called: they
are commands too (`python -m overlays.train`).
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.2.0"
ENTRIES = ("prepare", "train", "predict", "evaluate")
__all__ = ["load", *ENTRIES]


class _Callable(ModuleType):
    def __call__(self, *args, **options):
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **options)


def callable_module(name: str) -> None:
    """Let a call of the module `name` be a call of its function of that name."""
    sys.modules[name].__class__ = _Callable


def load(path, base_model: str | None = None, attn_implementation: str = "auto", thinking: str = "auto") -> tuple:
    """(model in eval mode, its processor) of a model, run or checkpoint; see `model.load.load_for_inference`."""
    from overlays.model.load import load_for_inference

    return load_for_inference(path, base_model, attn_implementation, thinking)


def __getattr__(name: str) -> ModuleType:
    if name in ENTRIES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
