"""How does ADD get what is not in the context? URLs by HTTP, git repositories as `repositories` says."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ...image.oci.errors import ImageError, InvalidError
from ...image.oci.limits import Limits
from ...image.tar.tally import Room
from .repositories import clone, is_git

_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_CHUNK: Final = 1 << 20
_PATIENCE_S: Final = 60.0


def is_remote(text: str) -> bool:
    return _URL.match(text) is not None or is_git(text)


def fetch(
    source: str, directory: Path, limits: Limits, *, checksum: str | None = None, keeps_git: bool = False
) -> Path:
    """Fetch a URL as a file in an empty directory, or a repository as its files; what is to be copied. Raises
    ImageError."""
    if is_git(source):
        return clone(source, directory, keeps_git=keeps_git, commit=checksum or "")
    name = unquote(posixpath.basename(urlsplit(source).path))
    if not name or "/" in name or name in (".", ".."):
        raise InvalidError(f"{source}: the URL has no file name: name one in the destination")
    _download(source, directory / name, limits, checksum)
    return directory / name


def _download(url: str, path: Path, limits: Limits, checksum: str | None) -> None:
    import http.client  # with urllib.request a sixth of the time in which a cached build starts
    import urllib.request

    expected = _expected(checksum)
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_S) as answer, open(path, "xb") as file:
            room = Room(limits, url, file.fileno())
            while data := answer.read(_CHUNK):
                room.take(len(data), os.fsencode(path.name))
                digest.update(data)
                file.write(data)
            if getattr(answer, "length", None):  # bytes of Content-Length that did not come, which read() allows
                raise http.client.IncompleteRead(b"", answer.length)
            modified = answer.headers.get("Last-Modified")
    except (OSError, http.client.HTTPException) as error:
        raise ImageError(f"{url} could not be fetched: {error}") from None
    if expected is not None and digest.hexdigest() != expected:
        raise ImageError(f"{url} has another content: sha256:{digest.hexdigest()} instead of sha256:{expected}")
    path.chmod(0o600)  # as docker does
    seconds = _seconds(modified)
    os.utime(path, (seconds, seconds))


def _expected(checksum: str | None) -> str | None:
    if checksum is None:
        return None
    found = re.fullmatch(r"sha256:([0-9a-f]{64})", checksum)
    if found is None:
        raise InvalidError(f"--checksum={checksum[:80]} is not sha256: and 64 digits")
    return found[1]


def _seconds(modified: str | None) -> float:
    """The time of a Last-Modified header (RFC 9110); 0 without one."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(modified).timestamp() if modified else 0.0
    except ValueError:
        return 0.0
