"""Every registry keeps which queues are paused until somebody resumes them."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from jobqueue.registry.base import Registry
from jobqueue.registry.pauses import Pause


def make_pause() -> Pause:
    at = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
    return Pause(queue=f"q{uuid4().hex[:10]}_cpu", at=at, by="ann@desk", reason="a new image, größer")


def test_a_pause_is_kept_with_whose_it_is_until_the_queue_is_resumed(registry: Registry) -> None:
    pause, other = make_pause(), make_pause()
    assert pause.queue not in registry.pauses.paused()
    registry.pauses.pause(pause)
    registry.pauses.pause(other)
    assert registry.pauses.paused()[pause.queue] == pause
    assert registry.pauses.resume(pause.queue)
    assert pause.queue not in registry.pauses.paused()
    assert registry.pauses.paused()[other.queue] == other
    assert registry.pauses.resume(other.queue)


def test_who_paused_a_queue_first_is_remembered(registry: Registry) -> None:
    pause = make_pause()
    registry.pauses.pause(pause)
    registry.pauses.pause(replace(pause, by="bob@desk"))
    assert registry.pauses.paused()[pause.queue].by == "ann@desk"
    registry.pauses.resume(pause.queue)


def test_a_queue_that_was_not_paused_is_told_as_such(registry: Registry) -> None:
    assert not registry.pauses.resume(make_pause().queue)
