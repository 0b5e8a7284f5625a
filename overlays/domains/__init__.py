"""The one table of domains: what prepares, samples and scores each. A new domain is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Domain:
    """Where a domain's three entry points live, as "module:function"; loaded when first asked for."""

    name: str
    prepare_at: str
    sample_at: str
    score_at: str

    @property
    def prepare(self) -> Callable:
        """`prepare(settings)`: raw files -> annotation files, media and metadata.json."""
        return _load(self.prepare_at)

    @property
    def sample(self) -> Callable:
        """`sample(output, ...)`: writes a small raw data set in the real layout, deterministic by seed."""
        return _load(self.sample_at)

    @property
    def score(self) -> Callable:
        """`score(predictions, train=()) -> dict`: pure; sets the model beside its trivial baselines."""
        return _load(self.score_at)


def _load(place: str) -> Callable:
    module, name = place.split(":")
    return getattr(import_module(module), name)


def _domain(name: str) -> Domain:
    package = f"overlays.domains.{name}"
    return Domain(name, f"{package}.prepare:prepare", f"{package}.sample:sample", f"{package}.score:score")


DOMAINS: dict[str, Domain] = {name: _domain(name) for name in ("cuprite", "driving", "satellite", "gui", "scenes")}
