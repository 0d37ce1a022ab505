"""Of many who ask at once one gets the lease."""

import os
import subprocess
import sys
import threading

from services.redis import RedisServer
from services.registries import LONG, acquire, registered, settle

from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Reason, State
from jobqueue.registry.base import (
    Answer,
    Final,
    Granted,
    Registry,
    Submission,
)


def test_of_many_threads_one_gets_the_lease(registry: Registry) -> None:
    submission = registered(registry)
    answers: list[Answer] = []
    start = threading.Barrier(8)

    def ask(worker: str) -> None:
        start.wait()
        answers.append(acquire(registry, submission, worker=worker))

    threads = [threading.Thread(target=ask, args=(f"cpu@{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(answer).__name__ for answer in answers) == ["Granted"] + ["Held"] * 7


def test_a_cancel_and_an_acquire_at_once_agree(registry: Registry) -> None:
    for _ in range(20):
        submission = registered(registry)
        start = threading.Barrier(2)
        states: list[State] = []

        def cancel(submission: Submission = submission, start: threading.Barrier = start) -> None:
            start.wait()
            states.append(registry.experiments.cancel(submission.id))  # noqa: B023

        thread = threading.Thread(target=cancel)
        thread.start()
        start.wait()
        answer = acquire(registry, submission)
        thread.join()
        if isinstance(answer, Granted):
            assert states == [State.PREPARING]
            assert registry.leases.renew(answer.lease, ttl=LONG) is Reason.CANCELLED_BY_USER
        else:
            assert isinstance(answer, Final)
            assert states == [State.CANCELLED]


RACES = 60
RACER = """
import sys
from datetime import UTC, datetime, timedelta
from jobqueue.registry import open_registry
from jobqueue.registry.base import Granted, Submission
from jobqueue.resources import Resources

url, *ids = sys.argv[1:]
registry, now = open_registry(url), datetime.now(UTC)
nothing = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)
registry.ping()
print("ready", flush=True)
sys.stdin.readline()
for name in ids:
    submission = Submission(
        id=name, queue="q", project="p", resources=nothing, submitted_at=now, expires_at=now, message=b"m"
    )
    answer = registry.leases.acquire(
        submission, worker_id="w", node_id="n", ttl=timedelta(minutes=5), platform_budget=5
    )
    if isinstance(answer, Granted):
        print(name)
registry.close()
"""


def test_of_two_processes_one_gets_each_lease(redis_server: RedisServer) -> None:
    settle(redis_server)
    ids = [make_experiment_id() for _ in range(RACES)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, redis_server.url, *ids],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert sorted(won[0] + won[1]) == sorted(ids)
