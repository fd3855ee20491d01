"""Which namespaces does `run` need, and how does an ordinary user get them?

Mounts of its own for everybody, so that a container's mount is seen by nobody else and is gone with its processes. For
an ordinary user a user namespace before: root in it is the user, the ids from 1 are the user's subordinate ones
(subuid(5)), if there are any.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..image.layer.subordinate_ids import subordinate_ids
from ..image.oci.errors import ImageError
from ..tree import syscalls
from .foreign_mounts import Needed, detach_foreign_mounts

_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19  # <sys/mount.h>
_NOT_ALLOWED: Final = "user namespaces are not allowed here (sysctl user.max_user_namespaces, or a security module)"


def enter_mount_namespace(needed: Needed) -> None:
    """Give this process, which has one thread, mounts of its own: of the host's what is needed. Raises ImageError."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
    except OSError as error:
        raise ImageError(f"cannot have mounts of our own: {error.strerror}; it takes CAP_SYS_ADMIN") from None
    # what the host mounts and unmounts later is still seen, what we mount is not
    syscalls.mount(b"none", b"/", b"", _MS_REC | _MS_SLAVE, b"")
    detach_foreign_mounts(needed)


def enter_user_namespace(needed: Needed) -> bool:
    """Make this process, which has one thread, root of a user namespace with mounts of its own.

    False where the user has no subordinate ids, so that the image's other users do not exist there. Raises ImageError.
    """
    uid, gid = os.geteuid(), os.getegid()
    uids, gids = (subordinate_ids(Path(f"/etc/sub{kind}"), uid) for kind in ("uid", "gid"))
    mappers = [shutil.which(name) for name in ("newuidmap", "newgidmap")]
    if uids is None or gids is None or None in mappers:
        _become_root_alone(uid, gid)
        enter_mount_namespace(needed)
        return False

    def map_ids(pid: int) -> None:
        for mapper, own, (first, size) in zip(mappers, (uid, gid), (uids, gids), strict=True):
            assert mapper is not None
            words = [mapper, str(pid), "0", str(own), "1", "1", str(first), str(size)]
            subprocess.run(words, check=True, capture_output=True)

    _with_helper(map_ids)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])
    enter_mount_namespace(needed)
    return True


def _become_root_alone(uid: int, gid: int) -> None:
    _unshare_user()
    # user_namespaces(7): without privileges groups can only be mapped once setgroups(2) is given up
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _unshare_user() -> None:
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSPC, errno.EUSERS, errno.EACCES):
            raise ImageError(_NOT_ALLOWED) from None
        raise


def _with_helper(map_ids: Callable[[int], None]) -> None:
    """Enter a user namespace whose ids `map_ids` maps from outside, in a child: newuidmap(1) must not be in it."""
    pid = os.getpid()
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(write_fd)
            if os.read(read_fd, 1):
                map_ids(pid)
                status = 0
        finally:
            os._exit(status)
    os.close(read_fd)
    try:
        _unshare_user()
        os.write(write_fd, b"x")
    finally:
        os.close(write_fd)
        _, status = os.waitpid(child, 0)
    if status:
        raise ImageError("newuidmap or newgidmap refused the ranges of /etc/subuid and /etc/subgid: see newuidmap(1)")


def user_namespace_of(uid: int, gid: int) -> int:
    """A user namespace in which everybody is who they are here, and which belongs to `uid`; a descriptor.

    For bubblewrap to run a program as that user: who starts in a namespace of their own has its capabilities, and
    loses them when the program is executed. Raises OSError.
    """
    ready_fd, told_fd = os.pipe()
    wait_fd, done_fd = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(done_fd)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            syscalls.let_be_inspected()
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(told_fd, b"x")
            os.read(wait_fd, 1)
        finally:
            os._exit(0)
    os.close(told_fd)
    os.close(wait_fd)
    try:
        if not os.read(ready_fd, 1):
            raise OSError(errno.EPERM, _NOT_ALLOWED)
        for kind in ("uid", "gid"):
            Path(f"/proc/{child}/{kind}_map").write_text(_same_ids(kind))
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_fd)
        os.close(done_fd)
        os.waitpid(child, 0)


def _same_ids(kind: str) -> str:
    """The ids of this namespace, each mapped to itself: user_namespaces(7)."""
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    return "".join(f"{first} {first} {count}\n" for first, _, count in map(str.split, lines))
