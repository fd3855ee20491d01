from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.snapshotter.service import Client, Service, new_service


@pytest.fixture
def service() -> Iterator[Service]:
    with new_service() as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    client = service.start()
    yield client
    client.close()
