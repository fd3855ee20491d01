"""Words and variables of a Dockerfile's line."""

from __future__ import annotations

import pytest

from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.oci.words import Lexer

KNOWN = {"A": "x y", "P": "/usr/local/lib/file.tar.gz", "E": "", "S": "foo-bar-baz"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b\tc", ["a", "b", "c"]),
        ("$A ${A}z", ["x y", "x yz"]),
        ("\"a b\" 'c d' e\\ f", ["a b", "c d", "e f"]),
        ("'$A' \"$A\" \\$A", ["$A", "x y", "$A"]),
        (r'"\a \" \\ \$A"', ['\\a " \\ $A']),
        ("a'b'\"c\"", ["abc"]),
        ("it's", ["it's"]),
        ("$ $. a$", ["$", "$.", "a$"]),
        ("${N:-d} ${N-d} ${E:-d} ${E-d}", ["d", "d", "d", ""]),
        ("${A:+s} ${E:+s} ${E+s} ${N+s}", ["s", "", "s", ""]),
        ("${N:-${A}z} ${N:-${M:-$A}}", ["x yz", "x y"]),
        ("${N:-a}b}", ["ab}"]),
        (
            "${P#*/} ${P##*/} ${P%.*} ${P%%.*}",
            ["usr/local/lib/file.tar.gz", "file.tar.gz", "/usr/local/lib/file.tar", "/usr/local/lib/file"],
        ),
        ("${S#foo} ${S%baz} ${S#x} ${S##*-} ${S%%-*}", ["-bar-baz", "foo-bar-", "foo-bar-baz", "baz", "foo"]),
        ("${S/ba?/X} ${S//ba?/X} ${S//-/} ${S/x/y}", ["foo-X-baz", "foo-X-X", "foobarbaz", "foo-bar-baz"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert Lexer(KNOWN).split(text) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${A", "is no substitution"),
        ("${}", "is no substitution"),
        ("${A:x}", "is no substitution"),
        ("${A!}", "is no substitution"),
        ("${S/x}", "is no substitution"),
        ("${N:?not there}", "N: not there"),
        ("${E:?}", "E: it has no value"),
        ("${N:-" * 100 + "}" * 100, "more than 64"),
    ],
)
def test_substitutions_that_are_wrong(text: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        Lexer(KNOWN).split(text)


def test_a_set_but_empty_variable_has_a_value_without_a_colon() -> None:
    assert Lexer(KNOWN).expand("-${E?no}-") == "--"


def test_another_escape_character() -> None:
    assert Lexer(KNOWN, "`").split('`$A c:\\d `"') == ["$A", "c:\\d", '"']


def test_text_keeps_its_quotes() -> None:
    assert Lexer(KNOWN).expand_text("'$A' \"${N:-d}\" \\$A \\n") == "'x y' \"d\" $A \\n"
