"""Entry: adapter and fully trained parts merged into the base model -> a folder that plain transformers loads.

    python -m overlays.merge --checkpoint outputs/cuprite --output merged
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from overlays import manifest, runs
from overlays.errors import UserError, run
from overlays.files import complete_folder
from overlays.flags import Parser
from overlays.model import card, extensions, load, merge_shards, unloaded
from overlays.paths import OUTPUTS

log = logging.getLogger(__name__)


def check_output(output: Path) -> None:
    """Raise UserError where `output` is a file or holds files already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not an empty folder: choose another --output")


def merge_in_memory(checkpoint: Path, base_model: str | None, dtype: torch.dtype, folder: Path) -> nn.Module:
    """Write configuration and weights of the merged model to the empty `folder`; returns it."""
    model = load.load_model(checkpoint, base_model, attn="sdpa").merge_and_unload()
    model.to(dtype)
    values = model.state_dict()
    added = {name: value.contiguous() for name, value in values.items() if extensions.owns(name)}
    model.save_pretrained(folder, state_dict={name: values[name] for name in values if name not in added})
    extensions.write(model, folder)
    if added:
        save_file(added, folder / load.TRAINED_PARTS, metadata={"format": "pt"})
    unloaded.carry_over(model, folder)
    return model


def merge(checkpoint: Path, output: Path, base_model: str | None, dtype: str) -> None:
    """Write the merged model and its processor to `output`.

    The sum is taken in fp32. `dtype` "auto" stores what the base model's config names. Tensors of the base that
    transformers does not load are carried over. Memory holds one tensor at a time where the adapter allows it, see
    `model.merge_shards`.

    Raises:
        UserError: `checkpoint` is not a LoRA folder, or `output` holds files already or is being written.
    """
    base = load.adapter_base(checkpoint)
    if base is None:
        raise UserError(f"{checkpoint} holds no adapter_config.json: there is nothing to merge")
    base = base_model or base
    with complete_folder(output, check_output) as folder:
        while (below := load.adapter_base(load.locate(base))) is not None:
            base = below
        config = load.load_config(base)
        stored = (config.dtype if dtype == "auto" else getattr(torch, dtype)) or torch.float32
        processor = load.load_processor(checkpoint)
        try:
            model = merge_shards.write_merged(checkpoint, base_model, stored, folder)
        except merge_shards.Unsupported as reason:
            log.info("the whole model is merged in memory: %s", reason)
            model = merge_in_memory(checkpoint, base_model, stored, folder)
        processor.save_pretrained(folder)
        card.write(folder, model, None)
        manifest.write(folder)
    log.info("merged %s into %s (%s)", checkpoint, output, str(stored).removeprefix("torch."))


def main(words: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = Parser(description=__doc__.split("\n")[0].removeprefix("Entry: "))
    parser.add_argument("--checkpoint", help="run or checkpoint folder with an adapter; default: the newest run")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--base-model", help="base model, where it is not what the adapter names")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    flags = parser.parse_args(words)
    checkpoint = runs.find_checkpoint(flags.checkpoint, OUTPUTS)
    merge(checkpoint, flags.output, flags.base_model, flags.dtype)


if __name__ == "__main__":
    run(main)
