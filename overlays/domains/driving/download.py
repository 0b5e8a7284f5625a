"""Fetches chunks of PhysicalAI-Autonomous-Vehicles from the Hugging Face hub: one camera, its clocks, the egomotion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from overlays import archives
from overlays.domains.driving.clips import CAMERA
from overlays.errors import UserError

REPOSITORY = "nvidia/PhysicalAI-Autonomous-Vehicles"
INDEX = "clip_index.parquet"
SPLITS = "splits/default.parquet"  # newer revisions keep the splits here; older ones in the index
EGOMOTION = "labels/egomotion/egomotion.chunk_{chunk:04d}.zip"
PICTURES = "camera/{camera}/{camera}.chunk_{chunk:04d}.zip"


def chunk_numbers(text: str) -> list[int]:
    """[0, 1, 2, 7] of "0-2,7".

    Raises:
        UserError: anything else.
    """
    numbers: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*", word)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UserError(f"--chunks takes numbers and ranges such as 0-2,7, got {text!r}")
        numbers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(numbers)


def fetch(folder: Path, chunks: list[int], camera: str = CAMERA, revision: str | None = None,
          unpack: bool = False) -> Iterator[Path]:
    """Download the index and the chunks of one camera and of the egomotion; yields every file as it is complete.

    Files that are there are kept and a part of one is continued, which is the hub library's doing. Each archive is
    checked (names inside the folder, plain files, a bounded size) before anything reads it.

    Args:
        folder: gets the layout of the repository, which prepare reads.
        chunks: their numbers.
        camera: such as CAMERA.
        revision: a commit or branch; None takes the newest.
        unpack: unpack an archive into its own folder and delete it.

    Raises:
        UserError: no access, no network, no such chunk or camera, an archive that cannot be trusted.
    """
    if not re.fullmatch(r"camera_[a-z0-9_]+", camera):
        raise UserError(f"camera {camera!r} is not a name such as {CAMERA}")
    yield _file(INDEX, folder, revision)
    splits = _file(SPLITS, folder, revision, optional=True)
    if splits:
        yield splits
    for chunk in chunks:
        for name in (EGOMOTION.format(chunk=chunk), PICTURES.format(chunk=chunk, camera=camera)):
            done = folder / (name + ".unpacked")
            if unpack and done.is_file():
                yield done
                continue
            archive = _file(name, folder, revision)
            try:
                archives.members(archive)
            except UserError as error:
                raise UserError(f"{error} (delete {archive} to fetch it again)") from None
            if unpack:
                archives.unpack(archive, archive.parent)
                done.touch()
                archive.unlink()
            yield archive


def _file(name: str, folder: Path, revision: str | None, optional: bool = False) -> Path | None:
    """One file of the repository below `folder`; None where an optional one is not there."""
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, name, repo_type="dataset", local_dir=folder, revision=revision))
    except hub.GatedRepoError:
        raise UserError(
            f"{REPOSITORY} is gated: accept its licence on its page on the hub, make a read token there, run "
            "`hf auth login` (or set HF_TOKEN), then run this again") from None
    except hub.RevisionNotFoundError:
        raise UserError(f"{REPOSITORY} has no revision {revision}: leave --revision out for the newest") from None
    except hub.LocalEntryNotFoundError as error:
        raise UserError(f"the hub cannot be reached for {name} ({_first(error)}): check the network and "
                        "HF_HUB_OFFLINE, then run this again; what is there is kept") from None
    except hub.RemoteEntryNotFoundError:
        if optional:
            return None
        raise UserError(f"{REPOSITORY} holds no {name}: check --chunks and --camera") from None
    except hub.RepositoryNotFoundError:  # the hub's answer to a missing or invalid token
        raise UserError(f"{REPOSITORY} is not shown to you: run `hf auth login` with a read token (or set HF_TOKEN) "
                        "and accept the licence on its page on the hub") from None
    except (hub.HfHubHTTPError, OSError) as error:
        raise UserError(f"{name} could not be fetched ({_first(error)}): run this again; what is there is "
                        "kept") from None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
