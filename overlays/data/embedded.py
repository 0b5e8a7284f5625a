"""Media that annotation files hold themselves: stored once in the cache folder, named by their checksum."""

import base64
import binascii
import hashlib
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

from overlays.errors import UserError
from overlays.files import atomic_path
from overlays.paths import cache_folder

MAX_EMBEDDED_BYTES = 64 << 20  # of one embedded file
_EMBEDDED = re.compile(r"embedded:([0-9a-f]{64})")


def embed(content: bytes) -> str:
    """Write a file's content into the cache, once; the media name that stands for it in a record.

    Raises:
        UserError: it is empty or has more than MAX_EMBEDDED_BYTES bytes.
    """
    if not content:
        raise UserError("an embedded file is empty")
    if len(content) > MAX_EMBEDDED_BYTES:
        raise UserError(f"an embedded file has {len(content)} bytes, above the limit of {MAX_EMBEDDED_BYTES}: store it "
                        "as a file and give its path")
    name = f"embedded:{hashlib.sha256(content).hexdigest()}"
    file = embedded_file(name)
    if not file.is_file() or file.stat().st_size != len(content):
        with atomic_path(file) as temporary:
            temporary.write_bytes(content)
    return name


def embed_uri(uri: str) -> str:
    """`embed` for a data URI. Raises UserError also where it cannot be decoded."""
    head, comma, body = uri.partition(",")
    if not comma:
        raise UserError(f"a data URI has no comma: {uri[:40]}")
    if len(body) > 3 * MAX_EMBEDDED_BYTES:  # the longest spelling of a byte, %xx, takes three characters
        raise UserError(f"a data URI has {len(body)} characters, above the limit for {MAX_EMBEDDED_BYTES} bytes: store "
                        "it as a file and give its path")
    if not head.endswith(";base64"):
        return embed(unquote_to_bytes(body))
    try:
        return embed(base64.b64decode("".join(body.split()), validate=True))
    except (binascii.Error, ValueError) as error:
        raise UserError(f"a data URI is not base64 ({error}): {uri[:40]}") from None


def embedded_file(name: str) -> Path | None:
    """The file in the cache that an embedded medium's name stands for; None for any other name."""
    match = _EMBEDDED.fullmatch(name)
    return cache_folder() / "media" / match[1][:2] / match[1] if match else None
