"""Generators of sample data in the layouts of real files, one module a domain.

Each has `write(folder, seed=0, *, ...) -> Path`, which writes the same files for the same arguments and returns what
`prepare` reads, and VERSION, raised with every change of the data. The last file of each is NOTE: {"version", "seed",
"prepare": the settings of `prepare` that suit the sample, "cube": what to read where it is not the folder itself}.
"""

import logging
from importlib import import_module
from pathlib import Path

from overlays import paths
from overlays.errors import UserError
from overlays.files import read_json

NAMES = ("cuprite", "driving", "satellite", "gui", "scenes")
NOTE = "sample.json"


def ensure(name: str) -> Path:
    """What `prepare` reads of a domain's sample, made where it is missing, incomplete or of another version."""
    folder, module = paths.RAW / name / "sample", import_module(f"overlays.samples.{name}")
    note = read_note(folder)
    raw = folder / note.get("cube", "")
    if note.get("version") == module.VERSION and raw.exists():
        return raw
    logging.getLogger(__name__).info("making the sample data in %s", folder)
    return module.write(folder)


def read_note(folder: Path) -> dict:
    """What a sample notes about itself; {} for a folder that is not a sample."""
    try:
        return read_json(folder / NOTE, {"cube?": str, "prepare?": dict})
    except UserError:
        return {}


def settings_beside(folder: Path) -> dict:
    """The settings of `prepare` that suit a sample; {} for a folder that is not a sample."""
    return read_note(folder).get("prepare", {})
