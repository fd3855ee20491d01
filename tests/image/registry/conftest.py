"""What tests of registries share: a registry in this process, stores in memory, and no credentials of anybody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs.image.store.store import Store
from tests.image.registry.fake_registry import FakeRegistry, serving, store_in_memory


@pytest.fixture(autouse=True)
def credentials_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only file that credentials are read from; it is not there yet."""
    path = tmp_path / "auth.json"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
    return path


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    """An empty registry in this process."""
    with serving() as registry:
        yield registry


@pytest.fixture
def store() -> Iterator[Store]:
    """An empty store in memory: the one that is pulled into or pushed from."""
    with store_in_memory() as opened:
        yield opened


@pytest.fixture
def theirs() -> Iterator[Store]:
    """Another store in memory, for what the registry has."""
    with store_in_memory() as opened:
        yield opened
