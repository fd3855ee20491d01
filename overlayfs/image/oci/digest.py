"""How is content named? Digests, diffIDs and chainIDs.

OCI image specification: descriptor.md (Digests), config.md (Layer DiffID, Layer ChainID).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final, NewType

from .errors import InvalidError

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hexadecimal digits. Only the functions here make one, so it is safe as a file name."""

ALGORITHM: Final = "sha256"
_PATTERN: Final = re.compile(rf"{ALGORITHM}:[0-9a-f]{{64}}", re.ASCII)


def parse_digest(text: str) -> Digest:
    """Raises InvalidError for anything but a sha256 digest: other algorithms, paths, upper case."""
    if not _PATTERN.fullmatch(text):
        raise InvalidError(f"not a sha256 digest: {text[:100]!r}")
    return Digest(text)


def hex_of(digest: Digest) -> str:
    """The 64 hexadecimal digits."""
    return digest.removeprefix(f"{ALGORITHM}:")


def digest_of(data: bytes | memoryview) -> Digest:
    return Digest(f"{ALGORITHM}:{hashlib.sha256(data).hexdigest()}")


def digest_from(hashed: hashlib._Hash) -> Digest:
    """The digest of the bytes that a `hashlib.sha256()` has hashed so far."""
    return Digest(f"{ALGORITHM}:{hashed.hexdigest()}")


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """The chainID of each prefix of a stack, bottom first: `chain(L0..Ln) = sha256(chain(L0..Ln-1) + " " + Ln)`."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
