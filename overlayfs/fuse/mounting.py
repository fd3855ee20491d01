"""How is a FUSE filesystem mounted and unmounted: mount(2) where we may, fusermount3 where not?"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from contextlib import suppress
from types import TracebackType

from overlayfs._log import Log
from overlayfs._typing import TYPE_CHECKING, Final, NamedTuple, Self

from ..overlay.mount_flags import (
    MS_DIRSYNC,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_SYNCHRONOUS,
)
from ..overlay.options import MountError
from ..tree import syscalls
from ..tree.mount_table import MountEntry, mount_entries

if TYPE_CHECKING:
    import socket

log = Log(__name__)

DEFAULT_POLL_US: Final = 100
ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HANDLED_SIGNALS: Final = (*ENDING_SIGNALS, signal.SIGUSR1)  # which has the daemon log its facts
_READ_AHEAD_KIB: Final = 1024
_DEVICE: Final = "/dev/fuse"
_HELPERS: Final = ("fusermount3", "fusermount")
# mount(8) strips PATH from the environment of the programs that it runs.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FLAG_NAMES: Final = {
    MS_RDONLY: "ro",
    MS_NOSUID: "nosuid",
    MS_NODEV: "nodev",
    MS_NOEXEC: "noexec",
    MS_SYNCHRONOUS: "sync",
    MS_DIRSYNC: "dirsync",
    MS_NOATIME: "noatime",
}
_KERNEL_OPTIONS: Final = (
    "allow_other",
    "default_permissions",
    "max_read",
    "blksize",
    "context",
    "rootcontext",
    "fscontext",
)


class MountOptions(NamedTuple):
    """Where and how an overlay is mounted and served.

    `flags` are MS_* bits, `fuse_options` go to the kernel or fusermount3. `lane` False has pyfuse3 answer everything;
    `bare` False starts the event loop at once, and not with the first request that needs it;
    `passthrough` lets the kernel serve the data of upper files itself, where it can; `poll_us` bounds how long the lane
    looks for the next request before it sleeps, in µs.
    """

    mountpoint: bytes
    source: str = "overlayfs"
    flags: int = 0
    fuse_options: tuple[str, ...] = ()
    subtype: str = "overlayfs"
    debug: bool = False
    lane: bool = True
    bare: bool = True
    passthrough: bool = False
    poll_us: int = DEFAULT_POLL_US


class LiveMount:
    """A mount that we made: `fd` is the descriptor of /dev/fuse on which the kernel's INIT request waits.

    Whoever serves it owns `fd`, and sets `has_ended` when the kernel says that it is unmounted. A context manager:
    what is still mounted at the end of the block is detached.
    """

    def __init__(self, fd: int, mountpoint: bytes) -> None:
        self.fd = fd
        self.has_ended = False
        self._mountpoint = mountpoint
        self._number = mount_number(mountpoint)
        entry = _entry_of(self._number)
        self.device = b"" if entry is None else entry.device  # none: it was unmounted at once

    @property
    def stands_at(self) -> bytes | None:
        """A place in this mount namespace where it is mounted, None where there is none any more."""
        return next((entry.mountpoint for entry in mount_entries() if entry.device == self.device), None)

    def widen_readahead(self) -> None:
        """Let the kernel ask for as much at once as one request can hold, where we may say so."""
        with suppress(OSError), open(f"/sys/class/bdi/{self.device.decode()}/read_ahead_kb", "w") as setting:
            setting.write(str(_READ_AHEAD_KIB))

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unmount(self) -> None:
        """Detach it, busy or not."""
        if not self.has_ended:
            self.has_ended = True
            unmount(self._mountpoint, self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unmount()


def flags_of(entry: MountEntry) -> int:
    """The MS_* bits of a mount, as MountOptions has them."""
    names = {name.encode(): bit for bit, name in _FLAG_NAMES.items()}
    return sum(names.get(option, 0) for option in entry.options)


def fuse_options_of(entry: MountEntry) -> tuple[str, ...]:
    """What the mount of another daemon was asked for, as far as the kernel tells."""
    shown = entry.filesystem_options.decode(errors="surrogateescape").split(",")
    return tuple(option for option in shown if option.partition("=")[0] in ("allow_other", "max_read", "blksize"))


def mount(options: MountOptions) -> LiveMount:
    """Mount; no request is answered yet."""
    check_mountpoint(options.mountpoint)
    return LiveMount(_mount(options), options.mountpoint)


def _mount(options: MountOptions) -> int:
    if os.geteuid() == 0 and "auto_unmount" not in options.fuse_options:
        fd = _open_device()
        try:
            syscalls.mount(*_mount_arguments(options, fd))
            return fd
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EPERM:
                raise MountError(f"{_text(options.mountpoint)}: mount failed: {error.strerror}") from None
    return _mount_by_helper(options)


def check_mountpoint(path: bytes) -> None:
    try:
        st = os.stat(path)
        os.statvfs(path)  # unlike stat, never answered from what the kernel remembers of a dead daemon's mount
    except FileNotFoundError:
        raise MountError(f"mountpoint {_text(path)} does not exist") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            hint = "holds the mount of a daemon that died; run umount -l on it first"
            raise MountError(f"mountpoint {_text(path)} {hint}") from None
        raise MountError(f"mountpoint {_text(path)}: {error.strerror}") from None
    if not stat.S_ISDIR(st.st_mode):
        raise MountError(f"mountpoint {_text(path)} is not a directory")


def covers_code(mountpoint: bytes) -> bool:
    """True where modules are imported from the mountpoint or below it."""
    top = _text(os.path.realpath(mountpoint)).rstrip("/")
    places = map(os.path.realpath, sys.path)
    return any(place == top or place.startswith(top + "/") for place in places)


def _text(path: bytes) -> str:
    return os.fsdecode(path)


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = {errno.ENOENT: "load the fuse module", errno.EACCES: "your user may not open it"}.get(error.errno or 0)
        raise MountError(f"{_DEVICE}: {error.strerror}" + (f" ({hint})" if hint else "")) from None


def _mount_arguments(options: MountOptions, fd: int) -> tuple[bytes, bytes, bytes, int, bytes]:
    data = [
        f"fd={fd}",
        "rootmode=40000",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        "default_permissions",
    ]
    data += [item for item in options.fuse_options if item.partition("=")[0] in _KERNEL_OPTIONS]
    kind = f"fuse.{options.subtype}" if options.subtype else "fuse"
    return (
        os.fsencode(options.source),
        options.mountpoint,
        kind.encode(),
        options.flags,
        os.fsencode(",".join(data)),
    )


def _find_helper() -> str:
    import shutil

    for name in _HELPERS:
        found = shutil.which(name) or shutil.which(name, path=_PATH)
        if found:
            return found
    raise MountError("fusermount3 is not installed (package fuse3), and without it only root can mount")


def _mount_by_helper(options: MountOptions) -> int:
    """As an ordinary user: the setuid helper mounts and hands the descriptor over a socket."""
    import socket  # slow, as subprocess: root's mounts do without
    import subprocess

    items = [f"fsname={_escape(options.source)}", f"subtype={options.subtype}", "default_permissions"]
    items += [name for bit, name in _FLAG_NAMES.items() if options.flags & bit and name not in ("nosuid", "nodev")]
    if os.geteuid() == 0:  # the helper takes both away unless it is told
        items += [name for bit, name in ((MS_NOSUID, "suid"), (MS_NODEV, "dev")) if not options.flags & bit]
    items += options.fuse_options
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        environment = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
        command = [_find_helper(), "-o", ",".join(dict.fromkeys(items)), "--", _text(options.mountpoint)]
        keeps_running = "auto_unmount" in options.fuse_options
        process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        fd = _receive_descriptor(ours)
        if fd is not None and keeps_running:
            ours.detach()  # it unmounts when this socket closes, that is when we end
            return fd
        _, complaint = process.communicate()
    if fd is None:
        reason = complaint.decode(errors="replace").strip().splitlines()
        raise MountError(reason[0] if reason else "fusermount3 could not mount")
    return fd


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _receive_descriptor(channel: socket.socket) -> int | None:
    import array
    import socket

    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fd = array.array("i", data[:4])[0]
            os.set_inheritable(fd, False)
            return fd
    return None


def mount_number(path: bytes) -> int:
    """The kernel's number of the mount that a path leads into; told for a hung or dead one too, as nobody is asked."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
            facts = dict(line.split(b":", 1) for line in lines)
    finally:
        os.close(fd)
    return int(facts[b"mnt_id"])


def _entry_of(number: int) -> MountEntry | None:
    return next((entry for entry in mount_entries() if entry.mount_id == number), None)


def unmount(mountpoint: bytes, number: int) -> None:
    """Detach the mount of this number, busy or not; nothing is done where it is gone or under another one."""
    try:
        on_top = mount_number(mountpoint)
    except OSError:
        return  # without its mountpoint no mount stands
    if on_top != number:
        if _entry_of(number) is not None:
            log.warning("%s cannot be unmounted: another mount covers it", _text(mountpoint))
        return
    try:
        syscalls.unmount(mountpoint, lazy=True)
        return
    except OSError as error:
        if error.errno != errno.EPERM:
            return
    import subprocess

    command = [_find_helper(), "-u", "-z", "-q", "--", _text(mountpoint)]
    subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
