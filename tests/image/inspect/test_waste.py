"""Bytes that no one can see: hidden by later layers."""

from __future__ import annotations

import pytest

from overlayfs.image.inspect.browse import merged_trees
from overlayfs.image.inspect.waste import Hidden, Reason, Waste, find_waste
from overlayfs.image.layer.file_index import Record
from tests.image.inspect.indexes import EPOCH, directory, file, hard_link, index, symlink, whiteout


def waste(*layers: list[Record]) -> Waste:
    indexes = [index(*records) for records in layers]
    return find_waste(indexes, merged_trees(indexes))


def test_an_image_without_waste() -> None:
    found = waste([directory("a"), file("a/x", 100)], [file("a/y", 50)])
    assert (found.hidden, found.wasted, found.total, found.efficiency, found.dive_score) == ([], 0, 150, 1.0, 1.0)


def test_no_layers_are_efficient() -> None:
    assert waste() == Waste([], 0, 1.0)
    assert waste().efficiency == 1.0


def test_deleted_file() -> None:
    found = waste([file("x", 100), file("y", 300)], [whiteout("x")])
    assert found.hidden == [Hidden(b"x", 100, 1, (0,), 1, Reason.DELETED)]
    assert found.efficiency == found.dive_score == pytest.approx(300 / 400)


def test_replaced_and_rewritten_files() -> None:
    found = waste(
        [file("a", 100), file("b", 50)],
        [file("a", 80, "other"), file("b", 50, mode=0o755)],
        [file("a", 90, "last"), file("b", 50, mtime=EPOCH + 1)],
    )
    assert found.hidden == [
        Hidden(b"a", 100, 1, (0,), 1, Reason.REPLACED),
        Hidden(b"a", 80, 1, (1,), 2, Reason.REPLACED),
        Hidden(b"b", 50, 1, (0,), 1, Reason.REWRITTEN),
        Hidden(b"b", 50, 1, (1,), 2, Reason.REWRITTEN),
    ]
    assert found.dive_score == pytest.approx((80 + 50) / (270 + 150))
    assert found.efficiency == pytest.approx((90 + 50) / (270 + 150))


def test_file_written_again_unchanged_is_wasted() -> None:
    assert waste([file("a", 9)], [file("a", 9)]).hidden == [Hidden(b"a", 9, 1, (0,), 1, Reason.REWRITTEN)]


@pytest.mark.parametrize(
    "top",
    [[whiteout("d")], [directory("d", opaque=True)], [file("d", 0)], [symlink("d", "x")]],
    ids=["whiteout", "opaque", "file in its place", "symlink in its place"],
)
def test_all_files_of_a_lost_directory(top: list[Record]) -> None:
    found = waste([directory("d"), directory("d/e"), file("d/e/x", 7)], [file("d/y", 5)], top)
    assert found.count == 2 and found.wasted == 12
    if top[0].is_opaque:
        assert found.hidden == [
            Hidden(b"d/e", 7, 1, (0,), 2, Reason.DELETED),
            Hidden(b"d/y", 5, 1, (1,), 2, Reason.DELETED),
        ]
    else:
        assert found.hidden == [Hidden(b"d", 12, 2, (0, 1), 2, Reason.DELETED)]


def test_deleted_directory_lowers_the_efficiency_and_not_the_score_of_dive() -> None:
    found = waste([directory("d"), file("d/x", 60), file("y", 40)], [whiteout("d")])
    assert found.efficiency == pytest.approx(40 / (60 + 40))
    assert found.dive_score == pytest.approx((60 + 40 + 60) / (60 + 40 + 60))


def test_file_with_a_name_left_is_not_wasted() -> None:
    layers = [file("a", 10), hard_link("b", "a")], [whiteout("a")]
    assert waste(*layers).hidden == []
    assert waste(*layers, [file("b", 3)]).hidden == [Hidden(b"b", 10, 1, (0,), 2, Reason.REPLACED)]


def test_file_linked_again_by_a_later_layer_is_not_wasted() -> None:
    assert waste([file("a", 10)], [hard_link("b", "a"), whiteout("a")]).hidden == []
