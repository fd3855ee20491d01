"""What commands make of a container that ends while they look at it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from overlayfs.cli.container.lifecycle import wait_for
from overlayfs.container.containers import Container, Containers
from overlayfs.image.store.lowers import lower_keys
from overlayfs.image.store.missing_layers import unpack_image
from overlayfs.image.store.store import Store
from overlayfs.image.store.uses import Process
from tests.container.small import small_image


def test_status_is_known_of_a_container_that_ends_after_its_record_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(tmp_path / "store") as store:
        image = small_image(store)
        unpack_image(store, image)
        made = Containers(store).create("box", image, lower_keys(store, image))
        child = os.fork() or os._exit(0)
        read = replace(made, process=Process.of(child))  # before it is waited for it has a start time
        os.waitpid(child, 0)
        Containers(store).release(made, 2)
    find, reads = Containers.find, [read]

    def find_late(self: Containers, text: str) -> Container:
        return reads.pop() if reads else find(self, text)

    monkeypatch.setattr(Containers, "find", find_late)
    assert wait_for(tmp_path / "store", "box") == 2
