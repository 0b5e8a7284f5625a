"""What a model has beyond plain transformers: attached before training, stored beside a checkpoint, put back at load.

Settings lie in additions.json, weights in trained_parts.safetensors; model.safetensors and adapter_model.safetensors
hold what plain transformers has a module for.
A new extension is one row here and a module with `attach(model, **settings)`.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from torch import nn

from overlays.errors import UserError
from overlays.files import read_json, write_json

FILE = "additions.json"


@dataclass(frozen=True)
class ExtensionRow:
    """One row of the table below.

    Args:
        module: where `attach(model, **settings)` is.
        prefix: of the names of its parameters; "" where it adds none.
        reshaped: prefix of the parameters of plain transformers whose shape it changes; "" where it changes none.
    """

    module: str
    prefix: str = ""
    reshaped: str = ""


EXTENSIONS = {
    "spatial": ExtensionRow("overlays.model.spatial", "model.spatial."),
    "regression": ExtensionRow("overlays.model.heads", "regression."),
    "channels": ExtensionRow("overlays.model.channels", reshaped="model.visual.patch_embed."),
}


def attach(model: nn.Module, wanted: dict[str, dict]) -> None:
    """Put extensions on a generation model, in the order of the table; one that is there with these settings stays.

    Raises:
        UserError: an unknown extension, or one that is there with other settings.
    """
    there = settings(model)
    unknown = sorted(set(wanted) - set(EXTENSIONS))
    if unknown:
        raise UserError(f"unknown extension to a model: {', '.join(unknown)}; known are {', '.join(EXTENSIONS)}")
    for name in EXTENSIONS:
        if name not in wanted or there.get(name) == wanted[name]:
            continue
        if name in there:
            raise UserError(f"the model was made with {name} {there[name]} and cannot be given {wanted[name]}")
        attach_one = import_module(EXTENSIONS[name].module).attach
        try:
            inspect.signature(attach_one).bind(model, **wanted[name])
        except TypeError as error:
            raise UserError(f"settings of {name} do not fit ({error}): {FILE} may be damaged") from None
        attach_one(model, **wanted[name])
        there = there | {name: wanted[name]}
    model._extensions = there


def settings(model: nn.Module) -> dict[str, dict]:
    """Settings of the extensions that a model has (a PeftModel's are those of its base)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, "_extensions", {})


def owns(plain_name: str, among: Iterable[str] = EXTENSIONS) -> bool:
    """Whether a parameter (its name in the generation class) belongs to an extension, one of those named."""
    prefixes = (EXTENSIONS[name].prefix for name in among if name in EXTENSIONS)
    return plain_name.startswith(tuple(prefix for prefix in prefixes if prefix))


def reshapes(plain_name: str, among: Iterable[str]) -> bool:
    """Whether one of the extensions named changes the shape of a parameter of plain transformers."""
    prefixes = (EXTENSIONS[name].reshaped for name in among if name in EXTENSIONS)
    return plain_name.startswith(tuple(prefix for prefix in prefixes if prefix))


def write(model: nn.Module, folder: str | Path) -> None:
    """Write additions.json where the model has extensions, or where one of its base was taken off."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if settings(model) or getattr(base, "_taken_off", False):
        write_json(Path(folder) / FILE, settings(model))


def read(folder: str | Path) -> dict[str, dict]:
    """Settings stored with a checkpoint; empty where there are none.

    Raises:
        UserError: the file is damaged.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return {}
    return read_json(file, {str: dict}, "copy the checkpoint again")
