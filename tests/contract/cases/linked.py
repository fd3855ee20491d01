"""Hard links and whole copies under the options that change where a copy lies and what it holds."""

from __future__ import annotations

from typing import Any

from ..case import ENGINE, OURS, Case, Step
from ..steps import (
    EXCHANGE,
    RDWR,
    append_to,
    chmod,
    close,
    fstat,
    fsync,
    getxattr,
    link,
    missing,
    mkdir,
    mkfile,
    names,
    open_,
    overwrite,
    pread,
    pwrite,
    read,
    rename,
    rmdir,
    stat,
    truncate,
    unlink,
    utime,
)
from ..tree import Format, Tree, absent, directory, fifo, file, hardlink, opaque_dir, symlink, whiteout

LOW = file(b"content", 0o640, 5, 6)
TWO: Tree = {"a": LOW, "b": hardlink("a")}
IN_D: Tree = {"D/a": LOW, "D/b": hardlink("D/a"), "D/s/c": hardlink("D/a"), "out": hardlink("D/a")}
IN_E: Tree = {"E/a": LOW, "E/b": hardlink("E/a"), "E/s/c": hardlink("E/a"), "out": hardlink("E/a")}
METACOPY: dict[str, Any] = {"metacopy": True}
WHOLE_COPY: dict[str, Any] = {"redirect_dir": "off"}
NO_INDEX: dict[str, Any] = {"index": False}
ENGINE_ONLY = frozenset({ENGINE})
# linux/capability.h: struct vfs_cap_data, revision 2, effective; CAP_NET_RAW
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
LONG = "d" * 120
FAR = f"{LONG}/{LONG}/{'e' * 20}"


def over(
    name: str,
    options: dict[str, Any],
    lower: Tree,
    steps: list[Step],
    view: Tree,
    upper: Tree | None = None,
    **more: Any,
) -> Case:
    """A case of ours over one lower layer."""
    return Case(name, [lower], view, steps, upper or {}, targets=more.pop("targets", OURS), options=options, **more)


METACOPIES = [
    over("metacopy-of-two-read-by-the-other", METACOPY, TWO, [chmod("a", 0o600), read("b", b"content")], {"a": file(b"content", 0o600, 5, 6), "b": hardlink("a")}),
    over("metacopy-of-two-written-by-the-other", METACOPY, TWO, [chmod("a", 0o600), *overwrite("b", b"CON"), read("a", b"CONtent")], {"a": file(b"CONtent", 0o600, 5, 6), "b": hardlink("a")}),
    over("metacopy-of-two-moved-then-read-by-the-other", METACOPY, TWO, [rename("a", "c"), read("b", b"content")], {"c": LOW, "b": hardlink("c")}),
    over("metacopy-of-two-with-one-name-left", METACOPY, TWO, [unlink("b"), chmod("a", 0o600), *overwrite("a", b"NEW"), stat("a", nlink=1)], {"a": file(b"NEWtent", 0o600, 5, 6)}),
    over("metacopy-of-two-truncated", METACOPY, TWO, [chmod("a", 0o600), truncate("b", 3)], {"a": file(b"con", 0o600, 5, 6), "b": hardlink("a")}),
    over("metacopy-of-two-open-while-its-name-goes", METACOPY, TWO, [open_("h", "a", RDWR), chmod("a", 0o600), unlink("a"), pwrite("h", b"NEW"), read("b", b"NEWtent")], {"b": file(b"NEWtent", 0o600, 5, 6)}),
    over("metacopy-open-while-its-only-name-goes", METACOPY, {"a": LOW}, [open_("h", "a", RDWR), chmod("a", 0o600), unlink("a"), pwrite("h", b"NEW"), pread("h", b"NEWtent")], {}),
    over("metacopy-of-two-linked-keeps-capability", METACOPY, {"a": file(b"content", 0o4755, xattrs={"security.capability": CAPABILITY}), "b": hardlink("a")}, [utime("a"), link("a", "c"), getxattr("b", "security.capability", CAPABILITY)], {"a": file(b"content", 0o4755, xattrs={"security.capability": CAPABILITY}), "b": hardlink("a"), "c": hardlink("a")}),
    over("metacopy-moved-where-redirects-are-not-followed", {"metacopy": True, "redirect_dir": "nofollow"}, {"a": LOW, "b": file(b"other")}, [chmod("a", 0o600), unlink("b"), rename("a", "b")], {"b": file(b"content", 0o600, 5, 6)}),
    over("metacopies-in-a-whole-copy", {"metacopy": True, "redirect_dir": "off"}, IN_D, [chmod("D/a", 0o600), rename("D", "E"), *append_to("out", b"+")], {**IN_E, "E/a": file(b"content+", 0o600, 5, 6)}),
]  # fmt: skip

WHOLE_COPIES = [
    over("whole-copy-of-linked-files", WHOLE_COPY, IN_D, [rename("D", "E"), names("E", "a", "b", "s")], IN_E),
    over("whole-copy-of-linked-files-as-oci", {}, IN_D, [rename("D", "E"), names("E", "a", "b", "s")], IN_E, formats=(Format.OCI,)),
    over("whole-copy-of-linked-files-far-below", {}, {f"{FAR}/a": LOW, f"{FAR}/b": hardlink(f"{FAR}/a")}, [rename(FAR, "E")], {f"{LONG}/{LONG}": directory(), "E/a": LOW, "E/b": hardlink("E/a")}),
    over("whole-copy-of-linked-files-then-written", WHOLE_COPY, IN_D, [rename("D", "E"), *append_to("out", b"+"), read("E/s/c", b"content+")], {**IN_E, "E/a": file(b"content+", 0o640, 5, 6)}),
    over("whole-copy-after-writing-one-of-the-links", WHOLE_COPY, IN_D, [*append_to("D/s/c", b"+"), rename("D", "E")], {**IN_E, "E/a": file(b"content+", 0o640, 5, 6)}),
    over("whole-copy-of-linked-symlinks", WHOLE_COPY, {"D/s": symlink("x"), "D/t": hardlink("D/s")}, [rename("D", "E")], {"E/s": symlink("x"), "E/t": hardlink("E/s")}),
    over("whole-copy-exchanged", WHOLE_COPY, {**IN_D, "F/x": LOW}, [rename("D", "F", EXCHANGE)], {"F/a": LOW, "F/b": hardlink("F/a"), "F/s/c": hardlink("F/a"), "out": hardlink("F/a"), "D/x": LOW}),
    over("whole-copy-with-deletions", WHOLE_COPY, {**IN_D, "D/gone": LOW}, [unlink("D/gone"), unlink("D/a"), rename("D", "E"), missing("E/gone")], {"E/b": LOW, "E/s/c": hardlink("E/b"), "out": hardlink("E/b")}),
]  # fmt: skip

OPEN_WITHOUT_ITS_NAME = [
    Case("write-through-a-name-that-went", [TWO], {"b": file(b"NEWtent", 0o640, 5, 6)}, [open_("h", "a", RDWR), unlink("a"), pwrite("h", b"NEW"), fsync("h"), read("b", b"NEWtent"), *append_to("b", b"+"), pread("h", b"NEWtent+"), truncate("b", 7)]),
    Case("write-through-a-name-that-was-replaced", [{**TWO, "n": file(b"n")}], {"a": file(b"n"), "b": file(b"NEWtent", 0o640, 5, 6)}, [open_("h", "a", RDWR), rename("n", "a"), pwrite("h", b"NEW"), stat("b", nlink=1)]),
    Case("write-through-a-name-that-went-then-move-the-other", [TWO], {"c": file(b"NEWtent", 0o640, 5, 6)}, [open_("h", "a", RDWR), unlink("a"), pwrite("h", b"NEW"), rename("b", "c"), fstat("h", nlink=1)]),
    Case("link-in-the-upper-met-after-its-other-name-went", [{}], {"y": file(b"TWO!", 0o640, 5, 6)}, [open_("h", "x", RDWR), unlink("x"), read("y", b"one"), pwrite("h", b"TWO!"), stat("y", size=4), read("y", b"TWO!")], {"x": file(b"one", 0o640, 5, 6), "y": hardlink("x")}),
    Case("link-in-the-upper-met-and-linked-again", [{}], {"y": file(b"one"), "z": hardlink("y")}, [open_("h", "x", RDWR), unlink("x"), stat("y", nlink=1), link("y", "z"), fstat("h", nlink=2)], {"x": file(b"one"), "y": hardlink("x")}),
    Case("removed-directory-that-is-open", [{"d": directory()}], {}, [Step("opendir", ("h", "d")), rmdir("d"), missing("d"), mkdir("d"), rmdir("d")]),
]  # fmt: skip

WITHOUT_INDEX = [
    over("no-index-names-that-are-not-known-stay-below", NO_INDEX, TWO, [*append_to("a", b"+"), read("b", b"content"), unlink("a"), read("b", b"content")], {"b": file(b"content", 0o640, 5, 6, nlink=2)}, targets=ENGINE_ONLY),
    over("no-index-names-that-are-known-stay-linked", NO_INDEX, TWO, [open_("i", "a"), open_("h", "b", RDWR), pwrite("h", b"NEW"), pread("i", b"NEWtent"), unlink("a"), read("b", b"NEWtent")], {"b": file(b"NEWtent", 0o640, 5, 6)}, targets=ENGINE_ONLY),
    over("no-index-write-through-a-name-that-went", NO_INDEX, TWO, [open_("h", "a", RDWR), unlink("a"), pwrite("h", b"NEW"), read("b", b"content"), pread("h", b"NEWtent"), close("h")], {"b": file(b"content", 0o640, 5, 6, nlink=1)}, targets=ENGINE_ONLY),
    over("no-index-whole-copy", {**NO_INDEX, **WHOLE_COPY}, {"D/a": LOW, "D/b": hardlink("D/a")}, [rename("D", "E"), read("E/a", b"content"), read("E/b", b"content")], {"E/a": file(b"content", 0o640, 5, 6, nlink=1), "E/b": file(b"content", 0o640, 5, 6, nlink=1)}, targets=ENGINE_ONLY),
]  # fmt: skip

ONE_LINK_SHOWN = [
    over("static-nlink-deleting-one-of-two", {"static_nlink": True}, TWO, [*append_to("a", b"+"), open_("h", "a"), unlink("a"), read("b", b"content+"), *append_to("b", b"+"), pread("h", b"content++")], {"b": file(b"content++", 0o640, 5, 6, nlink=1)}),
    over("static-nlink-completing-a-metacopy-of-two", {"static_nlink": True, **METACOPY}, TWO, [chmod("a", 0o600), *append_to("a", b"+"), read("b", b"content+"), unlink("b")], {"a": file(b"content+", 0o600, 5, 6, nlink=1)}),
]  # fmt: skip

# Names in an upper that mean something to OCI readers, but are not what we would write.
ODD_MARKS = [
    over("fifo-for-a-whiteout", {}, {"f": LOW}, [unlink("f"), missing("f")], {}, {"f": LOW, ".wh.f": fifo()}, formats=(Format.OCI,)),
    over("fifo-for-an-opaque-mark", {}, {"d/x": LOW}, [mkfile("d/n"), rename("d", "e"), names("e", "n")], {"e/n": file(b"")}, {"d/.wh..wh..opq": fifo()}, formats=(Format.OCI,)),
    over("rename-over-a-directory-with-an-opaque-mark", {}, {"z": LOW}, [rename("src", "tgt")], {"z": LOW, "tgt/in": LOW}, {"src/in": LOW, "tgt/.wh..wh..opq": file(b"")}, formats=(Format.OVERLAY, Format.OVERLAY_XATTR, Format.OCI)),
    over("rename-over-a-directory-with-leftovers", {}, {"tgt/old": LOW}, [rename("src", "tgt"), names("tgt", "in")], {"tgt/in": LOW}, {"src/in": LOW, "tgt/.wh..wh.plnk/x": LOW, "tgt/.wh..wh..opq": file(b"")}, formats=(Format.OVERLAY, Format.OVERLAY_XATTR, Format.OCI)),
    over("rename-over-a-remade-directory", {}, {"tgt/old": LOW}, [unlink("tgt/old"), rmdir("tgt"), mkdir("tgt"), mkdir("src"), mkdir("src/in"), rename("src", "tgt")], {"tgt/in": directory()}, upper_after={"src": absent(), "tgt": opaque_dir()}, formats=(Format.OVERLAY, Format.OVERLAY_XATTR, Format.OCI)),
    over("rename-over-a-remade-directory-then-delete-it", {}, {"tgt/old": LOW, "src/x": LOW}, [unlink("tgt/old"), rename("src", "tgt"), unlink("tgt/x"), rmdir("tgt"), mkdir("tgt"), names("tgt")], {"tgt": directory()}, upper_after={"src": whiteout()}, formats=(Format.OVERLAY, Format.OVERLAY_XATTR, Format.OCI)),
]  # fmt: skip

THREE: Tree = {"a": LOW, "d/b": hardlink("a"), "e/c": hardlink("a")}


def copies(content: bytes, *paths: str) -> Tree:
    return {path: file(content, 0o640, 5, 6) for path in paths}


# Who reads the upper alone (tar, an engine) finds a file under every name by which it was changed.
UPPER_ALONE = [
    Case("every-name-that-is-written-is-in-the-upper", [THREE], {**THREE, "a": file(b"content123", 0o640, 5, 6)}, [*append_to("a", b"1"), *append_to("d/b", b"2"), *append_to("e/c", b"3"), stat("a", nlink=3)], {}, copies(b"content123", "a", "d/b", "e/c")),
    Case("every-name-that-is-changed-is-in-the-upper", [THREE], {**THREE, "a": file(b"con", 0o600, 5, 6)}, [chmod("a", 0o600), utime("d/b"), truncate("e/c", 3)], {}, {path: file(b"con", 0o600, 5, 6) for path in ("a", "d/b", "e/c")}),
    Case("name-that-is-not-used-is-not-in-the-upper", [THREE], {**THREE, "a": file(b"content12", 0o640, 5, 6)}, [*append_to("a", b"1"), *append_to("d/b", b"2")], {}, {**copies(b"content12", "a", "d/b"), "e/c": absent()}),
    Case("name-that-is-only-read-is-not-in-the-upper", [THREE], {**THREE, "a": file(b"content1", 0o640, 5, 6)}, [*append_to("a", b"1"), read("d/b", b"content1")], {}, {**copies(b"content1", "a"), "d/b": absent()}),
    Case("every-name-that-is-written-but-for-a-deleted-one", [THREE], {"a": file(b"content12", 0o640, 5, 6), "d": directory(), "e/c": hardlink("a")}, [*append_to("a", b"1"), unlink("d/b"), *append_to("e/c", b"2"), stat("a", nlink=2)], {}, {**copies(b"content12", "a", "e/c"), "d/b": whiteout()}),
]  # fmt: skip

CASES: list[Case] = [
    *METACOPIES,
    *WHOLE_COPIES,
    *OPEN_WITHOUT_ITS_NAME,
    *WITHOUT_INDEX,
    *ONE_LINK_SHOWN,
    *ODD_MARKS,
    *UPPER_ALONE,
]
