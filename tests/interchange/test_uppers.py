"""An upper written by us mounts in the kernel's overlayfs with the same tree, and the other way round."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.contract.case import ENGINE, KERNEL, Case, Step
from tests.contract.cases import CASES
from tests.contract.differences import KERNEL_DIFFERENCES
from tests.contract.play import directories, run
from tests.contract.steps import (
    EXCHANGE,
    append_to,
    chmod,
    chown,
    link,
    make_symlink,
    mkdir,
    mkfifo,
    names,
    rename,
    rmdir,
    setxattr,
    stat,
    truncate,
    unlink,
    write_file,
)
from tests.contract.targets import Directories, EngineTarget, KernelTarget, Target
from tests.contract.tree import TRUSTED, Format, Tree, directory, fifo, file, hardlink, symlink
from tests.contract.view import differences, look

_OUR_FORMATS = (Format.OVERLAY, Format.OVERLAY_XATTR)
# the kernel does not read layers as these cases leave them, or its own steps end elsewhere
_SHARED_CASES = [
    case
    for case in CASES
    if {ENGINE, KERNEL} <= case.targets and case.steps and case.upper is not None and not case.unreadable
    if case.id not in KERNEL_DIFFERENCES
]
_EVERY = 6
# Deleting one name of a hard-linked lower file copies nothing up: the kernel, which would have copied it, keeps the
# count in the copy and so cannot know ours. As a lower layer, an upper has no index to tell it of links at all.
_LINKS_ONLY_WE_KNOW = {
    ("rename-over-hard-link", Format.OVERLAY),
    ("rename-over-hard-link", Format.OVERLAY_XATTR),
    ("rename-hard-link-keeps-the-others", Format.OVERLAY_XATTR),
    ("unlink-one-of-three", Format.OVERLAY),
    ("unlink-two-of-three", Format.OVERLAY),
    ("replace-one-of-two", Format.OVERLAY),
    ("delete-and-remake-one-of-two", Format.OVERLAY),
}


def _some_by_default(forms: Sequence[Format]) -> list[object]:
    """All cases in the long run, one of a few by default."""
    chosen = [(case, form) for case in _SHARED_CASES for form in forms if form in case.formats]
    return [
        pytest.param(case, form, marks=[] if at % _EVERY == 0 else [pytest.mark.long], id=f"{case.id}-{form.value}")
        for at, (case, form) in enumerate(chosen)
    ]


def _shows(target: Target, case: Case, places: Directories, form: Format) -> list[str]:
    """How the tree that the target shows differs from the case's."""
    if target.name == KERNEL and form is Format.OVERLAY_XATTR:
        # the kernel honours whiteouts that are xattrs in lower layers only
        places = replace(places, lowers=(places.upper or b"", *places.lowers), upper=None)
    with target.mounted(places, form, case.options) as client:
        return differences(case.view, look(client))


def _change(target: Target, case: Case, places: Directories, form: Format) -> None:
    with target.mounted(places, form, case.options) as client:
        run(case, client)


@pytest.mark.parametrize(("case", "form"), _some_by_default(_OUR_FORMATS))
def test_kernel_reads_what_we_have_written(case: Case, form: Format) -> None:
    with directories(case, form) as places:
        _change(EngineTarget(), case, places, form)
        lines = _shows(KernelTarget(), case, places, form)
    if (case.id, form) in _LINKS_ONLY_WE_KNOW:
        assert lines
        lines = [line for line in lines if "nlink is" not in line and "not one inode" not in line]
    assert not lines


@pytest.mark.parametrize(("case", "form"), _some_by_default([Format.OVERLAY]))
def test_we_read_what_the_kernel_has_written(case: Case, form: Format) -> None:
    with directories(case, form) as places:
        _change(KernelTarget(), case, places, form)
        assert not _shows(EngineTarget(), case, places, form)


LOW = file(b"low", 0o640, 5, 6)
LOWERS: list[Tree] = [
    {"top/a": LOW, "both/t": LOW, "links/a": file(b"linked"), "links/b": hardlink("links/a")},
    {"both/b": LOW, "deep/x/y/z": LOW, "s": symlink("top/a"), "p": fifo(), "gone/f": LOW, "full/1": LOW, "full/2": LOW},
]
# each stage starts from what the stages before have left
STAGES: list[tuple[list[Step], Tree]] = [
    (
        [
            *append_to("top/a", b"+1"),
            rename("both", "renamed"),
            *append_to("links/a", b"+1"),
            unlink("gone/f"),
            rmdir("gone"),
            mkdir("gone"),
            chmod("deep/x/y/z", 0o600),
            make_symlink("new", "t"),
        ],
        {
            "top/a": file(b"low+1", 0o640, 5, 6),
            "renamed/t": LOW,
            "renamed/b": LOW,
            "links/a": file(b"linked+1"),
            "links/b": hardlink("links/a"),
            "gone": directory(),
            "deep/x/y/z": file(b"low", 0o600, 5, 6),
            "s": symlink("top/a"),
            "t": symlink("new"),
            "p": fifo(),
            "full/1": LOW,
            "full/2": LOW,
        },
    ),
    (
        [
            *append_to("links/b", b"+2"),
            link("links/b", "links/c"),
            rename("renamed", "deep/x/again"),
            unlink("deep/x/again/t"),
            *write_file("gone/n", b"new"),
            rename("s", "t", EXCHANGE),
            mkfifo("q"),
            setxattr("top", "user.k", b"v"),
        ],
        {
            "top": directory(xattrs={"user.k": b"v"}),
            "top/a": file(b"low+1", 0o640, 5, 6),
            "links/a": file(b"linked+1+2"),
            "links/b": hardlink("links/a"),
            "links/c": hardlink("links/a"),
            "gone/n": file(b"new"),
            "deep/x/y/z": file(b"low", 0o600, 5, 6),
            "deep/x/again/b": LOW,
            "t": symlink("top/a"),
            "s": symlink("new"),
            "p": fifo(),
            "q": fifo(),
            "full/1": LOW,
            "full/2": LOW,
        },
    ),
    (
        [
            unlink("links/a"),
            stat("links/c", nlink=2),
            rename("deep", "d"),
            *append_to("d/x/again/b", b"+3"),
            names("d/x/again", "b"),
            unlink("full/1"),
            unlink("full/2"),
            rename("gone", "full"),
            truncate("top/a", 2),
            chown("p", 7, 8),
        ],
        {
            "top": directory(xattrs={"user.k": b"v"}),
            "top/a": file(b"lo", 0o640, 5, 6),
            "links/b": file(b"linked+1+2"),
            "links/c": hardlink("links/b"),
            "full/n": file(b"new"),
            "d/x/y/z": file(b"low", 0o600, 5, 6),
            "d/x/again/b": file(b"low+3", 0o640, 5, 6),
            "t": symlink("top/a"),
            "s": symlink("new"),
            "p": fifo(0o644, 7, 8),
            "q": fifo(),
        },
    ),
]


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours-first", "kernel-first"])
def test_both_take_turns_on_one_upper(ours_first: bool) -> None:
    form = Format.OVERLAY
    whole = Case("turns", LOWERS, {})
    with directories(whole, form) as places:
        for turn, (steps, view) in enumerate(STAGES):
            case = replace(whole, steps=steps, view=view)
            writer, reader = EngineTarget(), KernelTarget()
            if (turn % 2 == 0) is not ours_first:
                writer, reader = reader, writer  # type: ignore[assignment]
            _change(writer, case, places, form)
            assert not _shows(writer, case, places, form), f"the writer, turn {turn}"
            assert not _shows(reader, case, places, form), f"the reader, turn {turn}"


# Each moves something that came from below into a directory that the lower layers do not have.
_INTO_NEW_DIRECTORIES: dict[str, list[Step]] = {
    "file": [mkdir("new"), rename("f", "new/f")],
    "file-copied-up-before": [*append_to("f", b"+"), mkdir("new"), rename("f", "new/f")],
    "file-over-another": [mkdir("new"), *write_file("new/f", b"y"), rename("f", "new/f")],
    "exchanged-file": [mkdir("new"), *write_file("new/f", b"y"), rename("new/f", "f", EXCHANGE)],
    "link": [mkdir("new"), link("f", "new/f")],
    "link-of-linked": [mkdir("new"), link("d/one", "new/f")],
    "merged-directory": [mkdir("new"), rename("d", "new/d")],
    "symlink": [mkdir("new"), rename("s", "new/s")],
    "new-directory-with-file": [mkdir("new"), mkdir("new/in"), rename("f", "new/in/f"), rename("new/in", "d/in")],
}
_LOW: Tree = {"f": file(b"x"), "s": symlink("t"), "d/one": file(b"1"), "d/two": hardlink("d/one")}


@pytest.mark.parametrize("steps", _INTO_NEW_DIRECTORIES.values(), ids=_INTO_NEW_DIRECTORIES)
def test_kernel_lists_the_numbers_it_gives_in_our_upper(steps: Sequence[Step]) -> None:
    case = Case("", [_LOW], {}, steps)
    with directories(case, Format.OVERLAY) as places:
        _change(EngineTarget(), case, places, Format.OVERLAY)
        with KernelTarget().mounted(places, Format.OVERLAY, {}) as client:
            view = look(client)
    assert {path: seen.listed_ino for path, seen in view.items()} == {
        path: seen.attributes.ino for path, seen in view.items()
    }


def test_a_directory_of_new_files_is_not_marked_as_one_of_copies() -> None:
    steps = [mkdir("new"), *write_file("a", b"x"), rename("a", "new/a"), mkdir("b"), rename("b", "new/b")]
    case = Case("", [_LOW], {}, steps)
    with directories(case, Format.OVERLAY) as places:
        _change(EngineTarget(), case, places, Format.OVERLAY)
        assert places.upper is not None
        assert TRUSTED + "impure" not in os.listxattr(os.path.join(places.at(places.upper), b"new"))
