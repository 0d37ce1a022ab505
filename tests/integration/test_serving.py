"""What a worker takes, and in which order: one message for each place, and first what has waited once already."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from services.place import LONG, OpenAt, Place, number, wait_for_sleep
from services.waiting import wait_until

from jobqueue.lifecycle import State
from jobqueue.routing import first_queue

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
BROKERS = ("rabbitmq", "redis", "sqs")


@pytest.fixture(params=BROKERS)
def place(request: pytest.FixtureRequest, open_at: OpenAt) -> Iterator[Place]:
    with open_at(request.param, lease="4s", grace="1s") as opened:
        yield opened


def start(place: Place, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a worker that is not expected to start."""
    worker = place.make_worker(environment=environment)
    return subprocess.run(
        worker._command,
        env={**os.environ, **worker._environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_message_that_finds_no_place_is_left_to_other_workers(place: Place) -> None:
    other = f"{place.site.settings.project}_gpu"
    place.create(other)
    both = f"{place.site.queue},{other}"
    with place.make_worker("one", environment={"JOBQUEUE_QUEUES": both}):
        seconds = number()
        long = place.submit(f"sleep {seconds}")
        wait_for_sleep(seconds)
        behind = [place.submit("true", queue=queue) for queue in (other, place.site.queue)]
        with place.make_worker("two", environment={"JOBQUEUE_QUEUES": both}):
            assert [experiment.result(timeout=90) for experiment in behind] == [{"exit_code": 0}] * 2
        wait_until(lambda: long.state == State.RUNNING, what="the first one going on", within=LONG)
        long.cancel()
        assert long.wait(90)


@pytest.mark.parametrize("place", ["rabbitmq"], indirect=True)  # elsewhere it comes back to the head of its queue
def test_what_was_tried_before_does_not_wait_behind_the_backlog(place: Place) -> None:
    with place.make_worker():
        failing = place.submit("if [ $JOBQUEUE_ATTEMPT = 1 ]; then kill -9 $$; else exit 0; fi", retries=1)
        backlog = [place.submit("sleep 1") for _ in range(20)]
        assert failing.wait(60)
        assert backlog[-1].state == State.QUEUED
        for experiment in backlog:
            experiment.cancel()
        wait_until(lambda: place.depth() == 0, what="no message left", within=LONG)
    with place.open_broker() as broker:
        broker.queues.delete(place.site.queue)
        assert not broker.queues.exists(first_queue(place.site.queue))


@pytest.mark.parametrize("place", ["redis"], indirect=True)
@pytest.mark.parametrize("role", ["node", "trusted"])
def test_a_worker_without_keys_does_not_start(place: Place, role: str) -> None:
    for key in (place.site.settings.keys_dir / role).iterdir():
        key.unlink()
    said = start(place)
    assert said.returncode == 69
    assert "jobqueue keys" in said.stderr


@pytest.mark.parametrize("place", ["redis"], indirect=True)
def test_a_worker_does_not_serve_a_companion(place: Place) -> None:
    said = start(place, JOBQUEUE_QUEUES=f"{place.site.queue}_dead")
    assert said.returncode == 69
    assert "companion" in said.stderr


def test_a_lost_message_is_sent_again(place: Place) -> None:
    experiment = place.submit("true")
    with place.open_broker() as broker:
        mail = broker.post.receive(place.site.queue, timeout=LONG)
        assert mail
        broker.post.acknowledge(mail)
    with place.make_worker(environment={"JOBQUEUE_LEASE": "2s"}) as worker:
        assert experiment.result(timeout=60) == {"exit_code": 0}
        assert "sweep.republished" in worker.log.read_text()
    assert experiment.attempt == 1
