"""How are the owners, devices, whiteouts and xattrs of an image kept on disk?

As root: unchanged, with whiteouts as the kernel's overlayfs spells them. As an ordinary user (or root of a user
namespace): attributes that this user cannot give to a file are kept in an xattr, in the spelling of containers/storage,
which the mount reads. All functions work on files that the caller has just made in a directory of its own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from contextlib import suppress
from typing import ClassVar, Final, Protocol

from ...overlay.ownership import Owner, format_override
from ...tree import marks
from ...tree.metadata import DEFAULT_ACL
from ...tree.syscalls import entry_path
from ..tar.reader import Entry

_EARLIEST_NS, _LATEST_NS = -(1 << 63), (1 << 64) - 1  # MessagePack's integers: the years 1677 to 2554
_LATEST_ANYWHERE_NS: Final = ((1 << 31) - 1) * 1_000_000_000
OVERRIDE: Final = marks.OVERRIDE_NAMES[0]
_CANNOT_STORE: Final = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.ENOSPC, errno.E2BIG, errno.ERANGE)
_TYPES: Final = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "p": stat.S_IFIFO, "c": stat.S_IFCHR, "b": stat.S_IFBLK}
_TYPES["l"] = stat.S_IFLNK


class Format(Protocol):
    """What the two formats do differently. `warnings` counts the attributes that could not be kept, by kind."""

    warnings: Counter[str]
    prefix: bytes

    def set_up_root(self, fd: int) -> None: ...
    def creation_mode(self, entry: Entry) -> int: ...
    def finish(self, fd: int, entry: Entry, created_mode: int) -> dict[bytes, bytes]: ...
    def make_special(self, dir_fd: int, name: bytes, entry: Entry) -> dict[bytes, bytes]: ...
    def finish_symlink(self, dir_fd: int, name: bytes, entry: Entry) -> dict[bytes, bytes]: ...
    def whiteout(self, dir_fd: int, name: bytes) -> bool: ...


def choose_format(directory: bytes) -> RealFormat | OverrideFormat:
    """The format for `directory`: whoever may set trusted xattrs may also change owners and make devices."""
    try:
        os.setxattr(directory, marks.TRUSTED + b"overlayfs.probe", b"")
        os.removexattr(directory, marks.TRUSTED + b"overlayfs.probe")
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise
        return OverrideFormat()
    return RealFormat()


def umask() -> int:
    """The umask of this process, read without changing it, as other threads make files too (proc(5), Linux 4.7)."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o777


def storable_times(fd: int) -> tuple[int, int]:
    """The earliest and the latest time, in ns, that both the file index and the file system of `fd` can store.

    Changes the times of the directory `fd`. Every file system is assumed to store the times from 1970 to 2038.
    """
    return min(_kept_time(fd, _EARLIEST_NS), 0), max(_kept_time(fd, _LATEST_NS), _LATEST_ANYWHERE_NS)


def _kept_time(fd: int, time_ns: int) -> int:
    """The time that the file system stores for this one: the kernel clamps it; 0 where it refuses."""
    try:
        os.utime(fd, ns=(time_ns, time_ns))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOVERFLOW):
            raise
        return 0
    return os.fstat(fd).st_mtime_ns


class _Xattrs:
    """Sets xattrs and neutralises overlay marks in them, which a layer must not smuggle into the mount.

    Marks with the prefix of this format are escaped; of those with the other prefix, the hiding ones are left out.
    """

    spelling: ClassVar[marks.Spelling]

    def __init__(self) -> None:
        self.warnings: Counter[str] = Counter()

    def set_xattrs(self, target: int | bytes, xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """The xattrs that could be stored; `warnings` counts the others."""
        kept = {}
        for name, value in xattrs.items():
            stored = marks.stored_xattr(name, self.spelling)
            if stored is None:
                self._warn(name, "reserved")
                continue
            try:
                if isinstance(target, int):
                    os.setxattr(target, stored, value)
                else:
                    os.setxattr(target, stored, value, follow_symlinks=False)
                kept[name] = value
            except OSError as error:
                if error.errno not in _CANNOT_STORE or (error.errno == errno.ENOSPC and len(value) < 1024):
                    raise
                self._warn(name, os.strerror(error.errno))
        return kept

    def _xattrs_and_times(self, dir_fd: int, name: bytes, entry: Entry) -> dict[bytes, bytes]:
        kept = self.set_xattrs(entry_path(dir_fd, name), entry.xattrs) if entry.xattrs else {}
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)
        return kept

    def _warn(self, name: bytes, why: str) -> None:
        self.warnings[f"xattr {name.decode('utf-8', 'backslashreplace')} not stored: {why}"] += 1


class RealFormat(_Xattrs):
    """The format of root: attributes are stored as they are. New files belong to 0:0, like the root directory."""

    prefix = marks.TRUSTED
    spelling = marks.spelling(prefix, is_upper=False)

    def set_up_root(self, fd: int) -> None:
        os.fchown(fd, 0, 0)
        _inherit_nothing(fd)

    def creation_mode(self, entry: Entry) -> int:
        """The mode to create a file with, before the umask is applied."""
        return entry.mode & 0o777

    def finish(self, fd: int, entry: Entry, created_mode: int) -> dict[bytes, bytes]:
        """Set owner, xattrs, mode and times of a file or directory after its content; the xattrs that were kept."""
        if entry.uid or entry.gid:
            os.fchown(fd, entry.uid, entry.gid)
            created_mode = -1  # chown clears some bits
        if entry.mode != created_mode:
            os.fchmod(fd, entry.mode)
        kept = self.set_xattrs(fd, entry.xattrs) if entry.xattrs else {}
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        return kept

    def make_special(self, dir_fd: int, name: bytes, entry: Entry) -> dict[bytes, bytes]:
        os.mknod(name, _TYPES[entry.kind] | 0o600, os.makedev(*entry.device), dir_fd=dir_fd)
        os.chown(name, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=False)
        os.chmod(name, entry.mode, dir_fd=dir_fd)
        return self._xattrs_and_times(dir_fd, name, entry)

    def finish_symlink(self, dir_fd: int, name: bytes, entry: Entry) -> dict[bytes, bytes]:
        if entry.uid or entry.gid:
            os.chown(name, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=False)
        return self._xattrs_and_times(dir_fd, name, entry)

    def whiteout(self, dir_fd: int, name: bytes) -> bool:
        """Hide `name` of the layers below. True if the directory must be marked as holding such whiteouts."""
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
        return False


class OverrideFormat(_Xattrs):
    """The format of an ordinary user: the user owns and can read all files; an xattr holds the owner in the image."""

    prefix = marks.USER
    spelling = marks.spelling(prefix, is_upper=False)

    def __init__(self) -> None:
        super().__init__()
        self._can_mknod = True

    def set_up_root(self, fd: int) -> None:
        _inherit_nothing(fd)

    def creation_mode(self, entry: Entry) -> int:
        """The mode on disk: the owner always has access, set-id bits are left out."""
        return entry.mode & 0o777 | (0o700 if entry.kind == "d" else 0o600)

    def finish(self, fd: int, entry: Entry, created_mode: int) -> dict[bytes, bytes]:
        """Set owner, xattrs, mode and times of a file or directory after its content; the xattrs that were kept."""
        self._override(fd, entry)
        mode = self.creation_mode(entry)
        if mode != created_mode:
            os.fchmod(fd, mode)
        kept = self.set_xattrs(fd, entry.xattrs) if entry.xattrs else {}
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        return kept

    def make_special(self, dir_fd: int, name: bytes, entry: Entry) -> dict[bytes, bytes]:
        """Make an empty file that stands for a fifo or device."""
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
        try:
            return self.finish(fd, entry, -1)
        finally:
            os.close(fd)

    def finish_symlink(self, dir_fd: int, name: bytes, entry: Entry) -> dict[bytes, bytes]:
        if entry.uid or entry.gid:
            self.warnings["owner of a symlink not stored"] += 1
        return self._xattrs_and_times(dir_fd, name, entry)

    def whiteout(self, dir_fd: int, name: bytes) -> bool:
        """Hide `name` of the layers below. True if the directory must be marked as holding such whiteouts."""
        if self._can_mknod:
            try:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
            except PermissionError:
                self._can_mknod = False
            else:
                return False
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=dir_fd)
        try:
            os.setxattr(fd, self.prefix + marks.WHITEOUT, b"y")
        finally:
            os.close(fd)
        return True

    def _override(self, fd: int, entry: Entry) -> None:
        device = os.makedev(*entry.device) if entry.kind in "cb" else 0
        owner = Owner(entry.uid, entry.gid, entry.mode | _TYPES[entry.kind], device)
        os.setxattr(fd, OVERRIDE, format_override(owner))


def _inherit_nothing(fd: int) -> None:
    """Remove set-group-ID and default ACL from the directory, so that the new files do not inherit them."""
    os.fchmod(fd, 0o700)
    with suppress(OSError):
        os.removexattr(fd, DEFAULT_ACL)
