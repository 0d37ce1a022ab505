"""What Redis keeps of paused queues, whoever has written it."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from jobqueue.registry.redis_pauses import RedisPauses

SOUND = b'{"at": "2026-11-21T17:00:00+00:00", "by": "ann@desk", "reason": "new image"}'


@pytest.mark.parametrize(
    "text", [b"", b"yes", b"[]", b"{}", b'{"at": 5, "by": "ann"}', b'{"at": "now", "by": "ann"}', b"\xff"]
)
def test_a_pause_that_cannot_be_read_pauses_its_queue_and_hides_no_other(text: bytes) -> None:
    client: Any = SimpleNamespace(ask=lambda _: ({b"lab_a": text, b"lab_b": SOUND},))
    paused = RedisPauses(client).paused()
    assert list(paused) == ["lab_a", "lab_b"]
    assert paused["lab_a"].at == datetime.fromtimestamp(0, UTC)
    assert (paused["lab_b"].by, paused["lab_b"].reason) == ("ann@desk", "new image")
