"""Which layers do the operations start from, and what does a tree look like from outside?

Two lower layers and an upper are made as data; a `Node` is everything of one name that a fault must not tear.
Times before `EPOCH_OF_TESTS` were put there by these fixtures and must survive to the nanosecond; later ones
are "now" and all alike.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.options import WhiteoutFormat

OLD_NS = 1_000_000_000_123_456_789
EPOCH_OF_TESTS = 1_600_000_000 * 10**9
NOW = "now"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a layer.  `data` is a file's content, a link's target or a hard link's other path."""

    kind: str
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


def file(data: bytes = b"", mode: int = 0o644, uid: int = 0, gid: int = 0, **xattrs: bytes) -> Entry:
    return Entry("file", data, mode, uid, gid, tuple((f"user.{key}", value) for key, value in xattrs.items()))


def directory(mode: int = 0o755, **xattrs: bytes) -> Entry:
    return Entry("directory", b"", mode, 0, 0, tuple((f"user.{key}", value) for key, value in xattrs.items()))


def symlink(target: bytes) -> Entry:
    return Entry("symlink", target)


def hard_link(other: str) -> Entry:
    return Entry("link", other.encode())


def fifo() -> Entry:
    return Entry("fifo")


WHITEOUT = Entry("whiteout")

PAGES = bytes(range(256)) * 48  # three pages: a copy can be torn inside it

BOTTOM: Mapping[str, Entry] = {
    "dir": directory(0o750, colour=b"blue"),
    "dir/file": file(b"lower content " * 40, 0o640, 1000, 100, tag=b"lower", gone=b"soon"),
    "dir/other": file(b"other"),
    "dir/sub": directory(),
    "dir/sub/deep": file(b"deep", 0o600),
    "dir/sub/leaf": file(b"leaf"),
    "big": file(PAGES, 0o755, tag=b"big"),
    "one": file(b"linked twice", 0o644, tag=b"twin"),
    "two": hard_link("one"),
    "pointer": symlink(b"dir/file"),
    "pipe": fifo(),
    "deleted": file(b"must stay deleted"),
    "gone": directory(),
    "gone/child": file(b"must not come back"),
    "gone/nest": directory(),
    "gone/nest/egg": file(b"nor this"),
    "empty": directory(0o700),
    "lowtree": directory(0o711, kind=b"tree"),
    "lowtree/a": file(b"a"),
    "lowtree/b": directory(),
    "lowtree/b/c": file(b"c"),
    "merged": directory(),
    "merged/bottom": file(b"bottom"),
    "merged/both": file(b"hidden by the top"),
    "doomed": directory(),
    "doomed/child": file(b"deleted in the upper"),
}
TOP: Mapping[str, Entry] = {
    "merged": directory(0o755),
    "merged/both": file(b"top"),
    "merged/top": file(b"only in the top"),
}
UPPER: Mapping[str, Entry] = {
    "merged": directory(0o755),
    "merged/upper": file(b"only in the upper"),
    "mine": file(b"upper only", 0o604, 7, 8, tag=b"upper"),
    "mine2": file(b"upper too"),
    "myown": directory(0o755),
    "myown/file": file(b"in an upper directory"),
    "doomed": directory(),
    "doomed/child": WHITEOUT,
    "deleted": WHITEOUT,
    "gone": WHITEOUT,
}


def build(root: Path, entries: Mapping[str, Entry], whiteout: WhiteoutFormat = WhiteoutFormat.OVERLAY) -> None:
    """Make `entries` beneath `root`, all with the same old times; whiteouts in the spelling asked for."""
    root.mkdir(parents=True)
    for path, entry in entries.items():
        _make(root, path, entry, whiteout)
    for path in [*reversed(list(entries)), "."]:
        if os.path.lexists(root / path):
            os.utime(root / path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


def _make(root: Path, path: str, entry: Entry, whiteout: WhiteoutFormat) -> None:
    place = root / path
    match entry.kind:
        case "file":
            place.write_bytes(entry.data)
        case "directory":
            place.mkdir()
        case "symlink":
            place.symlink_to(os.fsdecode(entry.data))
        case "link":
            os.link(root / os.fsdecode(entry.data), place)
        case "fifo":
            os.mkfifo(place)
        case "whiteout":
            _make_whiteout(place, whiteout)
    if entry.kind in ("file", "directory"):
        os.chown(place, entry.uid, entry.gid)
        place.chmod(entry.mode)
        for name, value in entry.xattrs:
            os.setxattr(place, name, value)


def _make_whiteout(place: Path, whiteout: WhiteoutFormat) -> None:
    if whiteout is WhiteoutFormat.OVERLAY:
        os.mknod(place, stat.S_IFCHR, 0)
    elif whiteout is WhiteoutFormat.OCI:
        (place.parent / f".wh.{place.name}").touch()
    else:
        place.touch()
        os.setxattr(place, "trusted.overlay.whiteout", b"")
        os.setxattr(place.parent, "trusted.overlay.opaque", b"x")


class Node(NamedTuple):
    """One name as seen from outside; `twins` are the other visible names of the same inode."""

    kind: int
    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    content: bytes
    mtime: int | str
    xattrs: tuple[tuple[bytes, bytes], ...]
    twins: tuple[bytes, ...]


Tree: TypeAlias = dict[bytes, Node]


def differences(expected: Tree, found: Tree) -> list[str]:
    """What differs, a line each, for messages."""
    lines = [f"missing {path!r}" for path in expected.keys() - found.keys()]
    lines += [f"unexpected {path!r}" for path in found.keys() - expected.keys()]
    for path in expected.keys() & found.keys():
        pairs = zip(Node._fields, expected[path], found[path], strict=True)
        lines += [f"{path!r} {name}: {_short(a)} became {_short(b)}" for name, a, b in pairs if a != b]
    return sorted(lines)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def without_times(tree: Tree, paths: frozenset[bytes]) -> Tree:
    """`tree` with the modification times of `paths` (parents of what an operation changes) left out."""
    return {path: node._replace(mtime="") if path in paths else node for path, node in tree.items()}


def seen_through(overlay: Overlay) -> Tree:
    """The merged tree as the engine's callers see it; each name's count is given back."""
    return _join(dict(_walk_engine(overlay, 1, b".")))


_Numbered: TypeAlias = tuple[int, Node]


def _walk_engine(overlay: Overlay, ino: int, path: bytes) -> Iterator[tuple[bytes, _Numbered]]:
    yield path, (ino, _node_from_engine(overlay, ino))
    handle = overlay.opendir(ino)
    try:
        listed = [(entry.name, entry.attributes) for entry in overlay.readdir(handle, 0)]
    finally:
        overlay.releasedir(handle)
    for name, attributes in listed:
        if name in (b".", b".."):
            continue
        child = overlay.lookup(ino, name)
        try:
            assert child.ino == attributes.ino, f"{path!r}/{name!r}: d_ino differs from st_ino"
            if stat.S_ISDIR(child.mode):
                yield from _walk_engine(overlay, child.ino, path + b"/" + name)
            else:
                yield path + b"/" + name, (child.ino, _node_from_engine(overlay, child.ino))
        finally:
            overlay.forget(child.ino, 1)


def _node_from_engine(overlay: Overlay, ino: int) -> Node:
    seen = overlay.getattr(ino)
    content = b""
    if stat.S_ISREG(seen.mode):
        content = _digest(_read_all(overlay, ino, seen.size))
    elif stat.S_ISLNK(seen.mode):
        content = overlay.readlink(ino)
    xattrs = tuple(sorted((name, overlay.getxattr(ino, name)) for name in overlay.listxattr(ino)))
    nlink = 0 if stat.S_ISDIR(seen.mode) else seen.nlink
    kind, mode = stat.S_IFMT(seen.mode), stat.S_IMODE(seen.mode)
    return Node(kind, mode, seen.uid, seen.gid, seen.rdev, nlink, content, _time(seen.mtime_ns), xattrs, ())


def _read_all(overlay: Overlay, ino: int, size: int) -> bytes:
    overlay.open_file(ino, os.O_RDONLY)
    try:
        return overlay.read(ino, 0, size + 1)
    finally:
        overlay.release(ino)


def seen_at(root: Path) -> Tree:
    """The tree beneath a directory of the host: a kernel mount, or a layer as it lies on disk."""
    return _join(dict(_walk_host(os.fsencode(root))))


def _walk_host(root: bytes) -> Iterator[tuple[bytes, _Numbered]]:
    yield b".", _node_from_host(root)
    for parent, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(parent, name)
            yield b"./" + os.path.relpath(path, root), _node_from_host(path)


def _node_from_host(path: bytes) -> _Numbered:
    seen = os.lstat(path)
    content = b""
    if stat.S_ISREG(seen.st_mode):
        with open(path, "rb") as stream:
            content = _digest(stream.read())
    elif stat.S_ISLNK(seen.st_mode):
        content = os.readlink(path)
    names = (os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False))
    xattrs = tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names))
    nlink = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_nlink
    kind, mode, owner = stat.S_IFMT(seen.st_mode), stat.S_IMODE(seen.st_mode), (seen.st_uid, seen.st_gid)
    node = Node(kind, mode, *owner, seen.st_rdev, nlink, content, _time(seen.st_mtime_ns), xattrs, ())
    return seen.st_ino, node


def _time(mtime_ns: int) -> int | str:
    return mtime_ns if mtime_ns < EPOCH_OF_TESTS else NOW


def _digest(data: bytes) -> bytes:
    """Short content as it is, so that messages can be read; long content by its hash."""
    return data if len(data) <= 64 else b"sha256:" + hashlib.sha256(data).hexdigest()[:24].encode()


def _join(numbered: dict[bytes, _Numbered]) -> Tree:
    """Fill in `twins` from the inode numbers."""
    names: dict[int, list[bytes]] = {}
    for path, (ino, node) in numbered.items():
        if not stat.S_ISDIR(node.kind):
            names.setdefault(ino, []).append(path)
    return {
        path: node._replace(twins=tuple(sorted(set(names.get(ino, ())) - {path})))
        for path, (ino, node) in numbered.items()
    }


@dataclass(frozen=True, slots=True)
class Layers:
    """The directories of one overlay; the lowers are made once and never written."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path

    def at(self, base: Path) -> "Layers":
        """The same lowers with a fresh place for upper and workdir (not made yet)."""
        return replace(self, upper=base / "upper", work=base / "work")


def make_lowers(base: Path) -> tuple[Path, ...]:
    build(base / "top", TOP)
    build(base / "bottom", BOTTOM)
    return (base / "top", base / "bottom")


def make_upper(layers: Layers, whiteout: WhiteoutFormat) -> None:
    build(layers.upper, UPPER, whiteout)
    layers.work.mkdir()
