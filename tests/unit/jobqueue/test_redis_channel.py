"""A worker's channel to Redis whose connection was given up: Celery does so when the connection is lost."""

from types import SimpleNamespace
from typing import Any

import pytest
import redis

from jobqueue.brokers.redis_transport import Channel, _Noted


def broken_channel(connection: object) -> Any:
    """Return a channel as it is after its connection was given up: `connection` is what is left of that."""
    channel: Any = Channel.__new__(Channel)
    channel.connection, channel.do_restore, channel._pool = connection, True, None
    return channel


@pytest.mark.parametrize("connection", [None, SimpleNamespace(client=None)], ids=["closed", "collected"])
@pytest.mark.parametrize("step", ["ack", "restore_unacked_once"])
def test_what_is_done_over_it_fails_as_over_any_lost_connection(connection: object, step: str) -> None:
    noted: Any = _Noted(broken_channel(connection))
    noted._delivered["tag"] = object()
    # The error that kombu and Celery expect; any other one ends the worker.
    with pytest.raises(redis.ConnectionError, match="given up"):
        noted.ack("tag") if step == "ack" else noted.restore_unacked_once()
    noted._on_collect.cancel()
