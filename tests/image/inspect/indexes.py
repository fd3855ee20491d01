"""Layers' file indexes as data, for questions that need no layer on disk."""

from __future__ import annotations

import hashlib

from overlayfs.image.layer.file_index import VERSION, LayerIndex, Record
from overlayfs.image.oci.digest import Digest

SECOND = 1_000_000_000
EPOCH = 1_700_000_000 * SECOND


def file(path: str, size: int = 1, content: str = "", *, mode: int = 0o644, uid: int = 0, mtime: int = EPOCH) -> Record:
    """A file whose content is told by the word `content`."""
    digest = hashlib.md5(f"{size}{content}".encode(), usedforsecurity=False).digest()
    return Record(path.encode(), "f", mode, uid, 0, size, mtime, content=digest)


def directory(path: str, *, opaque: bool = False, mode: int = 0o755, mtime: int = EPOCH) -> Record:
    return Record(path.encode(), "d", mode, mtime_ns=mtime, is_opaque=opaque)


def symlink(path: str, target: str) -> Record:
    return Record(path.encode(), "l", 0o777, mtime_ns=EPOCH, target=target.encode())


def hard_link(path: str, target: str) -> Record:
    return Record(path.encode(), "h", target=target.encode())


def whiteout(path: str) -> Record:
    return Record(path.encode(), "w")


def index(*records: Record) -> LayerIndex:
    """The index of a layer with these records; its diffID is made up."""
    ordered = sorted(records, key=lambda record: record.path)
    name = hashlib.sha256(repr(ordered).encode()).hexdigest()
    size = sum(record.size for record in ordered if record.kind == "f")
    return LayerIndex(VERSION, Digest(f"sha256:{name}"), size, ordered)
