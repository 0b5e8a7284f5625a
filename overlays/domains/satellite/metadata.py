"""What prepared satellite data say about themselves."""

from pathlib import Path

from overlays.errors import UserError
from overlays.files import OWN_JSON_BYTES, read_json


def read_metadata(folder: Path) -> dict:
    """metadata.json of a prepared folder. Raises UserError where there is none, or another domain's."""
    file = folder / "metadata.json"
    if not file.exists():
        raise UserError(f"there is no metadata.json in {folder}: run python -m overlays.prepare satellite")
    metadata = read_json(file, hint="prepare the data again", limit=OWN_JSON_BYTES)
    if metadata.get("domain", "satellite") != "satellite" or not isinstance(metadata.get("target"), dict):
        raise UserError(f"{folder} holds other data than the domain satellite prepares: give a folder of that")
    return metadata
