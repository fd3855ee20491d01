"""How do equal files of different layers share disk space? By reflinks if the file system has them, else by hard links.

Hard links are only made between files whose inodes agree in all attributes. The file indexes tell which files may be
equal; as their hash is not cryptographic and layers come from strangers, the bytes are compared before files are
shared. Layers in use are not hard-linked, as that replaces their files.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from ...overlay.changes import same_bytes
from ...tree.syscalls import open_beneath
from ..layer.file_index import Record
from ..oci.digest import ALGORITHM, Digest
from .layers import LayerStore
from .store import Store

SMALLEST: Final = 4096
"""Bytes: a smaller file has no block to share."""
_HEX: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FIDEDUPERANGE: Final = 0xC0189436  # ioctl_fideduperange(2)
_RANGE: Final = struct.Struct("QQHHIqQQiI")  # one source range, one destination
_AT_ONCE: Final = 16 << 20  # what every filesystem does in one call


class Sharing(Enum):
    """The two ways to share disk space."""

    REFLINK = "reflink"
    HARD_LINK = "hardlink"


@dataclass(slots=True)
class Shared:
    """The number of shared files, and the bytes of disk space that were freed."""

    files: int = 0
    size: int = 0


class _File(NamedTuple):
    layer: Digest
    record: Record


class _Place(NamedTuple):
    """A name in an open directory."""

    fd: int
    name: bytes


def deduplicate(store: Store, sharing: Sharing = Sharing.REFLINK) -> Shared:
    """Make equal files of all unpacked layers share disk space.

    Raises OSError (EOPNOTSUPP) if reflinks are requested and the file system has none. Hard links are not made in
    layers that are in use; no layer may be mounted meanwhile, so the caller holds the store `alone` for them.
    """
    layers, done = LayerStore(store), Shared()
    in_use = store.uses() if sharing is Sharing.HARD_LINK else set()
    for group in _equal(layers, store, sharing):
        original, *others = group
        for other in others:
            if other.layer not in in_use and _share(store, original, other, sharing):
                done.files += 1
                done.size += other.record.size
    return done


def _equal(layers: LayerStore, store: Store, sharing: Sharing) -> Iterator[list[_File]]:
    """Groups of files that are equal according to the indexes."""
    groups: dict[object, list[_File]] = {}
    for name in sorted(filter(_HEX.fullmatch, os.listdir(store.path / "layers"))):
        layer = Digest(f"{ALGORITHM}:{name}")
        for record in layers.index(layer).records:
            if record.kind == "f" and record.size >= SMALLEST:
                groups.setdefault(_identity(record, sharing), []).append(_File(layer, record))
    yield from (group for group in groups.values() if len(group) > 1)


def _identity(record: Record, sharing: Sharing) -> object:
    content = (record.content, record.size)
    if sharing is Sharing.REFLINK:
        return content
    xattrs = frozenset(record.xattrs.items())
    return (*content, record.mode, record.uid, record.gid, record.mtime_ns, xattrs)


def _share(store: Store, original: _File, other: _File, sharing: Sharing) -> bool:
    """Share the bytes of two files; False if they share them already, or differ."""
    layers = LayerStore(store)
    with ExitStack() as stack:
        source_dir, target_dir = (_parent(stack, layers, file) for file in (original, other))
        source, target = (_opened(stack, place.fd, place.name, _OPEN_FILE) for place in (source_dir, target_dir))
        first, second = os.fstat(source), os.fstat(target)
        if os.path.samestat(first, second) or first.st_size != second.st_size:
            return False
        if sharing is Sharing.REFLINK:
            return _reflink(source, target, first.st_size)
        if second.st_nlink > 1 or not same_bytes(source, target):
            return False  # other names of the file would stay what they are
        _replace(source_dir, target_dir, store.stage.new_name())
        return True


def _parent(stack: ExitStack, layers: LayerStore, file: _File) -> _Place:
    root = os.open(layers.path(file.layer), _OPEN_DIRECTORY)
    stack.callback(os.close, root)
    directory, _, name = file.record.path.rpartition(b"/")
    return _Place(_opened(stack, root, directory, _OPEN_DIRECTORY), name)


def _opened(stack: ExitStack, root: int, path: bytes, flags: int) -> int:
    fd = open_beneath(root, path, flags)
    stack.callback(os.close, fd)
    return fd


def _reflink(source: int, target: int, size: int) -> bool:
    """Share by FIDEDUPERANGE, where the kernel compares the bytes; whether all of them are shared now."""
    for offset in range(0, size, _AT_ONCE):
        length = min(_AT_ONCE, size - offset)
        answer = fcntl.ioctl(source, _FIDEDUPERANGE, _RANGE.pack(offset, length, 1, 0, 0, target, offset, 0, 0, 0))
        _, _, _, _, _, _, _, shared, status, _ = _RANGE.unpack(answer)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        if status or shared < length:
            return False
    return True


def _replace(source: _Place, target: _Place, staged: Path) -> None:
    """Replace a file by a hard link to another one, atomically; the times of the directory are kept."""
    times = os.fstat(target.fd)
    os.link(source.name, os.fsencode(staged), src_dir_fd=source.fd, follow_symlinks=False)
    try:
        os.rename(os.fsencode(staged), target.name, dst_dir_fd=target.fd)
    finally:
        staged.unlink(missing_ok=True)
    os.utime(target.fd, ns=(times.st_atime_ns, times.st_mtime_ns))
