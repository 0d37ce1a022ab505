"""What SQS is asked for, where each question costs: no more than is needed, and no more than may go ahead."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from jobqueue.brokers.precedence import IN_A_ROW
from jobqueue.brokers.sqs_client import Receipt, Refusal
from jobqueue.brokers.sqs_queues import SqsQueues
from jobqueue.brokers.sqs_receiver import Question, Receiver
from jobqueue.brokers.sqs_survey import SqsSurvey
from jobqueue.brokers.sqs_transport import Transport
from jobqueue.errors import BrokerUnavailable, JobqueueError
from jobqueue.routing import COMPANIONS, dead_letter_queue, first_queue, is_first_queue, parse_selection

QUEUE = "lab_cpu"
FIRST = first_queue(QUEUE)


class Counting:
    """A server whose queues are all there and empty."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def on_queue(self, operation: str, queue: str, **_: object) -> dict[str, dict[str, str]]:
        self.asked.append(queue)
        return {"Attributes": {}}


def test_companions_have_no_queue_that_is_served_before_them() -> None:
    server: Any = Counting()
    queues = SqsQueues(server)
    names = [QUEUE, *(QUEUE + suffix for suffix in COMPANIONS)]
    SqsSurvey(server, queues, asks_per_second=1).depths(names)
    assert sorted(server.asked) == sorted(names)
    server.asked.clear()
    queues.depth(f"{QUEUE}_dead")
    assert server.asked == [f"{QUEUE}_dead"]


class Full:
    """A server in which more lies than anybody asks for."""

    address = SimpleNamespace(wait=timedelta(0))

    def receive(self, queue: str, *, count: int, wait: timedelta) -> list[Receipt]:
        return [Receipt(queue=queue, handle=str(each), body="") for each in range(count)]

    def delete_all(self, _receipts: Sequence[Receipt]) -> None:
        """Have as many as before."""

    def give_back_all(self, _receipts: Sequence[Receipt]) -> None:
        """Have as many as before."""


@contextmanager
def receiver(server: Any) -> Iterator[tuple[Receiver, "SimpleQueue[Sequence[Receipt]]"]]:
    answers: SimpleQueue[Sequence[Receipt]] = SimpleQueue()
    made = Receiver(server, on_answer=answers.put)
    try:
        yield made, answers
    finally:
        made.close()


def test_however_many_are_asked_for_no_more_go_ahead_in_a_row() -> None:
    taken: list[str] = []
    with receiver(Full()) as (asking, answers):
        for count in (3, 10, 10, 1, 2, 10, 10):
            asking.ask(Question(queues=(QUEUE,), count=count))
            handed = [receipt.queue for receipt in answers.get(timeout=30)]
            asking.settle(handed=handed)
            taken += handed
    ahead = "".join("1" if queue == FIRST else "0" for queue in taken).split("0")
    assert max(map(len, ahead)) == IN_A_ROW


def test_the_others_turn_lasts_until_one_of_theirs_was_handed_on() -> None:
    server = Full()
    with receiver(server) as (asking, answers):

        def ask() -> str:
            asking.ask(Question(queues=(QUEUE,), count=1))
            (receipt,) = answers.get(timeout=30)
            return receipt.queue

        assert [ask() for _ in range(IN_A_ROW)] == [FIRST] * IN_A_ROW
        for _ in range(3):
            assert ask() == QUEUE
            asking.settle(handed=[], refused=[])
        assert ask() == QUEUE
        asking.settle(handed=[QUEUE])
        assert ask() == FIRST


def test_what_the_library_raises_when_messages_are_given_back_does_not_end_the_questions() -> None:
    class Odd(Full):
        def give_back_all(self, _receipts: Sequence[Receipt]) -> None:
            raise KeyError("Failed")

    made = Transport(SimpleNamespace(transport_options={"server": Odd()}, default_port=None))
    asking = Receiver(made.server, on_answer=made._on_answer)  # nothing is consumed: all of it goes back
    try:
        for _ in range(2):
            asking.ask(Question(queues=(QUEUE,), count=1))
            assert made._arrived.get(timeout=30)() is False
    finally:
        asking.close()


class HalfClosed(Full):
    """A server that says nothing of what is served before the request queues."""

    def __init__(self, error: JobqueueError) -> None:
        self.error = error

    def receive(self, queue: str, *, count: int, wait: timedelta) -> list[Receipt]:
        if is_first_queue(queue):
            raise self.error
        return super().receive(queue, count=count, wait=wait)

    def names(self, _beginning: str = "") -> Iterator[str]:
        yield from (
            name for queue in (QUEUE, "lab_gpu") for name in (queue, first_queue(queue), dead_letter_queue(queue))
        )

    def on_queue(self, _operation: str, queue: str, **_: object) -> dict[str, dict[str, str]]:
        if is_first_queue(queue):
            raise self.error
        return {"Attributes": {}}


HALF_CLOSED = [Refusal("not allowed", reason="AccessDenied"), BrokerUnavailable("503")]


@pytest.mark.parametrize("error", HALF_CLOSED)
def test_a_request_queue_is_served_though_nobody_may_ask_for_what_is_served_before_it(error: JobqueueError) -> None:
    with receiver(HalfClosed(error)) as (asking, answers):
        for _ in range(3):
            asking.ask(Question(queues=(QUEUE,), count=1))
            assert [receipt.queue for receipt in answers.get(timeout=30)] == [QUEUE]


@pytest.mark.parametrize("error", HALF_CLOSED)
def test_a_request_queue_is_found_though_nobody_may_ask_for_what_is_served_before_it(error: JobqueueError) -> None:
    server: Any = HalfClosed(error)
    survey = SqsSurvey(server, server, asks_per_second=1e9)
    for _ in range(8):
        assert survey.look(parse_selection(["lab_*"])).waiting == {QUEUE: 0, "lab_gpu": 0}
