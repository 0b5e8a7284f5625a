"""What prepared satellite data say about themselves."""

import json
from pathlib import Path

from overlays.errors import UserError


def read_metadata(folder: Path) -> dict:
    """metadata.json of a prepared folder. Raises UserError where there is none, or another domain's."""
    file = folder / "metadata.json"
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        domain, target = metadata.get("domain", "satellite"), metadata.get("target")
    except FileNotFoundError:
        raise UserError(f"there is no metadata.json in {folder}: run python -m overlays.prepare satellite") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {error}; prepare the data again") from None
    if domain != "satellite" or not isinstance(target, dict):
        raise UserError(f"{folder} holds other data than the domain satellite prepares: give a folder of that")
    return metadata
