"""Places for one test at the broker that it names, and one for each module where the table of outcomes is walked."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from services.place import LONG, OpenAt, Place, open_place
from services.registry_worlds import RedisWorld, open_world
from services.waiting import wait_until
from services.walk import Walk, open_walk


@pytest.fixture
def open_at(request: pytest.FixtureRequest, tmp_path: Path) -> OpenAt:
    """Open a place at a broker, by name: what opens it takes further settings, and a runtime, `docker` or `process`."""

    def open_(broker: str, runtime: str = "process", **settings: str) -> AbstractContextManager[Place]:
        registry = request.getfixturevalue("redis_server")
        server = request.getfixturevalue(f"{broker}_server")
        engine = request.getfixturevalue("engine") if runtime == "docker" else None
        return open_place(tmp_path, broker=server.url, registry=registry.url, engine=engine, **settings)

    return open_


@pytest.fixture
def settings() -> dict[str, str]:
    """Further settings of the place; a test replaces them by `with_settings`."""
    return {}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisWorld]:
    """A registry in a Redis of its own, whose clock a test turns."""
    with open_world("redis", tmp_path / "redis", monkeypatch) as opened:
        assert isinstance(opened, RedisWorld)
        yield opened


@pytest.fixture(scope="module", params=["rabbitmq", "redis", "sqs"])
def opened_walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """A worker on one broker, for the rows of a module."""
    server = request.getfixturevalue(f"{request.param}_server")
    with open_walk(tmp_path_factory.mktemp(request.param), broker=server.url) as opened:
        yield opened


@pytest.fixture
def walk(opened_walk: Walk) -> Iterator[Walk]:
    """The same, whose worker no row may end, and on whose node none may leave anything."""
    pid = opened_walk.worker.pid
    yield opened_walk
    opened_walk.cancel_all()
    assert (opened_walk.worker.running, opened_walk.worker.pid) == (True, pid), opened_walk.worker.log_tail()
    wait_until(lambda: not opened_walk.left(), what="nothing left on the node", within=LONG)
