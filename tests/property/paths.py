"""A target that is reached by paths: a plain directory, the kernel's overlayfs, or our mount."""

import ctypes
import errno
import json
import os
import select
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.prepared import call

from .steps import Entry, Snapshot, now_of_files_ns

_libc = ctypes.CDLL(None, use_errno=True)
REPOSITORY = Path(__file__).resolve().parents[2]
_AT_FDCWD = -100
_MNT_DETACH = 2


def rename_with_flags(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2), which os lacks."""
    if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old)


def unmount(place: Path) -> None:
    """Lazily, so that it cannot fail because of something that a failing test left open."""
    if _libc.umount2(os.fsencode(place), _MNT_DETACH):
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # not a mount point (any more): what was asked for
            raise OSError(number, os.strerror(number), os.fspath(place))


class PlainTarget:
    """A plain directory: what every filesystem ought to be like."""

    name = "plain"

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.started_ns = now_of_files_ns()
        self.held: dict[int, int] = {}

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path) if path else self.root

    def create(self, path: bytes, flags: int, mode: int, data: bytes) -> None:
        descriptor = os.open(self._at(path), os.O_CREAT | os.O_WRONLY | flags, mode)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def write(self, path: bytes, offset: int, data: bytes) -> int:
        descriptor = os.open(self._at(path), os.O_WRONLY)
        try:
            return os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)

    def append(self, path: bytes, data: bytes) -> int:
        descriptor = os.open(self._at(path), os.O_WRONLY | os.O_APPEND)
        try:
            return os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def read(self, path: bytes) -> bytes:
        descriptor = os.open(self._at(path), os.O_RDONLY)
        try:
            return os.read(descriptor, 1 << 20)
        finally:
            os.close(descriptor)

    def stat(self, path: bytes) -> tuple[object, ...]:
        return _compared(os.lstat(self._at(path)))

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        rename_with_flags(self._at(old), self._at(new), flags)

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def mkfifo(self, path: bytes, mode: int) -> None:
        os.mkfifo(self._at(path), mode)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self._at(path)))

    def hold(self, number: int, path: bytes, flags: int) -> None:
        self.held[number] = os.open(self._at(path), flags)

    def held_read(self, number: int) -> bytes:
        return os.pread(self.held[number], 1 << 20, 0)

    def held_write(self, number: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.held[number], data, offset)

    def held_truncate(self, number: int, size: int) -> None:
        os.ftruncate(self.held[number], size)

    def held_stat(self, number: int) -> tuple[object, ...]:
        return _compared(os.fstat(self.held[number]))

    def held_number(self, number: int) -> int:
        return os.fstat(self.held[number]).st_ino

    def held_links(self, number: int) -> int:
        return os.fstat(self.held[number]).st_nlink

    def drop(self, number: int) -> None:
        os.close(self.held.pop(number))

    def snapshot(self) -> Snapshot:
        return snapshot(self.root, self.started_ns)

    def numbers(self) -> dict[bytes, int]:
        return {path: os.lstat(self._at(path)).st_ino for path in walk(self.root)}

    def remount(self) -> None:
        """A plain directory is always there."""

    def close(self) -> None:
        for number in list(self.held):
            self.drop(number)


class KernelTarget(PlainTarget):
    """The kernel's overlayfs over the same layers, with an upper of its own."""

    name = "kernel"

    def __init__(self, place: Path, lowers: Iterable[Path], upper: Path, work: Path) -> None:
        super().__init__(place)
        self.place = place
        self.options = overlay_options(lowers, upper, work)
        self._mount()

    def _mount(self) -> None:
        options = f"{self.options},index=on,redirect_dir=on"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.place], check=True)

    def remount(self) -> None:
        unmount(self.place)
        self._mount()

    def close(self) -> None:
        super().close()
        unmount(self.place)


class MountedTarget(PlainTarget):
    """Our own mount program's mount."""

    name = "ours"

    def __init__(self, place: Path, lowers: Iterable[Path], upper: Path, work: Path, *more: str) -> None:
        super().__init__(place)
        self.place = place
        self.options = ",".join((overlay_options(lowers, upper, work), *more))
        self.daemon = self._mount()

    def _mount(self) -> int:
        """Mount and return a pidfd of the daemon."""
        done = call("-o", self.options, self.place, program="overlayfs-mount")
        assert not done.status, done
        return os.pidfd_open(daemon_of(self.place))

    def _unmount(self) -> None:
        unmount(self.place)
        wait_for_end(self.daemon)
        os.close(self.daemon)

    def remount(self) -> None:
        self._unmount()
        self.daemon = self._mount()

    def close(self) -> None:
        super().close()
        self._unmount()


def overlay_options(lowers: Iterable[Path], upper: Path, work: Path) -> str:
    return f"lowerdir={':'.join(map(os.fspath, lowers))},upperdir={upper},workdir={work}"


def daemon_of(mountpoint: Path) -> int:
    """The process that serves `mountpoint`."""
    document = json.loads(os.getxattr(mountpoint, "user.overlayfs.status"))
    return int(document["pid"])


def wait_for_end(pidfd: int, timeout_s: float = 20.0) -> None:
    """Until the process has ended; the upper is free for the next mount then."""
    ready, _, _ = select.select([pidfd], [], [], timeout_s)
    if not ready:
        raise TimeoutError("the daemon is still there after the unmount")


def walk(root: bytes) -> list[bytes]:
    """Every path beneath `root`, b"" first, sorted."""
    directories = [b""]
    others: list[bytes] = []
    for directory in directories:
        with os.scandir(os.path.join(root, directory) if directory else root) as entries:
            for entry in entries:
                kind = directories if entry.is_dir(follow_symlinks=False) else others
                kind.append(os.path.join(directory, entry.name))
    return sorted(directories + others)


def snapshot(root: bytes, started_ns: int) -> Snapshot:
    """The tree at `root`; times after `started_ns` are not kept."""
    entries: Snapshot = {}
    first_of: dict[tuple[int, int], bytes] = {}
    for path in walk(root):
        entries[path] = _entry(os.path.join(root, path) if path else root, path, started_ns, first_of)
    return entries


def _entry(place: bytes, path: bytes, started_ns: int, first_of: dict[tuple[int, int], bytes]) -> Entry:
    found = os.lstat(place)
    directory = stat.S_ISDIR(found.st_mode)
    sized = stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)
    return Entry(
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size if sized else None,
        rdev=found.st_rdev,
        nlink=None if directory else found.st_nlink,
        first_name=None if directory else first_of.setdefault((found.st_dev, found.st_ino), path),
        mtime_ns=found.st_mtime_ns if found.st_mtime_ns < started_ns else None,
        data=_data(place, found.st_mode),
        xattrs=_xattrs(place),
    )


def _data(place: bytes, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.readlink(place)
    if stat.S_ISREG(mode):
        with open(place, "rb") as file:
            return file.read()
    return b""


def _xattrs(place: bytes) -> tuple[tuple[bytes, bytes], ...]:
    names = sorted(os.fsencode(name) for name in os.listxattr(place, follow_symlinks=False))
    return tuple((name, os.getxattr(place, name, follow_symlinks=False)) for name in names)


def _compared(found: os.stat_result) -> tuple[object, ...]:
    """What must be the same at once; a directory's size and links are its filesystem's business."""
    directory = stat.S_ISDIR(found.st_mode)
    sized = stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)
    return (
        oct(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_size if sized else None,
        None if directory else found.st_nlink,
    )
