"""Every registry there is."""

from collections.abc import Iterator

import pytest
from services.redis import RedisServer
from services.registries import settle

from jobqueue.registry import open_registry
from jobqueue.registry.base import (
    Registry,
)
from jobqueue.registry.memory import MemoryRegistry


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    server: RedisServer = request.getfixturevalue("redis_server")
    settle(server)
    return server.url


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    registry = MemoryRegistry() if url == "memory://" else open_registry(url)
    yield registry
    registry.close()
