"""The directories that one round of `fuzz` plays on: made, looked at afterwards, removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from overlayfs.overlay.options import FsyncPolicy, OverlayOptions, WhiteoutFormat
from overlayfs.tree.fileflags import SETFLAGS

# Fills the buffer of replies; only a READ of PATTERN may show it, a file that no random message asks for.
LEFT_BEHIND_A_REPLY: Final = b"\xc5behind-a-reply\x5c"
PATTERN: Final = b"pattern"
_LARGE: Final = 300_000  # bytes; more than is copied up at once
VARIANTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"timeout_s": 0},
    {"whiteout": WhiteoutFormat.OCI, "static_nlink": True},
    {"metacopy": True, "writeback": True},
    {"whiteout": WhiteoutFormat.OVERLAY_XATTR, "timeout_s": 1.5, "index": False},
    {"fsync": FsyncPolicy.VOLATILE, "noatime": True, "acl": False},
    {"user_xattr": True},
    {"upper": None, "work": None},
)


@contextmanager
def base_of_round() -> Iterator[Path]:
    """A directory in memory; the process is in an empty one beneath it meanwhile."""
    base = Path(tempfile.mkdtemp(prefix="overlayfs-fuzz-", dir="/dev/shm"))
    here = os.open(".", os.O_PATH)
    try:
        (base / "here").mkdir()
        os.chdir(base / "here")
        yield base
    finally:
        os.fchdir(here)
        os.close(here)
        _remove(base)


def make_layers(base: Path, seed: int) -> OverlayOptions:
    """One lower and an empty upper; every eighth seed has no upper."""
    for name in ("lower", "lower/d", "upper", "work", "outside"):
        (base / name).mkdir()
    lower = base / "lower"
    (lower / "file").write_bytes(b"0123456789")
    (lower / "large").write_bytes(b"L" * _LARGE)
    for number in range(20):
        (lower / f"d/entry{number}").write_bytes(b"entry")
    (lower / "link").symlink_to("../outside/secret")
    (lower / "hard").hardlink_to(lower / "file")
    os.setxattr(lower / "file", "user.a", b"value")
    (lower / os.fsdecode(PATTERN)).write_bytes(LEFT_BEHIND_A_REPLY * 500)
    (base / "outside/secret").write_bytes(b"secret")
    options = OverlayOptions(lowers=(bytes(lower),), upper=bytes(base / "upper"), work=bytes(base / "work"))
    return options._replace(**VARIANTS[seed % len(VARIANTS)])


def untouchable(base: Path) -> list[object]:
    """All that no message may change: content, names and attributes of everything but upper and workdir."""
    found: list[object] = [sorted(os.listdir(base))]
    for top in ("lower", "outside", "here"):
        for path in (base / top, *sorted((base / top).rglob("*"))):
            st = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
            names = os.listxattr(path, follow_symlinks=False)
            found.append((path, st.st_mode, st.st_uid, st.st_nlink, st.st_mtime_ns, st.st_ctime_ns, content, names))
    return found


def written(top: Path) -> Iterator[bytes]:
    """All bytes that messages have left on disk: names, targets, contents and xattrs."""
    for parent, directories, files in os.walk(bytes(top)):
        for name in (*directories, *files):
            yield name
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                yield os.readlink(path)
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    yield file.read()
            for attribute in os.listxattr(path, follow_symlinks=False):
                yield os.fsencode(attribute)
                with suppress(OSError):  # capabilities that were written as nonsense cannot be read
                    yield os.getxattr(path, attribute, follow_symlinks=False)


def _remove(base: Path) -> None:
    """Remove all, also what chattr keeps from being removed."""
    for parent, directories, files in os.walk(base):
        for name in (".", *directories, *files):
            path = os.path.join(parent, name)
            if stat.S_IFMT(os.lstat(path).st_mode) in (stat.S_IFREG, stat.S_IFDIR):
                _clear_flags(path)
    shutil.rmtree(base)


def _clear_flags(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    with suppress(OSError):  # not every filesystem has them
        fcntl.ioctl(fd, SETFLAGS, bytes(4))
    os.close(fd)
