"""What tests of images share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store, open, in the directory `store` of the test."""
    with Store.open(tmp_path / "store") as opened:
        yield opened
