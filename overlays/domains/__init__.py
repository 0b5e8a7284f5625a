"""The one table of domains, name -> "module:object" of its `base.Domain`, loaded when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from overlays.errors import UserError

if TYPE_CHECKING:
    from overlays.domains.base import Domain

DOMAINS: dict[str, str] = {name: f"overlays.domains.{name}.domain:DOMAIN"
                           for name in ("cuprite", "driving", "satellite", "gui", "scenes")}


def register(name: str, place: str) -> None:
    """Add a domain of another package to the table; `place` is "module:object"."""
    DOMAINS[name] = place


def get(name: str) -> Domain:
    """A domain of the table, or the one at "module:object". Raises UserError where there is none."""
    place = DOMAINS.get(name, name)
    module, colon, attribute = place.partition(":")
    if not colon:
        raise UserError(f"there is no domain {name!r}; known are {', '.join(DOMAINS)}, and module:object names another")
    try:
        return getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        if name in DOMAINS:
            raise
        raise UserError(f"there is no domain at {name}: {error}") from None
