"""The tree that the indexes tell is the tree that the layers show: the same as a mount's, whatever the layers hold."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlayfs.image.inspect.browse import Node, merged_tree, resolve, walk
from overlayfs.image.inspect.layer_files import Content
from overlayfs.image.store.layers import LayerStore
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from overlayfs.overlay.layer import open_layer
from overlayfs.overlay.view import Node as ViewNode
from overlayfs.overlay.view import View
from tests.image.images import Member, add_image

NAMES = ("a", "b", "a-b", "c")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)


@st.composite
def layers(draw: st.DrawFn) -> list[list[Member]]:
    """Up to four layers; no path twice in one, nothing below what is no directory, hard links to files above them."""
    return [draw(one_layer()) for _ in range(draw(st.integers(1, 4)))]


@st.composite
def one_layer(draw: st.DrawFn) -> list[Member]:
    members: dict[str, Member] = {}
    for path in sorted(draw(st.lists(PATHS, max_size=8, unique=True))):
        above = path.rpartition("/")[0]
        if above and (above not in members or members[above].kind != "d"):
            continue
        files = [name for name, known in members.items() if known.kind == "f" and ".wh." not in name]
        member = _member(draw, path, files)
        members[path] = member
        if member.kind == "d" and draw(st.integers(0, 3)) == 0:
            members[f"{path}/.wh..wh..opq"] = Member(f"{path}/.wh..wh..opq")
        if draw(st.integers(0, 5)) == 0:
            whiteout = f"{above}/.wh.{draw(st.sampled_from(NAMES))}".lstrip("/")
            if whiteout.replace(".wh.", "") not in members:
                members[whiteout] = Member(whiteout)
    return [member for path, member in members.items() if not _is_made_here(path, members)]


def _is_made_here(path: str, members: dict[str, Member]) -> bool:
    """Whether a whiteout deletes what its own layer makes, which tools do not agree about."""
    return "/.wh." in f"/{path}" and ".wh..wh." not in path and path.replace(".wh.", "") in members


def _member(draw: st.DrawFn, path: str, files: list[str]) -> Member:
    kind = draw(st.sampled_from("ffddlh"))
    mode = draw(st.sampled_from([0o644, 0o700, 0o4755]))
    if kind == "h" and files:
        return Member(path, "h", target=draw(st.sampled_from(files)))
    if kind == "l":
        return Member(path, "l", mode=0o777, target=draw(st.sampled_from(["a", "../b", "/c/a", "b/c"])))
    if kind == "d":
        return Member(path, "d", mode=mode)
    return Member(path, data=draw(st.binary(max_size=4)), mode=mode)


def seen(view: View) -> Iterator[tuple[bytes, int, int, bytes]]:
    """Path, mode, owner and content of all that a view shows, without the root."""
    waiting: list[ViewNode] = [view.root()]
    while waiting:
        node = waiting.pop()
        if node.path:
            version = view.version(node)
            content = version.target or b""
            if version.data is not None:
                fd = view.open(version.data, os.O_RDONLY)
                with os.fdopen(fd, "rb") as file:
                    content = file.read()
            yield node.path, version.stat.mode, version.stat.uid, content
        if node.is_directory:
            waiting.extend(view.node(node, name, child) for name, child in view.children(node).items())


def told(tree: Node, content: Content) -> Iterator[tuple[bytes, int, int, bytes]]:
    """The same of what the indexes tell; the content is checked against its hash."""
    for node in walk(tree):
        data = node.record.target if node.record.kind == "l" else b""
        if node.record.kind == "f":
            with os.fdopen(content.open(node), "rb") as file:
                data = file.read()
            assert xxhash.xxh3_128_digest(data) == node.record.content
            assert resolve(tree, node.path) is node
        if node.path:
            mode = stat.S_IFLNK | 0o777 if node.record.kind == "l" else node.mode
            yield node.path, mode, node.record.uid, data


def check(made: list[list[Member]]) -> None:
    top = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        with Store.open(top / "store") as store, ExitStack() as stack:
            image = add_image(store, "demo", *made)
            unpacked = LayerStore(store)
            keys = unpack_image(store, image)
            directories = [unpacked.path(key) for key in keys]
            opened = [open_layer(number, os.fsencode(path)) for number, path in enumerate(reversed(directories))]
            for layer in opened:
                stack.callback(os.close, layer.root_fd)
            content = stack.enter_context(Content(directories))
            tree = merged_tree([unpacked.index(key) for key in keys])
            assert sorted(told(tree, content)) == sorted(seen(View(opened)))
    finally:
        shutil.rmtree(top)


RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


@settings(RELAXED, max_examples=40, derandomize=True)
@given(layers())
def test_indexes_tell_what_layers_show(made: list[list[Member]]) -> None:
    check(made)


@pytest.mark.long
@settings(RELAXED, max_examples=1500)
@given(layers())
def test_indexes_tell_what_layers_show_of_many(made: list[list[Member]]) -> None:
    check(made)
