"""A listener knows what it has heard of an attempt, in whatever order it came."""

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.report import Report
from producers.heard import Heard

REPORT = Report(
    at=datetime(2026, 1, 1, tzinfo=UTC),
    experiment_id=ExperimentId("exp-01k0000000000000000000000a"),
    worker_id=WorkerId("cpu@host"),
    sequence=0,
    attempt=1,
    token=7,
    payload="",
)


@given(st.lists(st.integers(min_value=0, max_value=60), max_size=100))
def test_each_number_is_new_once(numbers: list[int]) -> None:
    heard = Heard(attempts=1)
    known: set[int] = set()
    for number in numbers:
        report = replace(REPORT, sequence=number)
        assert heard.is_new(report) == (number not in known)
        largest = max(known, default=-1)
        assert set(heard.missing_before(report)) == set(range(largest + 1, number))
        if heard.is_new(report):
            heard.note(report)
        known.add(number)


def test_what_a_node_claims_to_have_said_costs_no_memory() -> None:
    heard = Heard(attempts=10)
    for number in range(0, 10_000, 2):
        heard.note(replace(REPORT, sequence=number))
    heard.note(replace(REPORT, sequence=2**63))
    (told,) = heard._told.values()
    assert len(told.gaps) <= 100
    for token in range(1000):
        heard.note(replace(REPORT, token=token))
    assert len(heard._told) == 10


def test_the_attempts_that_spoke_last_are_remembered() -> None:
    heard = Heard(attempts=2)
    for token, sequence in ((1, 0), (2, 0), (1, 1), (3, 0)):
        heard.note(replace(REPORT, token=token, sequence=sequence))
    assert [heard.is_new(replace(REPORT, token=token)) for token in (1, 2, 3)] == [False, True, False]


def test_what_is_about_no_experiment_is_always_new() -> None:
    heard, refusal = Heard(attempts=10), replace(REPORT, experiment_id=ExperimentId(""))
    for _ in range(3):
        assert heard.is_new(refusal)
        assert not heard.missing_before(refusal)
        heard.note(refusal)
