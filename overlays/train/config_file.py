"""The YAML file of a stage: flag names and values, also as LLaMA-Factory writes them."""

import json
from collections.abc import Collection
from pathlib import Path

import yaml

from overlays.errors import UserError
from overlays.files import misfit
from overlays.train import llamafactory

YAML_BYTES = 1 << 20


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which a short file can nest into gigabytes, and without keys given twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if isinstance(key, str) and keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice!r} is given twice; keep one of them")
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict:
    """A YAML mapping of flag names to values: text, numbers, lists of those, or mappings for flags that take JSON.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        if file.stat().st_size > YAML_BYTES:
            raise ValueError(f"more than {YAML_BYTES >> 10} kB")
        values = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        problem = misfit(values, {str: (str, bool, int, float, None, [(str, int, float)], dict)})
        if problem:
            raise ValueError(problem)
        json.dumps(values)
    except RecursionError:
        raise UserError(f"configuration {file} is nested too deeply") from None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"configuration {file} must be a YAML mapping of flag names to values: "
                        f"{' '.join(str(error).split())}") from None
    return values


def read_config(file: Path, flags: Collection[str]) -> dict:
    """Values by name from a YAML file, one of LLaMA-Factory translated into `flags`; else other names may be there.

    Raises:
        UserError: as `read_yaml`, or a file of LLaMA-Factory has keys without a counterpart.
    """
    values = read_yaml(file)
    if not llamafactory.is_one(values, flags):
        return values
    values, unknown = llamafactory.translate(values, flags)
    if unknown:
        raise UserError(f"configuration {file} is one of LLaMA-Factory, with keys that have no counterpart here: "
                        f"{', '.join(unknown)}; take them out")
    return values
