"""How is one stage built? Instruction by instruction, each on the image that the ones before it made.

Instructions that only edit the configuration do so at once. The others make a layer: the image so far becomes a
container, the step works in it, and its changes become the layer; or the cache has the result. For one thread, in a
process of its own.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from ..container.containers import Container, Containers
from ..container.users import find_user
from ..image.layer.lower_layers import Below
from ..image.make.commit import Making, new_layer
from ..image.make.draft import Draft
from ..image.oci.digest import Digest
from ..image.oci.documents import History
from ..image.oci.errors import ImageError, InvalidError
from ..image.oci.instructions import INSTRUCTIONS, apply_instruction, environment
from ..image.oci.words import Lexer
from ..image.store.lowers import lower_directories, lower_keys
from ..image.store.store import Image, Store
from ..image.tar.reader import Entry
from .cache import Cache, key_of
from .children import ChildError
from .dockerfile.health import healthcheck
from .dockerfile.lines import DockerfileError, Place
from .dockerfile.parser import Instruction, names_and_values, parse_trigger
from .dockerfile.plan import PlannedStage
from .files.sources import Tree
from .processes import remove_limit
from .reports import Output, ReportedStep, reported
from .request import BuildError, Request
from .sandbox import Sandbox, in_container

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Step = Callable[[Sandbox, Output], bytes]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all stages of a build share. `source` gives the image of an earlier stage, or of the store, by the text of
    a `from`; `globals` are the ARGs before the first FROM."""

    store: Store
    request: Request
    cache: Cache
    context: Tree
    context_path: Path
    escape: str
    globals: Mapping[str, str]
    source: Callable[[str, Place], Image]


@dataclass(slots=True)
class Building:
    """The state of a stage between two instructions. `key` stands for everything that was done so far; `image` is the
    draft as last put into the store, None if it has been edited since."""

    around: Surroundings
    planned: PlannedStage
    draft: Draft
    key: str
    image: Image | None = None
    arguments: dict[str, str] = field(default_factory=dict)
    has_command: bool = False

    @classmethod
    def on(
        cls, around: Surroundings, planned: PlannedStage, base: Image | None, inherited: Mapping[str, str]
    ) -> Building:
        """A stage on its base image, None for scratch, with the ARGs that it has from a stage that is its base."""
        request = around.request
        if base is None:
            draft = Draft.empty(request.platform)
            draft.config = replace(draft.config, env=[_PATH])
        else:
            draft = Draft.on(around.store, base)
        key = key_of(base.id if base else "scratch", request.epoch, request.compression, _platform(draft))
        return cls(around, planned, draft, key, arguments=dict(inherited))

    # what instructions see

    @property
    def variables(self) -> dict[str, str]:
        """ARGs that were declared, and ENV, which counts more."""
        return {**self.arguments, **environment(self.draft.config)}

    @property
    def lexer(self) -> Lexer:
        return Lexer(self.variables, self.around.escape)

    def path_in_image(self, text: str) -> str:
        """An absolute path from one that is relative to WORKDIR; a slash at its end is kept."""
        path = posixpath.normpath(posixpath.join("/", self.draft.config.working_dir, text))
        is_directory = text.endswith(("/", "/.")) or text in (".", "..")
        return "/" + path.lstrip("/") + ("/" if is_directory and path.strip("/") else "")

    # instructions

    def triggers(self) -> list[Instruction]:
        """The ONBUILD instructions of the base, which this stage runs first and does not pass on."""
        texts = self.draft.raw.get("config", {}).pop("OnBuild", None) or []
        return [parse_trigger(str(text), f"ONBUILD of {self.planned.image}") for text in texts]

    def configure(self, instruction: Instruction) -> None:
        """One instruction that only edits the configuration. Raises DockerfileError."""
        seen = _Seen(self.variables)
        try:
            self._edit(instruction, Lexer(seen, self.around.escape))
        except DockerfileError:
            raise
        except (InvalidError, ValueError) as error:
            raise instruction.place.error(str(error)) from None
        self.note(instruction, instruction.written, repr(sorted(seen.used.items())))

    def _edit(self, instruction: Instruction, lexer: Lexer) -> None:
        name, text = instruction.name, instruction.text
        config: dict[str, Any] = self.draft.raw.setdefault("config", {})
        if name in INSTRUCTIONS:
            self.draft.config = apply_instruction(self.draft.config, name, text, lexer)
            self.has_command = self.has_command or name == "CMD"
            if name == "ENTRYPOINT" and not self.has_command:
                self.draft.config = replace(self.draft.config, cmd=[])
        elif name == "ARG":
            self._declare(instruction)
        elif name == "HEALTHCHECK":
            config["Healthcheck"] = healthcheck(instruction)
        elif name == "ONBUILD":
            config["OnBuild"] = [*(config.get("OnBuild") or []), text + instruction.here_documents]
        elif name == "MAINTAINER":
            self.draft.raw["author"] = lexer.expand(text)
        else:
            raise InvalidError(f"{name} cannot be used here")

    def _declare(self, instruction: Instruction) -> None:
        request, around = self.around.request, self.around
        for name, default in names_and_values(instruction, self.lexer).items():
            inherited = around.globals.get(name, request.predefined.get(name)) if default is None else default
            value = request.arguments.get(name, inherited)
            if value is not None:
                self.arguments[name] = value
            else:
                self.arguments.pop(name, None)

    def note(self, instruction: Instruction, *facts: str) -> None:
        """Record a step without a layer."""
        self.key = key_of(self.key, *facts)
        self.draft.add(self._history(instruction), None)
        self.image = None

    def make_directory(self, instruction: Instruction) -> None:
        """WORKDIR: the directory is made if it is missing, before the next step; as in BuildKit it is the USER's."""
        before = self.current()  # it has the same layers, and is mostly in the store already
        self.configure(instruction)
        path, user = self.draft.config.working_dir, self.draft.config.user
        if not self._has_directory(before, path):
            from .files.writer import TreeWriter

            def make(sandbox: Sandbox, _: Output) -> bytes:
                owner = find_user(sandbox.inside, user)
                like = Entry(b"", "d", 0o755, uid=owner.uid, gid=owner.gid)
                TreeWriter(sandbox.inside, self.around.store.limits).make_directories(os.fsencode(path), like)
                return b""

            self.draft.raw["history"].pop()
            self.layer(instruction, make, (), "directory", user)

    def _has_directory(self, image: Image, path: str) -> bool:
        """Whether a directory is there, through no symlink."""
        if not self.draft.layers:
            return path == "/"
        with Below(lower_directories(self.around.store, image)) as below:
            found = below.entry(os.fsencode(path.strip("/")))
        return found is not None and found.kind == "d"

    # layers

    def current(self) -> Image:
        """The image so far, in the store, without a name."""
        if self.image is None:
            store = self.around.store
            self.image = store.load_image(self.draft.write(store))
        return self.image

    def layer(self, instruction: Instruction, step: Step, trees: tuple[Path, ...], *facts: str) -> None:
        """Run a step and add its changes as a layer, or take the result from the cache. Raises BuildError."""
        self.key = key_of(self.key, instruction.name, *facts)
        report, title = self.around.request.report, f"[{self.planned.name}] {instruction.written}"
        found = self.around.cache.find(self.key)
        if found is not None:
            report.cached(title)
            self.draft, self.image = Draft.on(self.around.store, found), found
            return
        with reported(report, title) as shown:
            self._run(instruction, step, trees, shown)
        self.around.cache.keep(self.key, self.current().descriptor.digest)

    def _run(self, instruction: Instruction, step: Step, trees: tuple[Path, ...], shown: ReportedStep) -> None:
        store, report = self.around.store, self.around.request.report
        containers, image = Containers(store), self.current()
        container = containers.create(None, image, lower_keys(store, image), is_ephemeral=True)
        try:
            try:
                status = in_container(store, container, trees, lambda sandbox: step(sandbox, shown.output))
            except ChildError as error:
                raise BuildError(f"{_at(instruction.place)}: {instruction.name}: {error}") from None
            if status:
                raise self._failed(instruction, container, status.decode())
            with containers.compare(containers.again(container)) as comparison:
                layer, summary = new_layer(store, comparison, self._making())
            if summary.sockets_left_out:
                report.say(f"{summary.sockets_left_out} sockets were left out: no image can hold one")
        finally:
            remove_limit(container.id)
            containers.release(container)
        self.draft.add(self._history(instruction), layer)
        self.image = None

    def _failed(self, instruction: Instruction, container: Container, status: str) -> BuildError:
        message = f"{_at(instruction.place)}: the command ended with status {status}"
        if not self.around.request.keeps_failed:
            return BuildError(message)
        name = Containers(self.around.store).change(container, is_ephemeral=False).name
        return BuildError(f"{message}; its container is kept: overlayfs commit {name} NAME, then run NAME")

    def _making(self) -> Making:
        return Making(compression=self.around.request.compression, epoch=self.around.request.epoch)

    def _history(self, instruction: Instruction) -> History:
        return History(created=self.around.request.now, created_by=instruction.written)

    def finish(self) -> Digest:
        """The manifest of the stage; an equal stage that was built before gives the same image."""
        key = key_of(self.key, "stage")
        found = self.around.cache.find(key)
        if found is None:
            found = self.current()
            self.around.cache.keep(key, found.descriptor.digest)
        return found.descriptor.digest


class _Seen(dict[str, str]):
    """Variables, and which of them an instruction looked up: only these are part of its key."""

    def __init__(self, known: Mapping[str, str]) -> None:
        super().__init__(known)
        self.used: dict[str, str | None] = {}

    def get(self, name: str, default: Any = None) -> Any:
        self.used[name] = super().get(name)
        return super().get(name, default)


def _at(place: Place) -> str:
    return f"{place.file}:{place.line}"


def _platform(draft: Draft) -> tuple[str, ...]:
    return tuple(str(draft.raw.get(name, "")) for name in ("os", "architecture", "variant"))


def run_all(building: Building, run: Callable[[Building, Instruction], None], instructions: list[Instruction]) -> None:
    """Run the triggers of the base, then the instructions. An ImageError gets the place of its instruction."""
    for instruction in instructions:
        try:
            run(building, instruction)
        except (BuildError, InvalidError) as error:
            if str(error).startswith(f"{instruction.place.file}:"):
                raise
            raise BuildError(f"{_at(instruction.place)}: {error}") from None
        except ImageError as error:
            raise BuildError(f"{_at(instruction.place)}: {instruction.name}: {error}") from None
