"""Which volumes have no name of their own, and go with their container?

`-v /path`, `--mount type=volume,target=/path` and the `Volumes` of an image ask for a volume without naming it. It gets
a name when the container is made, so that every later run mounts it again. `rm -v` and the end of a `run --rm` remove
it, unless another container has it by then; a volume that was given by its name stays, as in docker.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from msgspec.structs import replace

from ..image.oci.errors import InUseError, InvalidError, NotFoundError
from ..image.store.store import Store
from .containers import Container, Containers
from .spec.settings import NO_SETTINGS, Settings
from .volumes import Volumes, options_of, places_in, random_name

_MOST: Final = 1000
"""Volumes of one image."""


def with_names(settings: Settings, of_image: Collection[str], before: Settings = NO_SETTINGS) -> Settings:
    """The options with a name for each volume that has none, the image's included.

    The image's are left out where something else is mounted. The name of a volume that the container had `before` at
    that place is kept; those that are not mounted any more still go with the container. Raises InvalidError.
    """
    known = {place: name for place, name in places_in(before).items() if name in before.anonymous}
    anonymous = list(settings.anonymous)

    def named(place: str) -> str:
        anonymous.append(known.get(_plain(place)) or random_name())
        return anonymous[-1]

    volumes = [f"{named(text)}:{text}" if _is_place(text) else text for text in settings.volumes]
    mounts = [_with_source(text, named) for text in settings.mounts]
    given = replace(settings, volumes=volumes, mounts=mounts)
    free = sorted(_places_of_image(of_image) - places_in(given).keys())
    volumes += [f"{named(place)}:{place}" for place in free]
    mounted = places_in(replace(given, volumes=volumes)).values()
    left = [name for name in before.anonymous if name not in mounted]
    return replace(given, volumes=volumes, anonymous=[*anonymous, *left])


def _is_place(text: str) -> bool:
    return text.startswith("/") and ":" not in text


def _with_source(text: str, named: Callable[[str], str]) -> str:
    options = options_of(text)
    if options["type"] != "volume" or options["source"]:
        return text
    return f"{text},source={named(options['target'])}"


def _places_of_image(texts: Collection[str]) -> set[str]:
    if len(texts) > _MOST or any("\0" in text or ":" in text for text in texts):
        raise InvalidError(f"the volumes of the image cannot be mounted: at most {_MOST} paths without colons")
    return {_plain(text) for text in texts}


def _plain(place: str) -> str:
    return posixpath.normpath("/" + place.lstrip("/"))


def remove(store: Store, container: Container) -> None:
    """Remove the anonymous volumes of a container, unless another one has them, or may: a record is damaged. The
    container goes after them: nobody would find them after a kill in between."""
    volumes = Volumes(store)
    for name in container.settings.anonymous:
        with suppress(InUseError, NotFoundError, InvalidError):
            volumes.remove(name, container)


def release(store: Store, container: Container, exit_status: int | None = None) -> None:
    """Free a container; an ephemeral one is removed with its anonymous volumes."""
    Containers(store).release(container, exit_status, partial(remove, store))


def sweep(store: Store, among: Sequence[Container] | None = None) -> None:
    """Remove the ephemeral containers whose process was killed, with their anonymous volumes."""
    Containers(store).sweep(among, partial(remove, store))
