"""Queues that are found by patterns, and the order in which several queues are served, on real brokers."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from services.place import LONG, Place, number, open_place, sleepers
from services.process import Process
from services.waiting import wait_until

from jobqueue.keys import trust
from jobqueue.lifecycle import State
from jobqueue.resources import Resources

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


@pytest.fixture(params=["rabbitmq", "redis", "sqs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place without queues; where the broker has another address for it, as with its HTTP API, it is told."""
    registry = request.getfixturevalue("redis_server")
    server = request.getfixturevalue(f"{request.param}_server")
    settings = {"management_url": server.management_url} if request.param == "rabbitmq" else {}
    with open_place(
        tmp_path, broker=server.url, registry=registry.url, engine=None, lease="6s", grace="1s", **settings
    ) as opened:
        yield opened


def served(place: Place) -> set[str]:
    """Return what the registry says is served by this place's worker."""
    project = place.site.settings.project
    workers = place.client._connections.registry.workers.present()
    return {queue for worker in workers if project in worker.worker_id for queue in worker.queues}


def log_of(worker: Process) -> str:
    return worker.log.read_text(errors="replace")


@pytest.mark.parametrize(
    ("place", "further"),
    [
        ("rabbitmq", {}),
        ("rabbitmq", {"JOBQUEUE_MANAGEMENT_URL": "http://127.0.0.1:9"}),  # nobody answers there
        ("redis", {}),
        ("sqs", {}),
    ],
    indirect=["place"],
)
def test_a_worker_serves_what_its_patterns_find(place: Place, further: dict[str, str]) -> None:
    project = place.site.settings.project
    early, late, private, other = (f"{project}_{name}" for name in ("lab_a", "lab_b", "lab_private_c", "vision"))
    words = f"{project}_lab_*,!{project}_lab_private_*"
    patterns = {"JOBQUEUE_QUEUES": words, "JOBQUEUE_QUEUE_REFRESH": "1s", **further}
    with place.open_broker() as broker, place.make_worker(environment=patterns) as worker:
        assert f"pattern={project}_lab_*" in log_of(worker)
        for queue in (early, private, other):
            broker.queues.create(queue)
        waiting = [place.submit("true", queue=queue) for queue in (private, other)]
        assert place.submit("true", queue=early).result(timeout=60) == {"exit_code": 0}
        broker.queues.create(late)
        running = place.submit("sleep 600", queue=late)
        wait_until(lambda: running.state == State.RUNNING, what="a queue made later is served", within=2 * LONG)
        wait_until(lambda: served(place) == {early, late}, what="both of them told of", within=LONG)
        broker.queues.delete(late)
        assert running.wait(60)
        assert running.state == State.CANCELLED
        wait_until(lambda: served(place) == {early}, what="what was deleted is served no more", within=LONG)
        assert place.submit("true", queue=early).result(timeout=60) == {"exit_code": 0}
        assert [experiment.state for experiment in waiting] == [State.QUEUED] * 2
        assert worker.running
        for queue in (early, private, other):
            broker.queues.delete(queue)


@pytest.mark.parametrize("how", ["names", "pattern"])
def test_a_queue_with_one_is_served_next_beside_one_with_hundreds(place: Place, how: str) -> None:
    project = place.site.settings.project
    full, small = f"{project}_full", f"{project}_small"
    queues = {"JOBQUEUE_QUEUES": f"{full},{small}" if how == "names" else f"{project}_*"}
    with place.open_broker() as broker:
        for queue in (full, small):
            broker.queues.create(queue)
        seconds = number()
        running = place.submit(f"sleep {seconds}", queue=full)
        is_asked_for = place.site.settings.broker.startswith("sqs")
        one = {"image": "any:1", "command": ["sleep", "0.2"], "memory": "128MiB", "disk": "1GiB", "queue": full}
        with place.make_worker(environment={**queues, "JOBQUEUE_QUEUE_REFRESH": "1s"}):
            pid = wait_until(lambda: sleepers(seconds), what="the full queue is served", within=LONG)[0]
            many = place.client.submit_many([one] * (60 if is_asked_for else 500))
            single = place.submit("true", queue=small)
            os.kill(pid, signal.SIGTERM)
            assert single.result(timeout=60) == {"exit_code": 0}
            at = place.record_of(single).started_at
            begun = place.client._connections.registry.experiments.states([each.id for each in many])
            earlier = [
                started
                for experiment in many
                if begun[experiment.id] is not State.QUEUED
                and (started := place.record_of(experiment).started_at)
                and at
                and started < at
            ]
            # Where what a pattern finds is asked for in rounds, its turn comes when it is known.
            assert len(earlier) <= (40 if is_asked_for and how == "pattern" else 0)
        assert running.state.is_final
        for queue in (full, small):
            broker.queues.delete(queue)


@pytest.mark.parametrize("place", ["redis"], indirect=True)
def test_a_project_is_served_once_its_sender_is_trusted_and_left_while_nothing_of_it_can_fit(place: Place) -> None:
    project = place.site.settings.project
    queue = f"{project}_lab"
    (trusted,) = (place.site.settings.keys_dir / "trusted").glob("*.pub")
    line = trusted.read_text()
    trusted.unlink()
    patterns = {"JOBQUEUE_QUEUES": f"{project}_*", "JOBQUEUE_QUEUE_REFRESH": "1s"}
    with place.open_broker() as broker, place.make_worker(environment=patterns):
        broker.queues.create(queue)
        waiting = place.submit("true", queue=queue)
        assert queue not in served(place)
        trust(place.site.settings.keys_dir, line)
        assert waiting.result(timeout=60) == {"exit_code": 0}
        wait_until(lambda: needs_of(place, queue) is not None, what="what the queue asks for is known", within=LONG)
        forget_needs(place)
        huge = place.submit("true", queue=queue, cpus=1000)
        wait_until(lambda: queue not in served(place), what="what can never fit is left", within=LONG)
        needs = needs_of(place, queue)
        assert needs
        assert needs.cpus == 1000
        place.client._connections.registry.needs.note(queue, replace(needs, cpus=1))
        wait_until(lambda: queue in served(place), what="what may fit is served again", within=LONG)
        assert place.submit("true", queue=queue).result(timeout=60) == {"exit_code": 0}
        huge.cancel()
        assert huge.wait(60)
        broker.queues.delete(queue)


def needs_of(place: Place, queue: str) -> Resources | None:
    return place.client._connections.registry.needs.known([queue]).get(queue)


def forget_needs(place: Place) -> None:
    """Have the time be over for which it is believed what queues ask for."""
    with redis.Redis.from_url(place.site.settings.registry) as client:
        client.delete(f"jobqueue:need:{place.site.settings.project}_lab")
