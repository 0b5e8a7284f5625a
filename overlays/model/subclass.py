"""Extend a module that is already loaded: its class becomes a subclass of what it was.

Nothing is bound to the instance, so copies, averages (`torch.optim.swa_utils.AveragedModel`) and pickles of the module
compute with their own weights.
"""

import functools
import inspect
from collections.abc import Mapping

from torch import nn


class Extension:
    """Base of the classes that `extend` puts before the class of a module.

    Attributes:
        added_parameters: method name -> names of optional keyword parameters that the method takes beside those of the
            class it extends. The method's signature shows them, since `generate` and PEFT read it.
    """

    added_parameters: Mapping[str, tuple[str, ...]] = {}

    def __reduce_ex__(self, protocol):
        plain, extensions = type(self)._extended
        return _rebuild, (plain, extensions), self.__dict__.copy()


def extend(module: nn.Module, extension: type[Extension]) -> None:
    """Make `module` an instance of `extension` over its present class; a module that is one stays as it is."""
    if isinstance(module, extension):
        return
    plain, extensions = getattr(type(module), "_extended", (type(module), ()))
    module.__class__ = _subclass(plain, (*extensions, extension))


@functools.cache
def _subclass(plain: type, extensions: tuple[type[Extension], ...]) -> type:
    """The subclass of `plain` with the extensions in order, the last one outermost.

    It keeps the name and module of `plain`: transformers writes the name into config.json and looks up by both.
    """
    made = plain
    for number, extension in enumerate(extensions, start=1):
        methods = {name: _method(getattr(extension, name), getattr(made, name), added)
                   for name, added in extension.added_parameters.items()}
        made = type(plain.__name__, (extension, made), {
            "__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__,
            "_extended": (plain, extensions[:number]), **methods,
        })
    return made


def _method(function, plain, added: tuple[str, ...]):
    """`function` with the signature of `plain` and the parameters `added`; positional arguments get their names."""
    signature = inspect.signature(plain)
    known = list(signature.parameters.values())
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in added]
    end = next((i for i, p in enumerate(known) if p.kind is p.VAR_KEYWORD), len(known))
    names = [p.name for p in known[1:end]]

    def method(self, *args, **kwargs):
        return function(self, **dict(zip(names, args, strict=False)), **kwargs)

    method.__name__, method.__doc__ = function.__name__, function.__doc__
    method.__signature__ = signature.replace(parameters=[*known[:end], *more, *known[end:]])
    return method


def _rebuild(plain: type, extensions: tuple[type[Extension], ...]) -> nn.Module:
    made = _subclass(plain, extensions)
    return made.__new__(made)
