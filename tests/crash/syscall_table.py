"""Which system calls does the supervisor look at, and what may go wrong in each?

Numbers are those of the x86-64 ABI (the kernel's `syscall_64.tbl`).
"""

import errno
import os
import platform
from typing import NamedTuple

AUDIT_ARCH = {"x86_64": 0xC000003E}


class Syscall(NamedTuple):
    """`path_argument` is the index of the argument that points at a name, for messages."""

    name: str
    number: int
    path_argument: int | None
    mutates: bool


_READS = {
    "read": (0, None), "pread64": (17, None), "preadv": (295, None), "preadv2": (327, None),
    "lseek": (8, None), "stat": (4, 0), "fstat": (5, None), "lstat": (6, 0), "newfstatat": (262, 1),
    "statx": (332, 1), "getdents64": (217, None), "readlink": (89, 0), "readlinkat": (267, 1),
    "faccessat": (269, 1), "faccessat2": (439, 1),
    "getxattr": (191, 0), "lgetxattr": (192, 0), "fgetxattr": (193, None),
    "listxattr": (194, 0), "llistxattr": (195, 0), "flistxattr": (196, None),
    "getxattrat": (464, 1), "listxattrat": (465, 1),
    "name_to_handle_at": (303, 1), "open_by_handle_at": (304, None), "open_tree": (428, 1),
    "statfs": (137, 0), "fstatfs": (138, None), "dup": (32, None), "flock": (73, None),
}  # fmt: skip
_WRITES = {
    "write": (1, None), "writev": (20, None), "pwrite64": (18, None), "pwritev": (296, None),
    "pwritev2": (328, None), "truncate": (76, 0), "ftruncate": (77, None), "fallocate": (285, None),
    "copy_file_range": (326, None), "sendfile": (40, None), "splice": (275, None),
    "rename": (82, 0), "renameat": (264, 1), "renameat2": (316, 1),
    "mkdir": (83, 0), "mkdirat": (258, 1), "rmdir": (84, 0), "unlink": (87, 0), "unlinkat": (263, 1),
    "link": (86, 0), "linkat": (265, 1), "symlink": (88, 0), "symlinkat": (266, 2),
    "mknod": (133, 0), "mknodat": (259, 1),
    "chmod": (90, 0), "fchmod": (91, None), "fchmodat": (268, 1), "fchmodat2": (452, 1),
    "chown": (92, 0), "fchown": (93, None), "lchown": (94, 0), "fchownat": (260, 1),
    "utime": (132, 0), "utimes": (235, 0), "utimensat": (280, 1), "futimesat": (261, 1),
    "setxattr": (188, 0), "lsetxattr": (189, 0), "fsetxattr": (190, None), "setxattrat": (463, 1),
    "removexattr": (197, 0), "lremovexattr": (198, 0), "fremovexattr": (199, None), "removexattrat": (466, 1),
    "fsync": (74, None), "fdatasync": (75, None), "sync": (162, None), "syncfs": (306, None),
    "sync_file_range": (277, None),
}  # fmt: skip
_BY_ARGUMENTS = {
    "open": (2, 0),
    "openat": (257, 1),
    "openat2": (437, 1),
    "creat": (85, 0),
    "ioctl": (16, None),
}

FICLONE, FICLONERANGE, FS_IOC_SETFLAGS = 0x40049409, 0x4020940D, 0x40086602
MUTATING_IOCTLS = frozenset({FICLONE, FICLONERANGE, FS_IOC_SETFLAGS})
MUTATING_OPEN_FLAGS = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)

OPENS = frozenset({"open", "openat", "openat2", "creat", "open_tree"})
SYNCS = frozenset({"fsync", "fdatasync", "sync", "syncfs", "sync_file_range"})
SHORTENABLE = frozenset({"write", "pwrite64", "copy_file_range", "sendfile"})

SYSCALLS: dict[int, Syscall] = {
    number: Syscall(name, number, path, mutates)
    for table, mutates in ((_READS, False), (_BY_ARGUMENTS, False), (_WRITES, True))
    for name, (number, path) in table.items()
}

_OF_PROCESSES = {
    "clone": (56, None), "clone3": (435, None), "fork": (57, None), "vfork": (58, None), "execve": (59, 0),
    "wait4": (61, None), "kill": (62, None), "pidfd_open": (434, None), "pidfd_send_signal": (424, None),
    "exit_group": (231, None), "unshare": (272, None), "setns": (308, None), "flock": (73, None),
    "mount": (165, 1), "umount2": (166, 0), "fsmount": (432, None), "move_mount": (429, None),
    "connect": (42, None), "sendto": (44, None), "poll": (7, None),
    "rt_sigtimedwait": (128, None),
}  # fmt: skip
PROCESS_CALLS: dict[int, Syscall] = {
    number: Syscall(name, number, path, True) for name, (number, path) in _OF_PROCESSES.items()
}
"""What changes something outside of files, or waits for another process."""


def audit_architecture() -> int:
    """The kernel's AUDIT_ARCH of this machine; the table above serves only this one."""
    return AUDIT_ARCH[platform.machine()]


def plausible_errors(name: str, mutates: bool) -> tuple[int, ...]:
    """The errnos that a healthy kernel on a failing or full disk may return from `name`."""
    if name in ("lseek", "dup", "flock"):
        return (errno.EMFILE,) if name == "dup" else ()
    errors = [errno.EIO, errno.ENOMEM]
    if mutates:
        errors += [errno.ENOSPC, errno.EDQUOT, errno.EROFS]
    if name in OPENS:
        errors += [errno.EMFILE, errno.ENFILE]
    if name in OPENS or name in SHORTENABLE or name in SYNCS or name in ("read", "pread64", "ftruncate", "fallocate"):
        errors.append(errno.EINTR)
    return tuple(errors)
