"""The view of layers as they lie on disk is the tree that the engine and the kernel's overlayfs show."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from overlayfs.overlay.engine import Overlay
from overlayfs.overlay.layer import Location, open_layer
from overlayfs.overlay.options import OverlayOptions
from overlayfs.overlay.provenance import trace
from overlayfs.overlay.view import Node as Place
from overlayfs.overlay.view import View
from overlayfs.tree.syscalls import unmount
from tests.contract.tree import TRUSTED, Node, Tree, build, char, directory, file, opaque_dir, symlink

NAMES = ("a", "b", "c")
REDIRECT = TRUSTED + "redirect"
BELOW: Tree = {"c": directory(), "c/a": file(b"x")}


def test_errors_name_the_file_in_its_layer(tmp_path: Path) -> None:
    bad = directory(xattrs={REDIRECT: b"../.."})
    build(os.fsencode(tmp_path / "upper"), {"": directory(), "d": directory(), "d/e": bad})
    layers = [open_layer(0, os.fsencode(tmp_path / "upper"))]
    try:
        with pytest.raises(OSError, match="redirect") as caught:
            View(layers).find(b"d/e/f")
        assert caught.value.filename == os.fsencode(tmp_path / "upper/d/e")
        (tmp_path / "upper/d/e").rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError) as missing:
            View(layers).names(Location(0, b"d/e"))
        assert missing.value.filename == os.fsencode(tmp_path / "upper/d/e")
    finally:
        os.close(layers[0].root_fd)


redirects = st.sampled_from([b"a", b"b", b"/a", b"/b/c", b"/a/b", b"/c"])
files = st.builds(file, st.binary(min_size=1, max_size=3))
leaves = st.one_of(files, st.just(char(0, 0, 0)), st.just(symlink("a")))
directories = st.one_of(
    st.just(directory()),
    st.just(opaque_dir()),
    st.builds(lambda value: directory(xattrs={REDIRECT: value}), redirects),
)


@st.composite
def layer(draw: st.DrawFn, depth: int = 3, *, oci: bool = False) -> dict[str, Node]:
    """One directory of a layer and all below it: few names, so that layers meet."""
    tree: dict[str, Node] = {}
    for name in draw(st.sets(st.sampled_from(NAMES), max_size=3)):
        if depth and draw(st.booleans()):
            tree[name] = draw(directories)
            below = draw(layer(depth - 1, oci=oci))
            tree.update({f"{name}/{path}": node for path, node in below.items()})
        else:
            tree[name] = draw(leaves)
    if oci:
        for name in draw(st.sets(st.sampled_from([*NAMES, ".wh..opq"]), max_size=1)):
            beside = tree.get(name)
            if beside is None or REDIRECT not in (beside.xattrs or {}):  # no writer makes both
                tree[f".wh.{name}"] = file()
    return tree


Seen = dict[str, tuple[int, bytes]]


def seen_by_view(view: View) -> Seen:
    def walk(node: Place) -> Iterator[tuple[str, tuple[int, bytes]]]:
        version = view.version(node)
        content = version.target or b""
        if version.data is not None:
            fd = view.open(version.data, os.O_RDONLY)
            content = os.read(fd, 100)
            os.close(fd)
        yield os.fsdecode(node.path), (stat.S_IFMT(version.stat.mode), content)
        for name, child in view.children(node).items() if node.is_directory else ():
            yield from walk(view.node(node, name, child))

    return dict(walk(view.root()))


def seen_by_engine(overlay: Overlay) -> Seen:
    def walk(number: int, path: str) -> Iterator[tuple[str, tuple[int, bytes]]]:
        attributes = overlay.getattr(number)
        content = b""
        if stat.S_ISREG(attributes.mode):
            content = overlay.read(number, 0, 100)
        elif stat.S_ISLNK(attributes.mode):
            content = overlay.readlink(number)
        yield path, (stat.S_IFMT(attributes.mode), content)
        if stat.S_ISDIR(attributes.mode):
            handle = overlay.opendir(number)
            names = [entry.name for entry in overlay.readdir(handle, 0)]
            overlay.releasedir(handle)
            for name in names:
                if name not in (b".", b".."):
                    child = overlay.lookup(number, name).ino
                    yield from walk(child, f"{path}/{os.fsdecode(name)}".lstrip("/"))

    return dict(walk(1, ""))


def seen_by_kernel(mountpoint: Path) -> Seen:
    seen: Seen = {}
    for path in (mountpoint, *mountpoint.rglob("*")):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue  # a directory of one layer alone is listed as it is, whiteouts included; they are not there
        content = b""
        if stat.S_ISREG(mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(mode):
            content = os.readlink(os.fsencode(path))
        name = "" if path == mountpoint else str(path.relative_to(mountpoint))
        seen[name] = (stat.S_IFMT(mode), content)
    return seen


def trees_of(top: Path, lowers: list[Tree]) -> list[bytes]:
    paths = [os.fsencode(top / str(number)) for number in range(len(lowers))]
    for path, tree in zip(paths, lowers, strict=True):
        build(path, {"": directory(), **tree})
    return paths


def view_of(paths: list[bytes]) -> tuple[View, Seen, dict[str, bool]]:
    """The view, what it shows, and what `trace` says of every path that any layer has."""
    opened = [open_layer(number, path) for number, path in enumerate(paths)]
    try:
        view = View(opened)
        seen = seen_by_view(view)
        asked = set(seen)
        for path in paths:
            root = Path(os.fsdecode(path))
            asked |= {str(found.relative_to(root)) for found in root.rglob("*")}
        return view, seen, {name: trace(os.fsencode(name), opened).provider is not None for name in asked}
    finally:
        for one in opened:
            os.close(one.root_fd)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lowers=st.lists(layer(oci=True), min_size=1, max_size=3))
@example(lowers=[{"b": directory(xattrs={REDIRECT: b"/c"})}, {".wh..wh..opq": file()}, BELOW])
@example(lowers=[{"b": directory(xattrs={REDIRECT: b"/c"}), ".wh..wh..opq": file()}, BELOW])
@example(lowers=[{"c": directory(xattrs={REDIRECT: b"/c"}), ".wh..wh..opq": file()}, BELOW])
def test_view_and_engine_show_the_same(lowers: list[Tree]) -> None:
    with tempfile.TemporaryDirectory() as top:
        paths = trees_of(Path(top), lowers)
        _, seen, provided = view_of(paths)
        overlay = Overlay.open(OverlayOptions(lowers=tuple(paths)))
        try:
            assert seen == seen_by_engine(overlay)
        finally:
            overlay.close()
        assert {name for name, there in provided.items() if there} == set(seen)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lowers=st.lists(layer(), min_size=2, max_size=3))
def test_view_and_kernel_show_the_same(lowers: list[Tree]) -> None:
    with tempfile.TemporaryDirectory() as top:
        paths = trees_of(Path(top), lowers)
        _, seen, _ = view_of(paths)
        mountpoint = Path(top) / "mnt"
        mountpoint.mkdir()
        options = "redirect_dir=follow,lowerdir=" + ":".join(map(os.fsdecode, paths))
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, mountpoint], check=True)
        try:
            assert seen == seen_by_kernel(mountpoint)
        finally:
            unmount(os.fsencode(mountpoint), lazy=True)
