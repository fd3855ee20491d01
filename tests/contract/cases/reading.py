"""What a stack of layers shows: merging, and every spelling of every mark."""

from __future__ import annotations

import errno
import struct

from ..case import OURS, Case, Step
from ..steps import append_to, chmod, getxattr, listxattr, missing, names, read, removexattr, rename, stat, unlink
from ..tree import (
    TRUSTED,
    Node,
    Tree,
    block,
    char,
    directory,
    fifo,
    file,
    hardlink,
    opaque_dir,
    socket,
    symlink,
    whiteout,
    x_dir,
    xattr_whiteout,
)

A, B, C = file(b"aaa"), file(b"bb"), file(b"c")
USER = "user.overlay."
FUSE = "user.fuseoverlayfs."
REDIRECT, METACOPY, OPAQUE = TRUSTED + "redirect", TRUSTED + "metacopy", TRUSTED + "opaque"


def redirected(target: str, mode: int = 0o755) -> Node:
    """A directory that says where the layers below have it."""
    return directory(mode, xattrs={REDIRECT: target.encode(errors="surrogateescape")})


def metadata_only(size: int, mode: int = 0o644, redirect: str | None = None, value: bytes = b"") -> Node:
    """A file whose data is in a layer below."""
    marks = {METACOPY: value}
    if redirect is not None:
        marks[REDIRECT] = redirect.encode()
    return file(b"", mode, size=size, xattrs=marks)


def metadata_of(prefix: str, redirect: str) -> Node:
    """An empty file that would show another one's data, were the prefix the mount's own."""
    return file(size=3, xattrs={prefix + "metacopy": b"", prefix + "redirect": redirect.encode()})


def planted(prefix: str) -> Tree:
    """What a user of a mount may leave in its upper, with marks of a prefix that is not the mount's own."""
    return {
        "d": directory(xattrs={prefix + "opaque": b"y"}),
        "r": directory(xattrs={prefix + "redirect": b"/old"}),
        "m": metadata_of(prefix, "/old/a"),
        "w": directory(xattrs={prefix + "opaque": b"x"}),
        "w/f": file(xattrs={prefix + "whiteout": b"y"}),
        "p": file(xattrs={prefix + "protattr": b"i", prefix + "overlayfs.number": b"12345678"}),
    }


MERGING = [
    Case("one-lower", [{"f": A, "d/g": B}], {"f": A, "d/g": B}),
    Case("one-lower-read-only", [{"f": A, "d/g": B}], {"f": A, "d/g": B}, upper=None),
    Case("two-lowers-read-only", [{"f": A}, {"f": B, "g": C}], {"f": A, "g": C}, upper=None),
    Case("empty-everything", [{}], {}),
    Case("empty-over-full", [{}, {"f": A}], {"f": A}),
    Case("upper-hides-lower", [{"f": A}], {"f": B}, upper={"f": B}),
    Case("three-lowers-top-wins", [{"f": A}, {"f": B}, {"f": C}], {"f": A}),
    Case(
        "directories-merge",
        [{"d/a": A}, {"d/b": B}, {"d/c": C}],
        {"d/a": A, "d/b": B, "d/c": C, "d/u": A},
        upper={"d/u": A},
    ),
    Case(
        "merged-directory-has-top-attributes",
        [{"d": directory(0o711, 7, 8), "d/a": A}, {"d": directory(0o777), "d/b": B}],
        {"d": directory(0o711, 7, 8), "d/a": A, "d/b": B},
    ),
    Case(
        "merged-directory-has-top-xattrs",
        [{"d": directory(xattrs={"user.k": b"top"})}, {"d": directory(xattrs={"user.l": b"low"})}],
        {"d": directory(xattrs={"user.k": b"top"})},
    ),
    Case("file-hides-directory", [{"d": A}, {"d/b": B}], {"d": A}),
    Case("directory-hides-file", [{"d/a": A}, {"d": B}], {"d/a": A}),
    Case("file-between-directories", [{"d/a": A}, {"d": B}, {"d/c": C}], {"d/a": A}),
    Case("symlink-hides-directory", [{"d": symlink("x")}, {"d/b": B}], {"d": symlink("x")}),
    Case("directory-hides-symlink", [{"d/a": A}, {"d": symlink("x")}, {"d/c": C}], {"d/a": A}),
    Case("fifo-hides-directory", [{"d": fifo()}, {"d/b": B}], {"d": fifo()}),
    Case("deep-merge", [{"a/b/c/d": A}, {"a/b/c/e": B}], {"a/b/c/d": A, "a/b/c/e": B}),
    Case("file-deep-in-path-hides", [{"a/b": A}, {"a/b/c/e": B}], {"a/b": A}),
    Case("lookup-below-file-is-enotdir", [{"f": A}], {"f": A}, [missing("f/x", errno.ENOTDIR)]),
    Case("lookup-of-nothing", [{"f": A}], {"f": A}, [missing("g"), missing("g/h")]),
    Case("root-attributes-of-top-lower", [{"": directory(0o750, 3, 4)}], {"": directory(0o750, 3, 4)}, upper=None),
    Case(
        "root-attributes-of-upper",
        [{"": directory(0o750, 3, 4)}],
        {"": directory(0o711, 5, 6)},
        upper={"": directory(0o711, 5, 6)},
    ),
    Case(
        "every-kind-in-a-lower",
        [
            {
                "f": file(b"x" * 5000, 0o6755, 1000, 1001),
                "d": directory(0o3777, 12, 13),
                "s": symlink("target", 5, 6),
                "p": fifo(0o600, 1, 2),
                "k": socket(0o700, 3, 4),
                "c": char(1, 3, 0o666),
                "b": block(7, 200, 0o660, 0, 6),
            }
        ],
        {
            "f": file(b"x" * 5000, 0o6755, 1000, 1001),
            "d": directory(0o3777, 12, 13),
            "s": symlink("target", 5, 6),
            "p": fifo(0o600, 1, 2),
            "k": socket(0o700, 3, 4),
            "c": char(1, 3, 0o666),
            "b": block(7, 200, 0o660, 0, 6),
        },
    ),
    Case(
        "hard-links-in-a-lower",
        [{"a": A, "b": hardlink("a"), "d/c": hardlink("a")}],
        {"a": A, "b": hardlink("a"), "d/c": hardlink("a")},
    ),
    Case("hard-linked-symlinks", [{"a": symlink("x"), "b": hardlink("a")}], {"a": symlink("x"), "b": hardlink("a")}),
    Case(
        "odd-names",
        [
            {
                "a b": A,
                "new\nline": A,
                "\udcff\udcfe": A,
                "d\u00e4/\u4e16": A,
                "-": A,
                ".hidden": A,
                "...": A,
                "a\\:b,c": A,
            }
        ],
        {
            "a b": A,
            "new\nline": A,
            "\udcff\udcfe": A,
            "d\u00e4/\u4e16": A,
            "-": A,
            ".hidden": A,
            "...": A,
            "a\\:b,c": A,
        },
    ),
    Case(
        "times-in-nanoseconds",
        [{"f": file(b"", mtime=1_234_567_890_123_456_789), "d": directory(mtime=987_654_321_000_000_001)}],
        {"f": file(b"", mtime=1_234_567_890_123_456_789), "d": directory(mtime=987_654_321_000_000_001)},
    ),
    Case("times-before-1970", [{"f": file(b"", mtime=-1_500_000_000)}], {"f": file(b"", mtime=-1_500_000_000)}),
    Case(
        "symlink-times",
        [{"s": symlink("x", mtime=1_111_111_111_222_222_222)}],
        {"s": symlink("x", mtime=1_111_111_111_222_222_222)},
    ),
    Case(
        "equal-inode-numbers-on-two-filesystems",
        [{"a": A}, {"b": B}, {"c": C}],
        {"a": A, "b": file(b"bb!"), "c": file(b"c?")},
        [read("a", b"aaa"), read("b", b"bb"), *append_to("b", b"!"), *append_to("c", b"?")],
        separate_filesystems=True,
    ),
]

WHITEOUTS = [
    Case("whiteout-in-a-lower", [{"f": char(0, 0)}, {"f": A, "g": B}], {"g": B}, [missing("f"), names("", "g")]),
    Case("whiteout-read-only", [{"f": char(0, 0)}, {"f": A}], {}, upper=None),
    Case("whiteout-of-directory", [{"d": char(0, 0)}, {"d/a": A}], {}, [missing("d/a")]),
    Case("whiteout-of-nothing", [{"f": char(0, 0)}, {}], {}, [missing("f")]),
    Case("whiteout-in-merged-directory", [{"d/a": char(0, 0)}, {"d/a": A, "d/b": B}], {"d/b": B}),
    Case("whiteout-then-file-above", [{"f": C}, {"f": char(0, 0)}, {"f": A}], {"f": C}),
    Case("whiteout-then-directory-above", [{"d/c": C}, {"d": char(0, 0)}, {"d/a": A}], {"d/c": C}),
    Case("whiteout-below-visible", [{"f": A}, {"f": char(0, 0)}], {"f": A}),
    Case("whiteout-in-the-lowest", [{}, {"f": char(0, 0), "g": B}], {"g": B}),
    Case(
        "whiteouts-hard-linked",
        [{"f": char(0, 0), "g": hardlink("f"), "h": hardlink("f")}, {"f": A, "g": A, "h": A, "i": A}],
        {"i": A},
    ),
    Case("whiteout-with-mode", [{"f": char(0, 0, 0o666, 5, 5)}, {"f": A}], {}),
    Case("device-0-1-is-no-whiteout", [{"f": char(0, 1)}, {"f": A}], {"f": char(0, 1)}),
    Case("block-0-0-is-no-whiteout", [{"f": block(0, 0)}, {"f": A}], {"f": block(0, 0)}),
    Case("xattr-whiteout", [{"": x_dir(), "f": xattr_whiteout()}, {"f": A, "g": B}], {"g": B}, [missing("f")]),
    Case(
        "xattr-whiteout-in-directory",
        [{"d": x_dir(), "d/f": xattr_whiteout(), "d/n": C}, {"d/f": A, "d/g": B}],
        {"d/g": B, "d/n": C},
        [missing("d/f")],
    ),
    Case(
        "xattr-whiteout-value-ignored",
        [{"d": x_dir(), "d/f": file(b"", xattrs={TRUSTED + "whiteout": b"no"})}, {"d/f": A}],
        {"d": directory()},
    ),
    Case(
        "xattr-whiteout-of-directory",
        [{"d": x_dir(), "d/e": xattr_whiteout()}, {"d/e/a": A, "d/g": B}],
        {"d/g": B},
        [missing("d/e/a")],
    ),
    Case(
        "non-empty-file-is-no-xattr-whiteout",
        [{"d": x_dir(), "d/f": file(b"z", xattrs={TRUSTED + "whiteout": b"y"})}, {"d/f": A}],
        {"d/f": file(b"z")},
    ),
    Case("empty-file-in-x-directory", [{"d": x_dir(), "d/f": file(b"")}, {"d/f": A}], {"d/f": file(b"")}),
    Case(
        "user-xattr-whiteout",
        [{"": x_dir(USER), "f": xattr_whiteout(USER)}, {"f": A, "g": B}],
        {"g": B},
        [missing("f")],
        targets=OURS,
    ),
    Case("oci-whiteout", [{".wh.f": file(b"")}, {"f": A, "g": B}], {"g": B}, [missing("f"), missing(".wh.f")], targets=OURS),
    Case("oci-whiteout-of-directory", [{".wh.d": file(b"")}, {"d/a": A}], {}, [missing("d")], targets=OURS),
    Case("oci-whiteout-in-directory", [{"d/.wh.a": file(b"")}, {"d/a": A, "d/b": B}], {"d/b": B}, targets=OURS),
    Case("oci-whiteout-of-nothing", [{".wh.x": file(b"")}, {"g": B}], {"g": B}, targets=OURS),
    Case("oci-whiteout-beside-file", [{".wh.f": file(b""), "f": C}, {"f": A}], {"f": C}, targets=OURS),
    Case(
        "oci-whiteout-beside-directory",
        [{".wh.d": file(b""), "d/c": C}, {"d/a": A}],
        {"d/c": C},
        targets=OURS,
    ),
    Case(
        "oci-whiteout-beside-directory-below-visible",
        [{"d/u": A}, {".wh.d": file(b""), "d/c": C}, {"d/a": A}],
        {"d/u": A, "d/c": C},
        targets=OURS,
    ),
    Case("oci-whiteout-in-the-lowest", [{"g": B}, {".wh.g": file(b""), ".wh.x": file(b"")}], {"g": B}, targets=OURS),
    Case("oci-whiteout-in-upper", [{"f": A, "g": B}], {"g": B}, upper={".wh.f": file(b"")}, targets=OURS),
    Case("oci-whiteout-with-content-and-mode", [{".wh.f": file(b"x", 0o600, 5, 5)}, {"f": A}], {}, targets=OURS),
    Case("oci-whiteout-of-long-name", [{".wh." + "n" * 251: file(b"")}, {"n" * 251: A}], {}, targets=OURS),
    Case("aufs-leftovers-are-hidden", [{".wh..wh.aufs": file(b""), ".wh..wh.plnk/x": A, ".wh..wh.orph": directory(), "f": B}], {"f": B}, [missing(".wh..wh.plnk"), missing(".wh..wh.aufs")], targets=OURS),
    Case("oci-bare-prefix-means-nothing", [{".wh.": file(b""), "f": B}, {"g": A}], {"f": B, "g": A}, [missing(".wh.")], targets=OURS),
    Case("whiteouts-of-three-spellings", [{"a": char(0, 0), ".wh.b": file(b""), "": x_dir(), "c": xattr_whiteout()}, {"a": A, "b": A, "c": A, "d": A}], {"d": A}, targets=OURS),
    Case("whiteout-in-upper", [{"f": A, "g": B}], {"g": B}, upper={"f": whiteout()}),
    Case("whiteout-in-upper-of-directory", [{"d/f": A, "g": B}], {"g": B}, upper={"d": whiteout()}),
    Case("whiteouts-in-upper-of-everything", [{"d/f": A, "d/g": B}], {"d": directory()}, upper={"d/f": whiteout(), "d/g": whiteout()}),
]  # fmt: skip

OPAQUES = [
    Case("opaque", [{"d": opaque_dir(), "d/a": A}, {"d/b": B}], {"d/a": A}, [missing("d/b"), names("d", "a")]),
    Case("opaque-empty", [{"d": opaque_dir()}, {"d/b": B}], {"d": directory()}),
    Case("opaque-read-only", [{"d": opaque_dir(), "d/a": A}, {"d/b": B}], {"d/a": A}, upper=None),
    Case("opaque-hides-all-below", [{"d": opaque_dir()}, {"d/b": B}, {"d/c": C}], {"d": directory()}),
    Case("opaque-in-the-middle", [{"d/a": A}, {"d": opaque_dir(), "d/b": B}, {"d/c": C}], {"d/a": A, "d/b": B}),
    Case("opaque-hides-deep", [{"d": opaque_dir(), "d/e/a": A}, {"d/e/b": B}], {"d/e/a": A}),
    Case("opaque-of-a-parent-only", [{"d/e": opaque_dir()}, {"d/e/b": B, "d/c": C}], {"d/e": directory(), "d/c": C}),
    Case("opaque-in-upper", [{"d/b": B}], {"d/a": A}, upper={"d": opaque_dir(), "d/a": A}),
    Case("opaque-over-file", [{"d": opaque_dir(), "d/a": A}, {"d": B}], {"d/a": A}),
    Case("opaque-n-is-transparent", [{"d": directory(xattrs={OPAQUE: b"n"}), "d/a": A}, {"d/b": B}], {"d/a": A, "d/b": B}),
    Case("opaque-yy-is-transparent", [{"d": directory(xattrs={OPAQUE: b"yy"})}, {"d/b": B}], {"d/b": B}),
    Case("opaque-empty-value-is-transparent", [{"d": directory(xattrs={OPAQUE: b""})}, {"d/b": B}], {"d/b": B}),
    Case("opaque-x-is-transparent", [{"d": x_dir(), "d/a": A}, {"d/b": B}], {"d/a": A, "d/b": B}),
    Case("opaque-user-prefix", [{"d": directory(xattrs={USER + "opaque": b"y"}), "d/a": A}, {"d/b": B}], {"d/a": A}, targets=OURS),
    Case("opaque-fuse-prefix", [{"d": directory(xattrs={FUSE + "opaque": b"y"}), "d/a": A}, {"d/b": B}], {"d/a": A}, targets=OURS),
    Case("opaque-oci", [{"d/.wh..wh..opq": file(b""), "d/a": A}, {"d/b": B}], {"d/a": A}, [missing("d/.wh..wh..opq")], targets=OURS),
    Case("opaque-oci-root", [{".wh..wh..opq": file(b""), "a": A}, {"b": B}], {"a": A}, targets=OURS),
    Case("opaque-oci-in-the-middle", [{"d/a": A}, {"d/.wh..wh..opq": file(b"")}, {"d/c": C}], {"d/a": A}, targets=OURS),
    Case("opaque-oci-and-whiteout", [{"d/.wh..wh..opq": file(b""), "d/.wh.b": file(b""), "d/a": A}, {"d/b": B}], {"d/a": A}, targets=OURS),
    Case("opaque-oci-in-upper", [{"d/b": B}], {"d/a": A}, upper={"d/.wh..wh..opq": file(b""), "d/a": A}, targets=OURS),
    Case("whiteout-in-opaque-directory-is-ignored", [{"d": opaque_dir(), "d/b": char(0, 0), "d/a": A}, {"d/b": B}], {"d/a": A}, [missing("d/b")]),
    Case("root-opaque-in-upper", [{"b": B}], {"a": A, "b": B}, upper={"": directory(xattrs={OPAQUE: b"y"}), "a": A}),
    Case("opaque-oci-root-of-upper", [{"b": B}], {"a": A}, upper={".wh..wh..opq": file(b""), "a": A}, targets=OURS),
]  # fmt: skip

REDIRECTS = [
    Case("redirect-absolute", [{"new": redirected("/old"), "old": char(0, 0)}, {"old/a": A}], {"new/a": A}),
    Case("redirect-same-parent", [{"d/new": redirected("old"), "d/old": char(0, 0)}, {"d/old/a": A}], {"d/new/a": A}),
    Case("redirect-in-upper", [{"old/a": A}], {"new/a": A, "new/u": B}, upper={"new": redirected("old"), "new/u": B, "old": char(0, 0)}),
    Case("redirect-to-another-parent", [{"x/new": redirected("/y/old"), "y/old": char(0, 0)}, {"y/old/a": A, "y/b": B}], {"x/new/a": A, "y/b": B}),
    Case("redirect-merges-below", [{"new": redirected("/old"), "new/n": C, "old": char(0, 0)}, {"old/a": A}, {"old/b": B}], {"new/n": C, "new/a": A, "new/b": B}),
    Case("redirect-whiteouts-inside", [{"new": redirected("/old"), "new/a": char(0, 0), "old": char(0, 0)}, {"old/a": A, "old/b": B}], {"new/b": B}),
    Case("redirect-chain", [{"c": redirected("/b"), "b": char(0, 0)}, {"b": redirected("/a"), "b/m": B, "a": char(0, 0)}, {"a/x": A}], {"c/m": B, "c/x": A}),
    Case("redirect-to-missing", [{"new": redirected("/old"), "new/n": C}, {"z": A}], {"new/n": C, "z": A}),
    Case("redirect-to-file", [{"new": redirected("/old"), "new/n": C, "old": char(0, 0)}, {"old": A}], {"new/n": C}),
    Case("redirect-nested", [{"n": redirected("/o"), "n/m": redirected("/o/p"), "o": char(0, 0), "n/p": char(0, 0)}, {"o/p/a": A, "o/b": B}], {"n/m/a": A, "n/b": B}),
    Case("redirect-under-redirected-parent", [{"n/k/x": C, "n": redirected("/o"), "o": char(0, 0)}, {"o/k/a": A}], {"n/k/x": C, "n/k/a": A}),
    Case("redirect-opaque-in-lower-stops", [{"new": redirected("/old"), "old": char(0, 0)}, {"old": opaque_dir(), "old/a": A}, {"old/b": B}], {"new/a": A}),
    Case("redirect-replaced-by-new-directory", [{"new": redirected("/old"), "old": opaque_dir(), "old/z": B}, {"old/a": A}], {"new/a": A, "old/z": B}),
    Case("redirect-long", [{"new": redirected("/" + "/".join(["x" * 50] * 5)), "x" * 50: char(0, 0)}, {"/".join(["x" * 50] * 5) + "/a": A}], {"new/a": A}),
    Case("redirect-is-hidden", [{"new": redirected("/old"), "old": char(0, 0)}, {"old/a": A}], {"new/a": A}, [listxattr("new")]),
    Case("redirect-user-prefix", [{"new": directory(xattrs={USER + "redirect": b"/old"}), "old": char(0, 0)}, {"old/a": A}], {"new": directory(xattrs={USER + "redirect": b"/old"})}),
    Case("redirect-user-prefix-on-the-way", [{"d": redirected("/e"), "e": char(0, 0)}, {"e": directory(xattrs={USER + "redirect": b"/old"})}, {"old/a": A, "e/b": B}], {"d/b": B, "old/a": A}),
    Case("redirect-swapped-names", [{"a": redirected("b"), "b": redirected("a")}, {"a/1": A, "b/2": B}], {"a/2": B, "b/1": A}),
]  # fmt: skip

BAD_REDIRECTS = [
    Case(f"redirect-bad-{name}", [{"d": directory(xattrs={REDIRECT: value}), "z": C}, {"d/a": A, "secret/s": B}], {}, [missing("d", errno.EIO), read("z", b"c"), names("", "d", "secret", "z")], targets=OURS, upper=None, unreadable=errno.EIO)
    for name, value in {
        "dotdot": b"/../secret",
        "relative-dotdot": b"..",
        "inner-dotdot": b"/d/../secret",
        "relative-with-slash": b"secret/s",
        "empty": b"",
        "slash": b"/",
        "double-slash": b"//secret",
        "trailing-slash": b"/secret/",
        "nul": b"/sec\0ret",
        "too-long": b"/" + b"a" * 300,
    }.items()
]  # fmt: skip

METACOPIES = [
    Case("metacopy", [{"f": metadata_only(3, 0o600)}, {"f": A}], {"f": file(b"aaa", 0o600)}, options={"metacopy": True}),
    Case("metacopy-read-only", [{"f": metadata_only(3, 0o600)}, {"f": A}], {"f": file(b"aaa", 0o600)}, upper=None, options={"metacopy": True}),
    Case("metacopy-redirect", [{"g": metadata_only(3, 0o600, "/f"), "f": char(0, 0)}, {"f": A}], {"g": file(b"aaa", 0o600)}, options={"metacopy": True}),
    Case("metacopy-redirect-same-parent", [{"d/g": metadata_only(3, 0o600, "f"), "d/f": char(0, 0)}, {"d/f": A}], {"d/g": file(b"aaa", 0o600)}, options={"metacopy": True}),
    Case("metacopy-chain", [{"f": metadata_only(3, 0o600)}, {"f": metadata_only(3, 0o640)}, {"f": A}], {"f": file(b"aaa", 0o600)}, options={"metacopy": True}),
    Case("metacopy-in-upper", [{"f": A}], {"f": file(b"aaa", 0o604)}, upper={"f": metadata_only(3, 0o604)}, options={"metacopy": True}),
    Case("metacopy-with-header", [{"f": metadata_only(3, 0o600, value=struct.pack("BBBB", 0, 4, 0, 0))}, {"f": A}], {"f": file(b"aaa", 0o600)}, options={"metacopy": True}),
    Case("metacopy-written-to", [{"f": metadata_only(3, 0o600)}, {"f": A}], {"f": file(b"aaa+", 0o600)}, append_to("f", b"+"), options={"metacopy": True}),
    Case("metacopy-in-upper-written-to", [{"f": A}], {"f": file(b"aaa+", 0o604)}, append_to("f", b"+"), upper={"f": metadata_only(3, 0o604)}, upper_after={"f": file(b"aaa+", 0o604)}, options={"metacopy": True}),
    Case("metacopy-unlinked", [{"f": metadata_only(3, 0o600)}, {"f": A}], {}, [unlink("f")], upper_after={"f": whiteout()}, options={"metacopy": True}),
    Case("metacopy-chmod", [{"f": metadata_only(3, 0o600)}, {"f": A}], {"f": file(b"aaa", 0o644)}, [chmod("f", 0o644)], options={"metacopy": True}),
    Case("metacopy-data-only", [{"f": metadata_only(3, 0o600, "/blob")}], {"f": file(b"aaa", 0o600)}, data_lowers=[{"blob": A, "other": B}], options={"metacopy": True}),
    Case("metacopy-two-data-layers", [{"f": metadata_only(3, 0o600, "/b/1"), "g": metadata_only(2, 0o644, "/b/2")}], {"f": file(b"aaa", 0o600), "g": B}, data_lowers=[{"b/1": A}, {"b/2": B, "b/1": C}], options={"metacopy": True}),
    Case("metacopy-data-only-read-only", [{"f": metadata_only(3, 0o600, "/blob")}], {"f": file(b"aaa", 0o600)}, upper=None, data_lowers=[{"blob": A}], options={"metacopy": True}),
    Case("metacopy-data-only-written-to", [{"f": metadata_only(3, 0o600, "/blob")}], {"f": file(b"aaa++", 0o600)}, append_to("f", b"++"), data_lowers=[{"blob": A}], options={"metacopy": True}),
    Case("metacopy-data-only-in-upper", [{"f": metadata_only(3, 0o600, "/blob")}], {"g": file(b"aaa", 0o640)}, upper={"g": metadata_only(3, 0o640, "/f"), "f": char(0, 0)}, data_lowers=[{"blob": A}], options={"metacopy": True}),
    Case("metacopy-data-only-renamed", [{"f": metadata_only(3, 0o600, "/blob")}], {"g": file(b"aaa", 0o600)}, [rename("f", "g")], data_lowers=[{"blob": A}], options={"metacopy": True}),
    Case("metacopy-data-only-missing", [{"f": metadata_only(3, 0o600, "/blob")}], {}, [stat("f", size=3, blocks=8), Step("content", ("f",)).fails(errno.ENOENT)], data_lowers=[{"other": B}], unreadable=errno.ENOENT, options={"metacopy": True}),
    Case("metacopy-data-only-missing-in-upper", [{"g": A}], {}, [Step("content", ("f",)).fails(errno.EIO)], upper={"f": metadata_only(3, 0o600, "/blob")}, data_lowers=[{"other": B}], unreadable=errno.EIO, options={"metacopy": True}),
    Case("data-only-layer-is-not-merged", [{"f": A}], {"f": A}, [missing("blob")], data_lowers=[{"blob": A, "f": B}], options={"metacopy": True}),
    Case("metacopy-is-hidden", [{"f": metadata_only(3)}, {"f": A}], {"f": A}, [listxattr("f")], options={"metacopy": True}),
    Case("metacopy-without-data", [{"f": metadata_only(3)}, {"g": A}], {}, [Step("content", ("f",)).fails(errno.EIO), read("g", b"aaa")], upper=None, unreadable=errno.EIO, options={"metacopy": True}),
]  # fmt: skip

XATTRS = [
    Case("escaped-xattr", [{"d": directory(xattrs={TRUSTED + "overlay.opaque": b"y"}), "d/a": A}, {"d/b": B}], {"d": directory(xattrs={OPAQUE: b"y"}), "d/a": A, "d/b": B}, [getxattr("d", OPAQUE, b"y")]),
    Case("escaped-twice", [{"f": file(b"", xattrs={TRUSTED + "overlay.overlay.metacopy": b""})}], {"f": file(b"", xattrs={TRUSTED + "overlay.metacopy": b""})}),
    Case("escaped-user-xattr", [{"d": directory(xattrs={USER + "overlay.opaque": b"y"})}, {"d/b": B}], {"d": directory(xattrs={USER + "overlay.opaque": b"y"}), "d/b": B}),
    Case("escaped-user-xattr-of-userxattr", [{"d": directory(xattrs={USER + "overlay.opaque": b"y"})}, {"d/b": B}], {"d": directory(xattrs={USER + "opaque": b"y"}), "d/b": B}, options={"user_xattr": True}),
    Case("escaped-trusted-xattr-of-userxattr", [{"d": directory(xattrs={TRUSTED + "overlay.opaque": b"y"})}, {"d/b": B}], {"d": directory(xattrs={TRUSTED + "overlay.opaque": b"y"}), "d/b": B}, options={"user_xattr": True}),
    Case("bookkeeping-is-hidden", [{"f": file(b"", xattrs={TRUSTED + name: b"y" for name in ("impure", "nlink", "uuid", "protattr")} | {"user.seen": b"1"})}], {"f": file(b"", xattrs={"user.seen": b"1"})}, [getxattr("f", TRUSTED + "impure", b"").fails(errno.ENODATA)]),
    Case("fuse-marks-are-hidden", [{"d": directory(xattrs={FUSE + "opaque": b"y"})}], {"d": directory()}, [getxattr("d", FUSE + "opaque", b"").fails(errno.ENODATA)], targets=OURS),
    Case("bogus-origin-is-ignored", [{"f": file(b"q", xattrs={TRUSTED + "origin": b"\xff" * 30})}], {"f": file(b"q")}, upper=None),
    Case("xattrs-of-lower-files", [{"f": file(b"", xattrs={"user.a": b"1", "user.b": b"", "trusted.c": b"\0\xff", "security.e": b"5"})}], {"f": file(b"", xattrs={"user.a": b"1", "user.b": b"", "trusted.c": b"\0\xff", "security.e": b"5"})}),
    Case("capability-of-a-lower-file", [{"f": file(b"", 0o755, xattrs={"security.capability": struct.pack("<IIIII", 0x02000001, 1024, 0, 0, 0)})}], {"f": file(b"", 0o755, xattrs={"security.capability": struct.pack("<IIIII", 0x02000001, 1024, 0, 0, 0)})}),
    Case("xattrs-of-a-lower-symlink", [{"s": symlink("f", xattrs={"trusted.k": b"link"}), "f": file(b"", xattrs={"trusted.k": b"file"})}], {"s": symlink("f", xattrs={"trusted.k": b"link"}), "f": file(b"", xattrs={"trusted.k": b"file"})}, [getxattr("s", "trusted.k", b"link")]),
    Case("large-xattr", [{"f": file(b"", xattrs={"user.big": b"v" * 60000})}], {"f": file(b"", xattrs={"user.big": b"v" * 60000})}),
    Case("many-xattrs", [{"f": file(b"", xattrs={f"user.n{at:03}": b"v" for at in range(200)})}], {"f": file(b"", xattrs={f"user.n{at:03}": b"v" for at in range(200)})}),
]  # fmt: skip

# Marks under the other prefix than the mount's own: in an upper, and where they lead elsewhere, they are data.
OTHER_PREFIX = [
    case
    for own, other in ((TRUSTED, USER), (USER, TRUSTED))
    for which, options in ((other.partition(".")[0], {"metacopy": True, "user_xattr": own == USER}),)
    for case in (
        Case(f"{which}-marks-in-upper-are-data", [{"d/b": B, "r/b": B, "old/a": A, "m": A, "w/f": A, "p": A}], {**planted(other), "d/b": B, "r/b": B, "old/a": A}, upper=planted(other), steps=[chmod("p", 0o600), chmod("p", 0o644), listxattr("d", other + "opaque")], upper_after={"p": planted(other)["p"]}, options=options),
        Case(f"{which}-metacopy-below-is-data", [{"m": metadata_of(other, "/secret")}, {"m": B, "secret": A}], {"m": metadata_of(other, "/secret"), "secret": A}, options=options),
        Case(f"{which}-bookkeeping-below-is-data", [{"f": file(b"", xattrs={other + name: b"y" for name in ("impure", "nlink", "origin", "protattr", "overlayfs.number")})}], {"f": file(b"", xattrs={other + name: b"y" for name in ("impure", "nlink", "origin", "protattr", "overlayfs.number")})}, options=options),
        Case(f"{which}-opaque-below-hides-and-is-hidden", [{"d": directory(xattrs={other + "opaque": b"y"}), "d/a": A}, {"d/b": B}], {"d": directory(0o711), "d/a": A}, [listxattr("d"), getxattr("d", other + "opaque", b"").fails(errno.ENODATA), removexattr("d", other + "opaque").fails(errno.ENODATA), chmod("d", 0o711), listxattr("d")], upper_after={"d": directory(0o711)}, targets=OURS, options=options),
        Case(f"{which}-whiteout-below-hides", [{"d": directory(xattrs={other + "opaque": b"x"}), "d/a": file(xattrs={other + "whiteout": b"y"})}, {"d/a": A, "d/b": B}], {"d/b": B}, targets=OURS, options=options),
    )
]  # fmt: skip

OVERRIDES = [
    Case(f"override-{name}-{key}", [{"": directory(xattrs={key: b"0:0:755:dir"}), "f": file(b"x", 0o600, 1, 1, xattrs={key: value})}], {"f": node}, targets=OURS, options={"xattr_permissions": 2 if key.startswith("user") else 1}, upper=None)
    for key in ("user.containers.override_stat", "user.fuseoverlayfs.override_stat", "security.fuseoverlayfs.override_stat")
    for name, value, node in (
        ("plain", b"1000:1001:4755", file(b"x", 0o4755, 1000, 1001)),
        ("typed", b"5:6:640:file", file(b"x", 0o640, 5, 6)),
        ("fifo", b"0:0:600:pipe", fifo(0o600)),
        ("socket", b"0:0:700:socket", socket(0o700)),
        ("char", b"0:6:666:char-1-3", char(1, 3, 0o666, 0, 6)),
        ("block", b"0:6:660:block-8-1", block(8, 1, 0o660, 0, 6)),
    )
]  # fmt: skip

# a file in every tenth layer only: a client that forgets each lookup has all of them read again for each name
SPREAD = {f"only/{at:03}": file(b"%d" % at) for at in range(0, 500, 10)}
MANY_LAYERS = [
    Case(
        "five-hundred-layers",
        [
            {"shared": file(b"%d" % at), **({f"only/{at:03}": SPREAD[f"only/{at:03}"]} if at % 10 == 0 else {})}
            for at in range(500)
        ],
        {**SPREAD, "shared": file(b"0")},
        [stat("only/250", size=3), missing("only/500")],
    )
]

CASES = [
    *MERGING,
    *WHITEOUTS,
    *OPAQUES,
    *REDIRECTS,
    *BAD_REDIRECTS,
    *METACOPIES,
    *XATTRS,
    *OTHER_PREFIX,
    *OVERRIDES,
    *MANY_LAYERS,
]
