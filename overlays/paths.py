"""Folders of the project, and how a path inside it is written down."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "data" / "raw"
PREPARED = ROOT / "data" / "prepared"
OUTPUTS = ROOT / "outputs"


def relative(path: str | Path) -> str:
    """A path as files and messages name it: from the project's folder where it lies inside, else absolute."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
