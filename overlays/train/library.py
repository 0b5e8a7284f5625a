"""What parsing flags needs of the libraries, read from their source files: importing them takes five seconds.

Flags are parsed with the fields of the libraries' argument classes, so that --help and a mistake in a flag answer at
once. A run then makes an object of the library's own class.
"""

import ast
import builtins
import dataclasses
import enum
import functools
import importlib
import importlib.util
import typing
from pathlib import Path

# (package, file, class, its base): each class extends the one above it.
TRAINING_ARGUMENTS = (("transformers", "training_args.py", "TrainingArguments"),)
DPO_CONFIG = (*TRAINING_ARGUMENTS, ("trl", "trainer/base_config.py", "_BaseConfig"),
              ("trl", "trainer/dpo_config.py", "DPOConfig"))
ENUMS = ("transformers", "trainer_utils.py")


@functools.cache
def fields_of(chain: tuple[tuple[str, str, str], ...]) -> type:
    """A dataclass with the fields of the last class of `chain`: names, types, defaults and help.

    Enumerations keep their values; other types of the libraries become str. It is for parsing alone. Where the source
    is not as expected, the library's own class is imported and returned.
    """
    above = fields_of(chain[:-1]) if len(chain) > 1 else object
    package, file, name = chain[-1]
    try:
        source = next(node for node in _parse(package, file).body
                      if isinstance(node, ast.ClassDef) and node.name == name)
        bases = [ast.unparse(base) for base in source.bases]
        if bases != [row[2] for row in chain[-2:-1]]:
            raise ValueError(f"{name} has the bases {bases}")
        made = _compile(source)
    except (OSError, StopIteration, ValueError, AttributeError, TypeError, SyntaxError):
        return import_class(chain)
    values = {key: value for key, value in vars(made).items() if key not in ("__dict__", "__weakref__")}
    return dataclasses.dataclass(type(name, (above,), values | {"__module__": _module(package, file)}))


def import_class(chain: tuple[tuple[str, str, str], ...]) -> type:
    """The library's own class."""
    package, file, name = chain[-1]
    return getattr(importlib.import_module(_module(package, file)), name)


def _module(package: str, file: str) -> str:
    return f"{package}.{file.removesuffix('.py').replace('/', '.')}"


def parser_class() -> type:
    """transformers' HfArgumentParser, from its file alone: the package around it takes a second to import."""
    try:
        spec = importlib.util.spec_from_file_location("hf_argparser", _path("transformers", "hf_argparser.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.HfArgumentParser
    except (OSError, ImportError, AttributeError):
        return importlib.import_module("transformers").HfArgumentParser


def _path(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)  # does not import it
    if spec is None:
        raise OSError(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0]) / file


@functools.cache
def _parse(package: str, file: str) -> ast.Module:
    return ast.parse(_path(package, file).read_text(encoding="utf-8"))


def _compile(source: ast.ClassDef) -> type:
    """The class with its fields and the plain values that their defaults name, and nothing else of its body."""
    body = [node for node in source.body if isinstance(node, ast.AnnAssign)
            or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))]
    known = {**vars(builtins), **vars(typing), "field": dataclasses.field}
    for node in (node for item in body for node in ast.walk(item) if isinstance(node, ast.Dict)):
        known_here = [(key, value) for key, value in zip(node.keys, node.values, strict=True)
                      if not isinstance(value, ast.Call)]  # choices that another module computes
        node.keys, node.values = map(list, zip(*known_here, strict=True)) if known_here else ([], [])
    names = {node.id for item in body for node in ast.walk(item) if isinstance(node, ast.Name)}
    namespace = {"__name__": __name__} | {name: known[name] if name in known else enum_of(name) for name in names}
    generic = {"type_params": []} if hasattr(source, "type_params") else {}  # a field of Python 3.12
    bare = ast.ClassDef(source.name, [], [], body, [], **generic)
    exec(compile(ast.fix_missing_locations(ast.Module([bare], [])), source.name, "exec"), namespace)
    return namespace[source.name]


@functools.cache
def enum_of(name: str) -> type:
    """An enumeration of transformers' trainer, by name; str where there is none."""
    for node in _parse(*ENUMS).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            values = {item.targets[0].id: item.value.value for item in node.body if isinstance(item, ast.Assign)}
            return enum.Enum(name, values, type=str) if values else str
    return str
