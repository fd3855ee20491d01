"""The permission matrix as data: what is there, who does what to it.

A row's calls are made in a directory that holds the row's things, once on a plain directory and once on our
mount. Nothing here says what ought to happen: the plain directory does.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.mounted.actors import Who
from tests.property.paths import rename_with_flags

_libc = ctypes.CDLL(None, use_errno=True)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""`cap_net_bind_service=ep`: struct vfs_cap_data, capabilities(7)."""
BIG = b"content of a lower file " * 1000

OWNER = Who(1000, 1000)
GROUP = Who(1001, 2000)
MEMBER = Who(1002, 1002, (2000,))
OTHER = Who(1003, 1003)
ROOT = Who(0, 0)


INTENDED = {
    "clear-mmap-write": (
        ("capable",),
        "a page written back is a write to us: it takes the capability, as write(2) does",
    ),
    "clear-chown-nothing-other": (
        ("suid", "sgid", "sgid-no-exec", "both"),
        "the kernel's FUSE sends a chown that changes nothing as it announces a write: it cannot be refused, and who"
        " may write takes setgid",
    ),
}
"""The table of differences that are meant: rows by the start of their names, the things that differ, and why."""


CLEARED_FILES = ("suid", "sgid", "sgid-no-exec", "both", "capable")
"""What the calls of a `clear-` row are made on, in this order."""


# Things


@dataclass(frozen=True, slots=True)
class Thing:
    """A file, or a directory if its name ends in "/"; `link` makes it a hard link of another of the row."""

    mode: int
    uid: int = 1000
    gid: int = 2000
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    content: bytes = BIG
    link: str | None = None


def acl(*entries: tuple[str, int | None, int]) -> bytes:
    """A POSIX ACL as its xattr: struct posix_acl_xattr_header and its entries, linux/posix_acl_xattr.h."""
    tags = {"user": 0x01, "named-user": 0x02, "group": 0x04, "named-group": 0x08, "mask": 0x10, "other": 0x20}
    packed = b"".join(
        struct.pack("<HHI", tags[tag], permissions, 0xFFFFFFFF if who is None else who)
        for tag, who, permissions in entries
    )
    return struct.pack("<I", 2) + packed


def named_user(uid: int, permissions: int, mask: int, *, user: int = 6, group: int = 4, other: int = 0) -> bytes:
    """An ACL with one named user."""
    return acl(
        ("user", None, user),
        ("named-user", uid, permissions),
        ("group", None, group),
        ("mask", None, mask),
        ("other", None, other),
    )


def named_group(gid: int, permissions: int, mask: int) -> bytes:
    """An ACL with one named group; the owning group has nothing."""
    return acl(
        ("user", None, 6),
        ("group", None, 0),
        ("named-group", gid, permissions),
        ("mask", None, mask),
        ("other", None, 0),
    )


ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"


# Calls

Call = Callable[[Path], object]
"""Does one thing in the row's directory; what it returns is compared."""


def opened(name: str, flags: int, use: Callable[[int], object] = lambda descriptor: None) -> Call:
    def call(directory: Path) -> object:
        descriptor = os.open(directory / name, flags, 0o666)
        try:
            return use(descriptor)
        finally:
            os.close(descriptor)

    return call


def read(name: str) -> Call:
    return opened(name, os.O_RDONLY, lambda descriptor: os.read(descriptor, 16))


def write(name: str, data: bytes = b"written") -> Call:
    return opened(name, os.O_WRONLY, lambda descriptor: os.write(descriptor, data))


def create(name: str, mode: int = 0o666, flags: int = os.O_CREAT | os.O_EXCL | os.O_WRONLY) -> Call:
    return lambda directory: os.close(os.open(directory / name, flags, mode))


def fallocate(name: str) -> Call:
    """Beyond the end, so that it writes even where the C library must imitate it; that needs to read, too."""
    return opened(name, os.O_RDWR, lambda descriptor: os.posix_fallocate(descriptor, len(BIG), 4096))


def mmap_write(name: str) -> Call:
    import mmap

    def use(descriptor: int) -> None:
        with mmap.mmap(descriptor, 4096) as mapped:
            mapped[0:1] = b"m"
            mapped.flush()

    return opened(name, os.O_RDWR, use)


def copy_range(source: str, target: str) -> Call:
    def call(directory: Path) -> object:
        reading = os.open(directory / source, os.O_RDONLY)
        writing = os.open(directory / target, os.O_WRONLY)
        try:
            return os.copy_file_range(reading, writing, 100)
        finally:
            os.close(reading)
            os.close(writing)

    return call


def chmod(name: str, mode: int) -> Call:
    return lambda directory: os.chmod(directory / name, mode)


def chown(name: str, uid: int, gid: int) -> Call:
    return lambda directory: os.lchown(directory / name, uid, gid)


def touch(name: str) -> Call:
    """utimensat(2) with times of now, which a writer may do: the call has no times argument then."""

    def call(directory: Path) -> None:
        if _libc.utimensat(-100, os.fsencode(directory / name), None, 0):
            raise OSError(ctypes.get_errno(), "utimensat")

    return call


def utimes(name: str) -> Call:
    return lambda directory: os.utime(directory / name, ns=(10**18, 10**18))


def truncate(name: str, size: int = 10) -> Call:
    return lambda directory: os.truncate(directory / name, size)


def mkdir(name: str, mode: int = 0o777) -> Call:
    return lambda directory: os.mkdir(directory / name, mode)


def mkfifo(name: str, mode: int = 0o666) -> Call:
    return lambda directory: os.mkfifo(directory / name, mode)


def mknod(name: str, kind: int, device: int) -> Call:
    return lambda directory: os.mknod(directory / name, kind | 0o666, device)


def symlink(name: str) -> Call:
    return lambda directory: os.symlink("anywhere", directory / name)


def unlink(name: str) -> Call:
    return lambda directory: os.unlink(directory / name)


def rmdir(name: str) -> Call:
    return lambda directory: os.rmdir(directory / name)


def rename(old: str, new: str, flags: int = 0) -> Call:
    return lambda directory: rename_with_flags(os.fsencode(directory / old), os.fsencode(directory / new), flags)


def link(old: str, new: str) -> Call:
    return lambda directory: os.link(directory / old, directory / new)


def listdir(name: str) -> Call:
    return lambda directory: sorted(os.listdir(directory / name))


def stat(name: str) -> Call:
    return lambda directory: os.stat(directory / name).st_size


def access(name: str) -> Call:
    """The three rights as access(2) sees them."""
    return lambda directory: [os.access(directory / name, right) for right in (os.R_OK, os.W_OK, os.X_OK)]


def setxattr(name: str, attribute: str, value: bytes = b"value") -> Call:
    return lambda directory: os.setxattr(directory / name, attribute, value)


def getxattr(name: str, attribute: str) -> Call:
    return lambda directory: os.getxattr(directory / name, attribute)


def removexattr(name: str, attribute: str) -> Call:
    return lambda directory: os.removexattr(directory / name, attribute)


def listxattr(name: str) -> Call:
    return lambda directory: sorted(os.listxattr(directory / name))


def execute(name: str) -> Call:
    """What the program prints: a copy of id(1), told to print its effective uid."""
    return lambda directory: subprocess.run([directory / name, "-u"], capture_output=True, check=True).stdout


# Rows


@dataclass(frozen=True, slots=True)
class Row:
    """`things` are put in place by root, then `who` makes the `calls` one after the other."""

    name: str
    things: Mapping[str, Thing]
    who: Who
    calls: Sequence[Call]


def _classes() -> list[Row]:
    """Owner, group, supplementary group, other and root against each of the nine bits."""
    whos = {"owner": OWNER, "group": GROUP, "member": MEMBER, "other": OTHER, "root": ROOT}
    modes = (0o000, 0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o640, 0o604, 0o066)
    return [
        Row(
            f"file-{mode:04o}-{name}",
            {"f": Thing(mode)},
            who,
            (access("f"), read("f"), write("f"), truncate("f"), stat("f")),
        )
        for mode in modes
        for name, who in whos.items()
    ]


def _directories() -> list[Row]:
    whos = {"owner": OWNER, "group": GROUP, "other": OTHER}
    calls = (
        access("d"),
        listdir("d"),
        stat("d/f"),
        create("d/new"),
        mkdir("d/sub"),
        rename("d/f", "d/g"),
        link("d/g", "d/h"),
        unlink("d/g"),
    )
    return [
        Row(f"directory-{mode:04o}-{name}", {"d/": Thing(mode), "d/f": Thing(0o666, uid=1003)}, who, calls)
        for mode in (0o700, 0o500, 0o300, 0o100, 0o070, 0o050, 0o010, 0o007, 0o003, 0o001)
        for name, who in whos.items()
    ]


_STICKY = {
    "t/": Thing(0o1777, uid=0, gid=0),
    "t/f": Thing(0o666),
    "t/d/": Thing(0o777),
    "t/mine": Thing(0o666, uid=1003),
}


def _sticky() -> list[Row]:
    calls = (
        rename("t/f", "t/g"),
        unlink("t/f"),
        rmdir("t/d"),
        rename("t/mine", "t/f"),
        rename("t/mine", "t/f", 2),
        rename("t/d", "t/e"),
        setxattr("t/d", "user.x"),
        unlink("t/mine"),
    )
    own = dict(_STICKY, **{"t/": Thing(0o1777, uid=1003)})
    return [
        Row("sticky-owner-of-file", _STICKY, OWNER, calls),
        Row("sticky-group-of-file", _STICKY, GROUP, calls),
        Row("sticky-other", _STICKY, OTHER, calls),
        Row("sticky-owner-of-directory", own, OTHER, calls),
        Row("sticky-root", _STICKY, ROOT, calls),
    ]


def _inheritance() -> list[Row]:
    setgid = {"d/": Thing(0o2777, uid=0, gid=2000)}
    makers = (
        create("d/f"),
        create("d/executable", 0o2777),
        mkdir("d/sub"),
        mkdir("d/sub/sub"),
        mkdir("d/plain", 0o700),
        symlink("d/link"),
        mkfifo("d/fifo"),
    )
    default = {"d/": Thing(0o777, uid=0, xattrs={DEFAULT: named_user(1003, 7, 6, user=7, group=5)})}
    both = {"d/": Thing(0o2777, uid=0, gid=2000, xattrs={DEFAULT: named_user(1003, 7, 7, user=7, group=5)})}
    narrow = {"d/": Thing(0o777, uid=0, xattrs={DEFAULT: named_user(1003, 4, 4, user=6, group=0)})}
    plain = {"d/": Thing(0o777, uid=0)}
    minimal = {
        "d/": Thing(0o777, uid=0, xattrs={DEFAULT: acl(("user", None, 7), ("group", None, 7), ("other", None, 7))})
    }
    rows = [
        Row(f"{label}-{name}", things, who, makers)
        for label, things in (("setgid", setgid), ("default-acl", default), ("setgid-and-acl", both))
        for name, who in (("owner", OWNER), ("member", MEMBER), ("other", OTHER), ("root", ROOT))
    ]
    rows += [
        Row(f"{label}-umask-{umask:04o}", things, Who(1000, 1000, (), umask), makers)
        for label, things in (("no-acl", plain), ("narrow-acl", narrow), ("minimal-acl", minimal))
        for umask in (0o000, 0o022, 0o077, 0o777)
    ]
    return rows


def _acls() -> list[Row]:
    for_other = {"f": Thing(0o640, xattrs={ACCESS: named_user(1003, 6, 6)})}
    masked = {"f": Thing(0o640, xattrs={ACCESS: named_user(1003, 6, 4)})}
    denied = {"f": Thing(0o644, xattrs={ACCESS: named_user(1003, 0, 7, other=4)})}
    group = {"f": Thing(0o640, xattrs={ACCESS: named_group(2000, 6, 6)})}
    directory = {"d/": Thing(0o700, xattrs={ACCESS: named_user(1003, 7, 7, user=7)}), "d/f": Thing(0o600)}
    use = (
        access("f"),
        read("f"),
        write("f"),
        getxattr("f", ACCESS),
        setxattr("f", ACCESS, named_user(5, 7, 7)),
    )
    return [
        Row("acl-named-user", for_other, OTHER, use),
        Row("acl-mask-limits-named-user", masked, OTHER, use),
        Row("acl-denies-named-user", denied, OTHER, use),
        Row("acl-named-group", group, MEMBER, use),
        Row("acl-named-group-other", group, OTHER, use),
        Row("acl-owner", masked, OWNER, use),
        Row("acl-directory", directory, OTHER, (listdir("d"), create("d/new"), unlink("d/f"), read("d/f"))),
        Row("acl-chmod-sets-mask", for_other, OWNER, (chmod("f", 0o604), getxattr("f", ACCESS), access("f"))),
        Row(
            "acl-chmod-then-user",
            for_other,
            ROOT,
            (chmod("f", 0o600), chmod("f", 0o660), getxattr("f", ACCESS)),
        ),
        Row("acl-removed-by-owner", for_other, OWNER, (removexattr("f", ACCESS), access("f"))),
        Row("acl-removed-by-other", for_other, OTHER, (removexattr("f", ACCESS),)),
        Row(
            "acl-set-changes-mode",
            {"f": Thing(0o600)},
            OWNER,
            (setxattr("f", ACCESS, named_user(1003, 7, 5)),),
        ),
        Row(
            "acl-that-is-only-a-mode",
            {"f": Thing(0o600)},
            OWNER,
            (
                setxattr("f", ACCESS, acl(("user", None, 7), ("group", None, 5), ("other", None, 1))),
                listxattr("f"),
            ),
        ),
        Row("acl-malformed", {"f": Thing(0o600)}, OWNER, (setxattr("f", ACCESS, b"\2\0\0\0nonsense"),)),
        Row(
            "acl-without-mask",
            {"f": Thing(0o600)},
            OWNER,
            (
                setxattr(
                    "f",
                    ACCESS,
                    acl(("user", None, 6), ("named-user", 5, 4), ("group", None, 4), ("other", None, 0)),
                ),
            ),
        ),
        Row("acl-default-on-file", {"f": Thing(0o600)}, OWNER, (setxattr("f", DEFAULT, named_user(5, 7, 7)),)),
        Row(
            "acl-default-by-other",
            {"d/": Thing(0o777)},
            OTHER,
            (setxattr("d", DEFAULT, named_user(5, 7, 7)),),
        ),
        Row(
            "acl-default-by-owner",
            {"d/": Thing(0o777)},
            OWNER,
            (
                setxattr("d", DEFAULT, named_user(1003, 7, 7)),
                create("d/f"),
                mkdir("d/sub"),
                create("d/sub/f"),
            ),
        ),
    ]


def _clearing() -> list[Row]:
    """What takes suid, sgid and file capabilities away, and what does not."""
    special = {
        "suid": Thing(0o4777),
        "sgid": Thing(0o2777),
        "sgid-no-exec": Thing(0o2666),
        "both": Thing(0o6777),
        "capable": Thing(0o777, xattrs={"security.capability": CAPABILITY}),
        "source": Thing(0o666),
        "d/": Thing(0o6777),
    }
    ways: dict[str, Callable[[str], Call]] = {
        "write": write,
        "write-nothing": lambda name: write(name, b""),
        "append": lambda name: opened(name, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
        "truncate": truncate,
        "truncate-to-same-size": lambda name: truncate(name, len(BIG)),
        "ftruncate": lambda name: opened(name, os.O_WRONLY, lambda fd: os.ftruncate(fd, 7)),
        "open-truncate": lambda name: opened(name, os.O_WRONLY | os.O_TRUNC),
        "open-only": lambda name: opened(name, os.O_RDWR),
        "fallocate": fallocate,
        "mmap-write": mmap_write,
        "copy-file-range": lambda name: copy_range("source", name),
        "chown-to-same": lambda name: chown(name, 1000, 2000),
        "chown-nothing": lambda name: chown(name, -1, -1),
        "chown-uid": lambda name: chown(name, 1001, -1),
        "chown-gid": lambda name: chown(name, -1, 1000),
        "chmod": lambda name: chmod(name, 0o6755),
        "setfacl": lambda name: setxattr(name, ACCESS, named_user(1003, 7, 7, user=7, group=7, other=7)),
        "utimes": utimes,
        "touch": touch,
        "set-user-xattr": lambda name: setxattr(name, "user.x"),
        "rename": lambda name: rename(name, f"{name}-renamed"),
        "link": lambda name: link(name, f"{name}-linked"),
    }
    whos = {"owner": OWNER, "owner-in-group": Who(1000, 1000, (2000,)), "other": OTHER, "root": ROOT}
    rows = [
        Row(f"clear-{label}-{name}", special, who, tuple(way(file) for file in CLEARED_FILES))
        for label, way in ways.items()
        for name, who in whos.items()
    ]
    rows += [
        Row("clear-directory-chown", special, ROOT, (chown("d", 1001, 1001),)),
        Row("clear-directory-chgrp", special, Who(1000, 1000, (2000,)), (chown("d", -1, 1000),)),
    ]
    return rows


def _ownership() -> list[Row]:
    mine = {"f": Thing(0o644), "d/": Thing(0o755)}
    return [
        Row("chown-by-owner", mine, OWNER, (chown("f", 1001, -1), chown("f", 1000, -1), chown("d", 0, -1))),
        Row("chgrp-to-own-group", mine, Who(1000, 1000, (3000,)), (chown("f", -1, 3000), chown("d", -1, 1000))),
        Row("chgrp-to-foreign-group", mine, OWNER, (chown("f", -1, 4000), chown("f", -1, 2000))),
        Row("chown-by-other", mine, OTHER, (chown("f", 1003, -1), chown("f", -1, 1003), chown("f", -1, -1))),
        Row("chown-by-root", mine, ROOT, (chown("f", 5, 6), chown("d", 7, 8))),
        Row("chmod-by-owner", mine, OWNER, (chmod("f", 0o600), chmod("d", 0o1700))),
        Row("chmod-by-group", mine, GROUP, (chmod("f", 0o666),)),
        Row("chmod-by-other", mine, OTHER, (chmod("f", 0o666), chmod("d", 0o777))),
        Row("chmod-sgid-by-nonmember", mine, OWNER, (chmod("f", 0o2755), chmod("d", 0o2755))),
        Row("chmod-sgid-by-member", mine, Who(1000, 1000, (2000,)), (chmod("f", 0o2755), chmod("d", 0o2755))),
        Row("chmod-sgid-by-root", mine, ROOT, (chmod("f", 0o6755), chmod("d", 0o2755))),
        Row("times-by-owner", mine, OWNER, (utimes("f"), touch("f"))),
        Row("times-by-writer", {"f": Thing(0o666)}, OTHER, (utimes("f"), touch("f"))),
        Row("times-by-reader", mine, OTHER, (utimes("f"), touch("f"))),
        Row("noatime-by-owner", mine, OWNER, (opened("f", os.O_RDONLY | os.O_NOATIME),)),
        Row("noatime-by-other", mine, OTHER, (opened("f", os.O_RDONLY | os.O_NOATIME),)),
        Row(
            "directory-moved-to-other-parent",
            {"a/": Thing(0o777), "a/d/": Thing(0o555, uid=1001), "b/": Thing(0o777)},
            OWNER,
            (rename("a/d", "b/d"), rename("a/d", "a/e")),
        ),
        Row(
            "make-devices",
            {"d/": Thing(0o777)},
            OTHER,
            (
                mknod("d/c", 0o020000, os.makedev(1, 3)),
                mknod("d/b", 0o060000, os.makedev(7, 0)),
                mkfifo("d/p"),
                mknod("d/s", 0o140000, 0),
            ),
        ),
        Row(
            "link-to-foreign-file",
            {"f": Thing(0o600), "s": Thing(0o4755, uid=0), "w": Thing(0o666), "d/": Thing(0o777)},
            OTHER,
            (link("f", "d/f"), link("s", "d/s"), link("w", "d/w")),
        ),
        Row(
            "hard-links-share-mode",
            {"f": Thing(0o600), "g": Thing(0, link="f")},
            OWNER,
            (chmod("g", 0o640), stat("f"), write("f"), chmod("f", 0o400), write("g")),
        ),
        Row(
            "create-over-existing",
            {"d/": Thing(0o777, uid=0), "d/f": Thing(0o644)},
            OTHER,
            (create("d/f"), create("d/f", flags=os.O_CREAT | os.O_WRONLY), create("d/f", flags=os.O_CREAT)),
        ),
        Row(
            "create-in-own-sticky",
            {"t/": Thing(0o1777, uid=0), "t/f": Thing(0o666)},
            OTHER,
            (create("t/f", flags=os.O_CREAT | os.O_WRONLY), create("t/g")),
        ),
    ]


def _xattrs() -> list[Row]:
    things = {
        "f": Thing(0o644, xattrs={"user.there": b"1", "trusted.there": b"2", "security.capability": CAPABILITY}),
        "w": Thing(0o666),
        "r": Thing(0o200),
    }
    calls = (
        listxattr("f"),
        getxattr("f", "user.there"),
        getxattr("f", "trusted.there"),
        getxattr("f", "security.capability"),
        setxattr("f", "user.new"),
        setxattr("f", "trusted.new"),
        setxattr("f", "security.capability", CAPABILITY),
        setxattr("f", "nonsense.new"),
        setxattr("w", "user.new"),
        getxattr("r", "user.new"),
        removexattr("f", "user.there"),
        removexattr("f", "trusted.there"),
        removexattr("f", "security.capability"),
    )
    return [
        Row(f"xattrs-{name}", things, who, calls) for name, who in (("owner", OWNER), ("other", OTHER), ("root", ROOT))
    ]


def _programs() -> list[Row]:
    program = Path("/usr/bin/id").read_bytes()
    copied_up = (
        chmod("id", 0o4755),
        utimes("id"),
        setxattr("id", "user.x"),
        rename("id", "i"),
        link("i", "id"),
    )
    return [
        Row(
            "execute-bits",
            {f"p{mode:o}": Thing(mode, content=program) for mode in (0o111, 0o710, 0o701, 0o644)},
            OTHER,
            tuple(execute(f"p{mode:o}") for mode in (0o111, 0o710, 0o701, 0o644)),
        ),
        Row(
            "execute-by-root-needs-a-bit",
            {"p": Thing(0o644, content=program), "q": Thing(0o100, content=program)},
            ROOT,
            (execute("p"), execute("q")),
        ),
        Row("setuid-runs", {"id": Thing(0o4755, uid=0, content=program)}, OTHER, (execute("id"),)),
        Row("setuid-of-user-runs", {"id": Thing(0o4755, uid=1000, content=program)}, OTHER, (execute("id"),)),
        Row(
            "setuid-after-copy-up-by-owner",
            {"id": Thing(0o4755, content=program)},
            OWNER,
            (*copied_up, execute("id")),
        ),
        Row(
            "setuid-after-foreign-write",
            {"id": Thing(0o4777, uid=0, content=program)},
            OTHER,
            (write("id", program[:4]), execute("id")),
        ),
        Row(
            "setuid-not-gained-by-link",
            {"id": Thing(0o755, uid=0, content=program), "d/": Thing(0o777)},
            OTHER,
            (link("id", "d/id"), execute("id")),
        ),
    ]


ROWS: tuple[Row, ...] = (
    *_classes(),
    *_directories(),
    *_sticky(),
    *_inheritance(),
    *_acls(),
    *_clearing(),
    *_ownership(),
    *_xattrs(),
    *_programs(),
)
