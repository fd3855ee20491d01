"""The same deletions, spelled in every format that some tool writes, give the same tree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.contract.case import Case
from tests.contract.play import directories
from tests.contract.targets import EngineTarget, KernelTarget, Target
from tests.contract.tree import (
    TRUSTED,
    Format,
    Node,
    Tree,
    char,
    directory,
    file,
    hardlink,
    opaque_dir,
    spell,
    symlink,
    whiteout,
)
from tests.contract.view import differences, look

LOW, MID, TOP = file(b"low", 0o640, 5, 6), file(b"middle"), file(b"top", 0o600)

TOP_LAYER: Tree = {
    "deleted": whiteout(),
    "deleted-directory": whiteout(),
    "d/deleted": whiteout(),
    "d/kept-in-middle": TOP,
    "opaque": opaque_dir(0o711, 3, 4),
    "opaque/new": TOP,
    "opaque/inner/again": TOP,
    "file-now-directory": opaque_dir(),
    "file-now-directory/x": TOP,
    "directory-now-file": TOP,
    "directory-now-link": symlink("opaque"),
}
MIDDLE_LAYER: Tree = {
    "deleted": MID,
    "d/deleted": MID,
    "d/back": MID,
    "middle-deleted": whiteout(),
    "emptied/a": whiteout(),
    "opaque/middle": MID,
}
BOTTOM_LAYER: Tree = {
    "deleted-directory/x": LOW,
    "d/deleted": LOW,
    "d/back": LOW,
    "d/stays": LOW,
    "opaque/low": LOW,
    "opaque/inner/low": LOW,
    "middle-deleted": LOW,
    "emptied/a": LOW,
    "file-now-directory": LOW,
    "directory-now-file/x": LOW,
    "directory-now-link/x": LOW,
}
VIEW: Tree = {
    "d/kept-in-middle": TOP,
    "d/back": MID,
    "d/stays": LOW,
    "opaque": directory(0o711, 3, 4),
    "opaque/new": TOP,
    "opaque/inner/again": TOP,
    "emptied": directory(),
    "file-now-directory/x": TOP,
    "directory-now-file": TOP,
    "directory-now-link": symlink("opaque"),
}


def _with_prefix(tree: Tree, prefix: str) -> dict[str, Node]:
    """The same tree with its marks under another xattr prefix."""
    spelled = {}
    for path, node in tree.items():
        marks = {name.replace(TRUSTED, prefix): value for name, value in (node.xattrs or {}).items()}
        spelled[path] = replace(node, xattrs=marks)
    return spelled


def _devices_and_fuse_overlayfs_marks(tree: Tree) -> dict[str, Node]:
    return _with_prefix(spell(tree, Format.OVERLAY), "user.fuseoverlayfs.")


SPELLINGS = {
    "devices": lambda tree: spell(tree, Format.OVERLAY),
    "xattrs": lambda tree: spell(tree, Format.OVERLAY_XATTR),
    "oci": lambda tree: spell(tree, Format.OCI),
    "devices-user-prefix": lambda tree: _with_prefix(spell(tree, Format.OVERLAY), "user.overlay."),
    "xattrs-user-prefix": lambda tree: _with_prefix(spell(tree, Format.OVERLAY_XATTR), "user.overlay."),
    "devices-fuse-overlayfs": _devices_and_fuse_overlayfs_marks,
}


def _case(*spellings: str) -> Case:
    layers = (TOP_LAYER, MIDDLE_LAYER, BOTTOM_LAYER)
    lowers = [SPELLINGS[name](layer) for name, layer in zip(spellings, layers, strict=True)]
    return Case("spelled", lowers, VIEW)


def _differences(case: Case, target: Target, **options: object) -> list[str]:
    with (
        directories(case, Format.OVERLAY) as places,
        target.mounted(places, Format.OVERLAY, options) as client,
    ):
        return differences(case.view, look(client))


@pytest.mark.parametrize("user_xattr", [False, True])
@pytest.mark.parametrize("top", SPELLINGS)
@pytest.mark.parametrize("middle", SPELLINGS)
def test_we_read_every_mixture_of_spellings(top: str, middle: str, user_xattr: bool) -> None:
    assert not _differences(_case(top, middle, "devices"), EngineTarget(), user_xattr=user_xattr)


@pytest.mark.parametrize("spelling", ["devices", "xattrs"])
def test_kernel_agrees_on_the_spellings_it_knows(spelling: str) -> None:
    assert not _differences(_case(spelling, spelling, spelling), KernelTarget())


@pytest.mark.parametrize("spelling", ["devices-user-prefix", "xattrs-user-prefix"])
def test_kernel_with_userxattr_agrees_on_the_user_prefix(spelling: str) -> None:
    assert not _differences(_case(spelling, spelling, spelling), KernelTarget(), user_xattr=True)


@pytest.mark.parametrize("user_xattr", [False, True])
@pytest.mark.parametrize("target", [EngineTarget(), KernelTarget()], ids=["ours", "kernel"])
def test_in_an_upper_only_the_prefix_of_the_mount_counts(target: Target, user_xattr: bool) -> None:
    """What is spelled with the other prefix is shown, and hides nothing."""
    own, other = ("user.overlay.", TRUSTED) if user_xattr else (TRUSTED, "user.overlay.")
    lower: Tree = {"own/gone": LOW, "other/kept": LOW, "here/kept": LOW}
    planted: Tree = {
        "other": directory(xattrs={other + "opaque": b"y"}),
        "here": directory(xattrs={other + "opaque": b"x"}),
        "here/kept": file(xattrs={other + "whiteout": b"y"}),
    }
    upper: Tree = {"own": directory(xattrs={own + "opaque": b"y"}), **planted}
    view: Tree = {"own": directory(), **planted, "other/kept": LOW}
    assert not _differences(Case("upper", [lower], view, upper=upper), target, user_xattr=user_xattr)


@pytest.mark.parametrize("spelling", ["oci", "devices-user-prefix", "devices-fuse-overlayfs"])
def test_kernel_does_not_know_the_other_spellings(spelling: str) -> None:
    """The negative control: these trees do differ unless their marks are read."""
    assert _differences(_case(spelling, spelling, spelling), KernelTarget())


@pytest.mark.parametrize("form", list(Format), ids=lambda form: form.value)
def test_an_upper_of_ours_can_be_a_lower_layer(form: Format) -> None:
    """What we write in one mount is a layer of the next, in whatever format the next one writes."""
    case = Case("stacked", [BOTTOM_LAYER], VIEW, upper=TOP_LAYER)
    with directories(case, form) as places:
        with EngineTarget().mounted(places, form, {}) as client:
            expected = look(client)
        lowers = (places.upper or b"", *places.lowers)
        stacked = type(places)(places.base, lowers, (), b"u2", b"w2", b"m")
        stacked.make()
        with EngineTarget().mounted(stacked, Format.OVERLAY, {}) as client:
            seen = look(client)
    assert {path: entry.data for path, entry in seen.items()} == {path: entry.data for path, entry in expected.items()}
    assert seen.keys() == expected.keys()


def test_whiteouts_as_the_layer_tools_write_them() -> None:
    """podman hard-links one whiteout device for all; the kernel does too."""
    case = Case("linked", [{"a": char(0, 0), "b": hardlink("a")}, {"a": LOW, "b": LOW, "c": LOW}], {"c": LOW})
    assert not _differences(case, EngineTarget())
