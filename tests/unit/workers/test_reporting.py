"""Reports leave in order, none that carries a state is lost, and nothing is made where nobody listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from services.waiting import wait_until

from jobqueue.codec import decode_report
from jobqueue.errors import BrokerUnavailable
from jobqueue.ids import WorkerId, make_experiment_id
from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.report import LogEntry, Progress, Report, TaskState
from workers.attempt import reporting
from workers.attempt.reporting import Outbox, Reporter

SOON = timedelta(seconds=5)


class Post:
    """A broker's post that can be away, or lack the queue."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Report]] = []
        self.tries = 0
        self.is_away = False
        self.has_queue = True

    def send(self, queue: str, body: bytes, **_: object) -> bool:
        self.tries += 1
        if self.is_away:
            raise BrokerUnavailable("away")
        if self.has_queue:
            self.sent.append((queue, decode_report(body)))
        return self.has_queue


@contextmanager
def opened(post: Post) -> Iterator[tuple[Outbox, Reporter]]:
    outbox = Outbox(post)  # type: ignore[arg-type]
    reporter = Reporter(
        outbox, queue="q_cpu", experiment_id=make_experiment_id(), worker_id=WorkerId("cpu@host"), attempt=1, token=7
    )
    yield outbox, reporter
    outbox.close(timedelta(0))


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    monkeypatch.setattr(reporting, "RETRY_EVERY", timedelta(milliseconds=10))
    return Post()


def test_reports_go_to_the_reporting_queue_in_order_and_numbered(post: Post) -> None:
    with opened(post) as (outbox, reporter):
        for state in (State.PREPARING, State.RUNNING):
            reporter.entered(state)
        reporter.progressed('{"progress": 1}')
        reporter.entered(State.FINALIZING)
        reporter.ended(Reason.EXITED_ZERO, state=State.SUCCEEDED, sentence="fine", exit_code=0, manifest="m")
        assert outbox.flush(SOON)
    assert {queue for queue, _ in post.sent} == {"q_cpu_reporting"}
    reports = [report for _, report in post.sent]
    assert [report.sequence for report in reports] == [0, 1, 2, 3, 4]
    assert [report.payload.task_state for report in reports if isinstance(report.payload, Progress)] == [
        TaskState.PRESTART,
        TaskState.STARTED,
        TaskState.STARTED,
        TaskState.STOPPING,
        TaskState.SUCCESS,
    ]
    assert {(report.attempt, report.token) for report in reports} == {(1, 7)}


def test_a_failure_carries_its_code_its_fault_and_its_last_lines(post: Post) -> None:
    with opened(post) as (outbox, reporter):
        reporter.ended(
            Reason.EXITED_NONZERO, state=State.FAILED, sentence="exit code 3", exit_code=3, last_lines=("a", "b")
        )
        assert outbox.flush(SOON)
    (_, lines), (_, final) = post.sent
    assert isinstance(lines.payload, LogEntry)
    assert lines.payload.message == "a\nb"
    assert isinstance(final.payload, Progress)
    assert (final.payload.task_state, final.payload.error, final.payload.error_code) == (
        TaskState.FAILED,
        "exit code 3",
        3,
    )
    assert (final.state, final.reason, final.fault) == (State.FAILED, Reason.EXITED_NONZERO, Fault.USER)


def test_an_attempt_that_another_one_follows_is_stopping_not_failed(post: Post) -> None:
    with opened(post) as (outbox, reporter):
        reporter.ended(Reason.STORE_UNAVAILABLE, state=None, sentence="503")
        assert outbox.flush(SOON)
    ((_, report),) = post.sent
    assert isinstance(report.payload, Progress)
    assert (report.payload.task_state, report.state) == (TaskState.STOPPING, State.QUEUED)


def test_reports_wait_for_a_broker_that_is_away_and_keep_their_order(post: Post) -> None:
    post.is_away = True
    with opened(post) as (outbox, reporter):
        reporter.entered(State.PREPARING)
        reporter.entered(State.RUNNING)
        wait_until(lambda: post.tries > 2, what="several tries")
        assert not outbox.flush(timedelta(0))
        post.is_away = False
        assert outbox.flush(SOON)
    assert [report.sequence for _, report in post.sent] == [0, 1]


def test_where_nobody_listens_reports_are_dropped_and_counted(post: Post) -> None:
    post.has_queue = False
    with opened(post) as (outbox, reporter):
        reporter.entered(State.PREPARING)
        assert outbox.flush(SOON)
        assert outbox.dropped == 1


def test_a_full_outbox_drops_progress_never_a_state(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "OUTBOX_REPORTS", 3)
    post.is_away = True
    with opened(post) as (outbox, reporter):
        reporter.entered(State.PREPARING)
        wait_until(lambda: post.tries, what="the first try")
        for number in range(10):
            reporter.progressed(f'{{"progress": {number}}}')
        reporter.entered(State.RUNNING)
        reporter.entered(State.FINALIZING)
        reporter.ended(Reason.EXITED_ZERO, state=State.SUCCEEDED, sentence="")
        post.is_away = False
        assert outbox.flush(SOON)
    states = [report.state for _, report in post.sent if report.state]
    assert states == [State.PREPARING, State.RUNNING, State.FINALIZING, State.SUCCEEDED]
    assert len(post.sent) <= 5
    assert outbox.dropped == 10


def test_an_outbox_that_is_closed_while_the_broker_is_away_does_not_wait_for_it(post: Post) -> None:
    post.is_away = True
    with opened(post) as (outbox, reporter):
        reporter.entered(State.PREPARING)
        outbox.close(timedelta(milliseconds=50))
        assert not outbox._thread.is_alive()
