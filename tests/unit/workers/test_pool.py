"""The places that run attempts: nothing that a task raises ends one, and Celery is called on the main thread alone."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous import Hub, get_event_loop, set_event_loop
from services.waiting import wait_until

from workers.bootstrap import attach
from workers.delivery.pool import SlotPool


class Node:
    """What the pool needs of a node."""

    def __init__(self, grace: timedelta) -> None:
        self.settings = SimpleNamespace(grace=grace)
        self.is_hurried = False
        self.adopted = 0
        self.drained = threading.Event()

    def drain(self) -> None:
        self.drained.set()


class Ends:
    """What the pool told Celery, and on which thread."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.errors: list[Any] = []
        self.threads: list[threading.Thread] = []

    def success(self, result: Any) -> None:
        self.threads.append(threading.current_thread())
        self.results.append(result)

    def error(self, einfo: Any) -> None:
        self.threads.append(threading.current_thread())
        self.errors.append(einfo)

    def __len__(self) -> int:
        return len(self.results) + len(self.errors)


@pytest.fixture
def hub() -> Iterator[Hub]:
    before = get_event_loop()
    hub = Hub()
    set_event_loop(hub)
    yield hub
    hub.close()
    set_event_loop(before)


@pytest.fixture
def node() -> Node:
    return Node(timedelta(milliseconds=300))


@pytest.fixture
def pool(node: Node, hub: Hub) -> Iterator[SlotPool]:
    app = SimpleNamespace()
    attach(app, node)  # type: ignore[arg-type]
    pool = SlotPool(1, app=app)
    pool.start()
    pool.register_with_event_loop(hub)
    yield pool
    node.is_hurried = True
    pool.stop()
    wait_until(lambda: not any(thread.is_alive() for thread in pool._threads), what="the end of the places")


def apply(pool: SlotPool, target: Callable[..., Any], ends: Ends, *args: Any) -> None:
    pool.apply_async(target, args, {}, callback=ends.success, error_callback=ends.error)


def turn(hub: Hub, condition: Callable[[], object], what: str) -> None:
    """Turn Celery's main loop until something is so."""
    loop = hub.create_loop()
    hub.call_repeatedly(0.01, lambda: None)
    wait_until(lambda: next(loop) or condition(), what=what)


@pytest.mark.parametrize("error", [MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit, RuntimeError])
def test_no_error_ends_a_place_or_keeps_it(pool: SlotPool, hub: Hub, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error("no")

    ends, threads = Ends(), list(pool._threads)
    apply(pool, fail, ends)
    apply(pool, lambda: "next", ends)
    turn(hub, lambda: len(ends) == 2, "both ends")
    assert [einfo.type for einfo in ends.errors] == [error]
    assert (ends.results, pool.busy) == (["next"], 0)
    assert pool._threads == threads
    assert all(thread.is_alive() for thread in threads)


def test_every_callback_is_called_on_the_main_thread(pool: SlotPool, hub: Hub) -> None:
    ends, ran = Ends(), []
    apply(pool, lambda: ran.append(threading.current_thread()), ends)
    turn(hub, lambda: len(ends) == 1, "the end")
    assert ends.threads == [threading.main_thread()]
    assert ran[0] is not threading.main_thread()


def test_a_callback_that_fails_does_not_lose_the_place(pool: SlotPool, hub: Hub) -> None:
    ends = Ends()

    def fail(_result: object) -> None:
        raise ValueError("cannot acknowledge")

    pool.apply_async(lambda: None, (), {}, callback=fail, error_callback=ends.error)
    apply(pool, lambda: "next", ends)
    turn(hub, lambda: len(ends) == 1, "the next end")
    assert pool.busy == 0


def test_a_stop_lets_what_runs_finish_while_timers_go_on(pool: SlotPool, hub: Hub, node: Node) -> None:
    node.settings.grace = timedelta(seconds=20)
    ends, beats, go = Ends(), [], threading.Event()
    hub.call_repeatedly(0.05, lambda: (beats.append(threading.current_thread()), len(beats) >= 3 and go.set()))
    apply(pool, lambda: go.wait(10), ends)
    pool.on_stop()
    assert ends.results == [True]
    assert set(beats) == {threading.main_thread()}


def test_a_stop_hands_back_what_is_not_over_within_the_grace(pool: SlotPool, node: Node) -> None:
    ends = Ends()
    apply(pool, lambda: node.drained.wait(10), ends)
    pool.on_stop()
    assert ends.results == [True]


def test_a_stop_waits_for_what_was_adopted_too(pool: SlotPool, node: Node) -> None:
    node.adopted = 1
    end = threading.Timer(0.15, lambda: setattr(node, "adopted", 0))
    end.start()
    pool.on_stop()
    assert node.adopted == 0
    end.join()


@pytest.mark.parametrize("way", ["hurried", "terminate"])
def test_a_hurried_stop_does_not_wait_for_the_grace(pool: SlotPool, node: Node, way: str) -> None:
    node.settings.grace = timedelta(seconds=60)
    ends = Ends()
    apply(pool, lambda: node.drained.wait(10), ends)
    if way == "hurried":
        node.is_hurried = True
        pool.on_stop()
    else:
        pool.on_terminate()
    assert ends.results == [True]


def test_a_stop_waits_for_what_was_adopted(pool: SlotPool, node: Node) -> None:
    node.adopted = 1
    node.drain = lambda: setattr(node, "adopted", 0)  # type: ignore[method-assign]
    pool.on_stop()
    assert node.adopted == 0


def test_a_task_that_nobody_could_acknowledge_is_refused(pool: SlotPool) -> None:
    with pytest.raises(TypeError, match="acknowledged"):
        pool.apply_async(lambda: None)
    assert pool.busy == 0
