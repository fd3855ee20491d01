"""Which overlayfs mounts are there, and how is a daemon asked about its mount?

/proc/self/mountinfo lists the mounts, and a daemon answers getxattr(MOUNTPOINT, "user.overlayfs.status") with a JSON
document. A hung daemon must not hang the caller, so every call that may wait for one runs in a thread, which is
abandoned after `ANSWER_WITHIN_S`.
"""

from __future__ import annotations

import errno
import json
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from overlayfs.fuse.status import read_text
from overlayfs.tree import marks
from overlayfs.tree.mount_table import MountEntry, mount_entries

FILESYSTEM_TYPE = b"fuse.overlayfs"
ANSWER_WITHIN_S = 5.0

T = TypeVar("T")


class CommandError(Exception):
    """A command failed; `str(error)` is the one-line message for the user."""


class NotAnswering(CommandError):
    """The daemon did not answer in time."""


class Status(NamedTuple):
    """The status of a mount from its daemon; paths are absolute, in the mount namespace of the daemon."""

    version: str
    pid: int
    mounted_at: float
    source: str
    lowers: tuple[bytes, ...]
    data_lowers: tuple[bytes, ...]
    upper: bytes | None
    work: bytes | None
    whiteout: str
    xattr_prefix: bytes
    read_only: bool
    document: dict[str, Any]

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Status:
        """Raises KeyError, TypeError or ValueError if the document is not a status."""
        return cls(
            version=str(document["version"]),
            pid=int(document["pid"]),
            mounted_at=float(document["mounted_at"]),
            source=str(document["source"]),
            lowers=tuple(map(os.fsencode, document["lowers"])),
            data_lowers=tuple(map(os.fsencode, document["data_lowers"])),
            upper=_path_or_none(document["upper"]),
            work=_path_or_none(document["work"]),
            whiteout=str(document["whiteout"]),
            xattr_prefix=_xattr_prefix(document["xattr_prefix"]),
            read_only=bool(document["read_only"]),
            document=document,
        )


def _xattr_prefix(text: str) -> bytes:
    prefix = text.encode()
    if prefix not in (marks.TRUSTED, marks.USER):
        raise ValueError("an unknown xattr prefix")
    return prefix


def _path_or_none(path: str | None) -> bytes | None:
    return os.fsencode(path) if path else None


def in_time(question: Callable[[], T], timeout_s: float = ANSWER_WITHIN_S) -> T:
    """The result or exception of `question()`; NotAnswering after `timeout_s`.

    The abandoned thread waits in the kernel, but can be killed: it ends with this process.
    """
    answer: list[T] = []
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            answer.append(question())
        except BaseException as error:  # noqa: BLE001 - raised again by the asking thread
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    if not answer:
        raise NotAnswering(f"no answer within {timeout_s:g} s")
    return answer[0]


def is_ours(entry: MountEntry) -> bool:
    """Whether an overlayfs daemon serves the mount: by type, or by its answer, as `subtype=` may change the type."""
    if entry.filesystem_type == FILESYSTEM_TYPE or not entry.filesystem_type.startswith(b"fuse."):
        return entry.filesystem_type == FILESYSTEM_TYPE
    try:
        read_status(entry.mountpoint, timeout_s=2.0)
    except CommandError:
        return False
    return True


def our_mounts() -> list[MountEntry]:
    """The overlayfs mounts that no later mount on the same directory covers."""
    topmost = {entry.mountpoint: entry for entry in mount_entries()}
    return [entry for entry in topmost.values() if is_ours(entry)]


def mount_at(mountpoint: bytes) -> MountEntry | None:
    """The topmost mount on exactly this absolute path."""
    found = [entry for entry in mount_entries() if entry.mountpoint == mountpoint]
    return found[-1] if found else None


def mount_containing(path: bytes) -> MountEntry | None:
    """The mount that contains an absolute path without symlinks."""
    best: MountEntry | None = None
    for entry in mount_entries():
        inside = path == entry.mountpoint or path.startswith(entry.mountpoint.rstrip(b"/") + b"/")
        if inside and (best is None or len(entry.mountpoint) >= len(best.mountpoint)):
            best = entry
    return best


def resolve(path: bytes) -> bytes:
    """The absolute path without symlinks; a hung mount on the way raises NotAnswering."""
    return in_time(lambda: os.path.realpath(path))


def resolve_name(path: bytes) -> bytes:
    """As `resolve`, but the last component may be a symlink or missing."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.path.join(resolve(parent), name) if name else parent


def read_status(mountpoint: bytes, timeout_s: float = ANSWER_WITHIN_S) -> Status:
    """Ask the daemon behind `mountpoint`.

    Raises NotAnswering; CommandError if it is not an overlayfs mount, or the user may not ask.
    """
    try:
        text = in_time(lambda: read_text(mountpoint), timeout_s)
        return Status.parse(json.loads(text))
    except OSError as error:
        raise CommandError(_why_no_status(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CommandError("its daemon is another version of overlayfs") from error


def _why_no_status(error: OSError) -> str:
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return "its daemon is gone (unmount it)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "it is another user's"
    if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
        return "its daemon gives no status"
    return os.strerror(error.errno or 0)


def holders_elsewhere(device: bytes) -> list[int]:
    """One process of each other mount namespace that still has the file system with this device number mounted."""
    found: dict[str, int] = {}
    ours = os.readlink("/proc/self/ns/mnt")
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace != ours and namespace not in found and _has_device(pid, device):
                found[namespace] = pid
        except OSError:  # it ended, or is another user's
            continue
    return list(found.values())


def _has_device(pid: int, device: bytes) -> bool:
    return any(entry.device == device for entry in mount_entries(pid))


def wait_until_unmounted(entry: MountEntry, timeout_s: float | None = None) -> bool:
    """Wait until this mount has left the namespace; False after the timeout (None: wait for ever).

    The kernel flags a poll of mountinfo with POLLERR and POLLPRI at each change of the mount table.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with open("/proc/self/mountinfo", "rb", buffering=0) as table:
        poller = select.poll()
        poller.register(table, select.POLLERR | select.POLLPRI)
        while any(other.mount_id == entry.mount_id for other in mount_entries()):
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            poller.poll(None if left_s is None else left_s * 1000)
    return True
