"""What is fast begins before all that waits in its queue, and what is paused waits, on every broker."""

import os
import signal
from collections.abc import Iterator
from datetime import datetime

import pytest
from services.garbage import flood, unsigned
from services.place import LONG, OpenAt, Place, number, wait_for_sleep
from services.waiting import wait_until

from jobqueue.brokers.precedence import IN_A_ROW
from jobqueue.lifecycle import State
from jobqueue.registry.base import Registry
from jobqueue.registry.pauses import Pause
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
WAITING = 50


@pytest.fixture(params=["rabbitmq", "redis", "sqs"])
def place(request: pytest.FixtureRequest, open_at: OpenAt) -> Iterator[Place]:
    with open_at(request.param, lease="6s", grace="1s") as opened:
        yield opened


def registry_of(place: Place) -> Registry:
    return place.client._connections.registry


def begun_at(place: Place, experiment: Experiment) -> datetime | None:
    return registry_of(place).experiments.get(experiment.id).started_at


def test_a_fast_experiment_begins_before_all_that_waits(place: Place) -> None:
    seconds = number()
    running = place.submit(f"sleep {seconds}")
    one = {"image": "any:1", "command": ["sleep", "0.1"], "memory": "128MiB", "disk": "1GiB"}
    with place.make_worker():
        pid = wait_for_sleep(seconds)
        waiting = place.client.submit_many([one] * WAITING)
        fast = place.submit("true", priority="fast")
        assert "0 were submitted before it as fast ones like it" in fast.why()
        assert "1 later ones are fast and go ahead" in waiting[0].why()
        os.kill(pid, signal.SIGTERM)
        assert fast.result(timeout=60) == {"exit_code": 0}
        at = begun_at(place, fast)
        states = registry_of(place).experiments.states([each.id for each in waiting])
        begun = [begun_at(place, each) for each in waiting if states[each.id] is not State.QUEUED]
        assert at
        assert not [started for started in begun if started and started < at]
        assert running.state.is_final
        for experiment in waiting:
            experiment.cancel()


def test_who_waits_behind_a_flood_begins_before_all_that_is_fast(place: Place) -> None:
    cancelled = place.submit("true")
    sound = registry_of(place).experiments.get(cancelled.id).submission.message
    cancelled.cancel()
    count = 60 if place.site.settings.broker.startswith("sqs") else 3000
    flood(place.site.settings, place.site.queue, [unsigned(sound)] * count)
    normal = place.submit("true")
    fast = [place.submit("true", priority="fast") for _ in range(5 * IN_A_ROW)]
    with place.make_worker():
        for experiment in (normal, *fast):
            assert experiment.result(timeout=120) == {"exit_code": 0}
    at = begun_at(place, normal)
    assert at
    assert [started for each in fast if (started := begun_at(place, each)) and started > at]


def test_nothing_is_taken_from_a_paused_queue_until_it_is_resumed_also_by_workers_that_start_meanwhile(
    place: Place,
) -> None:
    queue, pauses = place.site.queue, registry_of(place).pauses
    seconds = number()
    with place.make_worker("one", environment={"JOBQUEUE_QUEUE_REFRESH": "1s"}) as first:
        running = place.submit(f"sleep {seconds}")
        pid = wait_for_sleep(seconds)
        pauses.pause(Pause(queue=queue, at=registry_of(place).ping(), by="ann@desk"))
        wait_until(lambda: f"now={queue}" in first.log.read_text(), what="it knowing of the pause", within=LONG)
        waiting = [place.submit("true"), place.submit("true", priority="fast")]
        with place.make_worker("two", environment={"JOBQUEUE_QUEUE_REFRESH": "1s"}) as second:
            wait_until(lambda: f"now={queue}" in second.log.read_text(), what="the other one too", within=LONG)
            assert running.state == State.RUNNING
            os.kill(pid, signal.SIGTERM)
            assert running.wait(60)
            wait_until(lambda: place.depth() >= len(waiting), what="both of them lying there", within=LONG)
            assert [experiment.attempt for experiment in waiting] == [0, 0]
            assert "is paused by ann@desk since" in waiting[0].why()
            pauses.resume(queue)
            assert [experiment.result(timeout=60) for experiment in waiting] == [{"exit_code": 0}] * 2
