"""How does a line of a Dockerfile become words? Quotes, escapes and variables, as in a shell but without one.

Dockerfile reference (docs.docker.com/reference/dockerfile, "Environment replacement"): `$NAME`, `${NAME}`, and in
braces `:-` `-` `:+` `+` `:?` `?` (defaults), `#` `##` `%` `%%` (a pattern removed from the start or the end) and `/`
`//` (a pattern replaced). Words of these forms may have variables in turn. A quote that is never closed is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from .errors import InvalidError

_NAME: Final = re.compile(r"[A-Za-z_]\w*|\d+|[@*#?!$-]", re.ASCII)
_SPACE: Final = re.compile(r"\s+")
_DEEPEST: Final = 64


@dataclass(frozen=True, slots=True)
class Lexer:
    """Splits and expands with these variables; `escape` is the Dockerfile's escape character."""

    known: Mapping[str, str] = field(default_factory=dict)
    escape: str = "\\"

    def split(self, text: str) -> list[str]:
        """The words, unquoted, with variables expanded; expanded values are not split again. Raises InvalidError."""
        words: list[str] = []
        is_inside = False
        for is_space, piece in _Scanner(text, self.known, self.escape).pieces():
            if not is_space:
                words[-1:] = [words[-1] + piece] if is_inside else [*words[-1:], piece]
            is_inside = not is_space
        return words

    def expand(self, text: str) -> str:
        """The text as one word: unquoted and expanded, its spaces kept. Raises InvalidError."""
        return "".join(piece for _, piece in _Scanner(text, self.known, self.escape).pieces())

    def expand_text(self, text: str) -> str:
        """Only variables are expanded and `\\$` unescaped, as in the text of a heredoc. Raises InvalidError."""
        return _Scanner(text, self.known, self.escape).unquoted_text()


class _Scanner:
    """One pass over one text; `depth` counts the substitutions it is in."""

    def __init__(self, text: str, known: Mapping[str, str], escape: str) -> None:
        self._text, self._known, self._escape = text, known, escape
        self._at, self._depth = 0, 0

    def pieces(self) -> Iterator[tuple[bool, str]]:
        """Pieces of words, and whether each is the space between two."""
        while self._at < len(self._text):
            space = _SPACE.match(self._text, self._at)
            if space:
                self._at = space.end()
                yield True, space[0]
            else:
                yield False, self._piece()

    def unquoted_text(self) -> str:
        found = []
        while self._at < len(self._text):
            found.append(self._piece_in_quotes())
        return "".join(found)

    def _next(self) -> str:
        """The next character; empty at the end."""
        char = self._text[self._at : self._at + 1]
        self._at += 1
        return char

    def _piece(self) -> str:
        char = self._next()
        if char in ("'", '"') and char in self._text[self._at :]:
            return self._until_quote(char, self._next if char == "'" else self._piece_in_quotes)
        if char == "$":
            return self._variable()
        return self._next() if char == self._escape else char

    def _piece_in_quotes(self) -> str:
        char = self._next()
        if char == "$":
            return self._variable()
        if char == self._escape and self._text[self._at : self._at + 1] in ('"', "$", self._escape):
            return self._next()
        return char

    def _until_quote(self, quote: str, piece: Callable[[], str]) -> str:
        start, found = self._at - 1, []
        while self._text[self._at : self._at + 1] != quote:
            if self._at >= len(self._text):
                raise InvalidError(f"the quote in {self._text[start : start + 40]!r} is not closed")
            found.append(piece())
        self._at += 1
        return "".join(found)

    # variables

    def _variable(self) -> str:
        """What stands for `$NAME` or `${NAME…}`, behind the dollar; a dollar without a name is one."""
        if self._text[self._at : self._at + 1] == "{":
            self._at += 1
            return self._in_braces()
        name = self._name()
        return self._known.get(name, "") if name else "$"

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found[0] if found else ""

    def _in_braces(self) -> str:
        start = self._at - 2
        name = self._name()
        operator = self._next()
        if not name or not operator:
            raise self._bad(start)
        if operator == "}":
            return self._known.get(name, "")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise InvalidError(f"more than {_DEEPEST} substitutions are within each other")
        value = self._substituted(name, operator, start)
        self._depth -= 1
        return value

    def _substituted(self, name: str, operator: str, start: int) -> str:
        value = self._known.get(name)
        if operator == ":":
            operator, value = self._next(), value or None
        elif operator in ("#", "%", "/"):
            return self._edited(value or "", operator, start)
        word = self._word("}", start)
        if operator == "-":
            return word if value is None else value
        if operator == "+":
            return "" if value is None else word
        if operator != "?":
            raise self._bad(start)
        if value is None:
            raise InvalidError(f"{name}: {word or 'it has no value'}")
        return value

    def _edited(self, value: str, operator: str, start: int) -> str:
        is_doubled = self._text[self._at : self._at + 1] == operator
        self._at += is_doubled
        if operator == "/":
            pattern = _pattern(self._word("/", start), self._escape)
            by = self._word("}", start)
            return re.sub(pattern, lambda _: by, value, count=0 if is_doubled else 1)
        pattern = _pattern(self._word("}", start), self._escape)
        ends = range(len(value) + 1)
        if operator == "#":
            found = (end for end in (reversed(ends) if is_doubled else ends) if re.fullmatch(pattern, value[:end]))
            return value[next(found, 0) :]
        found = (begin for begin in (ends if is_doubled else reversed(ends)) if re.fullmatch(pattern, value[begin:]))
        return value[: next(found, len(value))]

    def _word(self, end: str, start: int) -> str:
        """The expanded text up to `end`, which is skipped."""
        found = []
        while (char := self._text[self._at : self._at + 1]) != end:
            if not char or (char == "}" and end != "}"):
                raise self._bad(start)
            found.append(self._piece())
        self._at += 1
        return "".join(found)

    def _bad(self, start: int) -> InvalidError:
        return InvalidError(f"{self._text[start : start + 40]!r} is no substitution: ${{NAME}}, ${{NAME:-word}} …")


def _pattern(text: str, escape: str) -> re.Pattern[str]:
    """A shell pattern with `*` and `?`."""
    parts, rest = [], iter(text)
    for char in rest:
        if char == escape:
            parts.append(re.escape(next(rest, "")))
        else:
            parts.append({"*": ".*", "?": "."}.get(char) or re.escape(char))
    return re.compile("".join(parts), re.DOTALL)
