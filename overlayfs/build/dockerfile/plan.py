"""Which stages does a build need, and which of them must be built first? A stage that nothing needs is not built.

Pure; raises DockerfileError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...image.oci.errors import InvalidError
from ...image.oci.words import Lexer
from .lines import Place
from .parser import Dockerfile, Instruction, Stage, names_and_values

SCRATCH: Final = "scratch"


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage with its base expanded: `base` is the number of a stage, else `image` names one, or is `scratch`.

    `sources` are the texts of all `from` and where they stand, `needs` the numbers of the stages that it takes
    something from. `name` is what progress calls it.
    """

    stage: Stage
    base: int | None
    image: str
    platform: str | None
    sources: tuple[tuple[str, Place], ...]
    needs: frozenset[int]

    @property
    def name(self) -> str:
        return self.stage.name or f"stage-{self.stage.number}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The needed stages in the order of the file, the target last. `arguments` are those before the first FROM."""

    escape: str
    arguments: Mapping[str, str]
    stages: tuple[PlannedStage, ...]
    every: tuple[Stage, ...]


def make_plan(dockerfile: Dockerfile, target: str, given: Mapping[str, str], predefined: Mapping[str, str]) -> Plan:
    """`given` are the arguments of the command line. Raises InvalidError if there is no stage `target`."""
    known = _global_arguments(dockerfile, given, predefined)
    lexer = Lexer({**predefined, **known}, dockerfile.escape)
    planned = [_planned(stage, dockerfile.stages, lexer) for stage in dockerfile.stages]
    last = _target(dockerfile.stages, target)
    needed, pending = set[int](), [last]
    while pending:
        number = pending.pop()
        if number not in needed:
            needed.add(number)
            pending.extend(planned[number].needs)
    return Plan(dockerfile.escape, known, tuple(planned[number] for number in sorted(needed)), dockerfile.stages)


def _global_arguments(
    dockerfile: Dockerfile, given: Mapping[str, str], predefined: Mapping[str, str]
) -> dict[str, str]:
    known: dict[str, str] = {}
    for instruction in dockerfile.arguments:
        lexer = Lexer({**predefined, **known}, dockerfile.escape)
        for name, default in names_and_values(instruction, lexer).items():
            value = given.get(name, default)
            if value is not None:
                known[name] = value
    return known


def _target(stages: tuple[Stage, ...], target: str) -> int:
    if not target:
        return stages[-1].number
    number = stage_called(target, stages)
    if number is None:
        names = ", ".join(stage.name for stage in stages if stage.name) or "none has a name"
        raise InvalidError(f"no stage {target!r} in the Dockerfile: {names}")
    return number


def stage_called(text: str, stages: tuple[Stage, ...]) -> int | None:
    """The number of the stage that a name or a number means."""
    for stage in stages:
        if stage.name == text.lower() or (text.isascii() and text.isdigit() and stage.number == int(text)):
            return stage.number
    return None


def _planned(stage: Stage, stages: tuple[Stage, ...], lexer: Lexer) -> PlannedStage:
    before = stages[: stage.number]
    image = _expanded(stage.base, lexer, stage.place)
    if not image:
        raise stage.place.error(f"the base {stage.base!r} is empty: give the ARG a value")
    base = next((other.number for other in before if other.name and other.name == image.lower()), None)
    platform = None if stage.platform is None else _expanded(stage.platform, lexer, stage.place) or None
    sources = tuple((text, found.place) for found in stage.instructions for text in sources_of(found))
    numbers = (stage_called(text, before) for text, _ in sources)
    needs = frozenset(number for number in (base, *numbers) if number is not None)
    return PlannedStage(stage, base, image, platform, sources, needs)


def _expanded(text: str, lexer: Lexer, place: Place) -> str:
    try:
        return lexer.expand(text)
    except InvalidError as error:
        raise place.error(str(error)) from None


def sources_of(instruction: Instruction) -> list[str]:
    """The stages and images that an instruction takes files from."""
    copied = [text for text in (instruction.flag("from"),) if text]
    options = (
        dict(word.partition("=")[::2] for word in text.split(",")) for text in instruction.flags.get("mount", ())
    )
    return copied + [option["from"] for option in options if option.get("from")]
