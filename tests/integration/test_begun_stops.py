"""What a stop or a signal means on real runtimes: the same for the worker that saw it and for one that takes over."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from services.place import LONG, OpenAt, Place, sleepers
from services.process import Process
from services.waiting import wait_until

from jobqueue.lifecycle import Reason
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

BOTH = [("rabbitmq", "docker"), ("redis", "process")]
# Killed workers come back at once: nobody else may be granted the lease before.
LEASE = "60s"
# Longer than a farewell.
GRACE = "60s"


@pytest.fixture(params=BOTH, ids="-".join)
def place(request: pytest.FixtureRequest, open_at: OpenAt) -> Iterator[Place]:
    with open_at(*request.param, lease=LEASE, grace=GRACE) as opened:
        yield opened


def slow(work: str, farewell: str) -> str:
    """Return a command that takes its time to end when it is asked to, and then says that a signal ended it."""
    return f"trap 'sleep {farewell}; exit 143' TERM; echo begun; sleep {work} & wait"


def check(place: Place, experiment: Experiment, reason: Reason) -> None:
    assert experiment.wait(60)
    record = place.record_of(experiment)
    assert (record.reason, record.attempt, record.history) == (reason, 1, ())


@pytest.mark.parametrize("place", BOTH[:1], indirect=True, ids="-".join)
def test_what_was_being_cancelled_when_its_worker_was_lost_is_cancelled(place: Place) -> None:
    with place.make_worker() as worker:
        cancelled = place.submit(slow("7101.5", "7101.25"))
        wait_until(lambda: sleepers("7101.5"), what="it running", within=LONG)
        cancelled.cancel()
        lose(worker, "7101.25")
        check(place, cancelled, Reason.CANCELLED_BY_USER)


@pytest.mark.parametrize("place", BOTH[1:], indirect=True, ids="-".join)
def test_what_had_run_too_long_or_had_succeeded_while_its_worker_was_lost_still_has(place: Place) -> None:
    with place.make_worker() as worker:
        timed_out = place.submit(slow("7102.5", "7102.25"), timeout="3s")
        lose(worker, "7102.25")
        check(place, timed_out, Reason.TIMED_OUT)
        assert place.record_of(timed_out).detail == "its timeout is 3s"
        succeeded = place.submit("sleep 7103.5; echo done; exit 0")
        lose(worker, "7103.5", then=succeeded.cancel)
        check(place, succeeded, Reason.EXITED_ZERO)
        assert list(succeeded.logs()) == ["done"]


def lose(worker: Process, seconds: str, *, then: Callable[[], object] = lambda: None) -> None:
    """Kill a worker while something sleeps for so long in its container, which then ends, and start it again."""
    (pid,) = wait_until(lambda: sleepers(seconds), what="it sleeping", within=LONG)
    worker.kill()
    os.kill(pid, signal.SIGTERM)
    then()
    worker.start()


def test_what_kills_itself_and_what_finds_no_gpu_memory_says_so(place: Place) -> None:
    with place.make_worker():
        killed = place.submit("kill -9 $$")
        greedy = place.submit("echo 'RuntimeError: CUDA out of memory. Tried to allocate 9 GiB' >&2; exit 1")
        assert killed.wait(60)
        assert (place.record_of(killed).reason, place.record_of(killed).exit_code) == (Reason.EXITED_NONZERO, 137)
        check(place, greedy, Reason.GPU_OUT_OF_MEMORY)
