"""rename: every source over every target, plain and with each flag."""

from __future__ import annotations

import errno

from ..case import ALL_FORMATS, OURS, Case, Step
from ..steps import (
    EXCHANGE,
    NOREPLACE,
    WHITEOUT,
    append_to,
    chmod,
    missing,
    mkdir,
    names,
    read,
    rename,
    rmdir,
    stat,
    unlink,
    write_file,
)
from ..tree import (
    Format,
    Node,
    Tree,
    absent,
    char,
    directory,
    file,
    hardlink,
    opaque_dir,
    symlink,
    whiteout,
)
from .states import BY_ID, LOW, MID, UP, State, at

SOURCES = [
    BY_ID[name]
    for name in (
        "lower-file",
        "upper-file",
        "file-over-file",
        "lower-symlink",
        "lower-empty-directory",
        "lower-full-directory",
        "lower-merged-directory",
        "upper-full-directory",
        "merged-directory",
        "merged-directory-with-whiteout",
        "opaque-directory",
        "deleted-file",
    )
]
TARGETS = [
    BY_ID[name]
    for name in (
        "absent",
        "lower-file",
        "upper-file",
        "lower-empty-directory",
        "lower-full-directory",
        "upper-empty-directory",
        "merged-directory",
        "emptied-directory",
        "deleted-file",
        "deleted-directory",
        "deleted-in-the-middle",
    )
]
NAMES = {0: "rename", NOREPLACE: "rename-noreplace", EXCHANGE: "rename-exchange", WHITEOUT: "rename-whiteout"}


def expected_errno(source: State, target: State, flags: int) -> int:
    """What rename(2) says on any filesystem; 0 for success."""
    if not source.exists:
        return errno.ENOENT
    if flags & EXCHANGE:
        return 0 if target.exists else errno.ENOENT
    if not target.exists:
        return 0
    if flags & NOREPLACE:
        return errno.EEXIST
    if source.is_directory != target.is_directory:
        return errno.ENOTDIR if source.is_directory else errno.EISDIR
    return errno.ENOTEMPTY if target.is_full else 0


def matrix_case(source: State, target: State, flags: int, old: str = "old", new: str = "new") -> Case:
    """One cell; names may lie in different directories."""
    error = expected_errno(source, target, flags) or (errno.EINVAL if flags & WHITEOUT else 0)
    step = rename(old, new, flags)
    view = {**at(old, source.visible), **at(new, target.visible)}
    after: dict[str, Node] = {}
    steps = [step.fails(error)] if error else [step]
    if not error:
        view = at(new, source.visible)
        if flags & EXCHANGE:
            view.update(at(old, target.visible))
        else:
            steps.append(missing(old))
            after[old] = whiteout() if source.shows_lower else absent()
    where = "-across" if "/" in old else ""
    return Case(
        f"{NAMES[flags]}{where}-{source.id}-to-{target.id}",
        [{**at(old, source.top), **at(new, target.top)}, {**at(old, source.bottom), **at(new, target.bottom), **KEPT}],
        {**view, **KEPT},
        steps,
        upper={**at(old, source.upper), **at(new, target.upper)},
        upper_after=after,
        formats=ALL_FORMATS,
        cell=True,
    )


def _state(name: str) -> State:
    return BY_ID[name]


FAR = "/".join(["x" * 60] * 6) + "/d"
KEPT = {"kept": LOW, "p/kept": LOW, "q/kept": LOW}


WHITEOUT_CELLS = [(source, target) for source in SOURCES[:-1] for target in TARGETS[:2]]

MATRIX = [
    *[matrix_case(source, target, 0) for source in SOURCES for target in TARGETS],
    *[matrix_case(source, target, EXCHANGE) for source in SOURCES[::2] for target in TARGETS],
    *[matrix_case(source, target, NOREPLACE) for source in SOURCES[::3] for target in TARGETS[::2]],
    *[matrix_case(source, target, NOREPLACE) for source in SOURCES[::4] for target in TARGETS[1::4]],
    *[matrix_case(source, target, WHITEOUT) for source, target in WHITEOUT_CELLS],
    *[
        matrix_case(source, target, flags, "p/old", "q/new")
        for source in SOURCES
        for target in (_state("absent"), _state("deleted-directory"), _state("lower-empty-directory"))
        for flags in (0, EXCHANGE)
    ],
]


def simple(
    name: str, steps: list[Step], view: Tree, lower: Tree, upper_after: Tree | None = None, upper: Tree | None = None
) -> Case:
    """A case over one lower layer, in every write format."""
    return Case(name, [lower], view, steps, upper or {}, upper_after or {}, formats=ALL_FORMATS)


SINGLES = [
    simple("rename-to-itself", [rename("f", "f"), rename("d", "d")], {"f": LOW, "d/g": MID}, {"f": LOW, "d/g": MID}),
    simple("rename-hard-link-to-its-twin", [rename("a", "b"), stat("a", nlink=2)], {"a": LOW, "b": hardlink("a")}, {"a": LOW, "b": hardlink("a")}),
    simple("rename-into-itself", [rename("d", "d/e").fails(errno.EINVAL)], {"d/f": LOW}, {"d/f": LOW}),
    simple("rename-over-own-parent", [rename("d/e", "d").fails(errno.ENOTEMPTY)], {"d/e/f": LOW}, {"d/e/f": LOW}),
    simple("exchange-with-own-child", [rename("d", "d/e", EXCHANGE).fails(errno.EINVAL)], {"d/e/f": LOW}, {"d/e/f": LOW}),
    simple("rename-bad-flags", [rename("f", "g", NOREPLACE | EXCHANGE).fails(errno.EINVAL)], {"f": LOW}, {"f": LOW}),
    simple("rename-missing-parent", [rename("f", "x/g").fails(errno.ENOENT)], {"f": LOW}, {"f": LOW}),
    simple("rename-below-file", [rename("f", "g/h").fails(errno.ENOTDIR)], {"f": LOW, "g": LOW}, {"f": LOW, "g": LOW}),
    simple("rename-twice", [rename("a", "b"), rename("b", "c")], {"c/f": LOW}, {"a/f": LOW}, {"a": whiteout(), "b": absent()}),
    simple("rename-and-back", [rename("a", "b"), rename("b", "a")], {"a/f": LOW}, {"a/f": LOW}),
    simple("rename-file-and-back", [rename("f", "g"), rename("g", "f")], {"f": LOW}, {"f": LOW}, {"g": absent()}),
    simple("rename-chain-of-directories", [rename("b", "c"), rename("a", "b")], {"c/2": MID, "b/1": LOW}, {"a/1": LOW, "b/2": MID}),
    simple("rename-swap-by-hand", [rename("a", "t"), rename("b", "a"), rename("t", "b")], {"a/2": MID, "b/1": LOW}, {"a/1": LOW, "b/2": MID}, {"t": absent()}),
    simple("rename-nested-then-parent", [rename("d/e", "d/g"), rename("d", "h")], {"h/g/f": LOW, "h/k": MID}, {"d/e/f": LOW, "d/k": MID}),
    simple("rename-parent-then-nested", [rename("d", "h"), rename("h/e", "h/g"), *append_to("h/g/f", b"+")], {"h/g/f": file(b"low+", 0o640, 5, 6), "h/k": MID}, {"d/e/f": LOW, "d/k": MID}),
    simple("rename-out-of-renamed", [rename("d", "h"), rename("h/e", "e")], {"e/f": LOW, "h/k": MID}, {"d/e/f": LOW, "d/k": MID}, {"d": whiteout()}),
    simple("rename-into-renamed", [rename("d", "h"), rename("x", "h/x")], {"h/k": MID, "h/x/f": LOW}, {"d/k": MID, "x/f": LOW}),
    simple("rename-then-remake-old-name", [rename("d", "h"), mkdir("d"), *write_file("d/n", b"n")], {"h/k": MID, "d/n": file(b"n")}, {"d/k": MID}, {"d": opaque_dir()}),
    simple("rename-then-remake-and-rename-again", [rename("d", "h"), mkdir("d"), rename("d", "i"), mkdir("d")], {"h/k": MID, "i": directory(), "d": directory()}, {"d/k": MID}),
    simple("rename-then-delete", [rename("d", "h"), unlink("h/k"), rmdir("h")], {}, {"d/k": MID}, {"d": whiteout(), "h": absent()}),
    simple("rename-then-delete-child", [rename("d", "h"), unlink("h/k"), names("h", "l")], {"h/l": MID}, {"d/k": MID, "d/l": MID}),
    simple("rename-then-write-child", [rename("d", "h"), *append_to("h/k", b"!")], {"h/k": file(b"middle!", 0o600)}, {"d/k": MID}),
    simple("rename-then-chmod", [rename("d", "h"), chmod("h", 0o700)], {"h": directory(0o700), "h/k": MID}, {"d/k": MID}),
    simple("write-child-then-rename", [*append_to("d/k", b"!"), rename("d", "h")], {"h/k": file(b"middle!", 0o600), "h/l": LOW}, {"d/k": MID, "d/l": LOW}, {"d": whiteout()}),
    simple("delete-child-then-rename", [unlink("d/k"), rename("d", "h"), missing("h/k")], {"h/l": LOW}, {"d/k": MID, "d/l": LOW}),
    simple("delete-target-then-rename-onto-it", [unlink("b/2"), rmdir("b"), rename("a", "b"), missing("b/2")], {"b/1": LOW}, {"a/1": LOW, "b/2": MID}),
    simple("rename-over-emptied-target", [unlink("b/2"), rename("a", "b"), missing("b/2")], {"b/1": LOW}, {"a/1": LOW, "b/2": MID}),
    simple("rename-upper-directory-over-deleted-lower", [unlink("b/2"), rmdir("b"), mkdir("n"), rename("n", "b"), names("b")], {"b": directory()}, {"b/2": MID}, {"b": opaque_dir()}),
    simple("rename-upper-file-over-deleted-lower", [unlink("b"), *write_file("n", b"n"), rename("n", "b")], {"b": file(b"n")}, {"b": LOW}, {"n": absent(), "b": file(b"n")}),
    simple("rename-file-atomically-replaces", [*write_file("f.tmp", b"new"), rename("f.tmp", "f")], {"f": file(b"new")}, {"f": LOW}, {"f": file(b"new"), "f.tmp": absent()}),
    simple("rename-keeps-metadata", [rename("f", "g")], {"g": file(b"x", 0o4711, 9, 10, xattrs={"user.k": b"v", "trusted.t": b"w"}, mtime=10**18 + 7)}, {"f": file(b"x", 0o4711, 9, 10, xattrs={"user.k": b"v", "trusted.t": b"w"}, mtime=10**18 + 7)}),
    simple("rename-directory-keeps-metadata", [rename("d", "e")], {"e": directory(0o3770, 9, 10, xattrs={"user.k": b"v"}, mtime=10**18 + 7), "e/f": LOW}, {"d": directory(0o3770, 9, 10, xattrs={"user.k": b"v"}, mtime=10**18 + 7), "d/f": LOW}),
    simple("rename-symlink-keeps-metadata", [rename("s", "t")], {"t": symlink("x", 3, 4, xattrs={"trusted.k": b"v"}, mtime=10**18 + 7)}, {"s": symlink("x", 3, 4, xattrs={"trusted.k": b"v"}, mtime=10**18 + 7)}, {"s": whiteout()}),
    simple("rename-hard-link-keeps-the-others", [rename("a", "c")], {"c": LOW, "b": hardlink("c")}, {"a": LOW, "b": hardlink("a")}, {"a": whiteout()}),
    simple("rename-over-hard-link", [rename("n", "a"), stat("b", nlink=1)], {"a": MID, "b": LOW}, {"a": LOW, "b": hardlink("a"), "n": MID}),
    simple("exchange-files", [rename("a", "b", EXCHANGE)], {"a": MID, "b": LOW}, {"a": LOW, "b": MID}, {"a": MID, "b": LOW}),
    simple("exchange-file-and-directory", [rename("f", "d", EXCHANGE), *write_file("f/n", b"n")], {"d": LOW, "f/k": MID, "f/n": file(b"n")}, {"f": LOW, "d/k": MID}),
    simple("exchange-directories-twice", [rename("a", "b", EXCHANGE), rename("a", "b", EXCHANGE)], {"a/1": LOW, "b/2": MID}, {"a/1": LOW, "b/2": MID}),
    simple("exchange-nested-directories", [rename("a/x", "b/y", EXCHANGE)], {"a/x/2": MID, "b/y/1": LOW, "a/k": UP, "b/k": UP}, {"a/x/1": LOW, "b/y/2": MID, "a/k": UP, "b/k": UP}),
    simple("rename-deep-tree", [rename("a", "z"), read("z/b/c/d/e/f", b"low"), *append_to("z/b/c/d/e/f", b"+")], {"z/b/c/d/e/f": file(b"low+", 0o640, 5, 6)}, {"a/b/c/d/e/f": LOW}),
    simple("rename-long-path-redirect", [rename("/".join(["x" * 60] * 4) + "/d", "e")], {"/".join(["x" * 60] * 4): directory(), "e/f": LOW}, {"/".join(["x" * 60] * 4) + "/d/f": LOW}),
    simple("rename-far-beyond-the-longest-redirect", [rename(FAR, "e")], {FAR.rpartition("/")[0]: directory(), "e/f": LOW}, {FAR + "/f": LOW}),
    Case("rename-name-of-255-bytes", [{"n" * 255 + "/f": LOW}], {"m" * 255 + "/f": LOW}, [rename("n" * 255, "m" * 255)], formats=(Format.OVERLAY, Format.OVERLAY_XATTR)),
    Case("rename-name-too-long-to-be-whited-out", [{"n" * 255 + "/f": LOW}], {"n" * 255 + "/f": LOW}, [rename("n" * 255, "m" * 255).fails(errno.ENAMETOOLONG)], upper_after={"m" * 255: absent()}, targets=OURS, formats=(Format.OCI,)),
    Case("rename-with-three-layers", [{"d/t": UP}, {"d/m": MID}, {"d/b": LOW}], {"e/t": UP, "e/m": MID, "e/b": LOW}, [rename("d", "e")], formats=ALL_FORMATS),
    Case("rename-directory-redirect-off", [{"d/f": LOW}], {"e/f": LOW}, [rename("d", "e")], options={"redirect_dir": "off"}),
    Case("rename-merged-directory-redirect-nofollow", [{"d/f": LOW}], {"e/f": LOW, "e/u": UP}, [rename("d", "e")], upper={"d/u": UP}, options={"redirect_dir": "nofollow"}),
    Case("rename-with-metacopy", [{"f": LOW}], {"g": LOW}, [rename("f", "g")], options={"metacopy": True}),
    Case("rename-with-metacopy-then-write", [{"f": LOW}], {"g": file(b"low+", 0o640, 5, 6)}, [rename("f", "g"), *append_to("g", b"+")], options={"metacopy": True}),
    Case("rename-directory-with-metacopy-child", [{"d/f": LOW}], {"e/f": file(b"low", 0o600, 5, 6)}, [chmod("d/f", 0o600), rename("d", "e")], options={"metacopy": True}),
    Case("rename-lower-whiteout-inside", [{"d/f": char(0, 0)}, {"d/f": LOW, "d/g": MID}], {"e/g": MID}, [rename("d", "e"), missing("e/f")], formats=ALL_FORMATS),
    Case("rename-opaque-lower", [{"d": opaque_dir(), "d/n": MID}, {"d/f": LOW}], {"e/n": MID}, [rename("d", "e"), missing("e/f")], formats=ALL_FORMATS),
]  # fmt: skip

CASES = [*MATRIX, *SINGLES]
