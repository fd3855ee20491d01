"""Containers that the tests of one module leave running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from overlayfs.tree.mount_table import mount_entries
from tests.cli.container.shop import Shop, await_that


@pytest.fixture
def live(shop: Shop) -> Iterator[Shop]:
    """The shop of the module; no test leaves a container or a mount behind."""
    before = {entry.mount_id for entry in mount_entries()}
    yield shop
    for name in shop.names:
        shop.call("rm", "--force", name)  # a passing one may be going by itself
    await_that(lambda: shop.names == [])
    after = {entry.mount_id for entry in mount_entries()}
    assert after <= before  # a mount of an earlier test may have gone meanwhile
