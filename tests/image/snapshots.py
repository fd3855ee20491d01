"""All that is to be said of a tree on disk, to compare what tools made of one image."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from overlayfs.tree.syscalls import mount, unmount

Snapshot = dict[bytes, tuple[object, ...]]


def snapshot(top: Path) -> Snapshot:
    """Each path with type, mode, owner, time in ns, device, content, xattrs, and the first of its names.

    An overlay's own xattrs are left out, and a directory's size and links.
    """
    first: dict[tuple[int, int], bytes] = {}
    return {path: _seen(os.fsencode(top), path, first) for path in sorted(_walk(os.fsencode(top), b""))}


def kernel_snapshot(point: Path, lowers: Sequence[bytes], upper: bytes | None = None) -> Snapshot:
    """What the kernel's overlayfs shows of these layers, top first, mounted for a moment on `point`, which is made.

    The kernel wants two layers, so an empty one is put beneath them.
    """
    place = os.fsencode(point)
    for path in (place, place + b"-empty", place + b"-work"):
        os.makedirs(path, exist_ok=True)
    options = b"lowerdir=" + b":".join([*lowers, place + b"-empty"])
    if upper is not None:
        options += b",upperdir=%s,workdir=%s" % (upper, place + b"-work")
    mount(b"overlay", place, b"overlay", 0, options)
    try:
        return snapshot(point)
    finally:
        unmount(place)


def differences(left: Snapshot, right: Snapshot) -> Sequence[tuple[bytes, object, object]]:
    """What is not the same, short enough to be read."""
    paths = sorted(left.keys() | right.keys())
    return [(path, left.get(path), right.get(path)) for path in paths if left.get(path) != right.get(path)][:5]


def _walk(top: bytes, path: bytes) -> Iterator[bytes]:
    yield path
    with os.scandir(os.path.join(top, path)) as entries:
        for entry in entries:
            inner = os.path.join(path, entry.name)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(top, inner)
            else:
                yield inner


def _seen(top: bytes, path: bytes, first: dict[tuple[int, int], bytes]) -> tuple[object, ...]:
    full = os.path.join(top, path)
    st = os.lstat(full)
    kind = stat.S_IFMT(st.st_mode)
    content: object = b""
    if kind == stat.S_IFREG:
        with open(full, "rb") as stream:
            content = st.st_size, hashlib.sha256(stream.read()).hexdigest()
    elif kind == stat.S_IFLNK:
        content = os.readlink(full)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        content = st.st_rdev
    is_single = kind == stat.S_IFDIR or st.st_nlink == 1
    name = path if is_single else first.setdefault((st.st_dev, st.st_ino), path)
    return oct(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, content, _xattrs(full), name


def _xattrs(full: bytes) -> tuple[tuple[str, bytes], ...]:
    names = (name for name in os.listxattr(full, follow_symlinks=False) if not name.startswith("trusted.overlay."))
    return tuple((name, os.getxattr(full, name, follow_symlinks=False)) for name in sorted(names))
