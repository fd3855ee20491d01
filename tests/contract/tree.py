"""Directory trees as data: what a layer holds, and what a view of the layers must show.

A tree is a mapping of paths to nodes; parents that it does not name are directories of mode 0755
owned by root. The same constructors serve for layers (`build`) and for expectations (`expand`).
Two nodes are spelled by the mark format in use when they are built in an upper layer:
`whiteout()` and `opaque_dir()`; every other spelling of a mark is written out in the case.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from .libc import set_flags, short_path

TRUSTED = "trusted.overlay."
SECOND = 1_000_000_000
EPOCH = 1_500_000_000 * SECOND


class Format(Enum):
    """How whiteouts and opaque directories are spelled in an upper layer."""

    OVERLAY = "overlay"
    OVERLAY_XATTR = "overlay-xattr"
    OCI = "oci"


class Kind(Enum):
    """What a node is. The last three exist only in trees, not on disk."""

    FILE = stat.S_IFREG
    DIRECTORY = stat.S_IFDIR
    SYMLINK = stat.S_IFLNK
    FIFO = stat.S_IFIFO
    SOCKET = stat.S_IFSOCK
    CHAR = stat.S_IFCHR
    BLOCK = stat.S_IFBLK
    HARDLINK = -1
    WHITEOUT = -2
    ABSENT = -3


@dataclass(frozen=True, slots=True)
class Node:
    """One object of a tree. None means: not compared (and, building, left as it falls)."""

    kind: Kind
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    rdev: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] | None = field(default_factory=dict)
    mtime: int | None = None
    atime: int | None = None
    size: int | None = None
    nlink: int | None = None
    opaque: bool = False
    sparse: bool = False
    flags: str = ""  # letters of chattr(1)

    @property
    def content(self) -> bytes:
        """The bytes of the file, with the hole after `data` that `size` asks for."""
        return self.data if self.size is None else self.data.ljust(self.size, b"\0")[: self.size]


Tree = Mapping[str, Node]
NO_XATTRS: Mapping[str, bytes] = {}


def file(
    data: bytes = b"",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    *,
    xattrs: Mapping[str, bytes] | None = NO_XATTRS,
    mtime: int | None = None,
    atime: int | None = None,
    size: int | None = None,
    nlink: int | None = None,
    sparse: bool = False,
    flags: str = "",
) -> Node:
    """A regular file; `size` larger than the data makes the rest a hole."""
    return Node(Kind.FILE, data, mode, uid, gid, (0, 0), xattrs, mtime, atime, size, nlink, False, sparse, flags)


def directory(
    mode: int = 0o755,
    uid: int = 0,
    gid: int = 0,
    *,
    xattrs: Mapping[str, bytes] | None = NO_XATTRS,
    mtime: int | None = None,
    flags: str = "",
) -> Node:
    """A directory."""
    return Node(Kind.DIRECTORY, b"", mode, uid, gid, (0, 0), xattrs, mtime, flags=flags)


def opaque_dir(mode: int = 0o755, uid: int = 0, gid: int = 0) -> Node:
    """A directory that hides what lower layers hold there."""
    return Node(Kind.DIRECTORY, b"", mode, uid, gid, opaque=True)


def symlink(
    target: str,
    uid: int = 0,
    gid: int = 0,
    *,
    xattrs: Mapping[str, bytes] | None = NO_XATTRS,
    mtime: int | None = None,
    nlink: int | None = None,
) -> Node:
    """A symbolic link."""
    data = os.fsencode(target)
    return Node(Kind.SYMLINK, data, 0o777, uid, gid, (0, 0), xattrs, mtime, nlink=nlink)


def fifo(mode: int = 0o644, uid: int = 0, gid: int = 0) -> Node:
    """A named pipe."""
    return Node(Kind.FIFO, b"", mode, uid, gid)


def socket(mode: int = 0o644, uid: int = 0, gid: int = 0) -> Node:
    """A socket's name."""
    return Node(Kind.SOCKET, b"", mode, uid, gid)


def char(major: int, minor: int, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Node:
    """A character device; `char(0, 0)` is the kernel's whiteout."""
    return Node(Kind.CHAR, b"", mode, uid, gid, (major, minor))


def block(major: int, minor: int, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Node:
    """A block device."""
    return Node(Kind.BLOCK, b"", mode, uid, gid, (major, minor))


def hardlink(other: str) -> Node:
    """Another name of the node at `other`."""
    return Node(Kind.HARDLINK, os.fsencode(other))


def whiteout() -> Node:
    """A whiteout in the format of the layer."""
    return Node(Kind.WHITEOUT)


def absent() -> Node:
    """In an expectation of the upper: nothing here, a whiteout neither."""
    return Node(Kind.ABSENT)


def xattr_whiteout(prefix: str = TRUSTED) -> Node:
    """A whiteout spelled as an empty file with a mark; listing needs `x_dir()` around it."""
    return file(b"", xattrs={prefix + "whiteout": b""})


def x_dir(prefix: str = TRUSTED) -> Node:
    """A directory that says it holds whiteouts spelled as files."""
    return directory(xattrs={prefix + "opaque": b"x"})


def acl(
    user: int,
    group: int,
    other: int,
    mask: int | None = None,
    users: Mapping[int, int] | None = None,
    groups: Mapping[int, int] | None = None,
) -> bytes:
    """A POSIX ACL as its xattr holds it (include/uapi/linux/posix_acl_xattr.h, version 2)."""
    nobody = 0xFFFFFFFF
    entries = [(0x01, user, nobody)]
    entries += [(0x02, bits, uid) for uid, bits in sorted((users or {}).items())]
    entries += [(0x04, group, nobody)]
    entries += [(0x08, bits, gid) for gid, bits in sorted((groups or {}).items())]
    if mask is not None:
        entries.append((0x10, mask, nobody))
    entries.append((0x20, other, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def parents(path: str) -> Iterator[str]:
    """The directories above `path`, topmost first, without the root."""
    parts = path.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        yield "/".join(parts[:depth])


def expand(tree: Tree) -> dict[str, Node]:
    """The tree with the parents it implies, every hard link replaced by its node, nlinks set."""
    full: dict[str, Node] = {}
    for path, node in tree.items():
        for parent in parents(path):
            full.setdefault(parent, tree.get(parent, directory()))
        full[path] = node
    groups: dict[str, list[str]] = {}
    for path, node in full.items():
        first = os.fsdecode(node.data) if node.kind is Kind.HARDLINK else path
        groups.setdefault(first, []).append(path)
    for first, names in groups.items():
        node = full[first]
        if node.kind is not Kind.DIRECTORY and node.nlink is None:
            node = replace(node, nlink=len(names))
        full.update((name, node) for name in names)
    return full


def link_groups(tree: Tree) -> list[set[str]]:
    """The sets of paths of the tree that must be one inode."""
    groups: dict[str, set[str]] = {}
    for path, node in tree.items():
        if node.kind is Kind.HARDLINK:
            first = os.fsdecode(node.data)
            groups.setdefault(first, {first}).add(path)
    return list(groups.values())


def spell(tree: Tree, form: Format) -> dict[str, Node]:
    """The tree with its whiteouts and opaque directories spelled in `form`."""
    spelled: dict[str, Node] = {}
    for path, node in tree.items():
        if node.kind is Kind.WHITEOUT:
            spelled.update(_spelled_whiteout(path, form))
        elif node.opaque:
            spelled.update(_spelled_opaque(path, node, form))
        else:
            spelled[path] = node
    if form is Format.OVERLAY_XATTR:
        _mark_parents_of_whiteouts(tree, spelled)
    return spelled


def _spelled_whiteout(path: str, form: Format) -> dict[str, Node]:
    if form is Format.OVERLAY:
        return {path: char(0, 0, 0)}
    if form is Format.OVERLAY_XATTR:
        return {path: xattr_whiteout()}
    head, _, name = path.rpartition("/")
    return {(head + "/" if head else "") + ".wh." + name: file(b"")}


def _spelled_opaque(path: str, node: Node, form: Format) -> dict[str, Node]:
    plain = replace(node, opaque=False)
    if form is Format.OCI:
        return {path: plain, path + "/.wh..wh..opq": file(b"")}
    return {path: replace(plain, xattrs={TRUSTED + "opaque": b"y"})}


def _mark_parents_of_whiteouts(tree: Tree, spelled: dict[str, Node]) -> None:
    for path, node in tree.items():
        if node.kind is Kind.WHITEOUT:
            parent = path.rpartition("/")[0]
            above = spelled.get(parent, directory())
            if TRUSTED + "opaque" not in (above.xattrs or {}):
                marks = {**(above.xattrs or {}), TRUSTED + "opaque": b"x"}
                spelled[parent] = replace(above, xattrs=marks)


def build(root: bytes, tree: Tree, form: Format = Format.OVERLAY) -> None:
    """Make the tree below the existing directory `root`; "" is the root itself."""
    os.makedirs(root, exist_ok=True)
    os.chmod(root, 0o755)
    nodes = spell(tree, form)
    full = {**{parent: directory() for path in nodes for parent in parents(path)}, **nodes}
    order = sorted(full, key=lambda path: (full[path].kind is Kind.HARDLINK, path))
    for path in order:
        with short_path(root, os.fsencode(path)) as place:
            _make(root, place, full[path])
    for path in reversed(order):
        with short_path(root, os.fsencode(path)) as place:
            _finish(place, full[path])


def _make(root: bytes, place: bytes, node: Node) -> None:
    if node.kind is Kind.DIRECTORY:
        if not os.path.isdir(place):
            os.mkdir(place)
    elif node.kind is Kind.SYMLINK:
        os.symlink(node.data, place)
    elif node.kind is Kind.HARDLINK:
        os.link(os.path.join(root, node.data), place, follow_symlinks=False)
    elif node.kind is Kind.FILE:
        with open(place, "xb") as stream:
            stream.write(node.data)
            if node.size is not None:
                stream.truncate(node.size)
    else:
        os.mknod(place, node.kind.value | 0o600, os.makedev(*node.rdev))


def _finish(place: bytes, node: Node) -> None:
    """Owner first (it clears setuid), then mode, xattrs (an ACL changes the mode) and times."""
    if node.kind is Kind.HARDLINK:
        return
    os.chown(place, node.uid, node.gid, follow_symlinks=False)
    if node.kind is not Kind.SYMLINK:
        os.chmod(place, node.mode)
    for name, value in (node.xattrs or {}).items():
        os.setxattr(place, os.fsencode(name), value, follow_symlinks=False)
    mtime = EPOCH + 123456789 if node.mtime is None else node.mtime
    atime = mtime if node.atime is None else node.atime
    os.utime(place, ns=(atime, mtime), follow_symlinks=False)
    if node.flags:
        set_flags(place, node.flags)
