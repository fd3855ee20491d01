"""What layers' indexes show together, and what each changed: without a layer on disk."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlayfs.cli.output import printable
from overlayfs.image.inspect.browse import (
    EMPTY,
    LayerChanges,
    Node,
    compare,
    find,
    layer_changes,
    merged_tree,
    merged_trees,
    resolve,
    walk,
)
from overlayfs.image.inspect.report_tree import tree_document
from overlayfs.image.inspect.waste import find_waste
from overlayfs.image.layer.file_index import LayerIndex, Record
from overlayfs.image.oci.errors import InvalidError
from overlayfs.overlay.changes import Aspect
from tests.image.inspect.indexes import EPOCH, SECOND, directory, file, hard_link, index, symlink, whiteout


def shown(tree: Node) -> dict[str, int]:
    """The paths of a tree but for its root, each with its layer."""
    return {node.path.decode(): node.layer for node in walk(tree) if node.path}


def changes(old: Node, new: Node) -> list[str]:
    return [f"{change.kind.value} {change.path.decode()}" for change in compare(old, new)]


def stack(*layers: list[Record]) -> list[LayerIndex]:
    return [index(*records) for records in layers]


def test_no_layers_show_an_empty_root() -> None:
    assert shown(merged_tree([])) == {}


def test_upper_layer_wins() -> None:
    tree = merged_tree(stack([directory("a"), file("a/x"), file("a/y")], [file("a/x", 2)]))
    assert shown(tree) == {"a": 0, "a/x": 1, "a/y": 0}


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        pytest.param([whiteout("a/x")], {"a": 0, "a/y": 0, "b": 0}, id="whiteout of a file"),
        pytest.param([whiteout("a")], {"b": 0}, id="whiteout of a directory"),
        pytest.param([whiteout("nothing")], {"a": 0, "a/x": 0, "a/y": 0, "b": 0}, id="whiteout of nothing"),
        pytest.param([directory("a", opaque=True)], {"a": 1, "b": 0}, id="opaque"),
        pytest.param(
            [directory("a", opaque=True), file("a/x")], {"a": 1, "a/x": 1, "b": 0}, id="opaque with a file made anew"
        ),
        pytest.param([whiteout("a"), file("a/z")], {"a": 1, "a/z": 1, "b": 0}, id="whiteout, and the name again"),
        pytest.param([file("a")], {"a": 1, "b": 0}, id="file over directory"),
        pytest.param([directory("b")], {"a": 0, "a/x": 0, "a/y": 0, "b": 1}, id="directory over file"),
        pytest.param([file("b/c")], {"a": 0, "a/x": 0, "a/y": 0, "b": 1, "b/c": 1}, id="parent not named"),
        pytest.param([directory("a")], {"a": 1, "a/x": 0, "a/y": 0, "b": 0}, id="directory merges"),
    ],
)
def test_what_a_layer_does(top: list[Record], expected: dict[str, int]) -> None:
    assert shown(merged_tree(stack([directory("a"), file("a/x"), file("a/y"), file("b")], top))) == expected


def test_tree_below_stays_as_it_was() -> None:
    below, _ = merged_trees(stack([directory("a"), file("a/x")], [whiteout("a/x"), file("a/y")]))
    assert shown(below) == {"a": 0, "a/x": 0}


def test_hard_links_are_one_file() -> None:
    tree = merged_tree(stack([file("a", 5), hard_link("b", "a"), hard_link("c", "b")]))
    assert {(node.size, node.origin) for node in walk(tree) if node.path} == {(5, (0, b"a"))}


def test_hard_link_into_a_layer_below() -> None:
    tree = merged_tree(stack([file("a", 5), hard_link("b", "a")], [hard_link("c", "b")]))
    c = tree.children[b"c"]
    assert (c.layer, c.path, c.size, c.origin) == (1, b"c", 5, (0, b"a"))


def test_hard_link_to_a_symlink() -> None:
    assert merged_tree(stack([symlink("a", "x"), hard_link("b", "a")])).children[b"b"].record.target == b"x"


@pytest.mark.parametrize(
    "records",
    [[hard_link("a", "gone")], [hard_link("a", "b"), hard_link("b", "a")], [directory("d"), hard_link("a", "d")]],
    ids=["nothing", "loop", "directory"],
)
def test_hard_link_to_no_file_is_a_damaged_index(records: list[Record]) -> None:
    with pytest.raises(InvalidError, match="hard link b'a' leads to no file"):
        merged_tree(stack(records))


LINKS = [
    directory("etc"),
    file("etc/passwd"),
    directory("usr"),
    directory("usr/bin"),
    file("usr/bin/sh"),
    symlink("bin", "usr/bin"),
    symlink("etc/absolute", "/usr/bin/sh"),
    symlink("etc/out", "../../../../../etc/passwd"),
    symlink("etc/loop", "loop"),
    symlink("etc/dangling", "/nothing"),
    symlink("etc/dots", ".././usr//bin/../bin/sh"),
    symlink("etc/slash", "passwd/"),
]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", ""),
        ("", ""),
        ("/..", ""),
        ("/../../etc/passwd", "etc/passwd"),
        ("bin/sh", "usr/bin/sh"),
        ("/etc/absolute", "usr/bin/sh"),
        ("/etc/out", "etc/passwd"),
        ("/etc/dots", "usr/bin/sh"),
        ("/bin/../../etc/passwd", "etc/passwd"),
        ("//etc/./passwd", "etc/passwd"),
        ("bin/", "usr/bin"),
    ],
)
def test_symlinks_lead_to_files_of_the_image(path: str, found: str) -> None:
    assert resolve(merged_tree(stack(LINKS)), path.encode()).path == found.encode()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("etc/loop", errno.ELOOP),
        ("etc/dangling", errno.ENOENT),
        ("etc/passwd/", errno.ENOTDIR),
        ("etc/passwd/..", errno.ENOTDIR),
        ("etc/slash", errno.ENOTDIR),
        ("no/such", errno.ENOENT),
    ],
)
def test_paths_that_lead_nowhere(path: str, code: int) -> None:
    with pytest.raises(OSError, match="in the image") as caught:
        resolve(merged_tree(stack(LINKS)), path.encode())
    assert (caught.value.errno, caught.value.filename) == (code, path.encode())


def test_last_symlink_may_stay() -> None:
    assert resolve(merged_tree(stack(LINKS)), b"/etc/loop", follow=False).path == b"etc/loop"
    assert resolve(merged_tree(stack(LINKS)), b"/bin/sh", follow=False).path == b"usr/bin/sh"


def test_comparison_lists_directories_before_what_is_in_them() -> None:
    old = merged_tree(stack([directory("a"), file("a/gone"), file("a/kept"), file("b")]))
    new = merged_tree(stack([directory("a", mode=0o700), file("a/kept"), file("a/new"), directory("c"), file("c/x")]))
    assert changes(old, new) == ["M a", "D a/gone", "A a/new", "D b", "A c", "A c/x"]
    assert changes(new, new) == []


def test_names_are_compared_in_byte_order() -> None:
    new = merged_tree(stack([directory("a"), file("a/b"), file("a-b"), file("a.b")]))
    assert changes(EMPTY, new) == ["A a", "A a/b", "A a-b", "A a.b"]


@pytest.mark.parametrize(
    ("other", "aspects"),
    [
        (file("x", 1, "different"), {Aspect.CONTENT}),
        (file("x", mode=0o600, uid=3), {Aspect.MODE, Aspect.OWNER}),
        (file("x", mtime=EPOCH + 1), {Aspect.TIMES}),
        (directory("x"), {Aspect.TYPE}),
        (symlink("x", "y"), {Aspect.TYPE}),
    ],
)
def test_aspects_of_a_modification(other: Record, aspects: set[Aspect]) -> None:
    old, new = merged_tree(stack([file("x")])), merged_tree(stack([other]))
    (change,) = compare(old, new)
    assert change.aspects - {Aspect.MODE} == aspects - {Aspect.MODE}


def test_each_layer_is_counted() -> None:
    indexes = stack(
        [directory("a"), file("a/x", 10), file("a/y", 20)],
        [directory("a", mtime=EPOCH + SECOND), file("a/x", 30), file("a/z", 5)],
        [whiteout("a")],
        [],
    )
    assert layer_changes(indexes, merged_trees(indexes)) == [
        LayerChanges(0, 30, 3, 0, 0),
        LayerChanges(1, 35, 1, 1, 0),
        LayerChanges(2, 0, 0, 0, 4),
        LayerChanges(3, 0, 0, 0, 0),
    ]


def test_rewritten_as_it_was_is_no_change() -> None:
    indexes = stack([file("x", 10)], [file("x", 10)])
    assert layer_changes(indexes, merged_trees(indexes))[1] == LayerChanges(1, 10, 0, 0, 0)


def test_directories_nested_deeper_than_calls() -> None:
    paths = ["/".join(["d"] * depth) for depth in range(1, 3000)]
    records = [directory(path) for path in paths]
    trees = merged_trees(stack(records, [whiteout("d")]))
    assert len(list(walk(trees[0]))) == 3000
    assert resolve(trees[0], paths[-1].encode()).path == paths[-1].encode()
    assert len(list(compare(*trees))) == 1


PATHS = st.lists(st.sampled_from(["a", "b", "a-b"]), max_size=3).map("/".join)
RECORDS = st.builds(
    lambda path, kind, target, opaque: Record(path.encode(), kind, target=target.encode(), size=1, is_opaque=opaque),
    PATHS,
    st.sampled_from("fhldpcbw"),
    PATHS,
    st.booleans(),
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.lists(st.lists(RECORDS, max_size=8, unique_by=lambda record: record.path), max_size=4))
def test_no_index_breaks_what_reads_it(layers: list[list[Record]]) -> None:
    indexes = [index(*records) for records in layers]
    try:
        trees = merged_trees(indexes)
    except InvalidError:
        return
    layer_changes(indexes, trees)
    find_waste(indexes, trees)
    for tree in trees:
        for node in walk(tree):
            assert find(tree, node.path) is node
            assert node.is_directory or not node.children
        tree_document(tree, printable)


def _calls_of(work: Callable[[], object]) -> int:
    """How many calls of Python functions it takes: the same on any machine, whatever else that does."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def test_a_small_layer_on_a_large_image_costs_little() -> None:
    names = [f"usr/share/{n % 300:03}/{n}" for n in range(20_000)]
    many = stack([file(name) for name in names], *([file(f"usr/share/{n:03}/new")] for n in range(50)))
    alone = _calls_of(lambda: layer_changes(many[:1], merged_trees(many[:1])))
    assert alone > len(names)
    assert _calls_of(lambda: layer_changes(many, merged_trees(many))) < alone + 50 * 300
