"""How does a program have a live mount take a snapshot, go back to one, or drop all changes?

Neighbour: control, the daemon's part. The kernel's dirty pages are written first, of mappings too: they are part of the
tree at that moment. A refusal is a MountError of one line.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from overlayfs._typing import TYPE_CHECKING, Final

from ..overlay.options import MountError
from ..tree import syscalls
from ..tree.mount_table import MountEntry, mount_entries

if TYPE_CHECKING:
    from ..overlay.changes import Change

SNAPSHOT_XATTR: Final = b"user.overlayfs.snapshot"
ROLLBACK_XATTR: Final = b"user.overlayfs.rollback"
UNDO_XATTR: Final = b"user.overlayfs.undo"
DROP_XATTR: Final = b"user.overlayfs.drop"
RESET_XATTR: Final = b"user.overlayfs.reset"
RESET_AROUND_XATTR: Final = b"user.overlayfs.reset_around"
"""The value is paths from the root, with NUL between them."""
COMMANDS: Final = (SNAPSHOT_XATTR, ROLLBACK_XATTR, UNDO_XATTR, DROP_XATTR, RESET_XATTR, RESET_AROUND_XATTR)
SETTLED_XATTR: Final = b"user.overlayfs.settled"
_PATIENCE_S: Final = 30.0
_PAUSE_S: Final = 0.001


def take_snapshot(mountpoint: bytes, name: str = "") -> str:
    """Take a snapshot; its name, a number where none is given."""
    _command(mountpoint, SNAPSHOT_XATTR, name.encode())
    try:
        return name or os.getxattr(mountpoint, SNAPSHOT_XATTR).decode()
    except OSError as error:  # ENODATA: there is none any more
        raise MountError(f"{os.fsdecode(mountpoint)}: the snapshot was dropped at once: {error.strerror}") from None


def roll_back(mountpoint: bytes, name: str = "", *, drop: bool = False) -> None:
    """Go back to a snapshot, the newest where none is named; returns when everybody sees the tree as it was.

    With `drop` the snapshot is dropped, too, unless a fork uses it.
    """
    _refuse_while_in_use(os.path.realpath(mountpoint))
    _command(mountpoint, UNDO_XATTR if drop else ROLLBACK_XATTR, name.encode())
    _await_end(mountpoint)


def reset(mountpoint: bytes, others: Iterable[bytes] = ()) -> None:
    """Drop all changes and snapshots; otherwise as `roll_back`.

    Programs that run in the tree go on, and what is mounted in it, in whatever namespace, stays mounted: its places
    stay, and those of `others`, paths from the root, that are there. MountError where a place cannot stay.
    """
    mountpoint = os.path.realpath(mountpoint)
    kept = [path for path in others if _is_there(os.path.join(mountpoint, path))]
    is_in_use = False
    try:
        _refuse_while_in_use(mountpoint)
    except MountError:
        if not _resets_around(mountpoint):
            raise
        is_in_use = True
        kept += _places_in_use(mountpoint)
    if is_in_use or (kept and _resets_around(mountpoint)):
        _command(mountpoint, RESET_AROUND_XATTR, b"\0".join(sorted(set(kept))))
    else:
        _command(mountpoint, RESET_XATTR)
    _await_end(mountpoint)


def _resets_around(mountpoint: bytes) -> bool:
    """Whether the daemon knows the command; an older one would take it for an xattr of a user."""
    try:
        return bool(os.getxattr(mountpoint, RESET_AROUND_XATTR))
    except OSError:
        return False


def _places_in_use(mountpoint: bytes) -> list[bytes]:
    """The paths from the root of the tree on which something is mounted, or that are the root of a program."""
    entries = mount_entries()
    device = _device_of(entries, mountpoint)
    found = list(_places_in(entries, device))
    prefix = mountpoint.rstrip(b"/") + b"/"
    for _, root, elsewhere in _processes():
        found += _places_in(elsewhere, device)
        if root != prefix and root.startswith(prefix):
            inner = [*_without_parent(elsewhere, root), *([root] if _is_there(root) else [])]
            found += [path.removeprefix(prefix) for path in inner]
    return found


def drop_snapshot(mountpoint: bytes, name: str) -> None:
    """Drop a snapshot; the tree stays as it is. Returns when its layer is merged, too; if that takes long, before."""
    _command(mountpoint, DROP_XATTR, name.encode())
    with suppress(MountError):
        _await_end(mountpoint)


def _await_end(mountpoint: bytes) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while os.getxattr(mountpoint, SETTLED_XATTR) != b"1":
            _pause(deadline, mountpoint)
    except OSError as error:  # the mount has ended
        raise MountError(f"{os.fsdecode(mountpoint)}: {os.strerror(error.errno or errno.EIO)}") from None


def _command(mountpoint: bytes, command: bytes, value: bytes = b"") -> None:
    """The value is the name of a snapshot, but for RESET_AROUND_XATTR."""
    name = "" if command == RESET_AROUND_XATTR else value.decode()
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            _write_back(mountpoint)
            os.setxattr(mountpoint, command, value)
            return
        except OSError as error:
            if error.errno != errno.EINPROGRESS:
                raise MountError(f"{os.fsdecode(mountpoint)}: {reason_of(error, name)}") from None
        _pause(deadline, mountpoint)


def changes(mountpoint: bytes, since: str | None, until: str | None) -> list[Change]:
    """The changes of a live mount, in the order of paths; those after one snapshot, or between two."""
    from ..overlay.changes import Comparison
    from .status import read_facts

    _write_back(mountpoint)
    facts = read_facts(mountpoint)
    if facts["upper"] is None:
        raise MountError(f"{os.fsdecode(mountpoint)}: mounted without an upper, so there are no changes")
    lowers, data_lowers = ([os.fsencode(path) for path in facts[key]] for key in ("lowers", "data_lowers"))
    with Comparison.open(
        os.fsencode(facts["upper"]),
        lowers,
        data_lowers,
        os.fsencode(facts["work"]),
        prefix=facts["xattr_prefix"].encode(),
        since=since,
        until=until,
    ) as comparison:
        return [change for change in comparison if not change.touches_only_directory_times]


def _refuse_while_in_use(mountpoint: bytes) -> None:
    """A rollback has the kernel look every name up anew, and it unmounts what it finds mounted on one. So there may be
    no mount in the tree, in whatever namespace and by whatever path, and nobody who has the tree for a root."""
    where = os.fsdecode(mountpoint)
    entries = mount_entries()
    device = _device_of(entries, mountpoint)
    inner = _mount_in(entries, device)
    if inner is not None:
        raise MountError(f"{where}: {os.fsdecode(inner)} is mounted in the tree; unmount it first")
    for pid, root, others in _processes():
        if _is_rooted(root, mountpoint, device, others):
            raise MountError(f"{where}: {_said(pid)} runs in the tree; stop it first")
        inner = _mount_in(others, device)
        if inner is not None:
            raise MountError(f"{where}: {_said(pid)} has {os.fsdecode(inner)} mounted in the tree; stop it first")


def _device_of(entries: Sequence[MountEntry], mountpoint: bytes) -> bytes:
    return next((entry.device for entry in reversed(entries) if entry.mountpoint == mountpoint), b"")


def _processes() -> Iterator[tuple[str, bytes, list[MountEntry]]]:
    """All processes that can be asked: pid, root directory, and the mounts of the mount namespace; none of a namespace
    that is ours, or was among those before. One that called chroot(2) is only shown those beneath its root."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            others = [] if namespace in seen else mount_entries(int(pid))
            root = os.fsencode(os.readlink(f"/proc/{pid}/root"))
        except OSError:  # it ended, or is another user's
            continue
        if root == b"/":
            seen.add(namespace)
        else:  # paths are from its root
            above = root.rstrip(b"/")
            others = [one._replace(mountpoint=above + one.mountpoint.rstrip(b"/")) for one in others]
        yield pid, root, others


def _said(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm") as name:
            return f"process {pid} ({name.read().strip()})"
    except OSError:  # it has just ended
        return f"process {pid}"


def _mount_in(entries: Sequence[MountEntry], device: bytes) -> bytes | None:
    """The mountpoint of a mount on a name in the tree, which may be mounted at several places."""
    places = {entry.mount_id: entry.mountpoint for entry in entries if entry.device == device}
    return next(
        (one.mountpoint for one in entries if places.get(one.parent_id, one.mountpoint) != one.mountpoint), None
    )


def _places_in(entries: Sequence[MountEntry], device: bytes) -> Iterator[bytes]:
    """The paths in the tree, from its root, on which something is mounted."""
    parents = {entry.mount_id: entry for entry in entries if entry.device == device}
    for entry in entries:
        parent = parents.get(entry.parent_id)
        if parent is not None and entry.mountpoint != parent.mountpoint:
            inner = os.path.relpath(entry.mountpoint, parent.mountpoint)
            yield os.path.join(parent.root, inner).strip(b"/")


def _without_parent(entries: Sequence[MountEntry], root: bytes) -> list[bytes]:
    """The mountpoints in the mount that the root of a process lies in, which it is not shown itself."""
    known = {entry.mount_id for entry in entries}
    return [one.mountpoint for one in entries if one.parent_id not in known and one.mountpoint != root]


def _is_there(path: bytes) -> bool:
    return os.path.exists(path) and os.path.realpath(path) == path


def _is_rooted(root: bytes, mountpoint: bytes, device: bytes, entries: Sequence[MountEntry]) -> bool:
    """Whether a process has the tree for its root: by chroot, or as a container, whose mounts these are."""
    if root == mountpoint or root.startswith(mountpoint.rstrip(b"/") + b"/"):
        return True
    return any(entry.device == device and entry.mountpoint == root for entry in entries)


def _write_back(mountpoint: bytes) -> None:
    fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.sync_filesystem(fd)
    finally:
        os.close(fd)


def _pause(deadline: float, mountpoint: bytes) -> None:
    if time.monotonic() > deadline:
        where = os.fsdecode(mountpoint)
        raise MountError(f"{where}: busy with large files to copy up or layers to merge; try again later")
    time.sleep(_PAUSE_S)


def reason_of(error: OSError, name: str) -> str:
    reasons = {
        errno.EEXIST: f"there is a snapshot {name} already",
        errno.ENOENT: f"there is no snapshot {name}" if name else "there is no snapshot",
        errno.EINVAL: f"{name!r} is no name for a snapshot: letters, digits, '.', '_' and '-', at most 64",
        errno.EMLINK: "there are too many snapshots",
        errno.EBUSY: "files are open that the kernel writes to by itself (passthrough=on)",
        errno.E2BIG: "filesystems are mounted on too many places in it: unmount some first",
        errno.EXDEV: "something is mounted, or runs, in a directory or on a file that was moved there: stop it first",
        errno.ETXTBSY: "a deleted file is open that has other names that nobody looked up: list the tree or close it",
        errno.EROFS: "it is a read-only mount",
        errno.EPERM: "only its user and root may do that, from the mount namespace of its daemon",
        errno.EACCES: "only its user and root may do that, who must be allowed to write to its root",
        errno.EOPNOTSUPP: "it is no mount of overlayfs, or of an older version",
        errno.ENOSPC: "the disk is full; nothing has changed",
        errno.EDQUOT: "the disk quota is used up; nothing has changed",
    }
    return reasons.get(error.errno or 0, error.strerror or "the daemon refuses")
