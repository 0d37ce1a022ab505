"""Workers that are killed, drained, broken or cut off from their broker: every experiment ends all the same."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from services.place import LONG, OpenAt, Place, number, sleepers, wait_for_sleep, with_settings
from services.process import Process
from services.rabbitmq import RabbitServer
from services.site import ROOT
from services.waiting import wait_until

from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.report import LogEntry
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

BOTH = [("rabbitmq", "docker"), ("redis", "process")]
on_both = pytest.mark.parametrize("place", BOTH, indirect=True, ids="-".join)
on_each = pytest.mark.parametrize("place", [*BOTH, ("sqs", "process")], indirect=True, ids="-".join)

BROKEN = """
from jobqueue.application import make_app
from jobqueue.config import Settings
from workers.attempt.supervise import Attempt

errors = [MemoryError(), SystemExit(1), KeyboardInterrupt()]
run = Attempt.run

def run_or_raise(self):
    if errors:
        raise errors.pop()
    return run(self)

Attempt.run = run_or_raise
app = make_app(Settings())
"""


@pytest.fixture
def place(request: pytest.FixtureRequest, open_at: OpenAt, settings: dict[str, str]) -> Iterator[Place]:
    with open_at(*request.param, **settings) as opened:
        opened.create(opened.site.queue, is_reported=True)
        yield opened


def exit_code(worker: Process) -> int:
    assert worker._child is not None
    return worker._child.wait(timeout=90)


def twice(first: str, second: str) -> str:
    """Return a command that sleeps for `first` at its first attempt, and for `second` later."""
    return f"if [ $JOBQUEUE_ATTEMPT = 1 ]; then sleep {first}; else sleep {second}; fi; echo end"


def most_alive(experiment: Experiment, *seconds: str) -> int:
    """Wait for the end, and return how many of these sleeps were seen at once."""
    most = 0
    for _ in range(600):
        if experiment.wait(0.1):
            return most
        most = max(most, sum(len(sleepers(each)) for each in seconds))
    raise TimeoutError(f"{experiment} did not end: {experiment.why()}")


# Killed


@on_each
@with_settings(lease="4s")
def test_what_a_killed_worker_left_is_run_by_another_one_after_the_lease(place: Place) -> None:
    first, second = number(), f"1.{secrets.randbelow(10**9):09d}"
    experiment = None
    with place.make_worker("one") as one:
        experiment = place.submit(twice(first, second))
        wait_for_sleep(first)
        one.kill()
    with place.make_worker("two") as two:
        assert most_alive(experiment, first, second) == 1
        # While it lives: one that has to end keeps on disk what a slow broker does not take at once.
        reports = place.take_reports(experiment)
        two.stop()  # not before it has acknowledged the message
    record = place.record_of(experiment)
    assert (record.state, record.attempt, record.platform_failures) == (State.SUCCEEDED, 2, 1)
    assert list(experiment.logs()) == ["end"]
    assert (sleepers(first), place.depth()) == ([], 0)
    # Nobody was left to report the loss, so the next holder does.
    said = [report.payload.message for report in reports if isinstance(report.payload, LogEntry)]
    assert "attempt 1 was lost with its worker" in said
    assert [report.reason for report in reports if report.reason] == [Reason.EXITED_ZERO]
    assert (reports[-1].attempt, reports[-1].state) == (2, State.SUCCEEDED)


# Broken


@on_each
def test_an_error_that_would_end_any_worker_hands_the_message_back(place: Place, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with place.make_worker(environment=path, app="broken") as worker:
        experiments = [place.submit("true") for _ in range(3)]
        assert [experiment.result(timeout=60) for experiment in experiments] == [{"exit_code": 0}] * 3
        assert worker.running
        worker.stop()  # not before it has acknowledged the messages
    said = worker.log.read_text()
    assert [name for name in ("MemoryError", "SystemExit", "KeyboardInterrupt") if name not in said] == []
    assert place.depth() == 0


# Drained


@on_each
@with_settings(grace="30s")
def test_a_drained_worker_lets_what_runs_finish_within_the_grace(place: Place) -> None:
    seconds = number()
    with place.make_worker() as worker:
        experiment = place.submit(f"sleep {seconds}; echo end")
        behind = place.submit("true")
        pid = wait_for_sleep(seconds)
        os.kill(worker.pid, signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in worker.log.read_text(), what="the drain", within=LONG)
        os.kill(pid, signal.SIGTERM)
        assert exit_code(worker) == 0
    assert experiment.wait(60)
    record = place.record_of(experiment)
    assert (record.state, record.attempt) == (State.SUCCEEDED, 1)
    assert behind.state == State.QUEUED
    with place.make_worker("next"):
        assert behind.result(timeout=90) == {"exit_code": 0}
    assert place.record_of(behind).history == ()


@on_each
@with_settings(grace="1s")
def test_a_drained_worker_hands_back_what_is_not_over_and_no_attempt_is_spent(place: Place) -> None:
    first, second = number(), f"0.{secrets.randbelow(10**9):09d}"
    with place.make_worker() as worker:
        experiment = place.submit(twice(first, second))
        wait_for_sleep(first)
        os.kill(worker.pid, signal.SIGTERM)
        assert exit_code(worker) == 0
    record = place.record_of(experiment)
    assert (record.state, record.platform_failures, record.user_failures) == (State.QUEUED, 0, 0)
    assert (sleepers(first), [past.reason for past in record.history]) == ([], [Reason.DRAINED])
    # The same one again: what a slow broker did not take when it ended waits on its disk.
    with place.make_worker():
        assert experiment.result(timeout=90) == {"exit_code": 0}
        ends = [report for report in place.take_reports(experiment) if report.reason]
    assert [(report.reason, report.fault, report.state, report.attempt) for report in ends] == [
        (Reason.DRAINED, Fault.CAPACITY, State.QUEUED, 1),
        (Reason.EXITED_ZERO, Fault.NONE, State.SUCCEEDED, 2),
    ]


@on_each
@with_settings(grace="60s")
def test_a_worker_that_is_told_twice_hands_back_at_once(place: Place) -> None:
    seconds = number()
    with place.make_worker() as worker:
        experiment = place.submit(f"trap 'exit 1' TERM; sleep {seconds} & wait")
        wait_for_sleep(seconds)
        os.kill(worker.pid, signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in worker.log.read_text(), what="the drain", within=LONG)
        os.kill(worker.pid, signal.SIGTERM)
        assert exit_code(worker) == 0
    record = place.record_of(experiment)
    assert (record.state, record.platform_failures, sleepers(seconds)) == (State.QUEUED, 0, [])
    assert experiment.cancel()


# Cut off


@on_both
def test_a_broker_that_restarts_while_something_runs_costs_nothing(
    place: Place, request: pytest.FixtureRequest
) -> None:
    broker = place.site.settings.broker.partition(":")[0].replace("amqp", "rabbitmq")
    server = request.getfixturevalue(f"{broker}_server")
    seconds = number()
    with place.make_worker() as worker:
        experiment = place.submit(f"echo begin; sleep {seconds}; echo end")
        pid = wait_for_sleep(seconds)
        server.process.restart()
        if isinstance(server, RabbitServer):
            said = "delivery.adopted"
            wait_until(lambda: said in worker.log.read_text(), what="the redelivery", within=LONG)
        assert len(sleepers(seconds)) == 1
        os.kill(pid, signal.SIGTERM)
        assert experiment.result(timeout=90) == {"exit_code": 0}
        assert place.submit("true").result(timeout=90) == {"exit_code": 0}
        if isinstance(server, RabbitServer):
            wait_until(lambda: server.queues()[place.site.queue] == 0, what="an acknowledged message", within=LONG)
    assert list(experiment.logs()) == ["begin", "end"]
    assert place.record_of(experiment).attempt == 1
    assert place.depth() == 0
