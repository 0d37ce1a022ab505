"""Which queues are asked what waits in them where each has to be asked: none is forgotten for what others answer."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise

import pytest

from jobqueue.brokers.asking import Askings
from jobqueue.brokers.sqs_client import Refusal
from jobqueue.brokers.sqs_survey import SqsSurvey
from jobqueue.errors import BrokerUnavailable, NoSuchQueue
from jobqueue.routing import dead_letter_queue, parse_selection


class FakeSqs:
    """A server with queues in which something waits, and some that it answers for with an error."""

    def __init__(self, waiting: dict[str, int], errors: dict[str, Exception] | None = None) -> None:
        self.waiting, self.errors = waiting, errors or {}
        self.asked: list[str] = []

    def names(self, beginning: str = "") -> Iterator[str]:
        yield from (name for queue in (*self.waiting, *self.errors) for name in (queue, dead_letter_queue(queue)))

    def on_queue(self, operation: str, queue: str, **_: object) -> dict[str, dict[str, str]]:
        self.asked.append(queue)
        if queue in self.errors:
            raise self.errors[queue]
        return {"Attributes": {"ApproximateNumberOfMessages": str(self.waiting[queue])}}


def survey_of(sqs: FakeSqs, *, asks_per_second: float = 1e9) -> SqsSurvey:
    return SqsSurvey(sqs, sqs, asks_per_second=asks_per_second)  # type: ignore[arg-type]


def ask(askings: Askings, queues: Iterable[str], waiting: dict[str, int]) -> list[str]:
    asked = askings.next(queues, limit=12)
    for queue in asked:
        askings.note(queue, waiting[queue])
    return asked


def test_queues_that_are_never_empty_do_not_take_every_question() -> None:
    waiting = {**{f"full{number:03}": 9 for number in range(12)}, **{f"empty{number:03}": 0 for number in range(40)}}
    askings = Askings()
    rounds = [ask(askings, waiting, waiting) for _ in range(100)]
    for queue in waiting:
        turns = [number for number, asked in enumerate(rounds) if queue in asked]
        assert max(later - before for before, later in pairwise(turns)) <= len(waiting) / 4
        assert turns[-1] > 80


def test_what_is_new_is_asked_first_and_what_waited_before_what_was_empty() -> None:
    waiting = {**{f"empty{number:03}": 0 for number in range(20)}, **{f"full{number}": 9 for number in range(8)}}
    askings = Askings()
    for _ in range(10):
        ask(askings, waiting, waiting)
    asked = ask(askings, [*waiting, "new"], {**waiting, "new": 0})
    assert asked[0] == "new"
    assert sum(queue.startswith("full") for queue in asked) >= 8


def test_a_queue_that_did_not_answer_is_asked_again_in_its_turn() -> None:
    askings = Askings()
    assert askings.next(["a", "b"], limit=1) == ["a"]
    askings.skip("a")
    assert askings.next(["a", "b"], limit=1) == ["b"]


@pytest.mark.parametrize(
    "error", [BrokerUnavailable("AccessDenied"), Refusal("no", reason="Unsupported"), NoSuchQueue("gone")]
)
def test_a_queue_that_sqs_refuses_ends_no_discovery(error: Exception) -> None:
    sqs = FakeSqs({"lab_b": 2, "lab_c": 0}, {"lab_a": error})
    survey = survey_of(sqs)
    for _ in range(2):
        seen = survey.look(parse_selection(["lab_*"]))
        assert (dict(seen.waiting), seen.others) == ({"lab_b": 2, "lab_c": 0}, ("lab_a",))


def test_a_queue_that_sqs_refuses_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    survey = survey_of(FakeSqs({"lab_b": 2}, {"lab_a": BrokerUnavailable("AccessDenied")}))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            survey.look(parse_selection(["lab_*"]))
    assert [record.getMessage() for record in caplog.records] == ["queue.not_asked"]


def test_a_queue_that_answers_again_is_found_again() -> None:
    sqs = FakeSqs({"lab_b": 2}, {"lab_a": BrokerUnavailable("AccessDenied")})
    survey = survey_of(sqs)
    survey.look(parse_selection(["lab_*"]))
    sqs.waiting["lab_a"] = 1
    sqs.errors.clear()
    assert survey.look(parse_selection(["lab_*"])).waiting == {"lab_a": 1, "lab_b": 2}


def test_where_no_question_is_answered_the_broker_is_away() -> None:
    errors: dict[str, Exception] = {f"lab_{name}": BrokerUnavailable("timed out") for name in "ab"}
    with pytest.raises(BrokerUnavailable):
        survey_of(FakeSqs({}, errors)).look(parse_selection(["lab_*"]))


def test_the_turn_goes_on_although_one_question_at_a_time_is_refused() -> None:
    sqs = FakeSqs({"lab_b": 2, "lab_c": 0}, {"lab_a": BrokerUnavailable("AccessDenied")})
    survey = survey_of(sqs, asks_per_second=0.0001)
    for _ in range(3):
        with suppress(BrokerUnavailable):
            survey.look(parse_selection(["lab_*"]))
    assert sorted(sqs.asked) == ["lab_a", "lab_b", "lab_c"]
