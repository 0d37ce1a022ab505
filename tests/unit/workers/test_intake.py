"""From which queues a worker takes messages, while its places are taken and when one is free again."""

import logging
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from jobqueue.brokers.base import Depth, missing_queue
from jobqueue.brokers.precedence import IN_A_ROW
from jobqueue.errors import BrokerUnavailable
from jobqueue.routing import first_queue, served_queue
from workers.delivery.absent import Absent
from workers.delivery.intake import FLOOD_SECONDS, LONGEST_TURN_SECONDS, Intake
from workers.delivery.turns import Turns

A, B, C = "a_cpu", "b_cpu", "c_cpu"


def make_queue(name: str) -> Any:
    return SimpleNamespace(name=name)


@dataclass
class Consumers:
    """kombu's consumer, as far as it matters here: which queues it consumes."""

    names: list[str] = field(default_factory=list)

    @property
    def queues(self) -> list[Any]:
        return [make_queue(name) for name in self.names]

    def cancel_by_queue(self, name: str) -> None:
        self.names.remove(name)

    def add_queue(self, queue: Any) -> None:
        self.names.append(queue.name)

    def consume(self) -> None:
        """Begin with what was added."""


class CeleryQueues(dict[str, Any]):
    """Celery's: what it knows, and what it consumes once it has connected."""

    def __init__(self) -> None:
        super().__init__({"placeholder": make_queue("placeholder")})
        self.consume_from: dict[str, Any] = {}

    def select(self, names: list[str]) -> None:
        self.consume_from = {name: self[name] for name in names}

    def deselect(self, names: list[str]) -> None:
        for name in names:
            self.consume_from.pop(name, None)

    def select_add(self, queue: Any) -> Any:
        self[queue.name] = self.consume_from[queue.name] = queue
        return queue


class Message:
    """A delivery that can only be given back."""

    def __init__(self, queue: str) -> None:
        self.delivery_info = {"routing_key": queue}
        self.requeued = 0

    def requeue(self) -> None:
        self.requeued += 1


@dataclass
class Situation:
    """A worker whose broker says how much lies in each queue; what it does not name is empty."""

    free: int = 0
    is_taking: bool = True
    named: tuple[str, ...] = (A, B)
    ready: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    is_silent: bool = False
    unanswered: set[str] = field(default_factory=set)
    now: float = 0.0
    is_pushing: bool = True
    is_charging: bool = False
    consumers: Consumers = field(default_factory=Consumers)

    def __post_init__(self) -> None:
        self.broker = self
        self.queues = self
        self.celery = CeleryQueues()
        self.stopped: set[str] = set()
        node: Any = self
        self.intake = Intake(
            node,
            queues=self.celery,
            has_place=lambda: self.free > 0,
            turns=Turns(),
            absent=Absent(timedelta(seconds=3), clock=lambda: self.now),
            stopped=self.stopped,
            clock=lambda: self.now,
        )
        self.intake.learn(self.named, {})
        self.intake.begin()
        self.consumers.names = list(self.celery.consume_from)

    def consumed(self, name: str) -> list[Any]:
        return [make_queue(first_queue(name)), make_queue(name)] if self.is_pushing else [make_queue(name)]

    def ask(self, queue: str) -> None:
        self.asked.append(queue)
        if self.is_silent or queue in self.unanswered:
            raise BrokerUnavailable("no answer")

    def exists(self, name: str) -> bool:
        self.ask(name)
        return name not in self.gone

    def depth(self, queue: str) -> Depth:
        self.ask(queue)
        if queue in self.gone:
            raise missing_queue(queue)
        return Depth(ready=self.ready.get(queue, 0))

    def refuse(self, queue: str) -> Message:
        message = Message(queue)
        self.intake.refuse(message, self.consumers)
        return message

    def take(self, queue: str) -> None:
        self.free -= 1
        self.intake.took(queue, self.consumers)

    def rearrange(self) -> set[str]:
        self.intake.rearrange(self.consumers)
        return self.listened

    @property
    def listened(self) -> set[str]:
        return {served_queue(name) for name in self.consumers.names}


def both(*queues: str) -> set[str]:
    return {name for queue in queues for name in (queue, first_queue(queue))}


def test_an_idle_worker_consumes_all_of_its_queues_and_what_is_served_before_them() -> None:
    assert set(Situation(free=1).consumers.names) == both(A, B)


def test_a_queue_whose_message_found_no_place_is_not_consumed_until_one_is_free() -> None:
    site = Situation()
    assert site.refuse(B).requeued == 1
    assert site.rearrange() == {A}
    site.free = 1
    assert site.rearrange() == {A, B}


def test_nothing_is_consumed_while_the_last_place_is_taken() -> None:
    site = Situation(free=2)
    site.take(A)
    assert site.listened == {A, B}
    site.take(A)
    assert site.listened == set()


def test_one_queue_alone_goes_on_being_consumed() -> None:
    site = Situation(free=1, named=(A,))
    site.take(A)
    assert site.listened == {A}


def test_where_each_message_is_asked_for_all_queues_go_on_being_consumed() -> None:
    site = Situation(free=1, is_pushing=False)
    site.take(A)
    assert site.listened == {A, B}


def test_the_queue_that_was_served_longest_ago_goes_first() -> None:
    site = Situation(free=1, named=(A, B, C), ready={A: 500, B: 1})
    site.take(A)
    site.free = 1
    assert site.rearrange() == {B}
    site.ready[B] = 0
    site.take(B)
    site.free = 1
    assert site.rearrange() == {A}


def test_without_anything_that_waits_everything_is_consumed_again() -> None:
    site = Situation(free=1)
    site.take(A)
    site.free = 1
    assert site.rearrange() == {A, B}


def test_what_waited_once_is_served_before_the_backlog_of_its_queue() -> None:
    site = Situation(named=(A,), ready={A: 9, first_queue(A): 1})
    site.refuse(first_queue(A))
    assert site.consumers.names == []
    site.free = 1
    site.rearrange()
    assert site.consumers.names == [first_queue(A)]
    site.ready[first_queue(A)] = 0
    site.rearrange()
    assert set(site.consumers.names) == both(A)


def run_next(site: Situation, arriving: str) -> str:
    """Have the broker push what lies in the queues, as long as a place is free, and return from where it came."""
    site.free = 1
    site.rearrange()
    wanted = [name for name in (arriving, A) if name in site.consumers.names]
    site.take(wanted[0])
    for name in tuple(site.consumers.names):
        if name != wanted[0]:
            site.refuse(name)
    return wanted[0]


def test_a_stream_of_what_goes_ahead_lets_one_of_the_others_through_now_and_then() -> None:
    first = first_queue(A)
    site = Situation(named=(A,), ready={A: 1000, first: 1000})
    taken = [run_next(site, first) for _ in range(4 * (IN_A_ROW + 1))]
    assert taken == ([first] * IN_A_ROW + [A]) * 4


def test_with_places_left_the_others_turn_comes_at_once() -> None:
    first = first_queue(A)
    site = Situation(free=100, named=(A,), ready={A: 1000, first: 1000})
    for _ in range(IN_A_ROW):
        site.take(first)
    assert site.consumers.names == [A]
    site.take(A)
    assert site.consumers.names == [first]


def test_where_nothing_else_waits_what_goes_ahead_goes_on() -> None:
    first = first_queue(A)
    site = Situation(free=100, named=(A,), ready={first: 1000})
    for _ in range(IN_A_ROW):
        site.take(first)
    assert site.rearrange() == {A}
    assert first in site.consumers.names


def test_a_queue_that_was_made_without_companions_is_served() -> None:
    site = Situation(free=1, gone={first_queue(A)})
    assert set(site.consumers.names) == {A, *both(B)}


def test_a_companion_that_is_made_later_is_consumed_without_a_new_connection() -> None:
    site = Situation(free=1, named=(A,), gone={first_queue(A)})
    site.gone.clear()
    site.rearrange()
    assert site.consumers.names == [A]
    site.now += 3
    site.rearrange()
    assert set(site.consumers.names) == both(A)
    asked = len(site.asked)
    site.rearrange()
    assert len(site.asked) == asked


def test_a_flood_of_what_is_refused_ahead_of_a_queue_keeps_nobody_from_it() -> None:
    first = first_queue(A)
    site = Situation(named=(A,), ready={A: 1, first: 1000})
    site.refuse(A)
    site.free = 1
    for _ in range(IN_A_ROW):
        site.rearrange()
        assert site.consumers.names == [first]
        site.intake.passed_over(first)
    site.rearrange()
    assert set(site.consumers.names) == both(A)


def test_what_waits_behind_a_flood_has_its_turn_though_others_go_ahead() -> None:
    first = first_queue(A)
    site = Situation(named=(A,), ready={A: 1000, first: 1000})
    for _ in range(IN_A_ROW):
        assert run_next(site, first) == first
    site.free = 1
    site.rearrange()
    for _ in range(3):
        site.intake.passed_over(A)
        for _ in range(2):
            site.rearrange()
            assert site.consumers.names == [A]
        site.now += FLOOD_SECONDS
    site.take(A)
    site.free = 1
    site.rearrange()
    assert site.consumers.names == [first]


def test_a_flood_that_never_ends_keeps_nobody_from_what_goes_ahead() -> None:
    first = first_queue(A)
    site = Situation(named=(A,), ready={first: 1000})
    for _ in range(3):
        for _ in range(IN_A_ROW):
            assert run_next(site, first) == first
        site.free, began = 1, site.now
        while first not in site.consumers.names and site.now < began + 2 * LONGEST_TURN_SECONDS:
            site.intake.passed_over(A)
            site.now += FLOOD_SECONDS / 2
            site.rearrange()
        assert began + LONGEST_TURN_SECONDS <= site.now < began + 2 * LONGEST_TURN_SECONDS


@pytest.mark.parametrize("is_put_off", [True, False])
def test_a_turn_is_over_when_nothing_more_comes_or_what_comes_is_put_off(*, is_put_off: bool) -> None:
    first = first_queue(A)
    site = Situation(named=(A,), ready={A: 1000, first: 1000})
    for _ in range(IN_A_ROW):
        run_next(site, first)
    site.free = 1
    site.rearrange()
    site.intake.passed_over(A)
    site.rearrange()
    assert site.consumers.names == [A]
    if is_put_off:
        site.intake.put_off(A)
    else:
        site.now += FLOOD_SECONDS
    site.rearrange()
    assert set(site.consumers.names) == both(A)


def test_a_queue_that_went_while_it_was_paused_keeps_nobody_from_the_others() -> None:
    site = Situation(free=1, ready={B: 1})
    site.take(B)
    site.gone |= both(A)
    site.free = 1
    assert site.rearrange() == {B}


def test_who_is_not_first_in_turn_is_told_to_look_again() -> None:
    site = Situation(free=1, ready={A: 1, B: 1})
    site.take(A)
    site.free = 1
    assert site.intake.rearrange(site.consumers)
    site.ready[B] = 0
    assert not site.intake.rearrange(site.consumers)


def test_a_node_that_can_run_nothing_takes_nothing_though_a_place_is_free() -> None:
    site = Situation(free=1, is_taking=False)
    assert not site.intake.is_open
    site.refuse(A)
    site.refuse(B)
    assert site.rearrange() == set()
    site.is_taking = True
    assert site.rearrange() == {A, B}


def test_a_queue_that_is_found_is_consumed_and_one_that_is_no_longer_found_is_not() -> None:
    site = Situation(free=1, named=())
    site.intake.learn((), {A: 0, B: 0})
    assert site.rearrange() == {A, B}
    assert set(site.celery.consume_from) == both(A, B)
    site.intake.learn((), {B: 0})
    assert site.rearrange() == {B}
    assert set(site.celery.consume_from) == both(B)


def test_a_queue_that_is_found_and_gone_again_is_not_consumed() -> None:
    site = Situation(free=1, named=(), gone=both(A))
    site.intake.learn((), {A: 0})
    assert site.rearrange() == set()


def test_a_queue_that_an_operator_has_stopped_is_not_consumed_until_he_says_so() -> None:
    site = Situation(free=1)
    site.stopped.add(A)
    assert site.rearrange() == {B}
    site.stopped.clear()
    assert site.rearrange() == {A, B}


def test_a_queue_that_is_paused_is_not_consumed_until_it_is_resumed() -> None:
    site = Situation(free=1)
    site.intake.learn((A, B), {}, closed={A})
    assert site.rearrange() == {B}
    site.intake.learn((A, B), {}, closed={A, B})
    assert site.rearrange() == set()
    site.intake.learn((A, B), {})
    assert site.rearrange() == {A, B}


def test_what_turned_out_to_be_empty_leaves_its_place_to_others() -> None:
    site = Situation(free=1, named=())
    found = {f"q{number:02d}": 1 for number in range(20)}
    site.ready["q15"] = 1
    site.intake.learn((), found)
    for _ in range(3):
        site.rearrange()
    assert "q15" in site.listened


def test_a_queue_that_went_while_it_was_paused_is_not_consumed_and_is_served_once_it_is_there_again() -> None:
    site = Situation(free=1)
    site.take(B)
    site.gone |= both(A)
    site.free = 1
    assert site.rearrange() == {B}
    assert set(site.celery.consume_from) == both(B)
    site.gone.clear()
    site.now = 3.0
    assert site.rearrange() == {A, B}


def test_a_broker_that_is_silent_is_asked_once_and_nothing_is_lost_meanwhile() -> None:
    site = Situation(free=1, named=(A, B, C))
    site.take(A)
    site.free, site.is_silent = 1, True
    site.asked.clear()
    assert site.rearrange() == set()
    assert len(site.asked) == 1
    site.is_silent = False
    assert site.rearrange() == {A, B, C}


def test_a_queue_of_which_the_broker_said_only_half_is_asked_for_again() -> None:
    site = Situation(free=1, named=(), unanswered={first_queue(A)})
    site.intake.learn((A,), {})
    assert site.rearrange() == set()
    site.unanswered.clear()
    site.rearrange()
    assert set(site.consumers.names) == both(A)


def test_a_broker_that_is_silent_for_long_is_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    site = Situation(free=1, named=(A, B), is_silent=True)
    for _ in range(180):
        site.now += 1
        site.rearrange()
    counts = [record.count for record in caplog.records if record.message == "intake.broker_unavailable"]  # type: ignore[attr-defined]
    assert counts == [1, 60, 60, 60]


def test_a_broker_that_is_silent_from_the_start_is_asked_once_a_look() -> None:
    site = Situation(free=1, named=(A, B, C), is_silent=True)
    assert (len(site.asked), site.listened) == (1, set())
    site.rearrange()
    assert len(site.asked) == 2
    site.is_silent = False
    assert site.rearrange() == {A, B, C}


def test_a_named_queue_that_is_not_there_is_asked_for_now_and_then_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        site = Situation(free=1, gone=both(A))
        for site.now in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0):
            assert site.rearrange() == {B}
    assert site.asked.count(A) == 2
    assert [record.message for record in caplog.records] == ["queue.not_there"]
    site.gone.clear()
    site.now = 6.0
    assert site.rearrange() == {A, B}
