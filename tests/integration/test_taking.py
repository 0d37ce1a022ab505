"""When a worker takes a message and when it does not: with several queues, while it drains, when it is told to stop."""

import os
import signal
from collections.abc import Iterator

import pytest
from services.place import LONG, OpenAt, Place, number, sleepers
from services.waiting import wait_until

from jobqueue.application import make_app
from jobqueue.lifecycle import Reason, State
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


@pytest.fixture(params=["rabbitmq", "redis", "sqs"])
def place(request: pytest.FixtureRequest, open_at: OpenAt) -> Iterator[Place]:
    """A place whose leases are so long that nothing comes back because one has run out."""
    with open_at(request.param, lease="90s", grace="2s") as opened:
        opened.create(other(opened))
        yield opened


def other(place: Place) -> str:
    return f"{place.site.settings.project}_gpu"


def both(place: Place) -> dict[str, str]:
    return {"JOBQUEUE_QUEUES": f"{place.site.queue},{other(place)}"}


def started_at(place: Place, experiments: list[Experiment]) -> list[float]:
    found = [place.record_of(experiment).started_at for experiment in experiments]
    return [each.timestamp() for each in found if each]


def test_no_queue_waits_until_another_one_is_empty(place: Place) -> None:
    first = [place.submit("sleep 0.2") for _ in range(6)]
    second = [place.submit("sleep 0.2", queue=other(place)) for _ in range(6)]
    with place.make_worker(environment=both(place)):
        for experiment in (*first, *second):
            assert experiment.result(timeout=90) == {"exit_code": 0}
    starts = started_at(place, first), started_at(place, second)
    assert min(starts[0]) < sorted(starts[1])[3]
    assert min(starts[1]) < sorted(starts[0])[3]


def test_what_is_handed_back_comes_at_once_to_another_worker(place: Place) -> None:
    seconds = number()
    with place.make_worker("going") as going:
        experiment = place.submit(f"if [ $JOBQUEUE_ATTEMPT = 1 ]; then sleep {seconds}; fi")
        wait_until(lambda: sleepers(seconds), what="it running", within=LONG)
        with place.make_worker("staying"):
            os.kill(going.pid, signal.SIGTERM)
            assert experiment.result(timeout=90) == {"exit_code": 0}
    record = place.record_of(experiment)
    assert [past.reason for past in record.history] == [Reason.DRAINED]
    assert (record.platform_failures, record.user_failures) == (0, 0)


def test_a_worker_that_drains_takes_nothing_more_from_any_queue(place: Place) -> None:
    seconds = [number(), number()]
    with place.make_worker(environment={**both(place), "JOBQUEUE_GRACE": "40s"}) as worker:
        running = place.submit(f"sleep {seconds[0]}")
        pid = wait_until(lambda: sleepers(seconds[0]), what="it running", within=LONG)[0]
        behind = [place.submit("true", queue=queue) for queue in (place.site.queue, other(place))]
        os.kill(worker.pid, signal.SIGTERM)
        wait_until(lambda: "Warm shutdown" in worker.log.read_text(), what="the drain", within=LONG)
        os.kill(pid, signal.SIGTERM)
        assert worker._child is not None
        assert worker._child.wait(timeout=90) == 0
        assert running.wait(60)
    assert [experiment.state for experiment in behind] == [State.QUEUED] * 2
    with place.make_worker("next", environment=both(place)):
        assert [experiment.result(timeout=90) for experiment in behind] == [{"exit_code": 0}] * 2
    assert [place.record_of(experiment).history for experiment in behind] == [(), ()]


def test_a_queue_that_an_operator_stops_is_not_served_until_he_says_so(place: Place) -> None:
    app = make_app(place.site.settings)
    with place.make_worker(environment=both(place)), app.connection_for_write() as connection:

        def is_stopped() -> object:
            # What is said before a starting worker listens to its bus is lost.
            return app.control.cancel_consumer(place.site.queue, connection=connection, reply=True, timeout=1)

        wait_until(is_stopped, what="the queue to be stopped", within=LONG)
        held = place.submit("true")
        assert [place.submit("sleep 1", queue=other(place)).result(timeout=90) for _ in range(3)]
        assert held.state == State.QUEUED
        app.control.add_consumer(place.site.queue, connection=connection)
        assert held.result(timeout=90) == {"exit_code": 0}
