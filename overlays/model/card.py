"""README.md of a saved model: its base, what was trained, and how to load it."""

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from overlays.files import atomic_path
from overlays.model import adapters, extensions

MERGE = "python scripts/merge_lora.py --checkpoint THIS_FOLDER --output merged"
NAMES = {"patch_embed": "patch embedding", "merger": "merger", "vision": "vision tower", "embeddings": "embeddings",
         "language_model": "language model", "additions": "extensions"}
ADDED = {"spatial": "3-D features", "regression": "a regression head", "channels": "other input channels"}


def write(folder: str | Path, model: nn.Module, trained: Sequence[str] | None) -> None:
    """Write the card of a folder that `model` has just been saved to.

    Args:
        trained: names of parts (see parts.PARTS) that were trained in full; None for an adapter that was merged.
    """
    config = adapters.read_config(folder)
    text = _adapter(model, config, trained or ()) if config else _model(model, trained)
    with atomic_path(Path(folder) / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _head(base: str | None, library: str) -> str:
    hub = [f"base_model: {base}"] if base and not os.path.isabs(base) else []
    return "\n".join(["---", *hub, f"library_name: {library}", "pipeline_tag: image-text-to-text", "---", "", ""])


def _in_full(trained: Sequence[str]) -> str:
    return ", ".join(NAMES.get(part, part) for part in trained) or "nothing"


def _warning(there: Sequence[str]) -> str:
    """What other programs load this folder without; empty where that is nothing."""
    if not there:
        return ""
    left_out = " and ".join(ADDED.get(name, name) for name in there)
    return (
        f"**Plain transformers and PEFT load this folder without {left_out}"
        " and give other answers, without a warning.** Load it with `overlays.model.load.load_for_inference(folder)` of"
        f" the project that wrote it. The settings are in `{extensions.FILE}`, the weights in `{adapters.BESIDE}`.\n\n"
    )


def _model(model: nn.Module, trained: Sequence[str] | None) -> str:
    base = getattr(model, "name_or_path", None)
    # The number of input channels is in config.json, where plain transformers finds it.
    warning = _warning([name for name in extensions.settings(model) if extensions.EXTENSIONS[name].prefix])
    what = "An adapter was merged into it" if trained is None else f"Trained in full: {_in_full(trained)}"
    return (
        f"{_head(base, 'transformers')}{warning}# Model trained from {base}\n\n{what}.\n\n"
        "    from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        '    model = AutoModelForImageTextToText.from_pretrained("THIS_FOLDER")\n'
        '    processor = AutoProcessor.from_pretrained("THIS_FOLDER")\n'
    )


def _adapter(model: nn.Module, config: dict, trained: Sequence[str]) -> str:
    base, warning = config["base_model_name_or_path"], _warning(list(extensions.settings(model)))
    text = (f"{_head(base, 'peft')}{warning}# LoRA adapter of {base}\n\n"
            f"LoRA of rank {config.get('r')} on the language model. Trained in full: {_in_full(trained)}.\n\n")
    if base and adapters.read_config(base):
        text += "The base is itself an adapter, which PEFT alone does not load: merge the two.\n\n"
    elif not warning:
        text += (
            "    from peft import PeftModel\n"
            "    from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f'    base = AutoModelForImageTextToText.from_pretrained("{base}")\n'
            '    model = PeftModel.from_pretrained(base, "THIS_FOLDER")\n'
            '    processor = AutoProcessor.from_pretrained("THIS_FOLDER")\n\n'
        )
    return f"{text}One folder of base and adapter, for transformers and vLLM:\n\n    {MERGE}\n"
