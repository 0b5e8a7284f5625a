"""The one table of parts: which module is vision, merger, language model, head.

Freezing, learning rates, LoRA targets, what is saved and the table printed at start all read it.
The prefixes stand in `overlays.families`.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass

import torch
from torch import nn

from overlays.families import Family, family_of
from overlays.model import extensions

# Looked up from top to bottom: the first part whose prefix fits a parameter owns it.
PARTS = ("adapter", "additions", "patch_embed", "merger", "vision", "embeddings", "language_model")


def plain_name(name: str) -> str:
    """A parameter's name in the generation class, without what PEFT, DDP or DeepSpeed put around it."""
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace("._checkpoint_wrapped_module.", ".")


def part_of(name: str, family: Family, rates: Collection[str] = ()) -> str:
    """The part that owns the parameter `name`: one of PARTS.

    Args:
        rates: with "patch_embed" in it (runs that change the input channels) that is a part of its own, else vision's.
    """
    if re.search(r"\.(lora_[A-Za-z_]+|modules_to_save)\.", name):
        return "adapter"
    plain = plain_name(name)
    if extensions.owns(plain):
        return "additions"
    if "patch_embed" in rates and plain.startswith(f"{family.vision[0]}patch_embed."):
        return "patch_embed"
    for part in PARTS[3:]:
        if plain.startswith(getattr(family, part)):
            return part
    return "language_model"


@dataclass(frozen=True)
class PartRow:
    """One line of the table printed at start and kept in run.json."""

    part: str
    parameters: int
    trainable: int
    learning_rate: float


def numel(parameter: nn.Parameter) -> int:
    """Elements of a parameter."""
    quantized = getattr(parameter, "quant_state", None)
    if quantized is not None:  # bitsandbytes packs two elements of 4 bits into a byte
        return quantized.shape.numel()
    return getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty tensor and the count


def learning_rates(args) -> dict[str, float]:
    """Learning rate of every part; 0 where the flags freeze it.

    Args:
        args: object with tune_mm_vision, tune_mm_mlp, tune_mm_llm, train_embeddings, lora_enable, learning_rate,
            mm_projector_lr, vision_tower_lr, additions_lr (the last three None: the base rate).
    """
    base = args.learning_rate

    def rate(own: float | None) -> float:
        return base if own is None else own

    language = base if args.tune_mm_llm and not args.lora_enable else 0.0
    return {
        "adapter": base if args.lora_enable else 0.0,
        "additions": rate(args.additions_lr),
        "merger": rate(args.mm_projector_lr) if args.tune_mm_mlp else 0.0,
        "vision": rate(args.vision_tower_lr) if args.tune_mm_vision else 0.0,
        "embeddings": base if args.train_embeddings else language,
        "language_model": language,
    }


def set_trainable(model: nn.Module, config, rates: dict[str, float]) -> None:
    """Let exactly the parameters of parts with a rate above 0 take gradients.

    Tied weights follow the embeddings, whose tensor they are.
    """
    family = family_of(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rates[part_of(name, family, rates)] > 0)


def table(model: nn.Module, config, rates: dict[str, float]) -> list[PartRow]:
    """Parameters and trainable parameters by part, in the order vision, merger, language model, adapter, additions."""
    family = family_of(config)
    total, trainable = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = part_of(name, family, rates)
        total[part] += numel(parameter)
        trainable[part] += numel(parameter) if parameter.requires_grad else 0
    order = ("patch_embed", "vision", "merger", "embeddings", "language_model", "adapter", "additions")
    return [
        PartRow(part, total[part], trainable[part], rates[part] if trainable[part] else 0.0)
        for part in order if total[part]
    ]


def format_table(rows: list[PartRow]) -> str:
    """The parts table as aligned text."""
    lines = [f"{'part':<15}{'parameters':>15}{'trainable':>15}{'learning rate':>15}"]
    for row in rows:
        rate = f"{row.learning_rate:g}" if row.trainable else "frozen"
        lines.append(f"{row.part:<15}{row.parameters:>15,}{row.trainable:>15,}{rate:>15}")
    return "\n".join(lines)


def rows_as_dicts(rows: list[PartRow]) -> list[dict]:
    """The parts table for run.json."""
    return [asdict(row) for row in rows]


def lora_target_pattern(config, modules: list[str] | None = None) -> str:
    """Regular expression for PEFT: the named projections of the language model and of nothing else.

    Args:
        modules: projection names, e.g. ["q_proj", "v_proj"]; None takes the family's own.
    """
    family = family_of(config)
    prefix = re.escape(family.language_model[0])
    return rf"{prefix}.*\.({'|'.join(map(re.escape, modules or family.lora_targets))})"


def optimizer_groups(
    model: nn.Module, config, rates: dict[str, float], weight_decay: float, decayed: set[str]
) -> list[dict]:
    """Parameter groups for an optimizer: one for each part with and without weight decay.

    Args:
        decayed: parameter names that take weight decay (matrices, not biases and norms).
    """
    family = family_of(config)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name, family, rates), name in decayed), []).append(parameter)
    return [
        {"params": groups[part, decays], "lr": rates[part], "weight_decay": weight_decay if decays else 0.0}
        for part, decays in sorted(groups, key=lambda key: (PARTS.index(key[0]), not key[1]))
    ]


def position_function(config) -> Callable[..., torch.Tensor]:
    """M-RoPE positions of this family, for data workers: no weights, picklable.

    Returns:
        function(input_ids (1, L), mm_token_type_ids (1, L), image_grid_thw (n, 3) | None,
        video_grid_thw (m, 3) | None, second_per_grid_ts (m,) | None) -> (3, 1, L) int64.
    """
    return Positions(config)


class Positions:
    """Calls the model class's own `get_rope_index` on an object that holds only the config."""

    def __init__(self, config):
        family_of(config)
        self.config = config
        self._model = None

    def __getstate__(self):
        return {"config": self.config, "_model": None}

    def __call__(self, input_ids, mm_token_type_ids, image_grid_thw=None, video_grid_thw=None,
                 second_per_grid_ts=None) -> torch.Tensor:
        if image_grid_thw is None and video_grid_thw is None:
            return torch.arange(input_ids.shape[1]).expand(3, *input_ids.shape)
        if self._model is None:
            self._model = _bare_model(self.config)
        extra = {} if second_per_grid_ts is None else {"second_per_grid_ts": second_per_grid_ts}
        positions, _ = self._model.get_rope_index(
            input_ids, mm_token_type_ids=mm_token_type_ids, image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw, **extra,
        )
        return positions


def _bare_model(config) -> nn.Module:
    """The family's model class without any module: `get_rope_index` reads the config and nothing else."""
    import importlib

    generation = family_of(config).model_class
    module = importlib.import_module(f"transformers.models.{config.model_type}.modeling_{config.model_type}")
    model_class = getattr(module, generation.replace("ForConditionalGeneration", "Model"))
    model = model_class.__new__(model_class)
    nn.Module.__init__(model)
    model.config = config
    return model
