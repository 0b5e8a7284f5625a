"""Command lines: both spellings of a flag, mistakes in one sentence, and flags generated from a dataclass."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from overlays.errors import UserError


class Parser(argparse.ArgumentParser):
    """Accepts --batch-size and --batch_size alike; help shows the former. A mistake raises UserError."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(_dashed, words[:end]), *words[end:]], namespace)

    def add_argument(self, *names: str, **keywords):
        return super().add_argument(*map(_dashed, names), **keywords)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (--help lists the flags)")


def _dashed(word: str) -> str:
    name, equals, value = str(word).partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else str(word)


def at_least(least: int) -> Callable[[str], int]:
    """A type of flag: whole numbers from `least` on."""
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return int(text)

    number.__name__ = "int"  # argparse names the type of a value that is no number
    return number


def option(default: object, help: str, *, flag: str = "", also: Sequence[str] = (), listed: bool = False,
           parse: Callable[[str], object] | None = None, values: Mapping[str, object] | None = None):
    """A field of a dataclass of settings, with what its flag needs beyond its name, type and default.

    Args:
        flag: its name where it is not the field's; also: further names.
        listed: a tuple takes its items as words ("a b"), not as one word ("a,b").
        parse: text -> value, where the type does not say it.
        values: the words that the flag takes and the values they stand for.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "also": also, "listed": listed,
                                            "parse": parse, "values": values})


def add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add a flag for every field of a dataclass that `option` made: name, type, default and help are the field's."""
    hints = get_type_hints(settings)
    for item in _options(settings):
        extra, kind = item.metadata, _kind(hints[item.name])
        names = [f"--{extra['flag'] or item.name}".replace("_", "-"), *extra["also"]]
        keywords = {"dest": item.name, "default": item.default, "help": _help(item)}
        if kind is bool and not extra["values"]:
            parser.add_argument(*names, action="store_true", **keywords)
        elif extra["values"] or get_origin(kind) is Literal:
            parser.add_argument(*names, choices=list(extra["values"] or get_args(kind)), **keywords)
        elif extra["listed"]:
            kind = get_args(kind)[0]
            one_of = {"choices": get_args(kind)} if get_origin(kind) is Literal else {"type": extra["parse"] or kind}
            parser.add_argument(*names, nargs="+", **one_of, **keywords)
        else:
            parse = extra["parse"] or (_split if get_origin(kind) is tuple else kind)
            parser.add_argument(*names, type=parse, metavar=item.name.upper(), **keywords)


def read_settings(flags: argparse.Namespace, settings: type):
    """The dataclass that the flags of `add_settings` say."""
    values = {}
    for item in _options(settings):
        value, words = getattr(flags, item.name), item.metadata["values"]
        value = words[value] if words and value in words else value
        values[item.name] = tuple(dict.fromkeys(value)) if isinstance(value, list) else value
    return settings(**values)


def make_settings(settings: type, values: Mapping[str, object]):
    """The dataclass with these values of its fields; text stands for a path where the field is one."""
    hints = get_type_hints(settings)
    return settings(**{
        name: Path(value) if isinstance(value, str) and _kind(hints.get(name)) is Path else value
        for name, value in values.items()
    })


def _options(settings: type) -> list:
    return [item for item in fields(settings) if "help" in item.metadata]


def check_choices(settings) -> None:
    """Raise UserError where a field of a Literal type holds another value."""
    hints = get_type_hints(type(settings))
    for item in fields(settings):
        known, value = get_args(hints[item.name]), getattr(settings, item.name)
        if get_origin(hints[item.name]) is Literal and value not in known:
            raise UserError(f"--{item.name.replace('_', '-')} must be {' or '.join(known)}, not {value!r}")


def _kind(hint: object) -> object:
    """A type without its None."""
    if get_origin(hint) in (Union, UnionType):
        return next(kind for kind in get_args(hint) if kind is not NoneType)
    return hint


def _split(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _help(item) -> str:
    text, default, words = item.metadata["help"], item.default, item.metadata["values"]
    if words:
        default = next(word for word, value in words.items() if value == default)
    if default in (None, False, "", (), MISSING):
        return text.replace("%", "%%")
    shown = (" " if item.metadata["listed"] else ",").join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})".replace("%", "%%")
