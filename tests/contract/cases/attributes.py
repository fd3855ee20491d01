"""Attributes and xattrs: every change, alone and together, on every kind of object in every layer."""

from __future__ import annotations

import errno
from dataclasses import replace

from ..case import ALL_FORMATS, EVERYWHERE, MOUNTED, OURS, Case, Step
from ..steps import (
    LATER,
    append_to,
    chmod,
    chown,
    close,
    create,
    ftruncate,
    getxattr,
    listxattr,
    make_symlink,
    mkchar,
    mkdir,
    mkfifo,
    mkfile,
    mksocket,
    names,
    open_,
    overwrite,
    pwrite,
    read,
    removexattr,
    rename,
    setxattr,
    stat,
    truncate,
    unlink,
    utime,
    write_file,
)
from ..tree import (
    EPOCH,
    SECOND,
    TRUSTED,
    Node,
    Tree,
    absent,
    acl,
    char,
    directory,
    fifo,
    file,
    opaque_dir,
    socket,
    symlink,
    whiteout,
)

XATTR_CREATE, XATTR_REPLACE = 1, 2
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

KINDS: dict[str, Node] = {
    "file": file(b"content", 0o640, 5, 6, xattrs={"trusted.old": b"1"}, mtime=EPOCH + 5),
    "directory": replace(directory(0o750, 5, 6, xattrs={"trusted.old": b"1"}), mtime=EPOCH + 5),
    "symlink": symlink("target", 5, 6, xattrs={"trusted.old": b"1"}, mtime=EPOCH + 5),
    "fifo": replace(fifo(0o640, 5, 6), xattrs={"trusted.old": b"1"}, mtime=EPOCH + 5),
    "socket": replace(socket(0o640, 5, 6), xattrs={"trusted.old": b"1"}, mtime=EPOCH + 5),
    "device": replace(char(1, 3, 0o640, 5, 6), xattrs={"trusted.old": b"1"}, mtime=EPOCH + 5),
}


def changed(node: Node) -> dict[str, tuple[list[Step], Node]]:
    """The changes of attributes that each kind allows, with what the object is afterwards."""
    table = {
        "chown-user": ([chown("x", 1000)], replace(node, uid=1000)),
        "chown-group": ([chown("x", -1, 1001)], replace(node, gid=1001)),
        "chown-both": ([chown("x", 1000, 1001)], replace(node, uid=1000, gid=1001)),
        "utime": ([utime("x", LATER)], replace(node, mtime=LATER)),
        "utime-in-the-past": ([utime("x", -3 * SECOND + 1, 0)], replace(node, mtime=-3 * SECOND + 1)),
        "setxattr": (
            [setxattr("x", "trusted.new", b"v")],
            replace(node, xattrs={"trusted.old": b"1", "trusted.new": b"v"}),
        ),
        "replace-xattr": (
            [setxattr("x", "trusted.old", b"2", XATTR_REPLACE)],
            replace(node, xattrs={"trusted.old": b"2"}),
        ),
        "removexattr": ([removexattr("x", "trusted.old")], replace(node, xattrs={})),
        "everything": (
            [chown("x", 7, 8), setxattr("x", "trusted.new", b"v"), removexattr("x", "trusted.old"), utime("x", LATER)],
            replace(node, uid=7, gid=8, xattrs={"trusted.new": b"v"}, mtime=LATER),
        ),
    }
    if node.kind is not symlink("").kind:
        table["chmod"] = ([chmod("x", 0o4711)], replace(node, mode=0o4711))
        table["chmod-zero"] = ([chmod("x", 0)], replace(node, mode=0))
    return table  # fmt: skip


def change_cases() -> list[Case]:
    """Every change on every kind, in a lower layer and in the upper."""
    cases = []
    for kind, node in KINDS.items():
        for change, (steps, after) in changed(node).items():
            name = f"{change}-{kind}"
            view = {"x": after, "kept": file()}
            lower = {"x": node, "kept": file()}
            cases.append(Case(f"{name}-in-lower", [lower], view, steps, upper_after={"x": after}, formats=ALL_FORMATS))
            if change in ("chmod", "everything", "utime"):
                cases.append(Case(f"{name}-in-upper", [{"kept": file()}], view, steps, upper={"x": node}))
    return cases


def merged_directory_cases() -> list[Case]:
    """Changes of a directory that the upper and two layers share keep the merging."""
    node = KINDS["directory"]
    return [
        Case(
            f"{change}-merged-directory",
            [{"x": node, "x/a": file(b"a")}, {"x/b": file(b"b")}],
            {"x": after if change.startswith("utime") else replace(after, mtime=None), "x/a": file(b"a"), "x/b": file(b"b"), "x/c": file(b"c")},
            steps,
            upper={"x": node, "x/c": file(b"c")},
        )
        for change, (steps, after) in changed(node).items()
    ]  # fmt: skip


def simple(
    name: str,
    steps: list[Step],
    view: Tree,
    lower: Tree | None = None,
    upper_after: Tree | None = None,
    targets: frozenset[str] = EVERYWHERE,
    upper: Tree | None = None,
) -> Case:
    """A case over one lower layer."""
    return Case(name, [lower or {}], view, steps, upper or {}, upper_after or {}, targets=targets)


LOW = file(b"content", 0o640, 5, 6)
BIG = file(b"x" * 300_000)

SINGLES = [
    simple("root-chmod", [chmod("", 0o700)], {"": directory(0o700), "f": LOW}, {"f": LOW}),
    simple("root-chown-and-xattr", [chown("", 3, 4), setxattr("", "user.k", b"v")], {"": directory(0o755, 3, 4, xattrs={"user.k": b"v"})}),
    simple("truncate-to-zero", [truncate("f", 0)], {"f": file(b"")}, {"f": BIG}, {"f": file(b"")}),
    simple("truncate-shorter", [truncate("f", 1000)], {"f": file(b"x" * 1000)}, {"f": BIG}),
    simple("truncate-longer", [truncate("f", 400_000)], {"f": file(b"x" * 300_000, size=400_000)}, {"f": BIG}),
    simple("truncate-same", [truncate("f", 300_000)], {"f": BIG}, {"f": BIG}),
    simple("truncate-upper", [truncate("f", 3)], {"f": file(b"abc")}, upper={"f": file(b"abcdef")}),
    simple("truncate-directory", [truncate("d", 0).fails(errno.EISDIR)], {"d": directory()}, {"d": directory()}, targets=MOUNTED),
    simple("truncate-to-huge", [truncate("f", 1 << 40), stat("f", size=1 << 40), truncate("f", 3)], {"f": file(b"xxx")}, {"f": BIG}),
    simple("truncate-open-file", [open_("h", "f", 2), ftruncate("h", 2), pwrite("h", b"Z", 4), close("h")], {"f": file(b"xx\0\0Z")}, {"f": BIG}),
    simple("truncate-sets-mtime-only-of-the-file", [truncate("d/f", 0)], {"d": directory(mtime=EPOCH + 1), "d/f": file(b"")}, {"d": directory(mtime=EPOCH + 1), "d/f": BIG}),
    simple("copy-up-keeps-times", [chmod("f", 0o600)], {"f": file(b"x", 0o600, mtime=EPOCH + 7)}, {"f": file(b"x", mtime=EPOCH + 7)}, {"f": file(b"x", 0o600, mtime=EPOCH + 7)}),
    simple("copy-up-keeps-parents-times", [chmod("d/e/f", 0o600)], {"d": directory(mtime=EPOCH + 1), "d/e": directory(mtime=EPOCH + 2), "d/e/f": file(b"x", 0o600)}, {"d": directory(mtime=EPOCH + 1), "d/e": directory(mtime=EPOCH + 2), "d/e/f": file(b"x")}),
    simple("metadata-change-keeps-hole", [chmod("f", 0o600)], {"f": file(b"start", 0o600, size=3_000_000)}, {"f": file(b"start", size=3_000_000)}, {"f": file(b"start", 0o600, size=3_000_000, sparse=True)}),
    simple("write-to-sparse-keeps-hole", overwrite("f", b"STA"), {"f": file(b"STArt", size=3_000_000)}, {"f": file(b"start", size=3_000_000)}, {"f": file(b"STArt", size=3_000_000, sparse=True)}),
    simple("setxattr-empty-value", [setxattr("f", "user.k", b"")], {"f": file(xattrs={"user.k": b""})}, {"f": file()}),
    simple("setxattr-create-existing", [setxattr("f", "user.k", b"2", XATTR_CREATE).fails(errno.EEXIST)], {"f": file(xattrs={"user.k": b"1"})}, {"f": file(xattrs={"user.k": b"1"})}),
    simple("setxattr-replace-missing", [setxattr("f", "user.k", b"2", XATTR_REPLACE).fails(errno.ENODATA)], {"f": file()}, {"f": file()}),
    simple("setxattr-unknown-namespace", [setxattr("f", "nonsense.k", b"2").fails(errno.EOPNOTSUPP)], {"f": file()}, {"f": file()}),
    simple("setxattr-user-on-symlink", [setxattr("s", "user.k", b"2").fails(errno.EPERM)], {"s": symlink("f"), "f": file()}, {"s": symlink("f"), "f": file()}, targets=MOUNTED),
    simple("setxattr-user-on-fifo", [setxattr("p", "user.k", b"2").fails(errno.EPERM)], {"p": fifo()}, {"p": fifo()}, targets=MOUNTED),
    simple("setxattr-trusted-by-user", [setxattr("f", "trusted.k", b"2").by(1000).fails(errno.EPERM)], {"f": file(mode=0o666)}, {"f": file(mode=0o666)}, targets=MOUNTED),
    simple("setxattr-large", [setxattr("f", "user.k", b"v" * 60000)], {"f": file(xattrs={"user.k": b"v" * 60000})}, {"f": file()}),
    simple("setxattr-too-large", [setxattr("f", "user.k", b"v" * 65537).fails(errno.E2BIG)], {"f": file()}, {"f": file()}, targets=MOUNTED),
    simple("setxattr-name-too-long", [setxattr("f", "user." + "k" * 251, b"v").fails(errno.ERANGE)], {"f": file()}, {"f": file()}, targets=MOUNTED),
    simple("setxattr-longest-name", [setxattr("f", "user." + "k" * 250, b"v")], {"f": file(xattrs={"user." + "k" * 250: b"v"})}, {"f": file()}),
    simple("getxattr-missing", [getxattr("f", "user.none", b"").fails(errno.ENODATA), getxattr("s", "trusted.none", b"").fails(errno.ENODATA)], {"f": file(), "s": symlink("f")}, {"f": file(), "s": symlink("f")}),
    simple("getxattr-missing-copies-nothing", [getxattr("f", "user.none", b"").fails(errno.ENODATA)], {"f": file()}, {"f": file()}, {"f": absent()}),
    simple("removexattr-missing", [removexattr("f", "user.none").fails(errno.ENODATA)], {"f": file()}, {"f": file()}),
    simple("xattrs-survive-copy-up", append_to("f", b"!"), {"f": file(b"x!", xattrs={"user.a": b"1", "trusted.b": b"\0", "user.c": b"", "security.e": b"q"})}, {"f": file(b"x", xattrs={"user.a": b"1", "trusted.b": b"\0", "user.c": b"", "security.e": b"q"})}),
    simple("xattrs-of-symlink-are-its-own", [setxattr("s", "trusted.k", b"1"), listxattr("f"), getxattr("s", "trusted.k", b"1")], {"s": symlink("f", xattrs={"trusted.k": b"1"}), "f": file()}, {"s": symlink("f"), "f": file()}),
    simple("xattrs-of-symlink-out-of-the-mount", [setxattr("s", "trusted.k", b"1"), removexattr("s", "trusted.k")], {"s": symlink("/etc/passwd")}, {"s": symlink("/etc/passwd")}),
    simple("xattrs-of-dangling-symlink", [setxattr("s", "trusted.k", b"1")], {"s": symlink("nowhere", xattrs={"trusted.k": b"1"})}, {"s": symlink("nowhere")}),
    simple("setxattr-on-upper-symlink", [make_symlink("f", "s"), setxattr("s", "trusted.k", b"1")], {"s": symlink("f", xattrs={"trusted.k": b"1"}), "f": file()}, {"f": file()}),
    simple("capability-set-and-removed", [setxattr("f", "security.capability", CAPABILITY), getxattr("f", "security.capability", CAPABILITY), removexattr("f", "security.capability")], {"f": file(mode=0o755)}, {"f": file(mode=0o755)}),
    simple("capability-survives-copy-up", [utime("f", LATER)], {"f": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY}, mtime=LATER)}, {"f": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY})}),
    simple("capability-survives-chmod", [chmod("f", 0o711)], {"f": file(b"x", 0o711, xattrs={"security.capability": CAPABILITY})}, {"f": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY})}),
    simple("capability-survives-rename", [rename("f", "g")], {"g": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY})}, {"f": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY})}),
    simple("capability-cleared-by-write", append_to("f", b"+"), {"f": file(b"x+", 0o755)}, {"f": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY})}),
    simple("capability-cleared-by-write-in-upper", append_to("f", b"+"), {"f": file(b"x+", 0o755)}, upper={"f": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY})}),
    simple("capability-cleared-by-chown", [chown("f", 5)], {"f": file(b"x", 0o755, 5)}, {"f": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY})}),
    simple("capability-cleared-by-truncate", [truncate("f", 0)], {"f": file(b"", 0o755)}, {"f": file(b"x", 0o755, xattrs={"security.capability": CAPABILITY})}),
]  # fmt: skip

SUID = file(b"program", 0o6755, 5, 6)
CLEAR = file(b"program", 0o755, 5, 6)
OPEN_SUID = file(b"program", 0o6777, 5, 6)
OPEN_CLEAR = file(b"program", 0o777, 5, 6)

PRIVILEGES = [
    simple("suid-survives-copy-up", [utime("f", LATER)], {"f": replace(SUID, mtime=LATER)}, {"f": SUID}, {"f": SUID}),
    simple("suid-kept-at-write-by-root", append_to("f", b"+"), {"f": replace(SUID, data=b"program+")}, {"f": SUID}, targets=MOUNTED),
    simple("suid-cleared-by-chown-of-root", [chown("f", 7, 8)], {"f": replace(CLEAR, uid=7, gid=8)}, {"f": SUID}),
    simple("suid-cleared-by-chown-to-the-same", [chown("f", 5, 6)], {"f": CLEAR}, {"f": SUID}),
    simple("suid-of-directory-kept-by-chown", [chown("d", 7, 8)], {"d": directory(0o6755, 7, 8)}, {"d": directory(0o6755, 5, 6)}),
    simple("sgid-without-group-execute-kept-by-chown", [chown("f", 7)], {"f": file(b"x", 0o2644, 7, 6)}, {"f": file(b"x", 0o2644, 5, 6)}),
    simple("suid-cleared-by-write-of-user", [step.by(1000) for step in append_to("f", b"+")], {"f": replace(OPEN_CLEAR, data=b"program+")}, {"f": OPEN_SUID}, targets=MOUNTED),
    simple("suid-cleared-by-write-of-user-in-upper", [step.by(1000) for step in append_to("f", b"+")], {"f": replace(OPEN_CLEAR, data=b"program+")}, upper={"f": OPEN_SUID}, targets=MOUNTED),
    simple("suid-cleared-by-truncate-of-user", [truncate("f", 2).by(1000)], {"f": replace(OPEN_CLEAR, data=b"pr")}, {"f": OPEN_SUID}, targets=MOUNTED),
    simple("suid-cleared-by-open-truncating", [step.by(1000) for step in write_file("f", b"new")], {"f": replace(OPEN_CLEAR, data=b"new")}, {"f": OPEN_SUID}, targets=MOUNTED),
    simple("suid-cleared-by-ftruncate-of-user", [open_("h", "f", 2).by(1000), ftruncate("h", 3).by(1000), close("h")], {"f": replace(OPEN_CLEAR, data=b"pro")}, {"f": OPEN_SUID}, targets=MOUNTED),
    simple("suid-cleared-by-chown-of-owner", [chown("f", -1, 6).by(5, 6)], {"f": CLEAR}, {"f": SUID}, targets=MOUNTED),
    simple("sgid-cleared-by-chmod-outside-group", [chmod("f", 0o2755).by(5, 99)], {"f": file(b"x", 0o755, 5, 6)}, {"f": file(b"x", 0o755, 5, 6)}, targets=MOUNTED),
    simple("sgid-kept-by-chmod-inside-group", [chmod("f", 0o2755).by(5, 6)], {"f": file(b"x", 0o2755, 5, 6)}, {"f": file(b"x", 0o755, 5, 6)}, targets=MOUNTED),
    simple("sgid-kept-by-chmod-of-root", [chmod("f", 0o6755)], {"f": file(b"x", 0o6755, 5, 6)}, {"f": file(b"x", 0o755, 5, 6)}),
    simple("sgid-cleared-by-setfacl-outside-group", [setxattr("f", ACCESS, acl(7, 5, 5)).by(5, 99)], {"f": file(b"x", 0o755, 5, 6)}, {"f": file(b"x", 0o2755, 5, 6)}),
    simple("sgid-kept-by-setfacl-of-root", [setxattr("f", ACCESS, acl(7, 5, 5))], {"f": file(b"x", 0o2755, 5, 6)}, {"f": file(b"x", 0o2755, 5, 6)}),
    simple("chmod-by-stranger", [chmod("f", 0o777).by(1000).fails(errno.EPERM)], {"f": file(b"x", 0o644)}, {"f": file(b"x", 0o644)}, {"f": absent()}, targets=MOUNTED),
    simple("chown-by-owner", [chown("f", 6).by(5).fails(errno.EPERM)], {"f": CLEAR}, {"f": CLEAR}, targets=MOUNTED),
    simple("utime-by-stranger", [utime("f").by(1000).fails(errno.EPERM)], {"f": file(b"x", 0o666)}, {"f": file(b"x", 0o666)}, targets=MOUNTED),
    simple("write-without-permission", [open_("h", "f", 1).by(1000).fails(errno.EACCES)], {"f": file(b"x", 0o644)}, {"f": file(b"x", 0o644)}, {"f": absent()}, targets=MOUNTED),
    simple("read-without-permission", [Step("content", ("f",)).by(1000).fails(errno.EACCES)], {"f": file(b"x", 0o600)}, {"f": file(b"x", 0o600)}, targets=MOUNTED),
    simple("search-without-permission", [stat("d/f").by(1000).fails(errno.EACCES)], {"d": directory(0o700), "d/f": file()}, {"d": directory(0o700), "d/f": file()}, targets=MOUNTED),
    simple("list-without-permission", [names("d").by(1000).fails(errno.EACCES)], {"d": directory(0o711), "d/f": file()}, {"d": directory(0o711), "d/f": file()}, targets=MOUNTED),
    simple("create-without-permission", [mkdir("d/n").by(1000).fails(errno.EACCES)], {"d": directory()}, {"d": directory()}, targets=MOUNTED),
    simple("delete-without-permission", [unlink("d/f").by(1000).fails(errno.EACCES)], {"d/f": file(mode=0o666)}, {"d/f": file(mode=0o666)}, targets=MOUNTED),
    simple("sticky-directory-protects-others", [unlink("d/f").by(1000).fails(errno.EPERM), unlink("d/g").by(1000)], {"d": directory(0o1777), "d/f": file(uid=5)}, {"d": directory(0o1777), "d/f": file(uid=5), "d/g": file(uid=1000)}, targets=MOUNTED),
    simple("sticky-directory-protects-from-rename", [rename("d/f", "d/h").by(1000).fails(errno.EPERM)], {"d": directory(0o1777), "d/f": file(uid=5)}, {"d": directory(0o1777), "d/f": file(uid=5)}, targets=MOUNTED),
    simple("mknod-device-by-user", [mkchar("d/c", 1, 3).by(1000).fails(errno.EPERM)], {"d": directory(0o777)}, {"d": directory(0o777)}, targets=MOUNTED),
    simple("mknod-whiteout-device-by-user", [mkchar("d/c", 0, 0).by(1000).fails(errno.EPERM), names("d")], {"d": directory(0o777)}, {"d": directory(0o777)}, targets=MOUNTED),
    simple("user-may-delete-root-file-in-own-directory", [unlink("d/f").by(1000)], {"d": directory(0o755, 1000, 1000)}, {"d": directory(0o755, 1000, 1000), "d/f": file()}, {"d/f": whiteout()}, targets=MOUNTED),
    simple("user-writes-lower-file-of-other-by-mode", [step.by(1000) for step in append_to("f", b"+")], {"f": file(b"x+", 0o666, 5, 6)}, {"f": file(b"x", 0o666, 5, 6)}, {"f": file(b"x+", 0o666, 5, 6)}, targets=MOUNTED),
    simple("acl-grants-access", [read("f", b"x").by(1000), read("f", b"x").by(1001).fails(errno.EACCES)], {"f": file(b"x", 0o640, xattrs={ACCESS: acl(6, 0, 0, 4, {1000: 4})})}, {"f": file(b"x", 0o640, xattrs={ACCESS: acl(6, 0, 0, 4, {1000: 4})})}, targets=MOUNTED),
    simple("acl-denies-access", [read("f", b"x").by(1000).fails(errno.EACCES), read("f", b"x").by(1001)], {"f": file(b"x", 0o644, xattrs={ACCESS: acl(6, 4, 4, 4, {1000: 0})})}, {"f": file(b"x", 0o644, xattrs={ACCESS: acl(6, 4, 4, 4, {1000: 0})})}, targets=MOUNTED),
    simple("acl-mask-limits", [open_("h", "f", 1).by(1000).fails(errno.EACCES), read("f", b"x").by(1000)], {"f": file(b"x", 0o644, xattrs={ACCESS: acl(6, 4, 4, 4, {1000: 6})})}, {"f": file(b"x", 0o644, xattrs={ACCESS: acl(6, 4, 4, 4, {1000: 6})})}, targets=MOUNTED),
]  # fmt: skip


def owned(uid: int, gid: int) -> Node:
    return file(b"", 0o644, uid, gid)


CREATION = [
    simple("umask-applies-to-files", [create("h", "f", 0o666).by(0, 0, 0o027)], {"f": file(mode=0o640)}),
    simple("umask-applies-to-directories", [mkdir("d", 0o777).by(0, 0, 0o027)], {"d": directory(0o750)}),
    simple("umask-applies-to-nodes", [mkfifo("p", 0o666).by(0, 0, 0o077), mksocket("k", 0o666).by(0, 0, 0o022), mkfile("f", 0o666).by(0, 0, 0o026)], {"p": fifo(0o600), "k": socket(0o644), "f": file(mode=0o640)}),
    simple("umask-zero", [create("h", "f", 0o666), mkdir("d", 0o777)], {"f": file(mode=0o666), "d": directory(0o777)}),
    simple("create-with-special-bits", [create("h", "f", 0o7777), mkdir("d", 0o1777)], {"f": file(mode=0o7777), "d": directory(0o1777)}),
    simple("create-without-permission-bits", [create("h", "f", 0), pwrite("h", b"x")], {"f": file(b"x", 0)}),
    simple("creator-owns", [create("h", "d/f").by(1000, 1001), mkdir("d/e").by(1000, 1001), make_symlink("t", "d/s").by(1000, 1001), mkfifo("d/p").by(1000, 1001)], {"d": directory(0o777), "d/f": file(b"", 0o644, 1000, 1001), "d/e": directory(0o755, 1000, 1001), "d/s": symlink("t", 1000, 1001), "d/p": fifo(0o644, 1000, 1001)}, {"d": directory(0o777)}),
    simple("setgid-directory-gives-group", [create("h", "d/f").by(1000, 1001), make_symlink("t", "d/s").by(1000, 1001), mkfifo("d/p").by(1000, 1001)], {"d": directory(0o2777, 0, 50), "d/f": owned(1000, 50), "d/s": symlink("t", 1000, 50), "d/p": fifo(0o644, 1000, 50)}, {"d": directory(0o2777, 0, 50)}),
    simple("setgid-directory-gives-bit-to-directories", [mkdir("d/e").by(1000, 1001), mkdir("d/e/g").by(1000, 1001)], {"d": directory(0o2777, 0, 50), "d/e": directory(0o2755, 1000, 50), "d/e/g": directory(0o2755, 1000, 50)}, {"d": directory(0o2777, 0, 50)}),
    simple("setgid-directory-by-root", [mkdir("d/e"), create("h", "d/f")], {"d": directory(0o2755, 0, 50), "d/e": directory(0o2755, 0, 50), "d/f": owned(0, 50)}, {"d": directory(0o2755, 0, 50)}),
    simple("setgid-directory-new-in-upper", [mkdir("d"), chown("d", 0, 50), chmod("d", 0o2775), mkdir("d/e"), create("h", "d/f")], {"d": directory(0o2775, 0, 50), "d/e": directory(0o2755, 0, 50), "d/f": owned(0, 50)}),
    simple("setgid-file-by-stranger-loses-bit", [create("h", "d/f", 0o2775).by(1000, 1001)], {"d": directory(0o2777, 0, 50), "d/f": file(b"", 0o775, 1000, 50)}, {"d": directory(0o2777, 0, 50)}, targets=MOUNTED),
    simple("setgid-remade-directory", [unlink("d/e/f"), Step("rmdir", ("d/e",)), mkdir("d/e").by(1000, 1001)], {"d": directory(0o2777, 0, 50), "d/e": directory(0o2755, 1000, 50)}, {"d": directory(0o2777, 0, 50), "d/e/f": file()}, {"d/e": replace(opaque_dir(0o2755, 1000, 50))}),
    simple("default-acl-beats-umask", [create("h", "d/f", 0o666).by(0, 0, 0o077)], {"d": directory(xattrs={DEFAULT: acl(7, 7, 5)}), "d/f": file(mode=0o664)}, {"d": directory(xattrs={DEFAULT: acl(7, 7, 5)})}),
    simple("default-acl-with-mask", [create("h", "d/f", 0o666).by(0, 0, 0o077)], {"d": directory(xattrs={DEFAULT: acl(7, 5, 0, 7, {1000: 7})}), "d/f": file(mode=0o660, xattrs={ACCESS: acl(6, 5, 0, 6, {1000: 7})})}, {"d": directory(xattrs={DEFAULT: acl(7, 5, 0, 7, {1000: 7})})}),
    simple("default-acl-passes-to-directories", [mkdir("d/e", 0o777).by(0, 0, 0o077)], {"d": directory(xattrs={DEFAULT: acl(7, 5, 0, 7, {1000: 7})}), "d/e": directory(0o770, xattrs={ACCESS: acl(7, 5, 0, 7, {1000: 7}), DEFAULT: acl(7, 5, 0, 7, {1000: 7})})}, {"d": directory(xattrs={DEFAULT: acl(7, 5, 0, 7, {1000: 7})})}),
    simple("default-acl-not-for-symlinks", [make_symlink("t", "d/s")], {"d": directory(xattrs={DEFAULT: acl(7, 5, 0)}), "d/s": symlink("t")}, {"d": directory(xattrs={DEFAULT: acl(7, 5, 0)})}),
    simple("default-acl-set-through-the-mount", [setxattr("d", DEFAULT, acl(7, 7, 0)), mkfifo("d/p", 0o666).by(0, 0, 0o077)], {"d": directory(xattrs={DEFAULT: acl(7, 7, 0)}), "d/p": fifo(0o660)}, {"d": directory()}),
    simple("default-acl-in-upper", [create("h", "d/f", 0o666).by(0, 0, 0o077)], {"d": directory(xattrs={DEFAULT: acl(7, 6, 4)}), "d/f": file(mode=0o664)}, upper={"d": directory(xattrs={DEFAULT: acl(7, 6, 4)})}),
    simple("default-acl-removed", [removexattr("d", DEFAULT), create("h", "d/f", 0o666).by(0, 0, 0o077)], {"d": directory(), "d/f": file(mode=0o600)}, {"d": directory(xattrs={DEFAULT: acl(7, 7, 7)})}),
    simple("acl-of-file-by-setxattr", [setxattr("f", ACCESS, acl(6, 4, 0, 6, {1000: 6}))], {"f": file(mode=0o660, xattrs={ACCESS: acl(6, 4, 0, 6, {1000: 6})})}, {"f": file()}),
    simple("acl-equal-to-mode-is-no-acl", [setxattr("f", ACCESS, acl(6, 4, 0))], {"f": file(mode=0o640)}, {"f": file()}),
    simple("acl-removed", [removexattr("f", ACCESS)], {"f": file(mode=0o660)}, {"f": file(mode=0o660, xattrs={ACCESS: acl(6, 4, 0, 6, {1000: 6})})}),
    simple("acl-malformed", [setxattr("f", ACCESS, b"\x02\0\0\0junk").fails(errno.EINVAL)], {"f": file()}, {"f": file()}),
    simple("chmod-changes-mask", [chmod("f", 0o604)], {"f": file(mode=0o604, xattrs={ACCESS: acl(6, 4, 4, 0, {1000: 6})})}, {"f": file(mode=0o660, xattrs={ACCESS: acl(6, 4, 0, 6, {1000: 6})})}),
    simple("acl-survives-copy-up", append_to("f", b"+"), {"f": file(b"x+", 0o660, xattrs={ACCESS: acl(6, 4, 0, 6, {1000: 6})})}, {"f": file(b"x", 0o660, xattrs={ACCESS: acl(6, 4, 0, 6, {1000: 6})})}),
    simple("acl-survives-rename", [rename("d", "e")], {"e": directory(0o770, xattrs={ACCESS: acl(7, 5, 0, 7, {9: 7}), DEFAULT: acl(7, 7, 7)})}, {"d": directory(0o770, xattrs={ACCESS: acl(7, 5, 0, 7, {9: 7}), DEFAULT: acl(7, 7, 7)})}),
    simple("default-acl-does-not-touch-copy-up", append_to("d/f", b"+"), {"d": directory(xattrs={DEFAULT: acl(7, 0, 0)}), "d/f": file(b"x+", 0o666)}, {"d": directory(xattrs={DEFAULT: acl(7, 0, 0)}), "d/f": file(b"x", 0o666)}),
]  # fmt: skip

USER = "user.overlay."
PLANTING = [
    setxattr(path, USER + name, value)
    for path, name, value in (
        ("d", "opaque", b"x"),
        ("d/f", "whiteout", b""),
        ("e", "redirect", b"/d"),
        ("h", "metacopy", b""),
        ("h", "redirect", b"/e/g"),
    )
]

RESERVED = [
    simple("overlay-xattr-is-escaped", [setxattr("f", TRUSTED + "opaque", b"y"), getxattr("f", TRUSTED + "opaque", b"y")], {"f": file(xattrs={TRUSTED + "opaque": b"y"})}, {"f": file()}, {"f": file(xattrs={TRUSTED + "overlay.opaque": b"y"})}),
    simple("overlay-opaque-from-inside-hides-nothing", [setxattr("d", TRUSTED + "opaque", b"y")], {"d": directory(xattrs={TRUSTED + "opaque": b"y"}), "d/f": file()}, {"d/f": file()}),
    simple("overlay-whiteout-xattr-from-inside", [setxattr("d", TRUSTED + "opaque", b"x"), setxattr("d/f", TRUSTED + "whiteout", b"")], {"d": directory(xattrs={TRUSTED + "opaque": b"x"}), "d/f": file(xattrs={TRUSTED + "whiteout": b""})}, {"d/f": file()}),
    simple("user-overlay-xattrs-are-no-marks", PLANTING, {"d": directory(xattrs={USER + "opaque": b"x"}), "d/f": file(xattrs={USER + "whiteout": b""}), "e": directory(xattrs={USER + "redirect": b"/d"}), "e/g": LOW, "h": file(b"mine", xattrs={USER + "metacopy": b"", USER + "redirect": b"/e/g"})}, {"d/f": file(), "e/g": LOW, "h": file(b"mine")}, {"d": directory(xattrs={USER + "opaque": b"x"}), "h": file(b"mine", xattrs={USER + "metacopy": b"", USER + "redirect": b"/e/g"})}),
    replace(simple("trusted-overlay-xattr-with-userxattr", [setxattr("f", TRUSTED + "metacopy", b""), setxattr("f", USER + "metacopy", b""), removexattr("g", TRUSTED + "metacopy"), listxattr("g")], {"f": file(b"f", xattrs={TRUSTED + "metacopy": b"", USER + "metacopy": b""}), "g": file(b"g")}, {"f": file(b"f"), "g": file(b"g", xattrs={TRUSTED + "metacopy": b""})}, {"f": file(b"f", xattrs={TRUSTED + "metacopy": b"", USER + "overlay.metacopy": b""})}), options={"user_xattr": True}),
    simple("real-bookkeeping-is-out-of-reach", [rename("d", "e"), getxattr("e", TRUSTED + "redirect", b"").fails(errno.ENODATA), removexattr("e", TRUSTED + "redirect").fails(errno.ENODATA), listxattr("e")], {"e/f": file()}, {"d/f": file()}),
    simple("origin-is-out-of-reach", [*append_to("f", b"+"), getxattr("f", TRUSTED + "origin", b"").fails(errno.ENODATA), removexattr("f", TRUSTED + "origin").fails(errno.ENODATA)], {"f": file(b"+")}, {"f": file()}),
    simple("fuse-opaque-refused", [setxattr("d", "user.fuseoverlayfs.opaque", b"y").fails(errno.EPERM)], {"d/f": file()}, {"d/f": file()}, {"d": absent()}, targets=OURS),
    simple("override-refused", [setxattr("f", "user.containers.override_stat", b"0:0:777").fails(errno.EPERM), removexattr("f", "user.containers.override_stat").fails(errno.EPERM)], {"f": file()}, {"f": file()}, targets=OURS),
]  # fmt: skip

CASES = [*change_cases(), *merged_directory_cases(), *SINGLES, *PRIVILEGES, *CREATION, *RESERVED]
