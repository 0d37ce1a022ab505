"""From which queues a worker takes messages, while its places are taken and when one is free again."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from jobqueue.brokers.base import Depth, missing_queue
from workers.delivery.intake import Intake

FIRST, NORMAL, OTHER = "p_cpu_first", "p_cpu", "q_cpu"


@dataclass
class Consumers:
    """kombu's consumer, as far as it matters here: which queues it consumes."""

    names: list[str] = field(default_factory=lambda: [FIRST, NORMAL, OTHER])

    @property
    def queues(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.names]

    def cancel_by_queue(self, name: str) -> None:
        self.names.remove(name)

    def add_queue(self, queue: Any) -> None:
        self.names.append(queue.name)

    def consume(self) -> None:
        """Begin with what was added."""


class Message:
    """A delivery that can only be given back."""

    def __init__(self, queue: str) -> None:
        self.delivery_info = {"routing_key": queue}
        self.requeued = 0

    def requeue(self) -> None:
        self.requeued += 1


@dataclass
class Situation:
    """How many places are free, and how much lies in the queue that is served first; None: it does not exist."""

    free: int = 0
    is_taking: bool = True
    waiting: int | None = 0
    consumers: Consumers = field(default_factory=Consumers)

    def __post_init__(self) -> None:
        self.broker = SimpleNamespace(queues=self)
        node: Any = self
        self.intake = Intake(node, has_place=lambda: self.free > 0)

    def depth(self, queue: str) -> Depth:
        assert queue == FIRST
        if self.waiting is None:
            raise missing_queue(queue)
        return Depth(ready=self.waiting)

    def refuse(self, queue: str) -> Message:
        message = Message(queue)
        self.intake.refuse(message, self.consumers)
        return message

    def resume(self) -> set[str]:
        self.intake.resume(self.consumers)
        return set(self.consumers.names)


def test_a_queue_whose_message_found_no_place_is_not_consumed_until_one_is_free() -> None:
    site = Situation()
    assert site.refuse(OTHER).requeued == 1
    assert site.resume() == {FIRST, NORMAL}
    site.free = 1
    assert site.resume() == {FIRST, NORMAL, OTHER}


def test_who_waited_once_is_served_before_the_backlog() -> None:
    site = Situation(waiting=1)
    site.refuse(FIRST)
    assert site.consumers.names == []
    site.free = 1
    assert site.resume() == {FIRST}
    site.waiting = 0
    assert site.resume() == {FIRST, NORMAL, OTHER}


@pytest.mark.parametrize("waiting", [0, None])
def test_without_anybody_who_waited_everything_is_consumed_again(waiting: int | None) -> None:
    site = Situation(waiting=waiting)
    site.refuse(FIRST)
    site.free = 1
    assert site.resume() == {FIRST, NORMAL, OTHER}


def test_a_node_that_can_run_nothing_takes_nothing_though_a_place_is_free() -> None:
    site = Situation(free=1, is_taking=False)
    assert not site.intake.is_open
    site.refuse(FIRST)
    site.refuse(NORMAL)
    assert site.resume() == set()
    site.is_taking = True
    assert site.resume() == {FIRST, NORMAL, OTHER}
