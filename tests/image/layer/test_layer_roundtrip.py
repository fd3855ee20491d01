"""Random trees and changes: committed, unpacked and stacked again they are what the kernel showed before."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overlayfs.image.make.commit import Making, append, commit
from overlayfs.image.store.lowers import lower_directories
from overlayfs.image.store.store import Store
from overlayfs.overlay.changes import Comparison
from tests.contract.tree import (
    EPOCH,
    Kind,
    Node,
    Tree,
    block,
    build,
    char,
    directory,
    fifo,
    file,
    hardlink,
    opaque_dir,
    symlink,
    whiteout,
)
from tests.image.snapshots import differences, kernel_snapshot

NAMES = st.sampled_from(["a", "b", "c", "ü\udcff", "long" * 40])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
OWNERS = st.sampled_from([0, 1, 65534, 3_000_000])
MODES = st.sampled_from([0o644, 0o600, 0o4755, 0o2711, 0o1777, 0])
TIMES = st.sampled_from([None, EPOCH + 1, EPOCH + 999_999_999, 0])
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "trusted.x"]), st.binary(min_size=1, max_size=40), max_size=2
)
CONTENT = st.sampled_from([b"", b"x", b"y" * 511, b"z" * 512, b"\0" * 5000])

FILES = st.builds(file, CONTENT, MODES, OWNERS, OWNERS, xattrs=XATTRS, mtime=TIMES)
DIRECTORIES = st.builds(directory, MODES, OWNERS, OWNERS, mtime=TIMES)
OTHERS = st.one_of(
    st.builds(symlink, st.sampled_from(["x", "../..", "/etc", "y" * 200]), OWNERS, OWNERS),
    st.builds(fifo, MODES, OWNERS, OWNERS),
    st.just(char(1, 3)),
    st.just(block(7, 200)),
)
NODES = st.one_of(FILES, DIRECTORIES, OTHERS)
CHANGES = st.one_of(NODES, st.just(whiteout()), st.builds(opaque_dir, MODES, OWNERS, OWNERS))


def possible(nodes: dict[str, Node]) -> Tree:
    """Without what would lie in something that is no directory; some files get another name."""
    kept: dict[str, Node] = {"": directory()}
    for path in sorted(nodes):
        above = [path[:end] for end, letter in enumerate(path) if letter == "/"]
        if all(kept.setdefault(parent, directory()).kind is Kind.DIRECTORY for parent in above):
            kept[path] = nodes[path]
    return kept


def linked(tree: Tree) -> Tree:
    """Each second regular file in a directory gets another name at the top."""
    files = [path for path, node in tree.items() if node.kind is Kind.FILE and "/" in path]
    return {**tree, **{f"link-{number}": hardlink(path) for number, path in enumerate(files[::2])}}


TREES = st.dictionaries(PATHS, NODES, max_size=12).map(possible).map(linked)
UPPERS = st.dictionaries(PATHS, CHANGES, max_size=10).map(possible).map(linked)


def meaningful(upper: Tree, lower: Tree) -> Tree:
    """Without whiteouts of nothing: in a directory that only the upper has the kernel would list them."""

    def is_below(path: str) -> bool:
        parent = path.rpartition("/")[0]
        hidden = [path[:end] for end, letter in enumerate(path) if letter == "/" and upper[path[:end]].opaque]
        return path in lower and not hidden and (not parent or lower[parent].kind is Kind.DIRECTORY)

    return {path: node for path, node in upper.items() if node.kind is not Kind.WHITEOUT or is_below(path)}


@contextmanager
def scratch() -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix="roundtrip-"))
    try:
        yield top
    finally:
        shutil.rmtree(top)


def check(lower: Tree, upper: Tree) -> None:
    with scratch() as top:
        below, above = os.fsencode(top / "lower"), os.fsencode(top / "upper")
        build(below, lower)
        build(above, meaningful(upper, lower))
        expected = kernel_snapshot(top / "before", [below], above)
        with Store.open(top / "store") as store:
            base = append(store, None, top / "lower", None, Making(compression=None)).image
            with Comparison.open(above, [below]) as comparison:
                image = commit(store, base, comparison, None, Making()).image
            lowers = [os.fsencode(path) for path in lower_directories(store, image)]
        assert differences(kernel_snapshot(top / "after", lowers), expected) == []


def test_copy_of_one_of_two_names_is_no_link_any_more() -> None:
    check({"": directory(), "a": file(b"x"), "b": hardlink("a")}, {"": directory(), "a": file(b"x")})


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES, UPPERS)
def test_committed_and_unpacked_is_what_it_was(lower: Tree, upper: Tree) -> None:
    check(lower, upper)


@pytest.mark.long
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(TREES, UPPERS)
def test_committed_and_unpacked_is_what_it_was_often(lower: Tree, upper: Tree) -> None:
    check(lower, upper)
