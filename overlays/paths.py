"""Folders of the project, and how a path inside it is written down.

ROOT is the folder above the package where that is the repository (it holds pyproject.toml, as for an editable install);
otherwise the package is an installed wheel, and ROOT is the working directory at the time of the import.
"""

import os
import tempfile
from pathlib import Path

from overlays.errors import UserError

PACKAGE = Path(__file__).resolve().parent


def root_of(package: Path) -> Path:
    """The project's folder for a package that lies at `package`, by the rule above."""
    return package.parent if (package.parent / "pyproject.toml").is_file() else Path.cwd()


ROOT = root_of(PACKAGE)
DATA = ROOT / "data"
RAW = DATA / "raw"
PREPARED = DATA / "prepared"
MODELS = DATA / "models"
CACHE = DATA / "cache"
OUTPUTS = ROOT / "outputs"
SYMLINKS_HELP = "follow links in a media root that lead out of it"
SYMLINKS = "OVERLAYS_ALLOW_SYMLINKS"  # environment variable: worker processes inherit it
_allowed = False  # whether `allow_symlinks` set the variable


def relative(path: str | Path) -> str:
    """A path as files and messages name it: from the project's folder where it lies inside, else absolute."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def allow_symlinks(allowed: bool) -> None:
    """Whether links may lead out of a media root, in this process and those that it starts.

    False takes back an earlier True; a variable that the user set stays.
    """
    global _allowed
    if allowed and not follows_symlinks():
        os.environ[SYMLINKS], _allowed = "1", True
    elif _allowed and not allowed:
        os.environ.pop(SYMLINKS, None)
        _allowed = False


def follows_symlinks() -> bool:
    """Whether links may lead out of a media root."""
    return os.environ.get(SYMLINKS) == "1"


def cache_folder() -> Path:
    """CACHE, or a temporary folder where the project cannot be written. Raises UserError where neither can."""
    for folder in (CACHE, Path(tempfile.gettempdir()) / "qwen-vl-overlays"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise UserError(f"neither {CACHE} nor {tempfile.gettempdir()} can be written")
