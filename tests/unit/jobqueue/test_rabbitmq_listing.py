"""RabbitMQ without its HTTP API: how its queues are listed, and what is told of that."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from jobqueue.brokers import rabbitmq_ledger, rabbitmq_survey
from jobqueue.brokers.base import QueueRecord
from jobqueue.brokers.rabbitmq_ledger import LEDGER, Ledger
from jobqueue.brokers.rabbitmq_survey import RabbitSurvey
from jobqueue.errors import BrokerUnavailable
from jobqueue.routing import parse_selection

LABS = parse_selection(["lab_*"])


class FakeRabbit:
    """Queues with what waits in them, and the messages of the ledger, which somebody may have in hand."""

    def __init__(self, **waiting: int) -> None:
        self.waiting = {**waiting, LEDGER: 0}
        self.ledger: list[bytes] = []
        self.asked: list[str] = []
        self.channel = self

    def run(self, operation: Callable[[Any], Any]) -> Any:
        return operation(self)

    def look(self, queue: str) -> SimpleNamespace | None:
        self.asked.append(queue)
        return SimpleNamespace(message_count=self.waiting[queue]) if queue in self.waiting else None

    def publish(self, queue: str, body: bytes, properties: object) -> bool:
        self.ledger.append(body)
        return True

    def basic_get(self, queue: str) -> SimpleNamespace | None:
        return SimpleNamespace(body=self.ledger.pop(0), delivery_tag=1) if self.ledger else None

    def basic_ack(self, delivery_tag: int) -> None:
        """The message is gone from the fake as soon as it is taken."""


@dataclass
class Listing:
    """Lists names, and counts how often."""

    names: tuple[str, ...]
    times: int = 0

    def __call__(self) -> list[QueueRecord]:
        self.times += 1
        return [QueueRecord(queue=name) for name in self.names]


def away() -> dict[str, int]:
    raise BrokerUnavailable("no answer")


def survey_of(rabbit: FakeRabbit, listing: Listing) -> RabbitSurvey:
    return RabbitSurvey(SimpleNamespace(waiting=away), rabbit, listed=listing)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_ledger, "_PATIENCE", timedelta(milliseconds=50))


def test_the_list_is_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing(("lab_a",))
    survey = survey_of(FakeRabbit(lab_a=1), listing)
    monkeypatch.setattr(rabbitmq_survey, "_LISTED_LOOKS", 3)
    for _ in range(3):
        assert survey.look(LABS).waiting == {"lab_a": 1}
    assert listing.times == 1
    survey.look(LABS)
    assert listing.times == 2


def test_that_each_queue_is_asked_is_told_once_with_what_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    survey = survey_of(FakeRabbit(lab_a=1), Listing(("lab_a",)))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            survey.look(LABS)
    (record,) = caplog.records
    assert record.getMessage() == "management.unavailable"
    assert "JOBQUEUE_MANAGEMENT_URL" in record.__dict__["hint"]
    assert "tag" in record.__dict__["hint"]


def test_queues_that_are_gone_take_no_question_from_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_survey, "_ASKED_AT_ONCE", 4)
    gone, there = [f"lab_a{number}" for number in range(8)], ["lab_x", "lab_y"]
    rabbit = FakeRabbit(lab_x=0, lab_y=0)
    survey = survey_of(rabbit, Listing((*gone, *there)))
    survey.look(LABS)
    rabbit.waiting |= {"lab_x": 3, "lab_y": 4}
    rabbit.asked.clear()
    for _ in range(5):
        seen = survey.look(LABS)
        assert set(seen.waiting) == set(there)
    assert seen.waiting == {"lab_x": 3, "lab_y": 4}
    assert len({name for name in rabbit.asked if name in gone}) == len(gone), "they may have been made again"


def test_a_ledger_that_somebody_else_has_in_hand_is_not_taken_for_none() -> None:
    rabbit = FakeRabbit()
    ledger = Ledger(rabbit)  # type: ignore[arg-type]
    ledger.begin()
    ledger.note(QueueRecord(queue="lab_a"))
    in_hand = rabbit.ledger.copy()
    rabbit.ledger.clear()
    with pytest.raises(BrokerUnavailable):
        ledger.records()
    assert rabbit.ledger == [], "what it left there others would take for all that there is"
    rabbit.ledger.extend(in_hand)
    assert [record.queue for record in ledger.records()] == ["lab_a"]


def test_a_broker_without_a_ledger_or_with_a_new_one_has_no_queues() -> None:
    rabbit = FakeRabbit()
    ledger = Ledger(rabbit)  # type: ignore[arg-type]
    del rabbit.waiting[LEDGER]
    assert ledger.records() == []
    rabbit.waiting[LEDGER] = 0
    ledger.begin()
    assert ledger.records() == []


def test_a_ledger_that_was_emptied_is_written_anew_by_whoever_notes_a_queue() -> None:
    rabbit = FakeRabbit()
    ledger = Ledger(rabbit)  # type: ignore[arg-type]
    ledger.note(QueueRecord(queue="lab_a"))
    assert [record.queue for record in ledger.records()] == ["lab_a"]
