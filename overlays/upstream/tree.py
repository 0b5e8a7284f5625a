"""Upstream's tree: where it is, how its train_qwen is imported, which data sets its table names."""

import importlib
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from overlays import runs
from overlays.errors import UserError

ROOT = runs.ROOT
SUBMODULE = "Qwen3-VL"
VARIABLE = "QWEN3VL_UPSTREAM"
HOW = f"run ./scripts/setup.sh --upstream, or set {VARIABLE} to a checkout of https://github.com/QwenLM/Qwen3-VL"
PACKAGE = Path("qwen-vl-finetune")
ENTRY = PACKAGE / "qwenvl" / "train" / "train_qwen.py"
# What upstream's demo files call their media from, as paths below PACKAGE.
DEMOS = {"demo/single_images.json": ".", "demo/video.json": "demo/videos"}


def find(root: Path = ROOT) -> Path | None:
    """The checkout: $QWEN3VL_UPSTREAM, else the submodule below `root`; None where that is not checked out.

    Raises:
        UserError: the variable names a folder without upstream's code.
    """
    named = os.environ.get(VARIABLE)
    tree = Path(named).expanduser().resolve() if named else Path(root) / SUBMODULE
    if (tree / ENTRY).is_file():
        return tree
    if named:
        raise UserError(f"{VARIABLE} is {named}, but {tree / ENTRY} is missing: it must be a checkout of "
                        "QwenLM/Qwen3-VL")
    return None


def require(root: Path = ROOT) -> Path:
    """The checkout, as `find`. Raises UserError where there is none."""
    tree = find(root)
    if tree is None:
        raise UserError(f"the upstream tree {SUBMODULE} is not checked out: {HOW}")
    return tree


def commit(tree: Path) -> str:
    """Commit of the tree, "+changes" where its files differ from it; "unknown commit" outside a checkout."""
    return (runs.commit(tree) if (tree / ".git").exists() else None) or "unknown commit"


def load(tree: Path, shadows: Mapping[str, ModuleType]) -> ModuleType:
    """Import upstream's train_qwen, with `shadows` in place of the modules of these names.

    Whatever the import raises goes through; `sys.path` and the names of the shadows are restored in any case.
    """
    package = str(tree / PACKAGE)
    before = {name: sys.modules.get(name) for name in shadows}
    sys.modules.update(shadows)
    sys.path.insert(0, package)
    try:
        return importlib.import_module("qwenvl.train.train_qwen")
    finally:
        sys.path.remove(package)  # the package is imported; nothing looks for it again
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def data_sets(root: Path = ROOT) -> dict[str, tuple[Path, Path]]:
    """name -> (annotation file, media root) of upstream's data_dict; relative paths start at qwen-vl-finetune.

    That is the folder upstream's own scripts run in. Empty where there is no tree, or none that can be read.
    """
    tree = find(root)
    if tree is None:
        return {}
    try:
        rows = runpy.run_path(str(tree / PACKAGE / "qwenvl" / "data" / "__init__.py"))["data_dict"]
        return {
            name: (tree / PACKAGE / row["annotation_path"], tree / PACKAGE / row["data_path"])
            for name, row in rows.items()
        }
    except Exception:  # drift: the check names it, and data sets of our own do not depend on it
        return {}


def media_root(annotation: Path, root: Path = ROOT) -> Path | None:
    """Media root of one of upstream's demo files; None for any other file."""
    tree = find(root)
    for name, folder in DEMOS.items() if tree else ():
        if annotation.resolve() == (tree / PACKAGE / name).resolve():
            return tree / PACKAGE / folder
    return None
