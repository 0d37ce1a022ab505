"""Questions and answers, over every registry."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from jobqueue.registry.base import Registry

SOON = timedelta(milliseconds=200)
LONG = timedelta(seconds=60)


@pytest.fixture
def asking() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_a_question_is_answered_by_whoever_takes_it(registry: Registry, asking: ThreadPoolExecutor) -> None:
    asked = asking.submit(registry.calls.ask, b"question", within=LONG)
    call = registry.calls.take(within=LONG)
    assert call is not None
    assert call.question == b"question"
    assert "question" not in repr(call)
    registry.calls.answer(call, b"answer")
    assert asked.result() == b"answer"


def test_nobody_who_answers_is_none_in_time(registry: Registry) -> None:
    assert registry.calls.ask(b"question", within=SOON) is None
    assert registry.calls.take(within=SOON) is None, "nobody waits for it any more"


def test_an_answer_that_comes_late_or_twice_changes_nothing(registry: Registry, asking: ThreadPoolExecutor) -> None:
    asked = asking.submit(registry.calls.ask, b"first", within=LONG)
    call = registry.calls.take(within=LONG)
    assert call is not None
    registry.calls.answer(call, b"first answer")
    registry.calls.answer(call, b"second answer")
    assert asked.result() == b"first answer"
    registry.calls.answer(call, b"late answer")
    assert registry.calls.ask(b"another", within=SOON) is None


def test_each_of_many_questions_gets_its_own_answer(registry: Registry, asking: ThreadPoolExecutor) -> None:
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            if call := registry.calls.take(within=SOON):
                registry.calls.answer(call, call.question * 2)

    servers = [threading.Thread(target=serve) for _ in range(2)]
    for server in servers:
        server.start()
    try:
        asked = {number: asking.submit(registry.calls.ask, b"%d." % number, within=LONG) for number in range(40)}
        assert {number: answer.result() for number, answer in asked.items()} == {
            number: b"%d." % number * 2 for number in range(40)
        }
    finally:
        stop.set()
        for server in servers:
            server.join()


def test_a_question_outlives_who_took_it_and_died(url: str, registry: Registry, asking: ThreadPoolExecutor) -> None:
    if url.startswith("memory"):
        return  # there the server dies with who asks
    asked = asking.submit(registry.calls.ask, b"question", within=LONG)
    assert registry.calls.take(within=LONG) is not None, "and never answered"
    call = registry.calls.take(within=LONG)
    assert call is not None
    registry.calls.answer(call, b"answer")
    assert asked.result() == b"answer"
