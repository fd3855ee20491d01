"""The limits of a container, reached in a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.store.store import Store
from tests.cli.container.shop import Shop
from tests.container.small import small_image
from tests.prepared import Prepared

FORKS_WITHOUT_END = "while :; do sleep 1000 & done"
GROWS_WITHOUT_END = "text=0123456789abcdef; while :; do text=$text$text; done"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path = tmp_path_factory.mktemp("limits") / "store"
    with Store.open(path) as store:
        small_image(store)
    with Prepared() as prepared:
        yield Shop(path, prepared)


def test_fork_bomb_is_held(shop: Shop) -> None:
    done = shop.call("run", "--rm", "--pids-limit", "20", "small", "sh", "-c", FORKS_WITHOUT_END)
    assert (done.status, "Cannot fork" in done.err) == (2, True)
    assert shop.names == []


def test_privileged_container_has_all_that_this_process_may_have(shop: Shop) -> None:
    """Some machines withhold a capability from root; nobody can give it to a container."""
    done = shop.call("run", "--rm", "--privileged", "small", "cat", "/proc/self/status")
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    assert (done.status, own in done.out.splitlines()) == (0, True)


def test_program_that_needs_too_much_memory_is_killed(shop: Shop) -> None:
    done = shop.call("run", "--rm", "--memory", "64m", "small", "sh", "-c", f"sh -c '{GROWS_WITHOUT_END}'; echo $?")
    assert (done.status, done.out) == (0, "137\n")
    assert shop.names == []
