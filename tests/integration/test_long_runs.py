"""A run that is longer than its broker lets a delivery last: it runs once, is one attempt, and its message goes.

SQS's own limit has its test in `test_sqs.py`.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from services.place import LONG, Place, open_place, sleepers
from services.rabbitmq import open_rabbitmq
from services.redis import RedisServer
from services.waiting import wait_until

LIMIT = {"consumer_timeout": 3000, "channel_tick_interval": 1000}


@contextmanager
def limited(broker: str, folder: Path, registry: RedisServer) -> Iterator[Place]:
    """Open a place at RabbitMQ that takes deliveries back after 3 s, or at Redis that does so after 4 s."""
    if broker == "redis":
        with open_place(folder, broker=registry.url, registry=registry.url, engine=None, lease="2s") as place:
            yield place
        return
    with (
        open_rabbitmq(folder / "rabbitmq", internals=LIMIT) as server,
        open_place(folder, broker=server.url, registry=registry.url, engine=None, lease="2s") as place,
    ):
        yield place


@pytest.mark.parametrize("broker", ["rabbitmq", "redis"])
@pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
def test_a_run_longer_than_a_delivery_may_last_runs_once(
    broker: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    seconds = f"12.{secrets.randbelow(10**9):09d}"
    with limited(broker, tmp_path, redis_server) as place:
        with place.make_worker("one") as one, place.make_worker("two") as two:
            experiment = place.submit(f"echo once; sleep {seconds}")
            most = 0
            while not experiment.wait(0.5):
                most = max(most, len(sleepers(seconds)))
            said = one.log.read_text() + two.log.read_text()
            assert experiment.result(timeout=60) == {"exit_code": 0}
            assert (most, experiment.attempt, list(experiment.logs())) == (1, 1, ["once"])
            assert place.submit("true").result(timeout=60) == {"exit_code": 0}
            wait_until(lambda: place.depth() == 0, what="no message left", within=LONG)
        if broker == "rabbitmq":
            assert "PRECONDITION_FAILED" in said
