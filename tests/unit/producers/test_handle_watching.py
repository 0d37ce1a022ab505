"""One thread asks for all handles, and no more than it must."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from services.waiting import wait_until

from jobqueue.errors import InvalidSpec, JobqueueError, RegistryUnavailable
from jobqueue.ids import ExperimentId, make_experiment_id
from jobqueue.lifecycle import State
from producers.watching import Watcher, parse_timeout


class Watched:
    """What a handle is to the watcher."""

    def __init__(self) -> None:
        self.id = make_experiment_id()
        self.settled = threading.Event()

    def settle(self) -> bool:
        self.settled.set()
        return True

    def resolve(self, error: JobqueueError) -> None:
        self.error = error


class Registry:
    """Answers for the registry, and remembers the questions."""

    def __init__(self) -> None:
        self.final: set[ExperimentId] = set()
        self.questions: list[list[ExperimentId]] = []

    def states(self, ids: list[ExperimentId]) -> dict[ExperimentId, State]:
        self.questions.append(ids)
        return {key: State.SUCCEEDED if key in self.final else State.RUNNING for key in ids}


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def watcher(registry: Registry) -> Iterator[Watcher]:
    opened = Watcher(registry.states)
    yield opened
    opened.close()


def test_all_that_are_due_are_one_question(watcher: Watcher, registry: Registry) -> None:
    handles = [Watched() for _ in range(50)]
    for handle in handles:
        watcher.add(handle)

    wait_until(lambda: any(len(ids) == 50 for ids in registry.questions), what="one question for all")


def test_only_what_is_over_is_settled_and_then_left_alone(watcher: Watcher, registry: Registry) -> None:
    over, running = Watched(), Watched()
    registry.final.add(over.id)
    watcher.add(over)
    watcher.add(running)

    assert over.settled.wait(5)
    count = len(registry.questions)
    wait_until(lambda: len(registry.questions) > count + 1, what="more questions")
    assert not running.settled.is_set()
    assert registry.questions[-1] == [running.id]


def test_the_thread_ends_with_the_last_one_and_comes_back_with_the_next(watcher: Watcher, registry: Registry) -> None:
    for _ in range(2):
        handle = Watched()
        registry.final.add(handle.id)
        watcher.add(handle)
        assert handle.settled.wait(5)
        wait_until(lambda: watcher._thread is None, what="the thread's end")


def test_questions_become_fewer_with_age(watcher: Watcher, registry: Registry) -> None:
    handle = Watched()
    watcher.add(handle)
    entry = watcher._entries[handle.id]
    now = time.monotonic()

    gaps = []
    for age in (0.0, 4.0, 1000.0):
        entry.since = now - age
        entry.postpone(now)
        gaps.append(round(entry.due - now, 3))

    assert gaps == [0.01, 0.2, 1.0]


def test_a_registry_that_is_slow_is_asked_seldom(registry: Registry) -> None:
    def slow(ids: list[ExperimentId]) -> dict[ExperimentId, State]:
        answer = registry.states(ids)
        threading.Event().wait(0.05)
        return answer

    watcher, handle = Watcher(slow), Watched()
    watcher.add(handle)
    threading.Event().wait(0.3)
    watcher.close()

    assert len(registry.questions) <= 2


def test_a_registry_that_was_silent_is_asked_again_soon(watcher: Watcher, registry: Registry) -> None:
    states, handle = registry.states, Watched()

    def fail_once(ids: list[ExperimentId]) -> dict[ExperimentId, State]:
        watcher._states = states
        threading.Event().wait(0.4)
        raise RegistryUnavailable("away")

    watcher._states = fail_once
    registry.final.add(handle.id)
    watcher.add(handle)

    assert handle.settled.wait(3)
    wait_until(lambda: watcher._failing_since is None, what="the end of the outage")


def test_one_strange_answer_does_not_end_the_watching(
    watcher: Watcher, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    states, handle = registry.states, Watched()

    def fail_once(ids: list[ExperimentId]) -> dict[ExperimentId, State]:
        watcher._states = states
        raise ValueError("strange")

    watcher._states = fail_once
    registry.final.add(handle.id)
    watcher.add(handle)

    assert handle.settled.wait(5)
    assert "watcher.failed" in caplog.text


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(None, None), (0, 0), (2.5, 2.5), (-1, 0), (float("inf"), None), ("1m30s", 90), (timedelta(hours=1), 3600)],
)
def test_a_timeout_is_seconds_or_what_people_write(timeout: object, seconds: float | None) -> None:
    assert parse_timeout(timeout) == seconds


@pytest.mark.parametrize("timeout", ["", "5", "soon", float("nan"), True, [1], b"1s"])
def test_a_timeout_that_is_none_is_said_to_be_so(timeout: object) -> None:
    with pytest.raises(InvalidSpec, match="not a duration"):
        parse_timeout(timeout)
