"""Patterns of COPY and of ignore files."""

from __future__ import annotations

import pytest

from overlayfs.build.files.patterns import Ignored, compiled
from overlayfs.image.oci.errors import InvalidError


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.txt", ["a.txt", ".txt"], ["a/b.txt", "a.txtx"]),
        ("a/*", ["a/b"], ["a", "a/b/c"]),
        ("**/x", ["x", "a/x", "a/b/x"], ["ax", "x/a"]),
        ("a/**", ["a/b", "a/b/c"], ["ab"]),
        ("a/**/c", ["a/c", "a/b/c", "a/b/d/c"], ["a/bc"]),
        ("?", ["a"], ["", "ab", "/"]),
        ("[a-c]x", ["ax", "cx"], ["dx"]),
        ("[^a]", ["b"], ["a", "/"]),
        (r"\*", ["*"], ["a"]),
        ("a.b", ["a.b"], ["axb"]),
        ("(a|b)+", ["(a|b)+"], ["a"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    assert all(compiled(pattern).fullmatch(path) for path in matching)
    assert not any(compiled(pattern).fullmatch(path) for path in others)


def test_a_set_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(InvalidError, match="not closed"):
        compiled("[a")


@pytest.mark.parametrize(
    ("text", "ignored", "kept"),
    [
        ("a\n", ["a", "a/b", "a/b/c"], ["b", "b/a"]),
        ("/a/\n", ["a", "a/b"], ["b"]),
        ("# c\n\n  b  \n", ["b"], ["# c", "a"]),
        ("*\n!a\n", ["b", "c/d"], ["a", "a/b"]),
        ("*.md\n!R*.md\nR1.md\n", ["x.md", "R1.md"], ["R2.md"]),
        ("**/t\n", ["t", "a/t", "a/t/b"], ["at"]),
        ("./a/../b\n", ["b"], ["a"]),
        (".\n/\n", [], ["a"]),
        ("d\n!d/keep\n", ["d", "d/x"], ["d/keep"]),
    ],
)
def test_ignore_files(text: str, ignored: list[str], kept: list[str]) -> None:
    rules = Ignored.parse(text)
    assert [path for path in ignored if not rules.covers(path)] == []
    assert [path for path in kept if rules.covers(path)] == []
