"""What keeps the deliveries of running experiments alive, and no longer than they run."""

import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from services.waiting import wait_until

from jobqueue.config import Settings
from jobqueue.ids import make_experiment_id
from workers.attempt.supervise import Attempt
from workers.bootstrap import Node

LEASE = timedelta(milliseconds=200)


class SlowDeliveries:
    """Deliveries whose keep-alive takes as long as a test wants.

    Attributes:
        begun: set once one has begun.
        go_on: lets it end.
        kept: the properties of those that ended.
    """

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.kept: list[Mapping[str, Any]] = []

    def keep_alive(self, properties: Mapping[str, Any]) -> None:
        self.begun.set()
        assert self.go_on.wait(20)
        self.kept.append(properties)


class IdleAttempt:
    """An attempt of which nothing is asked."""

    queue = "default_cpu"
    has_begun = True

    def ask(self, reason: object) -> None:
        del reason


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    settings = Settings(
        broker_url="memory://",
        registry_url="memory://",
        state_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        lease=LEASE,
        runtime="process",
    )
    node = Node(settings, worker_name="cpu@test", queues=())
    yield node
    node.close()


def test_what_has_ended_is_kept_alive_no_more(node: Node) -> None:
    deliveries = SlowDeliveries()
    object.__setattr__(node.site, "deliveries", deliveries)
    attempt, left = cast(Attempt, IdleAttempt()), threading.Event()

    def run() -> None:
        with node.running(make_experiment_id(), attempt, {"tag": "1"}):
            assert deliveries.begun.wait(20)
        left.set()

    thread = threading.Thread(target=run)
    thread.start()
    node._pulse.start()
    assert deliveries.begun.wait(20)
    assert not left.wait(0.2), "its delivery may be put off while somebody still keeps it alive"
    deliveries.go_on.set()
    wait_until(left.is_set, what="its end")
    thread.join()
    kept = len(deliveries.kept)
    assert not node._now()
    assert len(deliveries.kept) == kept == 1
