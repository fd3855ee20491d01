"""The layer of an upper's changes, read by Python's own tar reader; real tools read it in test_layer_interop."""

from __future__ import annotations

import io
import os
import socket as sockets
import tarfile
from pathlib import Path

import pytest

from overlayfs.image.layer.pack import LayerSummary, write_layer
from overlayfs.image.oci.errors import InvalidError, LimitError
from overlayfs.image.oci.limits import Limits
from overlayfs.image.store.staging import remove_tree
from overlayfs.overlay.changes import ChangeKind, Comparison
from tests.contract.tree import (
    EPOCH,
    SECOND,
    TRUSTED,
    Format,
    Tree,
    acl,
    char,
    directory,
    fifo,
    file,
    hardlink,
    opaque_dir,
    symlink,
    whiteout,
)
from tests.overlay.layers import Layers


class Layer:
    """What was written: the raw tar, its members by name, what was counted."""

    def __init__(self, raw: bytes, summary: LayerSummary) -> None:
        self.raw, self.summary = raw, summary
        with tarfile.open(fileobj=io.BytesIO(raw), errors="surrogateescape", encoding="utf-8") as archive:
            self.listed = archive.getmembers()
            self.content = {
                member.name: stream.read()
                for member in self.listed
                if member.isreg() and (stream := archive.extractfile(member))
            }
        self.members = {member.name: member for member in self.listed}
        assert len(self.members) == len(self.listed), "a path twice"

    @property
    def names(self) -> list[str]:
        """Without the root, which every layer has that has anything."""
        assert not self.listed or self.listed[0].name == "."
        return [member.name for member in self.listed[1:]]


def layer(top: Path, lowers: list[Tree], upper: Tree, form: Format = Format.OVERLAY, epoch: int | None = None) -> Layer:
    return layer_of(Layers(top, lowers, upper, form), epoch)


def layer_of(layers: Layers, epoch: int | None = None, may_hold_marks: bool = True) -> Layer:
    out = io.BytesIO()
    with Comparison.open(layers.upper, layers.lowers, work=layers.work) as comparison:
        summary = write_layer(comparison, out, source_date_epoch=epoch, may_hold_marks=may_hold_marks)
    return Layer(out.getvalue(), summary)


def test_nothing_changed(tmp_path: Path) -> None:
    written = layer(tmp_path, [{"a/b": file(b"x")}], {})
    assert (written.names, written.raw, written.summary.is_empty) == ([], bytes(1024), True)


def test_files_are_added_modified_and_deleted(tmp_path: Path) -> None:
    lower = {"kept": file(b"1"), "changed": file(b"1"), "gone": file(b"1")}
    upper = {"new": file(b"2"), "changed": file(b"22"), "gone": whiteout()}
    written = layer(tmp_path, [lower], upper)
    assert written.names == ["changed", ".wh.gone", "new"]
    assert written.content == {"changed": b"22", ".wh.gone": b"", "new": b"2"}
    assert written.summary == LayerSummary(added=1, modified=1, deleted=1, content=3)


@pytest.mark.parametrize("form", list(Format))
def test_deletions_of_every_spelling(tmp_path: Path, form: Format) -> None:
    lower = {"d/gone": file(), "d/kept": file(), "dir/x": file()}
    upper = {"d": directory(), "d/gone": whiteout(), "dir": whiteout()}
    assert layer(tmp_path, [lower], upper, form).names == ["d", "d/.wh.gone", ".wh.dir"]


@pytest.mark.parametrize("form", list(Format))
def test_opaque_directory_is_marked_and_whole(tmp_path: Path, form: Format) -> None:
    lower = {"d/gone": file(), "d/sub/x": file(), "d/same": file(b"1")}
    upper = {"d": opaque_dir(), "d/same": file(b"1"), "d/sub/y": file()}
    written = layer(tmp_path, [lower], upper, form)
    assert written.names == ["d", "d/.wh..wh..opq", "d/same", "d/sub", "d/sub/y"]


def test_opaque_directory_over_nothing_needs_no_mark(tmp_path: Path) -> None:
    assert layer(tmp_path, [{"e": directory()}], {"d": opaque_dir(), "e": opaque_dir()}).names == ["d"]


def test_parents_are_there_as_the_merged_tree_has_them(tmp_path: Path) -> None:
    lower = {"a": directory(0o700, 1, 2), "a/b": directory(0o711), "a/b/f": file(b"1")}
    upper = {"a": directory(0o700, 1, 2), "a/b": directory(0o711), "a/b/f": file(b"2")}
    written = layer(tmp_path, [lower], upper)
    assert written.names == ["a", "a/b", "a/b/f"]
    a, b = written.members["a"], written.members["a/b"]
    assert (a.mode, a.uid, a.gid, b.mode) == (0o700, 1, 2, 0o711)


def test_directory_in_place_of_a_file_and_back(tmp_path: Path) -> None:
    lower = {"f": file(), "d/x": file()}
    written = layer(tmp_path, [lower], {"f/x": file(), "d": file(b"now")})
    assert written.names == ["d", "f", "f/x"]
    assert written.members["f"].isdir() and written.members["d"].isreg()


def test_unchanged_copied_up_files_are_left_out(tmp_path: Path) -> None:
    tree = {"d": directory(), "d/f": file(b"same" * 5000), "d/l": symlink("t"), "d/p": fifo(), "d/c": char(1, 3)}
    assert layer(tmp_path, [tree], tree).names == []


def test_metadata_comes_along(tmp_path: Path) -> None:
    xattrs = {"user.k": b"\0v", "system.posix_acl_access": acl(6, 4, 4, mask=4, users={7: 6})}
    upper = {"f": file(b"x", 0o4644, 70000, 3, xattrs=xattrs, mtime=EPOCH + 123_456_789)}
    member = layer(tmp_path, [{}], upper).members["f"]
    assert (member.mode, member.uid, member.gid) == (0o4644, 70000, 3)
    assert member.pax_headers["mtime"] == "1500000000.123456789"
    assert member.pax_headers["SCHILY.xattr.user.k"] == "\0v"
    assert "SCHILY.xattr.system.posix_acl_access" in member.pax_headers


def test_marks_of_the_overlay_stay_at_home(tmp_path: Path) -> None:
    upper = {
        "f": file(b"x", xattrs={TRUSTED + "origin": b"", TRUSTED + "overlay.opaque": b"y"}),
        "d": directory(xattrs={TRUSTED + "impure": b"y"}),
    }
    members = layer(tmp_path, [{}], upper).members
    assert [key for member in members.values() for key in member.pax_headers if "xattr" in key] == [
        f"SCHILY.xattr.{TRUSTED}opaque"
    ]


def test_renamed_directory_is_written_whole(tmp_path: Path) -> None:
    lower = {"old/sub/f": file(b"1"), "old/g": file(b"2")}
    upper = {"new": directory(xattrs={TRUSTED + "redirect": b"old"}), "old": whiteout()}
    written = layer(tmp_path, [lower], upper)
    assert written.names == ["new", "new/g", "new/sub", "new/sub/f", ".wh.old"]
    assert written.content["new/sub/f"] == b"1"


def test_metacopy_is_written_with_its_data(tmp_path: Path) -> None:
    upper = {"f": file(b"", 0o600, size=5, sparse=True, xattrs={TRUSTED + "metacopy": b""})}
    assert layer(tmp_path, [{"f": file(b"below")}], upper).content == {"f": b"below"}


def test_hard_links_within_the_layer(tmp_path: Path) -> None:
    upper = {"a/x": file(b"1", nlink=3), "b/y": hardlink("a/x"), "z": hardlink("a/x")}
    written = layer(tmp_path, [{}], upper)
    assert written.names == ["a", "a/x", "b", "b/y", "z"]
    assert [(m.name, m.linkname, m.size) for m in written.listed if m.islnk()] == [("b/y", "a/x", 0), ("z", "a/x", 0)]


def test_hard_link_to_an_unchanged_file_brings_that_file(tmp_path: Path) -> None:
    upper = {"etc/a": file(b"1"), "new": hardlink("etc/a")}
    written = layer(tmp_path, [{"etc/a": file(b"1")}], upper)
    assert written.names == ["etc", "etc/a", "new"] or written.names == ["new", "etc", "etc/a"]
    assert sum(member.islnk() for member in written.listed) == 1


def test_hard_link_to_a_later_unchanged_file(tmp_path: Path) -> None:
    upper = {"a": file(b"1"), "z/same": hardlink("a")}
    written = layer(tmp_path, [{"z/same": file(b"1"), "z/other": file()}], upper)
    assert written.names == ["a", "z", "z/same"]
    assert written.members["z/same"].linkname == "a"


def test_unchanged_names_of_one_file_are_left_out(tmp_path: Path) -> None:
    tree = {"a": file(b"1"), "b": hardlink("a")}
    assert layer(tmp_path, [tree], tree).names == []


def test_files_that_became_one(tmp_path: Path) -> None:
    written = layer(tmp_path, [{"a": file(b"1"), "b": file(b"1")}], {"a": file(b"1"), "b": hardlink("a")})
    assert [(m.name, m.linkname) for m in written.listed[1:]] == [("a", ""), ("b", "a")]


def test_changed_name_of_a_lower_file_changes_all_its_names(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [{"a": file(b"1"), "b": hardlink("a")}], {"a": file(b"2")})
    layers.add_to_index("a")
    written = layer_of(layers)
    assert [(m.name, m.linkname) for m in written.listed[1:]] == [("a", ""), ("b", "a")]


def test_sparse_file_is_whole(tmp_path: Path) -> None:
    written = layer(tmp_path, [{}], {"f": file(b"x", size=3 << 20, sparse=True)})
    assert written.content["f"] == b"x".ljust(3 << 20, b"\0")


def test_sockets_are_left_out_and_counted(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [{"s": file(), "keep": file()}], {})
    for name in ("s", "t"):
        with sockets.socket(sockets.AF_UNIX) as made:
            made.bind(os.fsencode(tmp_path / "up" / name))
    written = layer_of(layers)
    assert written.names == [".wh.s"]
    assert written.summary.sockets_left_out == 1


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh.y", "d/.wh.z"])
@pytest.mark.parametrize("what", [file(b"content"), directory(), symlink("x")])
def test_file_really_named_like_a_deletion_stops_the_commit(tmp_path: Path, name: str, what: object) -> None:
    with pytest.raises(InvalidError, match=rf"/{name}: a file of this name would delete another"):
        layer(tmp_path, [{}], {name: what})  # type: ignore[dict-item]


def test_plain_tree_may_not_even_hold_empty_files_so_named(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [], {"d/.wh.x": file()})
    with pytest.raises(InvalidError, match=r"/d/\.wh\.x"):
        layer_of(layers, may_hold_marks=False)


def test_aufs_leftovers_are_ignored(tmp_path: Path) -> None:
    assert layer(tmp_path, [{}], {".wh..wh.plnk": directory(), "f": file()}).names == ["f"]


def test_layer_has_its_root_unless_asked_not_to(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [], {"": directory(0o711, 1, 2), "f": file()})
    written = layer_of(layers)
    assert written.names == ["f"]
    assert written.members["."].mode == 0o711


def test_same_changes_give_the_same_bytes(tmp_path: Path) -> None:
    upper = {f"d{n}/f{m}": file(b"x" * n) for n in range(7) for m in range(7)}
    backwards = dict(reversed(upper.items()))
    first, second = (layer(tmp_path / str(n), [{}], tree) for n, tree in enumerate((upper, backwards)))
    assert first.raw == second.raw


def test_epoch_clamps_times(tmp_path: Path) -> None:
    upper = {"old": file(mtime=5 * SECOND + 7), "new": file(mtime=EPOCH), "d": directory(mtime=EPOCH)}
    written = layer(tmp_path, [{}], upper, epoch=1000)
    assert {name: member.mtime for name, member in written.members.items()} == {
        "old": 5.000000007,
        "new": 1000,
        "d": 1000,
        ".": 1000,
    }


def test_whole_tree_of_several_layers(tmp_path: Path) -> None:
    layers = Layers(
        tmp_path, [{"a": file(b"top"), "c": whiteout()}, {"a": file(b"old"), "b": file(), "c": file()}], None
    )
    out = io.BytesIO()
    with Comparison.open_whole(layers.lowers) as comparison:
        write_layer(comparison, out)
    written = Layer(out.getvalue(), LayerSummary())
    assert written.names == ["a", "b"]
    assert written.content["a"] == b"top"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(full_size=9 << 20), "'sparse' makes it larger than"),
        (Limits(disk_size=1 << 20), "'data' makes it take more than"),
        (Limits(disk_size=50), "'small' makes it take more than"),
        (Limits(members=3), "more than 3 members"),
        (Limits(path_length=80), "n': no layer can hold a path of more than 80 bytes"),
        (Limits(header_size=1 << 11), "'small': no layer can hold more than 2048 bytes of xattrs"),
    ],
)
def test_layer_that_readers_would_refuse_is_not_written(limits: Limits, words: str, tmp_path: Path) -> None:
    upper = {
        "data": file(b"data" * (1 << 19)),
        "n" * 100: file(b"n"),
        "sparse": file(b"x", size=8 << 20, sparse=True),
    }
    small = {"small": file(b"s" * 100, xattrs={"user.a": b"a" * 2000})}
    layers = Layers(tmp_path, [{}], small if "small" in words else upper)
    with Comparison.open(layers.upper, layers.lowers) as comparison:
        write_layer(comparison, io.BytesIO())  # for other readers
        with pytest.raises(LimitError, match=words):
            write_layer(comparison, io.BytesIO(), limits=limits)


def test_tree_deeper_than_the_stack(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [{}], {})
    depth = 1100
    here = os.open(layers.upper, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        with Comparison.open(layers.upper, layers.lowers) as comparison:
            assert sum(change.kind is ChangeKind.ADDED for change in comparison.as_layer()) == depth
    finally:
        remove_tree(tmp_path / "up")  # pytest's own removal is recursive
