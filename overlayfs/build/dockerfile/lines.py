"""Which instructions does the text of a Dockerfile hold? Directives, comments, continued lines, heredocs.

Dockerfile reference (docs.docker.com/reference/dockerfile) and BuildKit's parser (frontend/dockerfile/parser). Parsers
that others keep were tried first: `dockerfile-parse` 2.0.1 takes the lines of a heredoc for instructions, and
`dockerfile` 3.4.0 (a binding of BuildKit's own) loads the runtime of Go, whose threads forbid the forks and user
namespaces of a build; neither tells columns. Pure; raises DockerfileError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from ...image.oci.errors import InvalidError

_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES: Final = ("syntax", "escape", "check")
_CHECK_OPTIONS: Final = ("skip", "error", "experimental")
_HEREDOC: Final = re.compile(r"""(?<!\S)\d*<<(-?)(?:(["'])([^<\s"']+)\2|([^<\s"'&|;()]+))""")
_WITH_HEREDOCS: Final = frozenset({"RUN", "COPY", "ADD"})
_INSTRUCTION: Final = re.compile(r"\s*([A-Za-z]+)(?:\s+|$)")


class DockerfileError(InvalidError):
    """The Dockerfile is wrong at a place, which begins the message: FILE:LINE:COLUMN."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is written; line and column count from 1."""

    file: str
    line: int
    column: int = 1

    def error(self, problem: str) -> DockerfileError:
        return DockerfileError(f"{self.file}:{self.line}:{self.column}: {problem}")


@dataclass(frozen=True, slots=True)
class Heredoc:
    """Lines of text that follow an instruction. `written` is how the instruction refers to it, as `<<-EOF`; the text
    is as in the file, `content` without the tabs that `<<-` removes. Variables are expanded unless the name is quoted.
    """

    name: str
    written: str
    text: str
    is_expanded: bool
    has_tabs_removed: bool

    @property
    def content(self) -> str:
        return re.sub(r"^\t+", "", self.text, flags=re.MULTILINE) if self.has_tabs_removed else self.text


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction: its name in capitals, the place of that, and the joined text after it. `starts` has the offset
    in `text` at which each physical line begins, and its place."""

    name: str
    named_at: Place
    text: str
    starts: tuple[tuple[int, Place], ...]
    heredocs: tuple[Heredoc, ...] = ()

    def place(self, offset: int = 0) -> Place:
        """Where the character at `offset` of the text is written."""
        begin, place = [start for start in self.starts if start[0] <= offset][-1]
        return Place(place.file, place.line, place.column + offset - begin)


@dataclass(frozen=True, slots=True)
class Source:
    """All instructions of a file, and its escape character."""

    escape: str
    lines: tuple[Line, ...]


def read_lines(text: str, file: str) -> Source:
    """The instructions of a Dockerfile; `file` names it in errors."""
    physical = text.removeprefix("\ufeff").splitlines()
    escape = _escape_of(physical, file)
    return Source(escape, tuple(_Reader(physical, file, escape).lines()))


def _escape_of(physical: list[str], file: str) -> str:
    """The directives are comments `# name=value` before everything else, other comments too. Of them only `escape` has
    a meaning here: this is the one syntax, and nothing is checked that `check` could leave out."""
    escape, seen = "\\", set()
    for number, line in enumerate(physical, 1):
        found = _DIRECTIVE.fullmatch(line.strip())
        if not found or found[1].lower() not in _DIRECTIVES:
            break
        name, value = found[1].lower(), found[2]
        if name in seen:
            raise Place(file, number).error(f"the directive {name} is given twice")
        seen.add(name)
        if name == "escape" and value not in ("\\", "`"):
            raise Place(file, number).error(f"the escape character is \\ or `, not {value[:20]!r}")
        if name == "check" and not all(_is_check_option(option) for option in value.split(";")):
            raise Place(file, number).error(f"check is skip=NAME,… or error=true, with ; between, not {value[:60]!r}")
        escape = value if name == "escape" else escape
    return escape


def _is_check_option(text: str) -> bool:
    name, equals, value = (part.strip() for part in text.partition("="))
    return name in _CHECK_OPTIONS and bool(equals) and (name != "error" or value.lower() in ("true", "false", "1", "0"))


class _Reader:
    """Reads one file from the first line to the last."""

    def __init__(self, physical: list[str], file: str, escape: str) -> None:
        self._physical, self._file = physical, file
        self._continued = re.compile(rf"{re.escape(escape)}[ \t]*$")
        self._at = 0

    def lines(self) -> Iterator[Line]:
        while self._at < len(self._physical):
            if _is_ignored(self._physical[self._at]):
                self._at += 1
            else:
                yield self._instruction()

    def _instruction(self) -> Line:
        first = self._at
        place = Place(self._file, first + 1, len(self._physical[first]) - len(self._physical[first].lstrip()) + 1)
        found = _INSTRUCTION.match(self._continued.sub(" ", self._physical[first]))
        if not found:
            raise place.error(f"{self._physical[first].strip()[:40]!r} is no instruction")
        text, starts = self._joined(found.end())
        line = Line(found[1].upper(), place, text.rstrip(), tuple(starts))
        name = text.split(maxsplit=1)[0].upper() if line.name == "ONBUILD" and text else line.name
        has_heredocs = name in _WITH_HEREDOCS
        heredocs = tuple(self._heredocs(line)) if has_heredocs and "<<" in text else ()
        return replace(line, heredocs=heredocs)

    def _joined(self, skipped: int) -> tuple[str, list[tuple[int, Place]]]:
        """The text behind the instruction's name, with its continued lines."""
        parts: list[str] = []
        starts: list[tuple[int, Place]] = []
        size = 0
        while self._at < len(self._physical):
            line = self._physical[self._at]
            self._at += 1
            if starts and _is_ignored(line):
                continue
            starts.append((size, Place(self._file, self._at, skipped + 1)))
            is_continued = self._continued.search(line)
            part = (line[: is_continued.start()] if is_continued else line)[skipped:]
            parts.append(part)
            size, skipped = size + len(part), 0
            if not is_continued:
                break
        return "".join(parts), starts

    def _heredocs(self, line: Line) -> Iterator[Heredoc]:
        for found in _HEREDOC.finditer(_without_quoted(line.text)):
            name = found[3] or found[4]
            removes_tabs = bool(found[1])
            text = self._heredoc_text(name, removes_tabs, line.place(found.start()))
            yield Heredoc(name, line.text[found.start() : found.end()], text, found[2] is None, removes_tabs)

    def _heredoc_text(self, name: str, removes_tabs: bool, place: Place) -> str:
        first = self._at
        while self._at < len(self._physical):
            line = self._physical[self._at]
            self._at += 1
            if (line.lstrip("\t") if removes_tabs else line) == name:
                return "".join(f"{line}\n" for line in self._physical[first : self._at - 1])
        raise place.error(f"the heredoc {name} has no end: a line that is {name!r} and nothing else")


def _is_ignored(line: str) -> bool:
    """Comments and empty lines, between instructions and within."""
    return not line.strip() or line.lstrip().startswith("#")


def _without_quoted(text: str) -> str:
    """The text with quoted parts blanked, so that `<<` in them begins no heredoc; names in quotes stay."""
    return re.sub(r"""(?<!<)(?<!<-)(["']).*?\1""", lambda found: " " * len(found[0]), text)
