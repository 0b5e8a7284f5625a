"""The one table of domains, name -> "module:object" of its `base.Domain`, loaded when first asked for."""

from importlib import import_module

from overlays.errors import UserError

DOMAINS: dict[str, str] = {name: f"overlays.domains.{name}.domain:DOMAIN"
                           for name in ("cuprite", "driving", "satellite", "gui", "scenes")}


def register(name: str, location: str) -> None:
    """Add a domain of another package to the table; `location` is "module:object"."""
    DOMAINS[name] = location


def get(name: str):
    """The `base.Domain` of that name, or the one at "module:object". Raises UserError where there is none."""
    location = DOMAINS.get(name, name)
    module, colon, attribute = location.partition(":")
    if not colon:
        raise UserError(f"there is no domain {name!r}; known are {', '.join(DOMAINS)}, and module:object names another")
    try:
        found = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        if name in DOMAINS:
            raise
        raise UserError(f"there is no domain at {name}: {error}") from None
    if not hasattr(found, "Settings"):
        raise UserError(f"{name} is not a domain: docs/adding-a-domain.md says what one has")
    return found
