"""What an upper changed: every mark looked through, nothing reported that is as before."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from overlayfs.overlay.changes import Aspect, Change, ChangeKind, Comparison
from tests.contract.tree import (
    TRUSTED,
    Format,
    Tree,
    char,
    directory,
    fifo,
    file,
    hardlink,
    opaque_dir,
    symlink,
    whiteout,
    x_dir,
    xattr_whiteout,
)
from tests.overlay.layers import Layers

REDIRECT = TRUSTED + "redirect"
METACOPY = TRUSTED + "metacopy"


def changes(top: Path, lowers: list[Tree], upper: Tree, form: Format = Format.OVERLAY) -> list[Change]:
    layers = Layers(top, lowers, upper, form)
    with Comparison.open(layers.upper, layers.lowers, work=layers.work) as comparison:
        return list(comparison)


def summary(found: list[Change]) -> list[str]:
    return [f"{change.kind.value} {os.fsdecode(change.path)}" for change in found]


def listed(top: Path, lowers: list[Tree], upper: Tree, form: Format = Format.OVERLAY) -> list[str]:
    return summary(changes(top, lowers, upper, form))


def test_empty_upper_changes_nothing(tmp_path: Path) -> None:
    assert listed(tmp_path, [{"a/b": file(b"x")}], {}) == []


def test_files_are_added_modified_and_deleted(tmp_path: Path) -> None:
    lower = {"kept": file(b"1"), "changed": file(b"1"), "gone": file(b"1")}
    upper = {"new": file(b"2"), "changed": file(b"22"), "gone": whiteout()}
    assert listed(tmp_path, [lower], upper) == ["M changed", "D gone", "A new"]


def test_what_was_only_made_to_be_mounted_on_is_no_change(tmp_path: Path) -> None:
    lower = {"etc": directory()}
    upper = {"dev": directory(), "etc/hosts": file(), "v/w": directory(), "u/w/new": file(b"1"), "etc/kept": file()}
    layers = Layers(tmp_path, [lower], upper)
    scaffold = [b"dev", b"etc/hosts", b"v", b"v/w", b"u", b"u/w"]
    with Comparison.open(layers.upper, layers.lowers, work=layers.work, scaffold=scaffold) as comparison:
        wanted = ["A etc/kept", "A u", "A u/w", "A u/w/new"]
        assert summary([change for change in comparison if change.kind is ChangeKind.ADDED]) == wanted
        as_layer = summary([change for change in comparison.as_layer() if change.kind is ChangeKind.ADDED])
        assert as_layer == wanted


@pytest.mark.parametrize("form", list(Format))
def test_whiteout_of_every_spelling_is_a_deletion(tmp_path: Path, form: Format) -> None:
    lower = {"d/gone": file(), "d/kept": file(), "dir/x": file()}
    upper = {"d": directory(), "d/gone": whiteout(), "dir": whiteout()}
    assert listed(tmp_path, [lower], upper, form) == ["D d/gone", "D dir"]


def test_whiteout_of_nothing_is_no_change(tmp_path: Path) -> None:
    assert listed(tmp_path, [{"a": file()}], {"b": whiteout(), "c/d": whiteout()}) == ["A c"]


def test_oci_whiteout_beside_a_file_of_its_layer_is_no_deletion(tmp_path: Path) -> None:
    assert listed(tmp_path, [{"x": file(b"old")}], {"x": file(b"newer"), ".wh.x": file()}) == ["M x"]


@pytest.mark.parametrize("form", list(Format))
def test_opaque_directory_deletes_what_it_hides(tmp_path: Path, form: Format) -> None:
    lower = {"d/gone": file(), "d/sub/x": file(), "d/same": file(b"1"), "d/changed": file(b"1")}
    upper = {"d": opaque_dir(), "d/same": file(b"1"), "d/changed": file(b"2"), "d/new": file()}
    expected = ["M d/changed", "D d/gone", "A d/new", "D d/sub"]
    assert listed(tmp_path, [lower], upper, form) == expected


def test_opaque_directory_hides_what_is_deep_in_it(tmp_path: Path) -> None:
    upper = {"d": opaque_dir(), "d/sub": directory(), "d/sub/new": file()}
    assert listed(tmp_path, [{"d/sub/old": file()}], upper) == ["A d/sub/new", "D d/sub/old"]


def test_opaque_directory_follows_no_redirect(tmp_path: Path) -> None:
    upper = {"d": directory(xattrs={TRUSTED + "opaque": b"y", REDIRECT: b"/x"})}
    assert listed(tmp_path, [{"x/f": file()}], upper) == ["A d"]


def test_what_an_opaque_lower_directory_hid_already_is_not_deleted_again(tmp_path: Path) -> None:
    middle = {"d": opaque_dir(), "d/b": file()}
    assert listed(tmp_path, [middle, {"d/a": file()}], {"d": opaque_dir()}) == ["D d/b"]


def test_copied_up_without_change_is_no_change(tmp_path: Path) -> None:
    tree = {
        "d": directory(0o750, 1, 2),
        "d/f": file(b"same", 0o600, xattrs={"user.k": b"v"}),
        "d/l": symlink("t"),
        "d/p": fifo(),
        "d/c": char(1, 3),
    }
    marked = {**tree, "d/f": file(b"same", 0o600, xattrs={"user.k": b"v", TRUSTED + "origin": b""})}
    assert listed(tmp_path, [tree], marked) == []


@pytest.mark.parametrize(
    ("before", "after", "aspect"),
    [
        (file(b"a"), file(b"b"), Aspect.CONTENT),
        (file(b"a"), file(b"ab"), Aspect.CONTENT),
        (file(size=1 << 22), file(b"", size=(1 << 22) - 1), Aspect.CONTENT),
        (file(mode=0o644), file(mode=0o4755), Aspect.MODE),
        (file(uid=1), file(uid=2), Aspect.OWNER),
        (file(gid=1), file(gid=2), Aspect.OWNER),
        (file(mtime=1), file(mtime=2), Aspect.TIMES),
        (file(), file(xattrs={"user.k": b"v"}), Aspect.XATTRS),
        (file(xattrs={"user.k": b"v"}), file(xattrs={"user.k": b"w"}), Aspect.XATTRS),
        (symlink("a"), symlink("b"), Aspect.TARGET),
        (char(1, 3), char(1, 5), Aspect.DEVICE),
        (file(), symlink("a"), Aspect.TYPE),
        (directory(), file(), Aspect.TYPE),
        (directory(0o755), directory(0o700), Aspect.MODE),
    ],
)
def test_modification_says_in_what(tmp_path: Path, before: object, after: object, aspect: Aspect) -> None:
    (change,) = changes(tmp_path, [{"x": before}], {"x": after})  # type: ignore[dict-item]
    assert (change.path, change.kind, change.aspects) == (b"x", ChangeKind.MODIFIED, frozenset({aspect}))


def test_content_is_compared_beyond_equal_size_and_times(tmp_path: Path) -> None:
    before = file(b"a" * 3_000_000)
    (change,) = changes(tmp_path, [{"x": before}], {"x": file(b"a" * 2_999_999 + b"b")})
    assert change.aspects == {Aspect.CONTENT}


def test_sparse_files_of_equal_content_are_the_same(tmp_path: Path) -> None:
    hole = file(b"data", size=1 << 40)
    layers = Layers(tmp_path, [{"x": hole}], {"x": file(b"data", size=1 << 40)})
    with Comparison.open(layers.upper, layers.lowers) as comparison:
        assert list(comparison) == []


def test_bookkeeping_xattrs_are_no_change_but_escaped_ones_are(tmp_path: Path) -> None:
    (change,) = changes(
        tmp_path,
        [{"x": file(), "y": file()}],
        {"x": file(xattrs={TRUSTED + "impure": b"y"}), "y": file(xattrs={TRUSTED + "overlay.opaque": b"y"})},
    )
    assert change.after is not None
    assert (change.path, change.after.xattrs) == (b"y", {b"trusted.overlay.opaque": b"y"})


OTHER_PREFIX: Tree = {
    "d": directory(xattrs={"user.overlay.opaque": b"x"}),
    "d/f": file(xattrs={"user.overlay.whiteout": b""}),
    "e": directory(xattrs={"user.overlay.opaque": b"y"}),
    "m": file(size=1, xattrs={"user.overlay.metacopy": b"", "user.overlay.redirect": b"/d/f"}),
    "r": directory(xattrs={"user.overlay.redirect": b"/e"}),
}
BELOW_OTHER_PREFIX: Tree = {"d/f": file(b"1"), "e/g": file(b"1"), "m": file(b"1")}


def test_marks_of_the_other_prefix_are_data_in_an_upper(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [BELOW_OTHER_PREFIX], OTHER_PREFIX)
    with Comparison.open(layers.upper, layers.lowers) as comparison:
        found = list(comparison.as_layer())
        assert summary(found) == ["M d", "M d/f", "M e", "M m", "A r"]
        assert not any(change.hides_below for change in found)
        (changed,) = (change.after for change in found if change.path == b"m")
        assert changed is not None and os.read(comparison.open_data(changed), 2) == b"\0"
    with Comparison.open(layers.upper, layers.lowers).whole() as whole:
        assert summary(list(whole)) == ["A d", "A d/f", "A e", "A e/g", "A m", "A r"]


def test_marks_are_read_with_the_prefix_of_the_mount(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [BELOW_OTHER_PREFIX], OTHER_PREFIX)
    with Comparison.open(layers.upper, layers.lowers, prefix=b"user.overlay.") as comparison:
        assert summary(list(comparison)) == ["D d/f", "D e/g", "A r", "A r/g"]


def test_directory_replaced_by_file_is_one_change(tmp_path: Path) -> None:
    assert listed(tmp_path, [{"d/a": file(), "d/b": file()}], {"d": file()}) == ["M d"]


def test_file_replaced_by_directory_adds_what_is_in_it(tmp_path: Path) -> None:
    assert listed(tmp_path, [{"d": file()}], {"d/a/b": file()}) == ["M d", "A d/a", "A d/a/b"]


@pytest.mark.parametrize("redirect", [b"/old/dir", b"dir"])
def test_renamed_directory_is_deleted_there_and_added_here_with_all_in_it(tmp_path: Path, redirect: bytes) -> None:
    lower = {"old/dir/f": file(b"1"), "old/dir/gone": file(), "old/dir/sub/g": file()}
    upper = {
        "old/dir": whiteout(),
        "old/new": directory(xattrs={REDIRECT: redirect}),
        "old/new/gone": whiteout(),
        "old/new/h": file(),
    }
    found = changes(tmp_path, [lower], upper)
    added = ["A old/new", "A old/new/f", "A old/new/h", "A old/new/sub", "A old/new/sub/g"]
    assert summary(found) == ["D old/dir", *added]


def test_data_of_file_in_renamed_directory_is_found_in_the_lower(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [{"a/f": file(b"lower data")}], {"b": directory(xattrs={REDIRECT: b"/a"})})
    with Comparison.open(layers.upper, layers.lowers) as comparison:
        change = next(change for change in comparison if change.path == b"b/f")
        assert change.after is not None
        fd = comparison.open_data(change.after)
        try:
            assert os.read(fd, 100) == b"lower data"
        finally:
            os.close(fd)


def test_redirect_is_followed_through_lower_redirects(tmp_path: Path) -> None:
    middle = {"b": directory(xattrs={REDIRECT: b"/a"}), "a": whiteout()}
    upper = {"c": directory(xattrs={REDIRECT: b"/b"}), "b": whiteout()}
    assert listed(tmp_path, [middle, {"a/f": file()}], upper) == ["D b", "A c", "A c/f"]


def test_absolute_redirect_leads_out_of_an_opaque_directory(tmp_path: Path) -> None:
    upper = {"n": opaque_dir(), "n/d": directory(xattrs={REDIRECT: b"/o/d"}), "o/d": whiteout()}
    lower = {"n/hidden": file(), "o/d/f": file()}
    assert listed(tmp_path, [lower], upper) == ["A n/d", "A n/d/f", "D n/hidden", "D o/d"]


@pytest.mark.parametrize("redirect", [b"../x", b"/a/../b", b"", b"/", b"/" + b"x" * 256])
def test_malformed_redirect_is_an_error(tmp_path: Path, redirect: bytes) -> None:
    with pytest.raises(OSError, match="redirect"):
        listed(tmp_path, [{"a/f": file()}], {"d": directory(xattrs={REDIRECT: redirect})})


def test_metacopy_changes_metadata_but_not_content(tmp_path: Path) -> None:
    upper = {"x": file(b"", 0o600, size=4, xattrs={METACOPY: b""})}
    layers = Layers(tmp_path, [{"x": file(b"data", 0o644)}], upper)
    with Comparison.open(layers.upper, layers.lowers) as comparison:
        (change,) = comparison
        assert change.aspects == {Aspect.MODE}
        assert change.after is not None
        fd = comparison.open_data(change.after)
        try:
            assert os.read(fd, 100) == b"data"
        finally:
            os.close(fd)


def test_renamed_metacopy_finds_its_data_by_redirect(tmp_path: Path) -> None:
    upper = {"d/y": file(size=4, xattrs={METACOPY: b"", REDIRECT: b"/x"}), "x": whiteout()}
    layers = Layers(tmp_path, [{"x": file(b"data"), "d": directory()}], upper)
    with Comparison.open(layers.upper, layers.lowers) as comparison:
        added = [change for change in comparison if change.kind is ChangeKind.ADDED]
        assert [change.path for change in added] == [b"d/y"]
        assert added[0].after is not None
        fd = comparison.open_data(added[0].after)
        os.close(fd)


def test_metacopy_without_data_is_an_error_only_when_read(tmp_path: Path) -> None:
    layers = Layers(tmp_path, [{}], {"x": file(size=4, xattrs={METACOPY: b""})})
    with Comparison.open(layers.upper, layers.lowers) as comparison:
        (change,) = comparison
        assert change.after is not None
        assert change.after.data is None
        with pytest.raises(OSError, match="no layer"):
            comparison.open_data(change.after)


def test_symlinked_directory_in_the_upper_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    assert listed(tmp_path, [{"d/a": file()}], {"d": symlink(str(tmp_path / "outside"))}) == ["M d"]


def test_hard_links_in_the_index_are_changed_under_all_their_names(tmp_path: Path) -> None:
    lower: Tree = {"a": file(b"old"), "d/b": hardlink("a"), "single": file()}
    layers = Layers(tmp_path, [lower], {"a": file(b"new!")})
    layers.add_to_index("a")
    with Comparison.open(layers.upper, layers.lowers, work=layers.work) as comparison:
        found = list(comparison)
        assert summary(found) == ["M a", "M d/b"]
        (of_alias,) = (change.after for change in found if change.path == b"d/b")
        assert of_alias is not None
        fd = comparison.open_data(of_alias)
        try:
            assert os.read(fd, 10) == b"new!"
        finally:
            os.close(fd)


def test_override_xattr_is_the_owner_that_counts(tmp_path: Path) -> None:
    name = "user.containers.override_stat"
    lower = {"": directory(xattrs={name: b"0:0:755:dir"}), "x": file(xattrs={name: b"5:6:640:file"})}
    upper = {
        "": directory(xattrs={name: b"0:0:755:dir"}),
        "x": file(mode=0o600, uid=9, xattrs={name: b"5:6:644"}),
    }
    (change,) = changes(tmp_path, [lower], upper)
    assert change.after is not None
    assert change.aspects == {Aspect.MODE}
    assert (change.after.stat.uid, change.after.stat.mode) == (5, 0o100644)


def test_changed_root_is_a_change_of_the_empty_path(tmp_path: Path) -> None:
    (change,) = changes(tmp_path, [{"": directory(0o755)}], {"": directory(0o700)})
    assert (change.path, change.kind, change.aspects) == (b"", ChangeKind.MODIFIED, frozenset({Aspect.MODE}))


def test_opaque_xattr_on_a_layers_root_means_nothing(tmp_path: Path) -> None:
    opaque = directory(xattrs={TRUSTED + "opaque": b"y"})
    assert listed(tmp_path, [{"": opaque}, {"a": file()}], {"": opaque, "a": whiteout()}) == ["D a"]


def test_directory_with_new_entry_is_modified_in_its_times_only(tmp_path: Path) -> None:
    lower = {"d": directory(mtime=1)}
    found = changes(tmp_path, [lower], {"d": directory(mtime=2), "d/new": file()})
    assert summary(found) == ["M d", "A d/new"]
    assert found[0].touches_only_directory_times
    assert not found[1].touches_only_directory_times


def test_without_lowers_marks_tell_what_was_copied_up(tmp_path: Path) -> None:
    upper = {
        "copied": file(xattrs={TRUSTED + "origin": b""}),
        "d": directory(xattrs={TRUSTED + "origin": b""}),
        "d/gone": whiteout(),
        "new": file(),
        "x": x_dir(),
        "x/y": xattr_whiteout(),
    }
    layers = Layers(tmp_path, [], upper)
    with Comparison.open(layers.upper, None) as comparison:
        assert summary(list(comparison)) == ["M copied", "M d", "D d/gone", "A new", "A x", "D x/y"]


def test_without_any_lower_layer_everything_is_new(tmp_path: Path) -> None:
    assert listed(tmp_path, [], {"a/b": file(), "c": whiteout()}) == ["A a", "A a/b"]


def test_unreadable_upper_is_an_error_not_a_smaller_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Comparison.open(os.fsencode(tmp_path / "no"), [])


def test_names_that_are_not_utf8_are_compared_too(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\n")
    assert listed(tmp_path, [{name: file(b"1")}], {name: replace(file(b"2"), mode=0o600)}) == [f"M {name}"]
