"""Opening, reading, writing; open files over copy-up, rename and unlink; hard links; limits."""

from __future__ import annotations

import errno
import os

from ..case import ALL_FORMATS, EVERYWHERE, MOUNTED, OURS, PYFUSE3, Case, Step
from ..steps import (
    EXCHANGE,
    LATER,
    RDONLY,
    RDWR,
    WRONLY,
    append,
    append_to,
    chmod,
    chown,
    close,
    create,
    fstat,
    fsync,
    ftruncate,
    link,
    linkfd,
    longest_name,
    make_symlink,
    missing,
    mkdir,
    mkfifo,
    mkfile,
    names,
    open_,
    overwrite,
    pread,
    pwrite,
    read,
    readlink,
    rename,
    rmdir,
    setxattr,
    stat,
    tmpfile,
    truncate,
    unlink,
    utime,
    write_file,
)
from ..tree import (
    EPOCH,
    Node,
    Tree,
    absent,
    char,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
    whiteout,
)

LOW = file(b"content", 0o640, 5, 6)
BIG = bytes(range(256)) * 4096
CREAT, EXCL, TRUNC, APPEND, DIRECT, SYNC = (
    os.O_CREAT,
    os.O_EXCL,
    os.O_TRUNC,
    os.O_APPEND,
    os.O_DIRECT,
    os.O_SYNC,
)


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


def lowfile(data: bytes) -> Node:
    return file(data, 0o640, 5, 6)


OPENING = [
    simple("open-reading-copies-nothing", [open_("h", "f"), pread("h", b"content"), close("h")], {"f": LOW}, {"f": LOW}, {"f": absent()}),
    simple("open-read-write-and-only-read", [open_("h", "f", RDWR), pread("h", b"content"), close("h")], {"f": LOW}, {"f": LOW}, {"f": absent()}),
    simple("open-append-and-write-nothing", [open_("h", "f", WRONLY | APPEND), close("h")], {"f": LOW}, {"f": LOW}, {"f": absent()}),
    simple("open-missing", [open_("h", "g").fails(errno.ENOENT)], {"f": LOW}, {"f": LOW}),
    simple("open-exclusive-existing", [open_("h", "f", RDWR | CREAT | EXCL).fails(errno.EEXIST)], {"f": LOW}, {"f": LOW}),
    simple("open-exclusive-deleted", [unlink("f"), open_("h", "f", RDWR | CREAT | EXCL, 0o600), pwrite("h", b"n")], {"f": file(b"n", 0o600)}, {"f": LOW}),
    simple("open-create-existing-keeps", [open_("h", "f", RDWR | CREAT, 0o777), pread("h", b"content")], {"f": LOW}, {"f": LOW}, {"f": absent()}),
    simple("open-truncating-lower", [open_("h", "f", WRONLY | TRUNC), fstat("h", size=0), close("h")], {"f": lowfile(b"")}, {"f": file(b"x" * 1_000_000, 0o640, 5, 6)}, {"f": lowfile(b"")}),
    simple("open-truncating-upper", [open_("h", "f", WRONLY | TRUNC), close("h")], {"f": file(b"")}, upper={"f": file(b"x" * 10)}),
    simple("open-truncating-reading", [open_("h", "f", RDWR | TRUNC), pread("h", b""), pwrite("h", b"ab"), pread("h", b"ab")], {"f": lowfile(b"ab")}, {"f": LOW}),
    simple("open-append-lower", [open_("h", "f", WRONLY | APPEND), append("h", b"+1"), append("h", b"+2"), close("h")], {"f": lowfile(b"content+1+2")}, {"f": LOW}),
    simple("open-append-two-writers", [open_("h", "f", WRONLY | APPEND), open_("i", "f", WRONLY | APPEND), append("h", b"1"), append("i", b"2"), append("h", b"3")], {"f": lowfile(b"content123")}, {"f": LOW}),
    simple("open-append-created", [open_("h", "n", WRONLY | APPEND | CREAT, 0o600), append("h", b"1"), append("h", b"2")], {"n": file(b"12", 0o600)}),
    simple("open-sync", [open_("h", "f", RDWR | SYNC), pwrite("h", b"C"), close("h")], {"f": lowfile(b"Content")}, {"f": LOW}),
    simple("open-direct-read", [open_("h", "f", RDONLY | DIRECT), Step("pread", ("h", 4096, 0)), close("h")], {"f": file(b"x" * 8192)}, {"f": file(b"x" * 8192)}, targets=OURS),
    simple("open-below-file", [open_("h", "f/g", RDWR | CREAT).fails(errno.ENOTDIR)], {"f": LOW}, {"f": LOW}),
    simple("open-in-missing-directory", [open_("h", "d/g", RDWR | CREAT).fails(errno.ENOENT)], {"f": LOW}, {"f": LOW}),
    simple("open-symlink-itself", [open_("h", "s").fails(errno.ELOOP)], {"s": symlink("f"), "f": LOW}, {"s": symlink("f"), "f": LOW}),
    simple("open-directory-creating", [open_("h", "d", CREAT).fails(errno.EISDIR)], {"d": directory()}, {"d": directory()}),
    simple("read-only-open-cannot-write", [open_("h", "f"), Step("pwrite", ("h", b"x", 0)).fails(errno.EBADF)], {"f": LOW}, {"f": LOW}, targets=MOUNTED),
    simple("read-past-the-end", [open_("h", "f"), pread("h", b"", 7), pread("h", b"", 10_000), pread("h", b"nt", 5)], {"f": LOW}, {"f": LOW}),
    simple("read-in-pieces", [open_("h", "f"), pread("h", BIG[5000:9000], 5000, 4000), pread("h", BIG[-10:], len(BIG) - 10)], {"f": file(BIG)}, {"f": file(BIG)}),
    simple("write-in-the-middle", overwrite("f", b"XYZ", 500_000), {"f": file(BIG[:500_000] + b"XYZ" + BIG[500_003:])}, {"f": file(BIG)}),
    simple("write-beyond-the-end", overwrite("f", b"end", 100_000), {"f": lowfile(b"content".ljust(100_000, b"\0") + b"end")}, {"f": LOW}),
    simple("write-nothing", [open_("h", "f", WRONLY), pwrite("h", b""), close("h")], {"f": LOW}, {"f": LOW}),
    simple("write-large", [*write_file("n", BIG * 4)], {"n": file(BIG * 4)}),
    simple("write-many-small", [create("h", "n"), *[pwrite("h", b"%04d" % at, at * 4) for at in range(300)]], {"n": file(b"".join(b"%04d" % at for at in range(300)))}),
    simple("write-then-read-other-handle", [open_("r", "f"), open_("w", "f", RDWR), pwrite("w", b"NEW"), pread("w", b"NEWtent"), pread("r", b"NEWtent")], {"f": lowfile(b"NEWtent")}, {"f": LOW}),
    simple("write-extends-size-at-once", [open_("w", "f", RDWR), pwrite("w", b"Z", 20), fstat("w", size=21), stat("f", size=21)], {"f": lowfile(b"content".ljust(20, b"\0") + b"Z")}, {"f": LOW}),
    simple("fsync-reading-and-writing", [open_("r", "f"), fsync("r"), open_("w", "f", RDWR), pwrite("w", b"C"), fsync("w"), fsync("r")], {"f": lowfile(b"Content")}, {"f": LOW}),
    simple("fsync-of-lower-copies-nothing", [open_("r", "f"), fsync("r")], {"f": LOW}, {"f": LOW}, {"f": absent()}),
    simple("empty-file-copied-up", append_to("f", b"x"), {"f": file(b"x")}, {"f": file(b"")}),
    simple("sparse-middle-written", overwrite("f", b"mid", 5_000_000), {"f": file(b"".ljust(5_000_000, b"\0") + b"mid", size=10_000_000)}, {"f": file(size=10_000_000)}, {"f": file(b"".ljust(5_000_000, b"\0") + b"mid", size=10_000_000, sparse=True)}),
    simple("write-updates-mtime", [open_("w", "f", WRONLY), pwrite("w", b"x"), close("w"), utime("f", LATER)], {"f": file(b"x", mtime=LATER)}, {"f": file(b"y", mtime=EPOCH)}),
    simple("utime-while-open-and-dirty", [open_("w", "f", WRONLY), pwrite("w", b"x"), utime("f", LATER), close("w")], {"f": file(b"x", mtime=LATER)}, {"f": file(b"y", mtime=EPOCH)}),
]  # fmt: skip

OPEN_FILES = [
    simple("reader-before-copy-up-sees-writes", [open_("r", "f"), pread("r", b"content"), *overwrite("f", b"CHANGED"), pread("r", b"CHANGED")], {"f": lowfile(b"CHANGED")}, {"f": LOW}),
    simple("reader-before-copy-up-sees-truncation", [open_("r", "f"), truncate("f", 3), pread("r", b"con"), fstat("r", size=3)], {"f": lowfile(b"con")}, {"f": LOW}),
    simple("reader-before-copy-up-sees-chmod", [open_("r", "f"), chmod("f", 0o600), fstat("r", mode=0o100600), pread("r", b"content")], {"f": file(b"content", 0o600, 5, 6)}, {"f": LOW}),
    simple("reader-before-copy-up-by-link", [open_("r", "a"), *overwrite("b", b"CHANGED"), pread("r", b"CHANGED")], {"a": lowfile(b"CHANGED"), "b": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("unlinked-lower-file-stays-readable", [open_("h", "f"), unlink("f"), fstat("h", nlink=0, size=7), pread("h", b"content"), missing("f"), close("h")], {}, {"f": LOW}, {"f": whiteout()}),
    simple("unlinked-upper-file-stays-usable", [open_("h", "f", RDWR), unlink("f"), fstat("h", nlink=0), pwrite("h", b"NEW"), pread("h", b"NEWtent"), ftruncate("h", 2), fstat("h", size=2), close("h")], {}, upper={"f": LOW}, upper_after={"f": absent()}),
    simple("unlinked-lower-file-stays-writable", [open_("h", "f", RDWR), unlink("f"), pwrite("h", b"NEW"), pread("h", b"NEWtent"), fstat("h", nlink=0), fsync("h"), close("h"), missing("f")], {}, {"f": LOW}, {"f": whiteout()}),
    simple("unlinked-new-file-stays-usable", [create("h", "n"), pwrite("h", b"abc"), unlink("n"), pwrite("h", b"def", 3), pread("h", b"abcdef"), fstat("h", nlink=0, size=6), close("h")], {}, {}, {"n": absent()}),
    simple("unlinked-after-copy-up", [open_("h", "f", RDWR), pwrite("h", b"NEW"), unlink("f"), pread("h", b"NEWtent"), pwrite("h", b"X", 7), pread("h", b"NEWtentX"), fstat("h", nlink=0)], {}, {"f": LOW}, {"f": whiteout()}),
    simple("unlinked-one-of-two-names", [open_("h", "a"), unlink("a"), fstat("h", nlink=1), pread("h", b"content"), unlink("b"), fstat("h", nlink=0), pread("h", b"content")], {}, {"a": LOW, "b": hardlink("a")}),
    simple("name-reused-while-old-is-open", [open_("h", "f"), unlink("f"), *write_file("f", b"new"), pread("h", b"content"), read("f", b"new")], {"f": file(b"new")}, {"f": LOW}),
    simple("replaced-by-rename-while-open", [open_("h", "f"), rename("g", "f"), pread("h", b"content"), fstat("h", nlink=0), read("f", b"gg")], {"f": file(b"gg")}, {"f": LOW, "g": file(b"gg")}),
    simple("replaced-writer-does-not-touch-the-new", [open_("h", "f", RDWR), rename("g", "f"), pwrite("h", b"OLD"), pread("h", b"OLDtent"), read("f", b"gg")], {"f": file(b"gg")}, {"f": LOW, "g": file(b"gg")}),
    simple("renamed-while-open", [open_("h", "f", RDWR), rename("f", "g"), pwrite("h", b"NEW"), read("g", b"NEWtent"), fstat("h", nlink=1)], {"g": lowfile(b"NEWtent")}, {"f": LOW}),
    simple("parent-renamed-while-open", [open_("h", "d/f", RDWR), rename("d", "e"), pwrite("h", b"NEW"), read("e/f", b"NEWtent")], {"e/f": lowfile(b"NEWtent")}, {"d/f": LOW}),
    simple("parent-renamed-while-reader-open", [open_("h", "d/f"), rename("d", "e"), pread("h", b"content"), *overwrite("e/f", b"NEW"), pread("h", b"NEWtent")], {"e/f": lowfile(b"NEWtent")}, {"d/f": LOW}),
    simple("exchanged-while-open", [open_("h", "f", RDWR), rename("f", "g", EXCHANGE), pwrite("h", b"X"), read("g", b"Xontent"), read("f", b"gg")], {"g": lowfile(b"Xontent"), "f": file(b"gg")}, {"f": LOW, "g": file(b"gg")}),
    simple("mode-changed-while-open", [open_("h", "f", RDWR), chmod("f", 0), pwrite("h", b"NEW"), pread("h", b"NEWtent")], {"f": file(b"NEWtent", 0, 5, 6)}, {"f": LOW}),
    simple("two-writers", [open_("h", "f", RDWR), open_("i", "f", RDWR), pwrite("h", b"A"), pwrite("i", b"B", 1), close("h"), pwrite("i", b"C", 2), pread("i", b"ABCtent")], {"f": lowfile(b"ABCtent")}, {"f": LOW}),
    simple("writer-and-truncator", [open_("h", "f", RDWR), truncate("f", 0), pwrite("h", b"A", 3), fstat("h", size=4)], {"f": lowfile(b"\0\0\0A")}, {"f": LOW}),
    simple("file-of-an-emptied-directory", [open_("h", "d/f", RDWR), unlink("d/f"), rmdir("d"), pwrite("h", b"NEW"), pread("h", b"NEWtent"), missing("d")], {}, {"d/f": LOW}, {"d": whiteout()}),
    simple("deleted-and-linked-again-is-refused-or-right", [open_("h", "a", RDWR), unlink("a"), link("b", "c"), fstat("h", nlink=2), pwrite("h", b"X"), read("c", b"Xontent")], {"b": lowfile(b"Xontent"), "c": hardlink("b")}, {"a": LOW, "b": hardlink("a")}),
]  # fmt: skip

HARD_LINKS = [
    simple("link-of-lower-file", [link("f", "g"), stat("f", nlink=2), stat("g", nlink=2)], {"f": LOW, "g": hardlink("f")}, {"f": LOW}),
    simple("link-into-another-directory", [link("d/f", "e/g")], {"d/f": LOW, "e/g": hardlink("d/f")}, {"d/f": LOW, "e": directory()}),
    simple("link-of-upper-file", [link("f", "g")], {"f": LOW, "g": hardlink("f")}, upper={"f": LOW}),
    simple("link-then-write", [link("f", "g"), *append_to("g", b"+")], {"f": lowfile(b"content+"), "g": hardlink("f")}, {"f": LOW}),
    simple("link-then-unlink-first", [link("f", "g"), unlink("f"), stat("g", nlink=1)], {"g": LOW}, {"f": LOW}, {"f": whiteout()}),
    simple("link-twice", [link("f", "g"), link("g", "h"), stat("f", nlink=3)], {"f": LOW, "g": hardlink("f"), "h": hardlink("f")}, {"f": LOW}),
    simple("link-of-directory", [link("d", "e").fails(errno.EPERM)], {"d": directory()}, {"d": directory()}),
    simple("link-of-missing", [link("f", "g").fails(errno.ENOENT)], {}),
    simple("link-of-symlink", [link("s", "t"), readlink("t", "f")], {"s": symlink("f"), "t": hardlink("s"), "f": LOW}, {"s": symlink("f"), "f": LOW}),
    simple("link-of-fifo-and-device", [link("p", "q"), link("c", "e")], {"p": fifo(), "q": hardlink("p"), "c": char(1, 3), "e": hardlink("c")}, {"p": fifo(), "c": char(1, 3)}),
    simple("write-to-one-of-two", append_to("a", b"+"), {"a": lowfile(b"content+"), "b": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("write-to-other-of-two", append_to("b", b"+"), {"a": lowfile(b"content+"), "b": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("write-to-both-of-two", [*append_to("a", b"+"), *append_to("b", b"-")], {"a": lowfile(b"content+-"), "b": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("write-across-directories", [*append_to("d/a", b"+"), read("e/b", b"content+")], {"d/a": lowfile(b"content+"), "e/b": hardlink("d/a")}, {"d/a": LOW, "e/b": hardlink("d/a")}),
    simple("chmod-one-of-three", [chmod("b", 0o600), stat("a", mode=0o100600, nlink=3)], {"a": file(b"content", 0o600, 5, 6), "b": hardlink("a"), "d/c": hardlink("a")}, {"a": LOW, "b": hardlink("a"), "d/c": hardlink("a")}),
    simple("xattr-on-one-of-two", [setxattr("a", "user.k", b"v")], {"a": file(b"content", 0o640, 5, 6, xattrs={"user.k": b"v"}), "b": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("unlink-one-of-three", [unlink("a"), stat("b", nlink=2)], {"b": LOW, "c": hardlink("b")}, {"a": LOW, "b": hardlink("a"), "c": hardlink("a")}),
    simple("unlink-two-of-three", [unlink("a"), unlink("c"), stat("b", nlink=1)], {"b": LOW}, {"a": LOW, "b": hardlink("a"), "c": hardlink("a")}),
    simple("unlink-all", [unlink("a"), unlink("b")], {}, {"a": LOW, "b": hardlink("a")}, {"a": whiteout(), "b": whiteout()}),
    simple("write-then-unlink-one", [*append_to("a", b"+"), unlink("a"), stat("b", nlink=1)], {"b": lowfile(b"content+")}, {"a": LOW, "b": hardlink("a")}),
    simple("unlink-one-then-write", [unlink("a"), *append_to("b", b"+"), stat("b", nlink=1)], {"b": lowfile(b"content+")}, {"a": LOW, "b": hardlink("a")}),
    simple("write-then-link-more", [*append_to("a", b"+"), link("b", "c"), stat("a", nlink=3)], {"a": lowfile(b"content+"), "b": hardlink("a"), "c": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("link-more-then-write", [link("b", "c"), *append_to("c", b"+"), stat("a", nlink=3)], {"a": lowfile(b"content+"), "b": hardlink("a"), "c": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("rename-one-then-write-other", [rename("a", "c"), *append_to("b", b"+"), read("c", b"content+")], {"c": lowfile(b"content+"), "b": hardlink("c")}, {"a": LOW, "b": hardlink("a")}),
    simple("write-one-then-rename-other", [*append_to("a", b"+"), rename("b", "c"), stat("c", nlink=2)], {"a": lowfile(b"content+"), "c": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("rename-directory-of-one-then-write", [rename("d", "e"), *append_to("e/a", b"+"), read("b", b"content+")], {"e/a": lowfile(b"content+"), "b": hardlink("e/a")}, {"d/a": LOW, "b": hardlink("d/a")}),
    simple("truncate-one-of-two", [truncate("a", 0), stat("b", size=0)], {"a": lowfile(b""), "b": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("replace-one-of-two", [*write_file("n", b"new"), rename("n", "a"), stat("b", nlink=1)], {"a": file(b"new"), "b": LOW}, {"a": LOW, "b": hardlink("a")}),
    simple("delete-and-remake-one-of-two", [unlink("a"), *write_file("a", b"new"), stat("b", nlink=1)], {"a": file(b"new"), "b": LOW}, {"a": LOW, "b": hardlink("a")}),
    simple("linked-symlinks-chown", [chown("s", 7, 8), stat("t", uid=7, nlink=2)], {"s": symlink("f", 7, 8), "t": hardlink("s")}, {"s": symlink("f"), "t": hardlink("s")}),
    simple("linked-fifos-chmod", [chmod("p", 0o600), stat("q", mode=0o10600)], {"p": fifo(0o600), "q": hardlink("p")}, {"p": fifo(), "q": hardlink("p")}),
    simple("links-in-upper-stay", append_to("a", b"+"), {"a": lowfile(b"content+"), "b": hardlink("a")}, upper={"a": LOW, "b": hardlink("a")}),
    simple("exchange-two-names-of-one-inode", [rename("a", "b", EXCHANGE), stat("a", nlink=2)], {"a": LOW, "b": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    Case("links-in-the-lower-of-two-layers", [{"x": LOW}, {"a": LOW, "b": hardlink("a")}], {"x": LOW, "a": lowfile(b"content+"), "b": hardlink("a")}, append_to("b", b"+")),
    Case("many-links-one-write", [{"a00": LOW, **{f"a{at:02}": hardlink("a00") for at in range(1, 40)}}], {"a00": lowfile(b"content+"), **{f"a{at:02}": hardlink("a00") for at in range(1, 40)}}, append_to("a17", b"+")),
    *[
        Case(f"links-over-copy-up-in-{form.value}", [{"a": LOW, "b": hardlink("a"), "d/c": hardlink("a")}], {"b": lowfile(b"content+"), "d/c": hardlink("b")}, [*append_to("d/c", b"+"), unlink("a"), stat("b", nlink=2)], formats=(form,), targets=OURS)
        for form in ALL_FORMATS
    ],
]  # fmt: skip

N255, N256 = "n" * 255, "n" * 256
DEEP = "/".join(["d" * 200] * 19)
SO_DEEP = "/".join(["d" * 100] * 45)

LIMITS = [
    simple("name-of-255-bytes", [*write_file(N255, b"x"), append_to(N255, b"y")[0], close("_"), chmod(N255, 0o600), names("", N255)], {N255: file(b"x", 0o600)}),
    simple("name-of-255-bytes-in-lower", [*append_to(N255, b"y"), rename(N255, "m" * 255), unlink("m" * 255), mkdir(N255)], {N255: directory()}, {N255: file(b"x")}),
    simple("name-of-255-bytes-deleted", [unlink(N255), missing(N255)], {}, {N255: file(b"x")}),
    simple("name-of-256-bytes", [
        missing(N256, errno.ENAMETOOLONG),
        mkdir(N256).fails(errno.ENAMETOOLONG),
        mkfifo(N256).fails(errno.ENAMETOOLONG),
        create("h", N256).fails(errno.ENAMETOOLONG),
        make_symlink("t", N256).fails(errno.ENAMETOOLONG),
        link("f", N256).fails(errno.ENAMETOOLONG),
        rename("f", N256).fails(errno.ENAMETOOLONG),
        rename(N256, "g").fails(errno.ENAMETOOLONG),
        unlink(N256).fails(errno.ENAMETOOLONG),
        rmdir(N256).fails(errno.ENAMETOOLONG),
    ], {"f": LOW}, {"f": LOW}),
    simple("name-of-128-two-byte-characters", [mkdir("ä" * 127), mkdir("ä" * 128).fails(errno.ENAMETOOLONG)], {"ä" * 127: directory()}),
    simple("longest-name-is-255", [longest_name(255)], {}),
    simple("path-near-path-max", [*append_to(DEEP + "/f", b"+"), mkdir(DEEP + "/new"), rename(DEEP + "/f", DEEP + "/g")], {DEEP + "/g": lowfile(b"content+"), DEEP + "/new": directory()}, {DEEP + "/f": LOW}),
    simple("path-beyond-path-max", [*append_to(SO_DEEP + "/f", b"+"), unlink(SO_DEEP + "/g"), stat(SO_DEEP + "/f", size=8)], {SO_DEEP + "/f": lowfile(b"content+")}, {SO_DEEP + "/f": LOW, SO_DEEP + "/g": LOW}),
    simple("deep-directory-renamed", [rename("a" + "/b" * 40, "c"), *append_to("c/f", b"+")], {"a" + "/b" * 39: directory(), "c/f": lowfile(b"content+")}, {"a" + "/b" * 40 + "/f": LOW}),
    simple("odd-names-work", [mkdir("a b"), *write_file("new\nline", b"1"), make_symlink("\udcff", "\udcfe"), rename("new\nline", "tab\t"), *append_to("low\udcff", b"+"), mkfile("-"), mkfile("..."), mkfile("a:b,c\\d")], {"a b": directory(), "tab\t": file(b"1"), "\udcfe": symlink("\udcff"), "low\udcff": lowfile(b"content+"), "-": file(), "...": file(), "a:b,c\\d": file()}, {"low\udcff": LOW}),
    simple("tmpfile-is-nameless", [tmpfile("h", "d", 0o600), pwrite("h", b"abc"), pread("h", b"abc"), fstat("h", nlink=0, size=3), names("d"), close("h")], {"d": directory()}, {"d": directory()}, targets=EVERYWHERE - {PYFUSE3}),
    simple("tmpfile-gets-a-name", [tmpfile("h", "d", 0o600), pwrite("h", b"abc"), linkfd("h", "d/n"), fstat("h", nlink=1), read("d/n", b"abc"), names("d", "n")], {"d/n": file(b"abc", 0o600)}, {"d": directory()}, targets=EVERYWHERE - {PYFUSE3}),
    simple("tmpfile-obeys-umask", [tmpfile("h", "d", 0o666).by(0, 0, 0o027), linkfd("h", "d/n")], {"d/n": file(b"", 0o640)}, {"d": directory()}, targets=EVERYWHERE - {PYFUSE3}),
    simple("tmpfile-where-the-transport-cannot", [tmpfile("h", "d", 0o600).fails(errno.EOPNOTSUPP)], {"d": directory()}, {"d": directory()}, targets=frozenset({PYFUSE3})),
]  # fmt: skip

READ_ONLY = [
    Case(f"read-only-{name}", [{"f": file(b"x", xattrs={"user.k": b"v"}), "d": directory()}], {"f": file(b"x", xattrs={"user.k": b"v"}), "d": directory()}, [step.fails(errno.EROFS)], upper=None)
    for name, step in {
        "mkdir": mkdir("n"),
        "create": create("h", "n"),
        "mkfifo": mkfifo("n"),
        "symlink": make_symlink("t", "n"),
        "link": link("f", "n"),
        "unlink": unlink("f"),
        "rmdir": rmdir("d"),
        "rename": rename("f", "n"),
        "chmod": chmod("f", 0o600),
        "chown": chown("f", 1, 1),
        "utime": utime("f"),
        "truncate": truncate("f", 0),
        "setxattr": setxattr("f", "user.k", b"v"),
        "removexattr": Step("removexattr", ("f", "user.k")),
        "open-writing": open_("h", "f", RDWR),
        "open-truncating": open_("h", "f", WRONLY | TRUNC),
    }.items()
]  # fmt: skip

RESERVED = [
    Case(f"reserved-name-{what}-in-{form.value}", [{"f": LOW}], {"f": LOW}, [step.fails(errno.EPERM), missing(".wh.f"), names("", "f")], upper_after={".wh.f": absent(), ".wh..wh..opq": absent()}, formats=(form,), targets=OURS)
    for form in ALL_FORMATS
    for what, step in {
        "create": create("h", ".wh.f"),
        "mkdir": mkdir(".wh.f"),
        "mkfifo": mkfifo(".wh.f"),
        "symlink": make_symlink("t", ".wh.f"),
        "link": link("f", ".wh.f"),
        "rename": rename("f", ".wh.f"),
        "opaque": create("h", ".wh..wh..opq"),
    }.items()
]  # fmt: skip

CASES = [*OPENING, *OPEN_FILES, *HARD_LINKS, *LIMITS, *READ_ONLY, *RESERVED]
