"""How does ADD get what is not in the context? URLs by HTTP, git repositories by git(1)."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ...image.oci.errors import ImageError, InvalidError
from ...image.oci.limits import Limits
from ...image.store.staging import remove_tree
from ...image.tar.tally import Room

_URL: Final = re.compile(r"https?://", re.IGNORECASE)
_GIT: Final = re.compile(r"git@|git://|ssh://|https?://[^#]*\.git(?:#|$)")
_CHUNK: Final = 1 << 20
_PATIENCE_S: Final = 60.0
_QUIET_GIT: Final = {"GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1"}


def is_git(text: str) -> bool:
    """Whether the text names a git repository, as docker tells."""
    return _GIT.match(text) is not None


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


def clone(source: str, directory: Path, *, keeps_git: bool = False, commit: str = "") -> Path:
    """Clone `URL[#REF[:SUBDIRECTORY]]` into an empty directory; where the subdirectory is. It must be the commit whose
    ID begins like this. Raises ImageError."""
    url, _, rest = source.partition("#")
    reference, _, inner = rest.partition(":")
    if url.startswith("-") or reference.startswith("-"):
        raise InvalidError(f"{source!r} is no repository")
    _git("init", "--quiet", directory)
    words = ("-C", directory, "fetch", "--quiet"), ("--", url, reference or "HEAD")
    try:
        _git(*words[0], "--depth=1", *words[1])
    except ImageError:  # a server of plain files has whole histories only
        _git(*words[0], *words[1])
    found = _git("-C", directory, "rev-parse", "FETCH_HEAD^{commit}")
    if not found.startswith(commit.lower()):
        raise ImageError(f"{source} is another commit: {found} instead of {commit}")
    _git("-C", directory, "checkout", "--quiet", "FETCH_HEAD")
    if not keeps_git:
        remove_tree(directory / ".git")
    place = (directory / inner.lstrip("/")).resolve()
    if not place.is_relative_to(directory.resolve()) or not place.is_dir():
        raise InvalidError(f"{inner!r} is no directory of the repository")
    return place


def _git(*words: str | Path) -> str:
    """What git says. New files have the modes that docker gives them."""
    try:
        done = subprocess.run(
            ["git", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **_QUIET_GIT},
            umask=0o022,
            check=False,
        )
    except FileNotFoundError:
        raise ImageError("git is not installed") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise ImageError(f"git: {lines[-1]}")
    return done.stdout.strip()
