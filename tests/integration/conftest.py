"""The place where the table of outcomes is walked: one for each module and broker."""

from collections.abc import Iterator

import pytest
from services.place import LONG
from services.waiting import wait_until
from services.walk import Walk, open_walk


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
