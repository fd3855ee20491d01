"""What do the instructions of a Dockerfile say? Flags are taken apart and checked; everything else is text still, as
variables are expanded step by step.

Pure; raises DockerfileError with the place of the fault.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...image.oci.errors import InvalidError
from ...image.oci.instructions import INSTRUCTIONS, json_list
from ...image.oci.words import Lexer
from .lines import Heredoc, Line, Place, read_lines

_FLAG: Final = re.compile(r"""--([a-zA-Z][\w.-]*)(?:=((?:"[^"]*"|'[^']*'|[^\s"'])*))?(?:\s+|$)""")
FLAGS: Final[Mapping[str, frozenset[str]]] = {
    "FROM": frozenset({"platform"}),
    "RUN": frozenset({"mount", "network", "security"}),
    "COPY": frozenset({"from", "chown", "chmod", "link", "parents", "exclude"}),
    "ADD": frozenset({"chown", "chmod", "link", "checksum", "keep-git-dir", "exclude", "unpack"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
}
_REPEATED: Final = frozenset({"mount", "exclude"})
_WITHOUT_VALUE: Final = frozenset({"link", "parents", "keep-git-dir", "unpack"})
NAMES: Final = frozenset(INSTRUCTIONS) | {"FROM", "RUN", "COPY", "ADD", "ARG", "HEALTHCHECK", "ONBUILD", "MAINTAINER"}
_NOT_IN_ONBUILD: Final = frozenset({"ONBUILD", "FROM", "MAINTAINER"})
_EMPTY_IS_MEANT: Final = frozenset({"CMD", "ENTRYPOINT"})
_STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `text` follows the flags; `listed` is the text as a JSON list, if it is one. `written` is all
    of it in one line, as history shows it."""

    name: str
    flags: Mapping[str, tuple[str, ...]]
    text: str
    listed: tuple[str, ...] | None
    heredocs: tuple[Heredoc, ...]
    place: Place
    written: str

    @property
    def here_documents(self) -> str:
        """The lines that follow it in the file, with a line break before each."""
        return "".join(f"\n{heredoc.text}{heredoc.name}" for heredoc in self.heredocs)

    def flag(self, name: str) -> str | None:
        """The value of a flag that can be given once; `true` for one without a value."""
        return self.flags.get(name, (None,))[-1]

    def is_set(self, name: str) -> bool:
        """Whether a flag without a value is given, and not as `=false`."""
        return self.flag(name) not in (None, "false")


@dataclass(frozen=True, slots=True)
class Stage:
    """A FROM and the instructions after it. `name` is empty where none is given."""

    number: int
    base: str
    name: str
    platform: str | None
    place: Place
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """The ARGs before the first FROM, and the stages."""

    escape: str
    arguments: tuple[Instruction, ...]
    stages: tuple[Stage, ...]


def parse_dockerfile(text: str, file: str) -> Dockerfile:
    """Parse a whole file, which `file` names in errors."""
    source = read_lines(text, file)
    instructions = [_instruction(line) for line in source.lines]
    first = next((number for number, found in enumerate(instructions) if found.name == "FROM"), len(instructions))
    for found in instructions[:first]:
        if found.name != "ARG":
            raise found.place.error(f"{found.name} before the first FROM: only ARG may be there")
    if first == len(instructions):
        raise Place(file, 1).error("there is no FROM")
    return Dockerfile(source.escape, tuple(instructions[:first]), tuple(_stages(instructions[first:])))


def parse_trigger(text: str, file: str) -> Instruction:
    """An instruction that ONBUILD of a base image left behind."""
    lines = read_lines(text, file).lines
    if len(lines) != 1 or lines[0].name in _NOT_IN_ONBUILD:
        raise Place(file, 1).error(f"the ONBUILD {text[:60]!r} of the base image is not one instruction")
    return _instruction(lines[0])


def _stages(instructions: list[Instruction]) -> list[Stage]:
    starts = [number for number, found in enumerate(instructions) if found.name == "FROM"]
    ends = [*starts[1:], len(instructions)]
    stages: list[Stage] = []
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        opening, own = instructions[start], tuple(instructions[start + 1 : end])
        base, name = _base_and_name(opening)
        if name and any(name == other.name for other in stages):
            raise opening.place.error(f"two stages are called {name}")
        stages.append(Stage(number, base, name, opening.flag("platform"), opening.place, own))
    return stages


def _base_and_name(opening: Instruction) -> tuple[str, str]:
    match raw_words(opening.text):
        case [base]:
            return base, ""
        case [base, word, name] if word.upper() == "AS":
            if not _STAGE_NAME.fullmatch(name.lower()):
                raise opening.place.error(f"{name[:60]!r} is no name for a stage: letters, digits, . _ and -")
            return base, name.lower()
    raise opening.place.error("FROM is followed by IMAGE, or IMAGE AS NAME")


def _instruction(line: Line) -> Instruction:
    if line.name not in NAMES:
        raise line.named_at.error(f"unknown instruction {line.name[:40]}")
    flags, offset = _flags(line)
    text = line.text[offset:]
    if not text and line.name not in _EMPTY_IS_MEANT:
        raise line.named_at.error(f"{line.name} needs something to follow it")
    if line.name == "ONBUILD":
        _check_trigger(line)
    try:
        listed = json_list(text)
    except InvalidError as error:
        raise line.place(offset).error(str(error)) from None
    return Instruction(
        line.name,
        flags,
        text,
        None if listed is None else tuple(listed),
        line.heredocs,
        line.named_at,
        " ".join(f"{line.name} {line.text}".split()),
    )


def _check_trigger(line: Line) -> None:
    name = line.text.split(maxsplit=1)[0].upper()
    if name in _NOT_IN_ONBUILD or name not in NAMES:
        raise line.place().error(f"ONBUILD cannot be followed by {name[:40]}")


def _flags(line: Line) -> tuple[dict[str, tuple[str, ...]], int]:
    """The flags, and the offset of the text behind them."""
    flags: dict[str, tuple[str, ...]] = {}
    known = FLAGS.get(line.name, frozenset())
    offset = 0
    while known and (found := _FLAG.match(line.text, offset)):
        name, value = found[1], found[2]
        if name not in known:
            listed = ", ".join(f"--{flag}" for flag in sorted(known))
            raise line.place(offset).error(f"{line.name} has no flag --{name}: {listed}")
        if value is None and name not in _WITHOUT_VALUE:
            raise line.place(offset).error(f"--{name} needs a value: --{name}=VALUE")
        if name in flags and name not in _REPEATED:
            raise line.place(offset).error(f"--{name} is given twice")
        flags[name] = (*flags.get(name, ()), "true" if value is None else value.replace('"', "").replace("'", ""))
        offset = found.end()
    return flags, offset


def names_and_values(instruction: Instruction, lexer: Lexer) -> dict[str, str | None]:
    """What an ARG declares, `NAME` or `NAME=DEFAULT`; each default sees those before it."""
    declared: dict[str, str | None] = {}
    known = dict(lexer.known)
    for word in raw_words(instruction.text):
        name, equals, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise instruction.place.error(f"{word[:40]!r} is no ARG: NAME or NAME=DEFAULT")
        try:
            declared[name] = Lexer(known, lexer.escape).expand(value) if equals else None
        except InvalidError as error:
            raise instruction.place.error(str(error)) from None
        known[name] = declared[name] or ""
    return declared


def raw_words(text: str) -> list[str]:
    """The words with their quotes and variables."""
    return re.findall(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|\$\{[^}]*\}|[^\s"'\\]|["'\\])+""", text)
