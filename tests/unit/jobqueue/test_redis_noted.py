"""kombu's notes of deliveries from Redis, as workers keep them."""

from types import SimpleNamespace
from typing import Any

import pytest

from jobqueue.brokers.redis_transport import _Noted


class Gone(Exception):
    """What asking for a connection leads to."""


def notes(*, client: object) -> Any:
    """Return the notes of a channel with one delivery, whose connection was given up when it has no client."""

    def acquire(_client: object = None) -> None:
        raise Gone

    channel = SimpleNamespace(connection=SimpleNamespace(client=client), do_restore=True, conn_or_acquire=acquire)
    noted: Any = _Noted(channel)
    noted._delivered["tag"] = object()
    return noted


def test_what_a_connection_held_that_was_given_up_is_not_given_back_over_it() -> None:
    noted = notes(client=None)
    noted.restore_unacked_once()
    # Not at the end of the process either.
    assert not noted._on_collect.still_active()


def test_what_a_live_connection_holds_is_given_back_at_its_end() -> None:
    noted = notes(client=object())
    with pytest.raises(Gone):
        noted.restore_unacked_once()
