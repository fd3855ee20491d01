"""How is an image built? Its stages run as processes, independent ones at once; the last becomes the image.

Nothing has a name before all is there. What a killed build leaves behind is removed by the next one.
"""

from __future__ import annotations

import json
import os
import select
from dataclasses import asdict, dataclass, field
from typing import Final

from msgspec.structs import replace

from ..container import anonymous
from ..container.containers import Containers
from ..image.make.commit import Making, whole_layer
from ..image.make.draft import Draft
from ..image.oci.digest import Digest, parse_digest
from ..image.oci.documents import Descriptor, History, Platform
from ..image.oci.errors import ImageError, InvalidError, NotFoundError
from ..image.oci.platforms import acceptable, normal, parse_platform
from ..image.oci.reference import Reference
from ..image.store.lowers import lower_directories
from ..image.store.store import Image, Store
from .cache import Cache
from .children import Child
from .dockerfile.lines import Place
from .dockerfile.parser import Dockerfile, parse_dockerfile, raw_words
from .dockerfile.plan import SCRATCH, Plan, PlannedStage, make_plan, stage_called
from .files.contexts import Context
from .processes import remove_limit
from .reports import reported
from .request import EPOCH, PROXIES, Request
from .stage import Building, Surroundings, run_all
from .steps import run_instruction

_OF_BUILDKIT: Final = "BUILDKIT_"
"""The prefix of arguments that are settings of docker's builder."""


def build(store: Store, context: Context, request: Request, references: list[Reference]) -> Image:
    """Build the image and give it the names. Raises ImageError. `clean_up` comes before."""
    dockerfile = parse_dockerfile(context.text, context.file)
    plan = make_plan(dockerfile, request.target, request.arguments, request.predefined)
    image = _Build(store, context, request, plan).run()
    _tell_unused(request, dockerfile)
    descriptor = _finished(store, request, image)
    named: list[Reference | None] = [*references]
    for reference in named or [None]:
        store.keep(descriptor, reference)
    return store.load_image(descriptor, references[0] if references else None)


def clean_up(store: Store) -> None:
    """Remove what killed builds left behind; before anything of this build is staged, a context too."""
    containers = Containers(store)
    for container in containers.readable().containers:
        if container.is_ephemeral and not container.is_in_use:
            remove_limit(container.id)
    anonymous.sweep(store)
    store.sweep()


def _tell_unused(request: Request, dockerfile: Dockerfile) -> None:
    stages = (instruction for stage in dockerfile.stages for instruction in stage.instructions)
    arguments = (found for found in (*dockerfile.arguments, *stages) if found.name == "ARG")
    declared = {word.partition("=")[0] for found in arguments for word in raw_words(found.text)}
    known = declared | PROXIES | {EPOCH}
    unused = [name for name in request.arguments if name not in known and not name.startswith(_OF_BUILDKIT)]
    if unused:
        request.report.say(f"warning: no ARG of the Dockerfile is called {', '.join(unused)}")


def _finished(store: Store, request: Request, image: Image) -> Descriptor:
    """The image with the labels of the command line, and with one layer if it is squashed."""
    if not request.labels and not request.squashes:
        return image.descriptor
    draft = Draft.on(store, image)
    if request.labels:
        config = draft.config
        draft.config = replace(config, labels={**config.labels, **request.labels})
    if request.squashes:
        making = Making(compression=request.compression, epoch=request.epoch)
        layer, _ = whole_layer(store, lower_directories(store, image), making)
        assert layer is not None
        draft.replace_layers(History(created=draft.raw.get("created", request.now), created_by="squash"), layer)
    return draft.write(store)


@dataclass(frozen=True, slots=True)
class Built:
    """What became of a stage: its manifest, and its ARGs, which stages on it inherit."""

    manifest: str
    arguments: dict[str, str]


@dataclass(slots=True)
class _Build:
    """One build. `built` has what became of stages, by number, `fetched` manifests of images by name and platform."""

    store: Store
    context: Context
    request: Request
    plan: Plan
    built: dict[int, Built] = field(default_factory=dict)
    fetched: dict[tuple[str, str], Digest] = field(default_factory=dict)

    def run(self) -> Image:
        for planned in self.plan.stages:  # before the work: a missing image is noticed at once
            self._fetch_all(planned)
        waiting = {planned.stage.number: planned for planned in self.plan.stages}
        running: dict[int, tuple[int, Child]] = {}
        try:
            while waiting or running:
                for number, planned in list(waiting.items()):
                    if planned.needs <= self.built.keys() and len(running) < (os.cpu_count() or 1):
                        child = Child(lambda planned=planned: self._stage(planned))  # type: ignore[misc]
                        running[child.fd] = (waiting.pop(number).stage.number, child)
                ready, _, _ = select.select(list(running), [], [])
                for fd in ready:
                    number, child = running.pop(fd)
                    self.built[number] = Built(**json.loads(child.wait()))
        finally:
            for _, child in running.values():
                child.kill()
        return self._image_of(self.plan.stages[-1].stage.number)

    def _image_of(self, number: int) -> Image:
        return self.store.load_by_manifest(parse_digest(self.built[number].manifest))

    # in the process of a stage

    def _stage(self, planned: PlannedStage) -> bytes:
        around = Surroundings(
            self.store,
            self.request,
            Cache(self.store, finds=self.request.uses_cache),
            self.context.tree,
            self.context.path,
            self.plan.escape,
            self.plan.arguments,
            self._source,
        )
        inherited = {} if planned.base is None else self.built[planned.base].arguments
        building = Building.on(around, planned, self._base(planned), inherited)
        run_all(building, run_instruction, [*building.triggers(), *planned.stage.instructions])
        return json.dumps(asdict(Built(building.finish(), building.arguments))).encode()

    def _base(self, planned: PlannedStage) -> Image | None:
        if planned.base is not None:
            return self._image_of(planned.base)
        if planned.image == SCRATCH:
            return None
        return self.store.load_by_manifest(self.fetched[planned.image, planned.platform or ""])

    def _source(self, text: str, place: Place) -> Image:
        """The image of a `from`: an earlier stage by name or number, else an image of the store."""
        number = stage_called(text, self.plan.every)
        if number is not None and number in self.built:
            return self._image_of(number)
        if number is not None:
            raise place.error(
                f"the stage {text!r} is not built yet: files come from earlier stages, which no variable can name here"
            )
        self._fetch(text, "", place)  # named by a variable, or by an ONBUILD of the base
        return self.store.load_by_manifest(self.fetched[text, ""])

    # images

    def _fetch_all(self, planned: PlannedStage) -> None:
        if planned.base is None and planned.image != SCRATCH:
            self._fetch(planned.image, planned.platform or "", planned.stage.place)
        for text, place in planned.sources:
            if stage_called(text, self.plan.every) is None:
                self._fetch(text, "", place)

    def _fetch(self, name: str, platform: str, place: Place) -> None:
        if (name, platform) not in self.fetched:
            try:
                self.fetched[name, platform] = self._image(name, platform).descriptor.digest
            except InvalidError as error:
                raise place.error(str(error)) from None
            except ImageError as error:
                raise ImageError(f"{place.file}:{place.line}: {error}") from None

    def _image(self, name: str, text: str) -> Image:
        """The image of the store, or of its registry if it is missing there, or for another platform."""
        request = self.request
        platform = parse_platform(text) if text else request.platform
        if not request.pulls:
            try:
                entry = self.store.find_entry(name)
                image = self.store.load_image(entry.descriptor, entry.reference, platform)
            except NotFoundError:
                pass
            else:
                config = image.config
                found = normal(Platform(config.architecture, config.os, config.variant))
                if platform is None or found in acceptable(platform):
                    return image
        with reported(request.report, f"pulling {name}") as step:
            return request.fetch(self.store, Reference.parse(name), platform, step.progress)
