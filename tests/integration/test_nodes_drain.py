"""An operator lets a node drain, and resumes it: real workers over a real registry, the command as it is typed."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from services.place import LONG, Place, open_place, sleepers
from services.process import Process
from services.redis import RedisServer
from services.waiting import wait_until

from jobqueue.lifecycle import Reason, State
from jobqueue.registry.presence import WorkerRecord
from producers.cli import jobqueue
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


@pytest.fixture(params=["redis", "rabbitmq"])
def place(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    broker = request.getfixturevalue(f"{request.param}_server").url
    with open_place(tmp_path, broker=broker, registry=redis_server.url, engine=None, lease="6s", grace="2s") as opened:
        for name, value in opened.site.environment.items():
            monkeypatch.setenv(name, value)
        with opened.open_broker() as broker:
            broker.queues.create(opened.site.queue)
        yield opened


@pytest.fixture
def worker(place: Place) -> Iterator[Process]:
    with place.make_worker() as started:
        yield started


def nodes(*words: str) -> str:
    done = CliRunner().invoke(jobqueue, ("nodes", *words))
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def told(place: Place) -> WorkerRecord:
    def find() -> list[WorkerRecord]:
        present = place.client._connections.registry.workers.present()
        return [worker for worker in present if place.site.queue in worker.queues]

    (record,) = wait_until(find, what="a worker told of", within=LONG)
    return record


def await_state(place: Place, state: str) -> None:
    wait_until(lambda: told(place).state == state, what=f"it {state}", within=LONG)


def start_sleeper(place: Place) -> tuple[Experiment, int]:
    seconds = f"{1000 + secrets.randbelow(9000)}.{secrets.randbelow(10**9):09d}"
    experiment = place.submit(f"sleep {seconds}; true")
    return experiment, wait_until(lambda: sleepers(seconds), what="it sleeping", within=LONG)[0]


def test_a_draining_node_takes_nothing_new_and_finishes_what_runs_also_after_a_restart(
    place: Place, worker: Process
) -> None:
    running, pid = start_sleeper(place)
    wait_until(lambda: told(place).experiment_ids == (running.id,), what="it told of", within=LONG)
    node = nodes("drain", told(place).worker_id)
    await_state(place, "DRAINING")
    assert f"{node} " in nodes("ls", node)
    waiting = place.submit("true")
    os.kill(pid, signal.SIGTERM)
    assert running.result(timeout=60) == {"exit_code": 0}

    worker.stop()
    worker.start()
    wait_until(lambda: worker.log.read_text().count("worker.ready") == 2, what="it again", within=LONG)
    await_state(place, "DRAINING")
    wait_until(lambda: place.depth() == 1, what="its message in the queue", within=LONG)
    assert (waiting.state, waiting.attempt) == (State.QUEUED, 0)
    assert f"{node} is DRAINING" in waiting.why()

    assert nodes("resume", node) == node
    assert waiting.result(timeout=60) == {"exit_code": 0}
    await_state(place, "OK")


def test_what_runs_on_a_node_that_drains_now_is_handed_back_and_counts_as_no_attempt_used(
    place: Place, worker: Process
) -> None:
    running, _pid = start_sleeper(place)
    node = nodes("drain", "--now", told(place).node_id)
    record = wait_until(
        lambda: [found for found in [running.look()] if found.history], what="it handed back", within=LONG
    )[0]
    assert (record.state, record.history[-1].reason) == (State.QUEUED, Reason.DRAINED)
    assert (record.user_failures, record.platform_failures) == (0, 0)
    assert worker.running
    await_state(place, "DRAINING")
    wait_until(lambda: told(place).experiment_ids == (), what="nothing told of", within=LONG)

    nodes("resume", node)
    wait_until(lambda: running.look().state is State.RUNNING, what="it running again", within=LONG)
    running.cancel()
    wait_until(lambda: running.look().state is State.CANCELLED, what="its end", within=LONG)
