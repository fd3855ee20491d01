"""Which snapshots does a filter of containerd choose?

The grammar is that of containerd's filters package: selectors joined by commas, which must all match. A selector is a
path of fields (`name`, `parent`, `kind`, `labels."a.b/c"`) alone, which asks for presence, or with `==`, `!=` or `~=`
and a value. Fields and values may be quoted like Go's strings; the pattern of `~=` also between slashes or bars.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .metadata import Info, InvalidArgument

_ESCAPED = r"\\(?:[abfnrtv\\{quote}]|[0-7]{{3}}|x[0-9a-fA-F]{{2}}|u[0-9a-fA-F]{{4}}|U[0-9a-fA-F]{{8}})"
_QUOTED = {
    quote: re.compile(rf"{literal}((?:[^\\\n{literal}]|{_ESCAPED.format(quote=literal)})*){literal}")
    for quote, literal in (('"', '"'), ("/", "/"), ("|", r"\|"))
}
_ESCAPE = re.compile(r"\\(?:([0-7]{3})|(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|(.))")
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_VALUE = re.compile(r'[^\s,"/|=!~.][^\s,]*')
_OPERATOR = re.compile(r"[=!~]+")
_SPACE = re.compile(r"\s*")
_CONTROLS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

Filter = Callable[[Info], bool]


def parse(texts: Sequence[str]) -> Filter:
    """A filter that chooses what any of the texts chooses, and everything when there are none; or InvalidArgument."""
    choices = [_Parser(text).selectors() for text in texts] or [[]]
    return lambda info: any(all(selector.matches(info) for selector in selectors) for selectors in choices)


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str  # empty asks for presence
    value: str
    pattern: re.Pattern[str] | None

    def matches(self, info: Info) -> bool:
        found = _field(info, self.path)
        if self.operator == "!=":
            return (found or "") != self.value
        if found is None or not self.operator:
            return found is not None
        return bool(self.pattern.search(found)) if self.pattern else found == self.value


def _field(info: Info, path: tuple[str, ...]) -> str | None:
    """The value of a field; None where there is no such field or label."""
    match path:
        case ("name",):
            return info.name
        case ("parent",):
            return info.parent
        case ("kind",):
            return info.kind.name.lower()
        case ("labels", *names):
            return info.labels.get(".".join(names))
    return None


class _Parser:
    """Reads one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> list[_Selector]:
        selectors = [self._selector()]
        while self._take(","):
            selectors.append(self._selector())
        if self._at < len(self._text):
            raise self._error("unexpected input")
        return selectors

    def _selector(self) -> _Selector:
        path = [self._name()]
        while self._take("."):
            path.append(self._name())
        if self._at == len(self._text) or self._text[self._at] == ",":
            return _Selector(tuple(path), "", "", None)
        operator = self._scan(_OPERATOR)
        if operator not in ("==", "!=", "~="):
            raise self._error("expected ==, != or ~=")
        value = self._value('"/|' if operator == "~=" else '"')
        return _Selector(tuple(path), operator, value, self._pattern(value) if operator == "~=" else None)

    def _pattern(self, text: str) -> re.Pattern[str]:
        try:
            return re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._error(f"not a regular expression: {error}") from error

    def _name(self) -> str:
        self._skip_space()
        if self._text.startswith('"', self._at):
            return self._quoted()
        name = self._scan(_FIELD)
        if not name:
            raise self._error("expected a field")
        return name

    def _value(self, quotes: str) -> str:
        self._skip_space()
        if self._text[self._at : self._at + 1] in tuple(quotes):
            return self._quoted()
        value = self._scan(_VALUE)
        if not value:
            raise self._error("expected a value")
        return value

    def _quoted(self) -> str:
        found = _QUOTED[self._text[self._at]].match(self._text, self._at)
        if not found:
            raise self._error("bad quoted text")
        self._at = found.end()
        self._skip_space()
        return _ESCAPE.sub(self._unescaped, found[1])

    def _unescaped(self, escape: re.Match[str]) -> str:
        octal, hexadecimal, letter = escape.groups()
        if letter:
            return _CONTROLS.get(letter, letter)
        code = int(octal, 8) if octal else int(hexadecimal[1:], 16)
        try:
            return chr(code)
        except (ValueError, OverflowError) as error:
            raise self._error("no such character") from error

    def _take(self, separator: str) -> bool:
        self._skip_space()
        if not self._text.startswith(separator, self._at):
            return False
        self._at += 1
        return True

    def _scan(self, token: re.Pattern[str]) -> str:
        self._skip_space()
        found = token.match(self._text, self._at)
        if not found:
            return ""
        self._at = found.end()
        self._skip_space()
        return found[0]

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _error(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"filter {self._text!r}, character {self._at + 1}: {what}")
