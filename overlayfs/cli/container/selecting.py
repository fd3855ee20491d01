"""Which containers does `--filter` of `ps` and `container prune` select? In docker's terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from overlayfs.container.containers import Container, Containers
from overlayfs.container.live.logs import since_of
from overlayfs.container.live.status import exit_code_of
from overlayfs.container.volumes import places_in
from overlayfs.image.oci.errors import InvalidError
from overlayfs.image.store.store import Store

Test = Callable[[Container], bool]
STATUSES: Final = ("created", "running", "paused", "mounted", "exited", "dead", "removing", "restarting")
"""Docker's words, of which no container here is the last three, and our own `mounted`."""
HEALTHS: Final = ("starting", "healthy", "unhealthy", "none")
_KEYS: Final = "ancestor, before, exited, health, id, label, label!, name, network, since, status, until, volume"


def tests_of(store: Store, filters: Sequence[str], status_of: Callable[[Container], str]) -> dict[str, list[Test]]:
    """The tests of the filters `KEY=VALUE`, by key. Raises InvalidError; NotFoundError for an unknown ancestor."""
    tests: dict[str, list[Test]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidError(f"filter {text!r} is not KEY=VALUE")
        tests.setdefault(key, []).append(_test_of(store, key, value, status_of))
    return tests


def are_passed(tests: Mapping[str, Sequence[Test]], container: Container) -> bool:
    """Whether it passes one test of each key; labels must all be there, as with docker."""
    return all(
        (all if key in ("label", "label!") else any)(test(container) for test in alternatives)
        for key, alternatives in tests.items()
    )


def _test_of(store: Store, key: str, value: str, status_of: Callable[[Container], str]) -> Test:
    match key:
        case "name":
            return _name_test(value)
        case "id":
            return lambda container: container.id.startswith(value)
        case "status":
            _check_word("status", value, STATUSES)
            return lambda container: status_of(container) == value
        case "exited":
            return _exit_test(value)
        case "health":
            _check_word("health", value, HEALTHS)
            return lambda container: container.is_active and _health_of(container) == value
        case "label" | "label!":
            return _label_test(value, is_there=key == "label")
        case "until":
            end = since_of(value)
            return lambda container: datetime.fromisoformat(container.created) < end
        case "before" | "since":
            return _age_test(Containers(store).find(value), is_before=key == "before")
        case "volume":
            return lambda container: value in {*places_in(container.settings), *places_in(container.settings).values()}
        case "network":
            return lambda container: container.settings.network_kind == value
        case "ancestor":
            image, containers = store.find(value), Containers(store)
            return lambda container: containers.is_on(container, image)
    raise InvalidError(f"no filter {key!r}: there are {_KEYS}")


def _check_word(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InvalidError(f"filter {key}={value}: there are {', '.join(known)}")


def _exit_test(value: str) -> Test:
    if not (value.isascii() and value.isdigit()):
        raise InvalidError(f"filter exited={value}: an exit status is a number")
    return lambda one: bool(one.started) and not one.is_active and exit_code_of(one) == int(value)


def _age_test(other: Container, *, is_before: bool) -> Test:
    than = datetime.fromisoformat(other.created)

    def test(container: Container) -> bool:
        created = datetime.fromisoformat(container.created)
        return created < than if is_before else created > than

    return test


def _health_of(container: Container) -> str:
    return container.health.status if container.health else "none"


def _name_test(text: str) -> Test:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InvalidError(f"filter name={text}: {error}") from None
    return lambda container: pattern.search(container.name) is not None


def _label_test(text: str, *, is_there: bool) -> Test:
    name, equals, value = text.partition("=")

    def test(container: Container) -> bool:
        labels = container.settings.labels
        return (name in labels and (not equals or labels[name] == value)) is is_there

    return test
