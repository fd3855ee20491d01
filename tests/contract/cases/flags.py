"""What immutable and append-only forbid, and what becomes of the flags of chattr(1) when a file is copied up."""

from __future__ import annotations

import errno
import os

from ..case import ENGINE, FUSE, KERNEL, PYFUSE3, Case, Step
from ..steps import (
    EXCHANGE,
    RDWR,
    WRONLY,
    append_to,
    chattr,
    chmod,
    chown,
    close,
    create,
    fstat,
    ftruncate,
    link,
    linkfd,
    lsattr,
    make_symlink,
    mkdir,
    mkfifo,
    open_,
    overwrite,
    pwrite,
    read,
    removexattr,
    rename,
    rmdir,
    setxattr,
    stat,
    tmpfile,
    touch,
    truncate,
    unlink,
    utime,
    write_file,
)
from ..tree import TRUSTED, Tree, absent, directory, fifo, file, hardlink, symlink

EPERM = errno.EPERM
PROTECTION = TRUSTED + "protattr"
ASKED = frozenset({ENGINE, PYFUSE3, KERNEL})  # those that hear of every open
WITH_IOCTL = frozenset({ENGINE, FUSE, KERNEL})
IN_FILE, IN_DIRECTORY = b"kept", b"inside"
OTHER = file(b"other")


def refused(*steps: Step) -> list[Step]:
    return [step.fails(EPERM) for step in steps]


def file_steps(flag: str) -> list[Step]:
    """All that may not be done to the file `x`, and what may."""
    steps = refused(
        truncate("x", 1), chmod("x", 0o600), chown("x", 7), utime("x"), setxattr("x", "user.new", b"v"),
        removexattr("x", "user.old"), link("x", "y"), rename("x", "y"), rename("other", "x"),
        rename("other", "x", EXCHANGE), unlink("x"),
    )  # fmt: skip
    return [
        *steps,
        touch("x").fails(EPERM) if flag == "i" else touch("x"),
        read("x", IN_FILE),
        stat("x", mode=0o100644),
    ]


def directory_steps(flag: str) -> list[Step]:
    """All that may not be done in the directory `d`, and what may."""
    new = [
        [create("h", "d/new"), close("h")],
        [mkdir("d/newdir")],
        [make_symlink("to", "d/newlink")],
        [mkfifo("d/newfifo")],
        [link("other", "d/linked")],
    ]  # fmt: skip
    steps = [step for group in new for step in (refused(group[0]) if flag == "i" else group)]
    return [
        *steps,
        create("h", "d/f").fails(errno.EEXIST),
        *refused(
            unlink("d/f"), rmdir("d/sub"), rename("d/f", "moved"), rename("other", "d/f"), rename("d/f", "d/g"),
            rmdir("d"), rename("d", "e"), chmod("d", 0o700), setxattr("d", "user.new", b"v"), utime("d"),
        ),
        *overwrite("d/f", b"IN"),
        *write_file("d/sub/made", b""),
        read("d/f", b"INside"),
    ]  # fmt: skip


def directory_view(flag: str) -> Tree:
    view = {"d": directory(), "d/f": file(b"INside"), "d/sub/made": file(), "other": OTHER}
    if flag == "i":
        return view
    made = {"d/new": file(), "d/newdir": directory(), "d/newlink": symlink("to"), "d/newfifo": fifo()}
    return {**view, **made, "d/linked": hardlink("other")}


def protected_cases(flag: str) -> list[Case]:
    x = file(IN_FILE, xattrs={"user.old": b"1"})
    tree = {"x": x, "other": OTHER}
    d: Tree = {"d": directory(), "d/f": file(IN_DIRECTORY), "d/sub": directory(), "other": OTHER}
    in_x, in_d = file(IN_FILE, xattrs={"user.old": b"1"}, flags=flag), directory(flags=flag)
    in_file, in_directory = file_steps(flag), directory_steps(flag)
    kept = {"x": absent() if flag == "i" else file(IN_FILE, xattrs={PROTECTION: flag.encode()})}
    return [
        Case(f"{flag}-file-in-lower", [{**tree, "x": in_x}], tree, in_file, upper_after=kept),
        Case(f"{flag}-file-in-upper", [{}], tree, [chattr("x", flag), *in_file, lsattr("x", flag)], upper=tree, upper_after={"x": file(IN_FILE, xattrs={PROTECTION: flag.encode()})}, targets=WITH_IOCTL),
        Case(f"{flag}-directory-in-lower", [{**d, "d": in_d}], directory_view(flag), in_directory, upper_after={"d": directory(xattrs={PROTECTION: flag.encode()})}),
        Case(f"{flag}-directory-in-upper", [{}], directory_view(flag), [chattr("d", flag), *in_directory, lsattr("d", flag)], upper=d, upper_after={"d": directory(xattrs={PROTECTION: flag.encode()})}, targets=WITH_IOCTL),
    ]  # fmt: skip


LOW = file(IN_FILE, flags="i")
APPENDED: Tree = {"x": file(b"keptmore")}
TO_APPEND: Tree = {"x": file(IN_FILE, flags="a")}

CASES = [
    *protected_cases("i"),
    *protected_cases("a"),
    Case("immutable-is-not-opened-to-write", [{"x": LOW}], {"x": file(IN_FILE)}, refused(open_("h", "x", WRONLY), open_("h", "x", RDWR), open_("h", "x", WRONLY | os.O_APPEND), open_("h", "x", WRONLY | os.O_TRUNC)), upper_after={"x": absent()}, targets=ASKED),
    Case("append-only-is-opened-to-append-alone", [TO_APPEND], {"x": file(IN_FILE)}, refused(open_("h", "x", WRONLY), open_("h", "x", RDWR), open_("h", "x", WRONLY | os.O_APPEND | os.O_TRUNC)), upper_after={"x": absent()}, targets=ASKED),
    # where the kernel does not ask for opens, what is written through them is refused
    Case("immutable-is-not-written", [{"x": LOW}], {"x": file(IN_FILE)}, [open_("h", "x", RDWR), pwrite("h", b"K").fails(EPERM), ftruncate("h", 0).fails(EPERM), close("h"), open_("h", "x", WRONLY | os.O_TRUNC).fails(EPERM)], upper_after={"x": absent()}, targets=frozenset({FUSE})),
    Case("append-only-is-not-overwritten", [TO_APPEND], {"x": file(IN_FILE)}, [open_("h", "x", RDWR), pwrite("h", b"K").fails(EPERM), pwrite("h", b"K", 4).fails(EPERM), ftruncate("h", 0).fails(EPERM), close("h"), open_("h", "x", WRONLY | os.O_TRUNC).fails(EPERM)], upper_after={"x": absent()}, targets=frozenset({FUSE})),
    Case("append-only-is-appended-to", [TO_APPEND], APPENDED, append_to("x", b"more"), upper_after={"x": file(b"keptmore", xattrs={PROTECTION: b"a"})}),
    Case("append-only-made-here-is-appended-to", [{}], APPENDED, [*write_file("x", IN_FILE), chattr("x", "a"), *append_to("x", b"more"), lsattr("x", "a")], upper_after={"x": file(b"keptmore", xattrs={PROTECTION: b"a"})}, targets=WITH_IOCTL),
    Case("flags-are-shown-of-lower-files", [{"x": file(flags="ia"), "y": file(flags="dA"), "d": directory(flags="i")}], {"x": file(), "y": file(), "d": directory()}, [lsattr("x", "ia"), lsattr("y", "dA"), lsattr("d", "i")], targets=WITH_IOCTL),
    Case("protection-of-lower-file-is-lifted", [{"x": LOW}], {"x": file(b"KEpt", 0o600)}, [chattr("x", ""), lsattr("x", ""), *overwrite("x", b"KE"), chmod("x", 0o600)], upper_after={"x": file(b"KEpt", 0o600)}, targets=WITH_IOCTL),
    Case("protection-of-lower-directory-is-lifted", [{"d": directory(flags="i"), "d/f": file()}], {"d": directory()}, [chattr("d", ""), unlink("d/f"), lsattr("d", "")], upper_after={"d": directory()}, targets=WITH_IOCTL),
    Case("protection-goes-both-ways", [{}], {"x": file()}, [*write_file("x", b""), chattr("x", "ia"), lsattr("x", "ia"), chattr("x", "aA"), lsattr("x", "aA"), chattr("x", "A"), lsattr("x", "A"), chmod("x", 0o644)], upper_after={"x": file(flags="A")}, targets=WITH_IOCTL),
    Case("noatime-survives-copy-up", [{"x": file(flags="A"), "d": directory(flags="A")}], {"x": file(mode=0o600), "d": directory(), "d/new": file()}, [chmod("x", 0o600), lsattr("x", "A"), *write_file("d/new", b""), lsattr("d", "A")], upper_after={"x": file(mode=0o600, flags="A"), "d": directory(flags="A")}, targets=WITH_IOCTL),
    Case("nodump-survives-copy-up", [{"x": file(flags="d")}], {"x": file(mode=0o600)}, [chmod("x", 0o600), lsattr("x", "d")], upper_after={"x": file(mode=0o600, flags="d")}, targets=WITH_IOCTL),
    Case("protection-survives-rename-of-the-directory", [{"d/x": LOW, "d/sub/y": TO_APPEND["x"]}], {"e/x": file(IN_FILE), "e/sub/y": file(b"keptmore")}, [rename("d", "e"), lsattr("e/x", "i"), *append_to("e/sub/y", b"more"), *refused(unlink("e/x"), unlink("e/sub/y"))], targets=WITH_IOCTL),
    Case("protattr-that-says-nothing-protects-nothing", [{}], {"x": file(mode=0o600)}, [chmod("x", 0o600)], upper={"x": file(xattrs={PROTECTION: b"ix"})}),
    Case("protattr-of-a-lower-file-protects-nothing", [{"x": file(xattrs={PROTECTION: b"i"})}], {"x": file(mode=0o600)}, [chmod("x", 0o600)]),
    Case("protattr-in-upper-protects", [{}], {"x": file()}, refused(chmod("x", 0o600), unlink("x")), upper={"x": file(xattrs={PROTECTION: b"i"})}),
    Case("root-directory-is-protected", [{"x": file()}], {"x": file()}, [chattr("", "i"), *refused(unlink("x"), mkdir("d"), chmod("", 0o700)), lsattr("", "i"), chattr("", "")], targets=WITH_IOCTL),
    Case("tmpfile-in-immutable-directory", [{"d": directory(flags="i")}], {"d": directory()}, [tmpfile("t", "d").fails(EPERM)], targets=WITH_IOCTL),
    Case("tmpfile-in-append-only-directory", [{"d": directory(flags="a")}], {"d/made": file()}, [tmpfile("t", "d"), linkfd("t", "d/made"), close("t")], targets=WITH_IOCTL),
    Case("append-only-is-not-truncated-through-an-open-file", [{}], APPENDED, [*write_file("x", b"keptmore"), open_("h", "x", RDWR), chattr("x", "a"), ftruncate("h", 0).fails(EPERM), fstat("h", size=8), close("h")], targets=WITH_IOCTL),
]  # fmt: skip
