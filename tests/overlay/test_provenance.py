"""Which layer provides a path, which hold hidden versions, what deletes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs.overlay.layer import open_layer
from overlayfs.overlay.provenance import Provenance, Role, trace
from overlayfs.overlay.view import View
from tests.contract.tree import (
    TRUSTED,
    Format,
    Tree,
    directory,
    file,
    hardlink,
    opaque_dir,
    symlink,
    whiteout,
    xattr_whiteout,
)
from tests.overlay.layers import Layers

REDIRECT = TRUSTED + "redirect"
METACOPY = TRUSTED + "metacopy"

# (layer, path in it, role, layer that hides it); the upper is layer -1.
Row = tuple[int, str, Role, int | None]


def asked(top: Path, lowers: list[Tree], upper: Tree, path: str, form: Format = Format.OVERLAY) -> Provenance:
    layers = Layers(top, lowers, upper, form)
    opened = layers.open(with_upper=True)
    try:
        provenance = trace(os.fsencode(path), opened)
        # What is said to be there is there, and nothing else: the merged view is the judge.
        assert (View(opened).find(os.fsencode(path)) is not None) == (provenance.provider is not None)
        return provenance
    finally:
        layers.close()


def rows(provenance: Provenance) -> list[Row]:
    return [
        (answer.place.layer, os.fsdecode(answer.place.path), answer.role, answer.hidden_by)
        for answer in provenance.answers
    ]


def test_topmost_file_provides_and_the_others_are_hidden(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"f": file()}, {}, {"f": symlink("x")}], {}, "f")
    assert rows(found) == [(0, "f", Role.PROVIDES, None), (2, "f", Role.HIDDEN, 0)]


def test_directories_merge(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"d/a": file()}, {"d/b": file()}], {"d": directory()}, "d")
    assert rows(found) == [
        (-1, "d", Role.PROVIDES, None),
        (0, "d", Role.MERGED, None),
        (1, "d", Role.MERGED, None),
    ]


def test_the_root_is_merged_of_all(tmp_path: Path) -> None:
    found = asked(tmp_path, [{}, {}], {}, "")
    assert [row[2] for row in rows(found)] == [Role.PROVIDES, Role.MERGED, Role.MERGED]


@pytest.mark.parametrize(
    ("form", "mark", "note"),
    [
        (Format.OVERLAY, "d/f", "whiteout: character device 0/0"),
        (Format.OVERLAY_XATTR, "d/f", "whiteout: an xattr"),
        (Format.OCI, "d/.wh.f", "whiteout: a .wh. file"),
    ],
)
def test_whiteout_deletes_and_says_how_it_is_spelled(tmp_path: Path, form: Format, mark: str, note: str) -> None:
    found = asked(tmp_path, [{"d/f": file()}], {"d": directory(), "d/f": whiteout()}, "d/f", form)
    assert rows(found) == [(-1, mark, Role.DELETES, None), (0, "d/f", Role.HIDDEN, -1)]
    assert found.answers[0].notes == (note,)
    assert found.deleter == found.answers[0]


@pytest.mark.parametrize("form", list(Format))
def test_opaque_directory_above_hides(tmp_path: Path, form: Format) -> None:
    found = asked(tmp_path, [{"d/s/f": file()}], {"d": opaque_dir()}, "d/s/f", form)
    assert rows(found) == [(0, "d/s/f", Role.HIDDEN, -1)]
    assert found.provider is None


def test_opaque_directory_itself_provides_and_hides_those_below(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"d": directory()}], {"d": opaque_dir()}, "d")
    assert rows(found) == [(-1, "d", Role.PROVIDES, None), (0, "d", Role.HIDDEN, -1)]
    assert found.answers[0].notes == ("opaque: trusted.overlay.opaque",)


def test_opaque_root_hides_all_below(tmp_path: Path) -> None:
    found = asked(tmp_path, [{".wh..wh..opq": file()}, {"f": file()}], {}, "f")
    assert rows(found) == [(1, "f", Role.HIDDEN, 0)]


def test_whiteout_of_a_parent_deletes_what_is_in_it(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"d": whiteout()}, {"d/s/f": file()}], {}, "d/s/f")
    assert rows(found) == [(0, "d", Role.DELETES, None), (1, "d/s/f", Role.HIDDEN, 0)]


def test_file_in_place_of_a_parent_deletes_what_was_in_it(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"d": file()}, {"d/f": file()}], {}, "d/f")
    assert rows(found) == [(0, "d", Role.DELETES, None), (1, "d/f", Role.HIDDEN, 0)]


def test_file_below_a_directory_ends_the_merge(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"d": file()}, {"d/f": file()}], {"d": directory()}, "d")
    assert rows(found) == [
        (-1, "d", Role.PROVIDES, None),
        (0, "d", Role.HIDDEN, -1),
        (1, "d", Role.HIDDEN, 0),
    ]


def test_oci_whiteout_beside_a_file_hides_only_those_below(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"f": file()}], {"f": file(), ".wh.f": file()}, "f")
    assert rows(found) == [(-1, "f", Role.PROVIDES, None), (0, "f", Role.HIDDEN, -1)]


def test_oci_whiteout_beside_a_directory_makes_it_opaque(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"d/f": file()}], {"d": directory(), ".wh.d": file()}, "d/f")
    assert rows(found) == [(0, "d/f", Role.HIDDEN, -1)]


def test_redirect_leads_to_the_old_name_in_lower_layers(tmp_path: Path) -> None:
    upper = {"new": directory(xattrs={REDIRECT: b"/old/d"}), "old/d": whiteout()}
    found = asked(tmp_path, [{"old/d/f": file()}, {"new/f": file(), "old/d/f": file()}], upper, "new/f")
    assert rows(found) == [(0, "old/d/f", Role.PROVIDES, None), (1, "old/d/f", Role.HIDDEN, 0)]
    assert asked_again(tmp_path, "new").answers[0].notes == ("redirect to /old/d",)


def asked_again(top: Path, path: str) -> Provenance:
    opened = [open_layer(-1, os.fsencode(top / "up")), open_layer(0, os.fsencode(top / "0"))]
    try:
        return trace(os.fsencode(path), opened)
    finally:
        for layer in opened:
            os.close(layer.root_fd)


def test_relative_redirect_after_an_absolute_one(tmp_path: Path) -> None:
    upper = {"a": directory(xattrs={REDIRECT: b"/x"}), "a/b": directory(xattrs={REDIRECT: b"c"})}
    found = asked(tmp_path, [{"a/b/f": file(), "a/c/f": file(), "x/c/f": file()}], upper, "a/b/f")
    assert rows(found) == [(0, "x/c/f", Role.PROVIDES, None)]


def test_absolute_redirect_reaches_below_an_opaque_parent(tmp_path: Path) -> None:
    upper = {"n": opaque_dir(), "n/d": directory(xattrs={REDIRECT: b"/o"})}
    assert rows(asked(tmp_path, [{"o/f": file()}], upper, "n/d/f")) == [(0, "o/f", Role.PROVIDES, None)]


def test_metacopy_names_the_layer_with_the_data(tmp_path: Path) -> None:
    lowers: list[Tree] = [{"f": file(xattrs={METACOPY: b""})}, {"f": file(b"x")}, {"f": file()}]
    found = asked(tmp_path, lowers, {"f": file(xattrs={METACOPY: b""})}, "f")
    assert [(row[0], row[2]) for row in rows(found)] == [
        (-1, Role.PROVIDES),
        (0, Role.DATA),
        (1, Role.DATA),
        (2, Role.HIDDEN),
    ]


def test_metacopy_with_redirect_finds_a_data_only_layer(tmp_path: Path) -> None:
    upper = {"f": file(xattrs={METACOPY: b"", REDIRECT: b"/blobs/1"})}
    layers = Layers(tmp_path, [{}, {"blobs/1": file(b"x")}], upper)
    opened = layers.open(with_upper=True)
    try:
        found = trace(b"f", opened[:2], opened[2:])
        unreachable = trace(b"blobs/1", opened[:2], opened[2:])
    finally:
        layers.close()
    assert rows(found) == [(-1, "f", Role.PROVIDES, None), (1, "blobs/1", Role.DATA, None)]
    assert rows(unreachable) == []


def test_a_path_no_layer_knows_has_no_answers(tmp_path: Path) -> None:
    found = asked(tmp_path, [{"d/f": file()}], {}, "d/other/x")
    assert (found.provider, found.deleter, found.answers) == (None, None, ())


@pytest.mark.parametrize("path", ["d/.wh.f", "d/.wh..wh..opq"])
def test_marks_are_no_files(tmp_path: Path, path: str) -> None:
    assert asked(tmp_path, [{path: file()}], {}, path).provider is None


def test_symlinked_parent_is_a_file_in_the_way_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "f").touch()
    found = asked(tmp_path, [{"d": symlink(str(tmp_path / "outside"))}], {}, "d/f")
    assert rows(found) == [(0, "d", Role.DELETES, None)]


def test_hard_link_written_under_another_name_is_provided_by_the_index(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [{"a": file(), "b": hardlink("a")}], {"a": file(b"new")})
    name = layers.add_to_index("a")
    opened = layers.open(with_upper=True)
    index = layers.open_index()
    try:
        found = trace(b"b", opened, (), {opened[0].index: index})
    finally:
        layers.close()
    assert rows(found) == [
        (index.index, name, Role.PROVIDES, None),
        (0, "b", Role.HIDDEN, index.index),
    ]


def test_unmarked_xattr_whiteout_deletes_on_lookup(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [{"f": file(b"x")}], {"f": xattr_whiteout()})
    opened = layers.open(with_upper=True)
    try:
        found = trace(b"f", opened)
    finally:
        layers.close()
    assert rows(found) == [(-1, "f", Role.DELETES, None), (0, "f", Role.HIDDEN, -1)]
