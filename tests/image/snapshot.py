"""A directory tree as data, to be compared: all that a layer can say of a file."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """`links` are the other names of the same file in the tree."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes
    device: int
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...]


def snapshot(top: Path | str, *, without_times_of: tuple[str, ...] = ()) -> dict[str, Seen]:
    """Every path beneath `top`, which itself is "."; times of the paths named are not looked at."""
    names: dict[tuple[int, int], list[str]] = {}
    found = {name: os.lstat(os.path.join(top, name)) for name in sorted(_names(str(top)))}
    for name, st in found.items():
        if not stat.S_ISDIR(st.st_mode) and st.st_nlink > 1:
            names.setdefault((st.st_dev, st.st_ino), []).append(name)
    tree = {}
    for name, st in found.items():
        path = os.path.join(top, name)
        others = tuple(other for other in names.get((st.st_dev, st.st_ino), ()) if other != name)
        tree[name] = Seen(
            stat.S_IFMT(st.st_mode),
            stat.S_IMODE(st.st_mode),
            st.st_uid,
            st.st_gid,
            0 if name in without_times_of else st.st_mtime_ns,
            _content(path, st),
            st.st_rdev,
            tuple(
                (xattr, os.getxattr(path, xattr, follow_symlinks=False))
                for xattr in sorted(os.listxattr(path, follow_symlinks=False))
            ),
            others,
        )
    return tree


def _names(top: str) -> list[str]:
    names = ["."]
    for directory, directories, files in os.walk(top):
        names += [os.path.relpath(os.path.join(directory, name), top) for name in (*directories, *files)]
    return names


def _content(path: str, st: os.stat_result) -> bytes:
    if stat.S_ISLNK(st.st_mode):
        return os.fsencode(os.readlink(path))
    if not stat.S_ISREG(st.st_mode):
        return b""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
