"""Which namespaces does `run` need, and how does an ordinary user get them?

Every run has its own mount namespace, so nobody else sees the container's mount and it ends with the container's
processes. An ordinary user gets a user namespace first: its root is the user, and the ids from 1 are the user's
subordinate ids (subuid(5)), if there are any. For processes with one thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..image.layer.subordinate_ids import subordinate_ids
from ..image.oci.errors import ImageError
from ..image.store.uses import Process
from ..tree import syscalls
from .foreign_mounts import Needed, detach_foreign_mounts

_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19  # <sys/mount.h>
_NS_GET_OWNER_UID: Final = 0xB704  # <linux/nsfs.h>: ioctl_ns(2)
_FOREIGN: Final = "is in a user namespace of another user: be that user"
_NOT_ALLOWED: Final = "user namespaces are not allowed here (sysctl user.max_user_namespaces, or a security module)"


def enter_mount_namespace(needed: Needed) -> None:
    """Move this single-threaded process to a mount namespace with the `needed` mounts only. Raises ImageError."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
    except OSError as error:
        raise ImageError(f"cannot have mounts of our own: {error.strerror}; it takes CAP_SYS_ADMIN") from None
    # mounts and unmounts of the host still propagate to us, ours do not propagate back
    syscalls.mount(b"none", b"/", b"", _MS_REC | _MS_SLAVE, b"")
    detach_foreign_mounts(needed)


def enter_user_namespace(needed: Needed) -> bool:
    """Make this process, which has one thread, root of a user namespace with its own mount namespace.

    False if the user has no subordinate ids, so that the namespace has no user but root. Raises ImageError.
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
    """Enter a user namespace; a child, which stays outside as newuidmap(1) must, maps its ids by `map_ids`."""
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


def in_user_namespace_of(pid: int) -> list[str]:
    """The words that run a program in the user namespace of a process; none if that is ours. Raises ImageError."""
    if os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino:
        return []
    with open(f"/proc/{pid}/ns/user", "rb") as namespace:
        if _owner_of(namespace.fileno()) != os.geteuid():
            raise ImageError(f"process {pid} {_FOREIGN}")
    nsenter = shutil.which("nsenter")
    if nsenter is None:
        raise ImageError("nsenter is not installed: install the package util-linux")
    return [nsenter, "--target", str(pid), "--user", "--preserve-credentials"]


def enter_namespaces_of(process: Process) -> None:
    """Enter the user and mount namespace of a process of our user, and have its root directory. For a process with one
    thread.

    Raises OSError, also where the process has ended, or the user namespace is that of another user.
    """
    kinds = {"user": syscalls.CLONE_NEWUSER, "mnt": syscalls.CLONE_NEWNS}
    pid = process.pid
    is_ours = os.path.samefile(f"/proc/{pid}/ns/user", "/proc/self/ns/user")
    opened = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds}
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if Process.of(pid) != process:  # after all were opened, so that they are this one's
        raise ProcessLookupError(errno.ESRCH, "its process has ended, or is of another pid namespace")
    if not is_ours and _owner_of(opened["user"]) != os.geteuid():
        raise PermissionError(errno.EPERM, f"its process {_FOREIGN}")
    for kind, fd in opened.items():
        if kind != "user" or not is_ours:  # one's own cannot be entered again
            syscalls.setns(fd, kinds[kind])
        os.close(fd)
    os.fchdir(root)
    os.chroot(".")  # setns(2) leaves the root that the process may have been given
    os.close(root)
    syscalls.let_be_inspected()  # by the daemon of the mount, which asks where we are


def _owner_of(user_namespace_fd: int) -> int:
    """Whose user namespace it is. Its owner can trace those who enter it, also root of ours."""
    answer = bytearray(4)
    fcntl.ioctl(user_namespace_fd, _NS_GET_OWNER_UID, answer)
    return int.from_bytes(answer, sys.byteorder)


def user_namespace_of(uid: int, gid: int) -> int:
    """A descriptor of a user namespace that maps all ids to themselves and is owned by `uid`.

    In it bubblewrap can run a program as that user: the owner of a namespace starts with its capabilities, and loses
    them when the program is executed. Raises OSError.
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
    """The identity mapping of the ids of this namespace: user_namespaces(7)."""
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    return "".join(f"{first} {first} {count}\n" for first, _, count in map(str.split, lines))
