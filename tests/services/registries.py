"""What tests ask of a registry: submissions, and leases for them."""

from datetime import UTC, datetime, timedelta

import redis

from jobqueue.ids import ExperimentId, NodeId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Answer, Granted, Held, Registry, Submission
from jobqueue.registry.presence import Drain, Gauge, WorkerRecord
from jobqueue.resources import Offer, Resources
from services.redis import RedisServer
from services.waiting import wait_until

LONG = timedelta(minutes=5)
SHORT = timedelta(milliseconds=60)
AT_ONCE = timedelta(0)
SUBMITTED_AT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SUCCESS = Outcome(reason=Reason.EXITED_ZERO, exit_code=0)
DRAINED = Outcome(reason=Reason.DRAINED)
BROKEN = Outcome(reason=Reason.RUNTIME_FAILURE, detail="no engine")


def settle(server: RedisServer) -> None:
    """Have the registry on this server believe that it is old, and has forgotten nothing."""
    registry = open_registry(server.url)
    registry.workers.announce(make_worker("settles"), ttl=LONG)
    registry.workers.leave(WorkerId("settles"))
    registry.close()
    with redis.Redis.from_url(server.url) as client:
        client.hset("jobqueue:clock", "settled", "1")


def make_submission(**fields: object) -> Submission:
    defaults: dict[str, object] = {
        "id": make_experiment_id(),
        "queue": "default_cpu",
        "project": "default",
        "resources": Resources(cpus=1.5, memory_bytes=2**30, disk_bytes=2**30, shm_bytes=2**20, gpus=1),
        "submitted_at": SUBMITTED_AT,
        "expires_at": SUBMITTED_AT + timedelta(days=2),
        "message": b"\x00sealed\xff",
    }
    return Submission(**(defaults | fields))  # type: ignore[arg-type]


def acquire(
    registry: Registry, submission: Submission, *, worker: str = "gpu0@a", ttl: timedelta = LONG, budget: int = 5
) -> Answer:
    return registry.leases.acquire(
        submission, worker_id=WorkerId(worker), node_id=NodeId("a"), ttl=ttl, platform_budget=budget
    )


def granted(registry: Registry, submission: Submission, **options: object) -> Granted:
    answer = acquire(registry, submission, **options)  # type: ignore[arg-type]
    assert isinstance(answer, Granted), answer
    return answer


def registered(registry: Registry, **fields: object) -> Submission:
    submission = make_submission(**fields)
    assert registry.experiments.register(submission) == [submission.id]
    return submission


def next_grant(registry: Registry, submission: Submission, **options: object) -> Granted:
    """Ask until the lease or the back-off before it is over."""
    answers: list[Answer] = []

    def ask() -> bool:
        answers.append(acquire(registry, submission, **options))  # type: ignore[arg-type]
        return not isinstance(answers[-1], Held)

    wait_until(ask, what="the lease is over")
    assert isinstance(answers[-1], Granted), answers[-1]
    return answers[-1]


def found_ids(registry: Registry, **criteria: object) -> list[ExperimentId]:
    return [record.submission.id for record in registry.experiments.find(**criteria)]  # type: ignore[arg-type]


def make_worker(name: str) -> WorkerRecord:
    return WorkerRecord(
        worker_id=WorkerId(name),
        node_id=NodeId("a"),
        queues=("default_cpu", "default_gpu"),
        offer=Offer(cpus=2.5, memory_bytes=2**33, disk_bytes=2**34, gpu_memory_bytes=(2**34,)),
        runtime="docker",
        experiment_ids=(make_experiment_id(), make_experiment_id()),
        places=2,
        slot="gpu0",
        devices=("GPU-a",),
        gauges=(Gauge(uuid="GPU-a", name="A", memory_bytes=2**34, used_bytes=7, utilisation_percent=3),),
        host="a",
        version="1.2.3",
        started_at=SUBMITTED_AT,
        free_disk_bytes=2**30,
        networks=("none", "egress"),
        images=("python:*",),
        max_timeout_seconds=3600.0,
    )


def use_everything(registry: Registry) -> None:
    """Walk through every method of every port."""
    registry.ping()
    submission = make_submission(name="n", idempotency_key=make_experiment_id())
    registry.experiments.register(submission)
    lease = granted(registry, submission).lease
    registry.leases.renew(lease, ttl=LONG)
    registry.leases.advance(lease, State.RUNNING, progress="{}")
    registry.live_logs.append(lease, "stdout", b"line\n", offset=0)
    assert registry.live_logs.read(submission.id, "stdout")
    registry.leases.release(lease, Outcome(reason=Reason.RUNTIME_FAILURE), delay=AT_ONCE)
    registry.leases.finish(
        granted(registry, submission).lease, Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED
    )
    assert registry.experiments.get(submission.id).state is State.SUCCEEDED
    assert registry.experiments.states([submission.id]) == {submission.id: State.SUCCEEDED}
    assert registry.experiments.find(name="n", project="default")
    for end in (registry.experiments.cancel, registry.experiments.withdraw):
        other = make_submission()
        registry.experiments.register(other)
        end(other.id)
    worker = make_worker(make_experiment_id())
    registry.workers.announce(worker, ttl=LONG)
    assert worker in registry.workers.present()
    registry.workers.leave(worker.worker_id)
    registry.workers.drain(Drain(target=worker.worker_id))
    assert Drain(target=worker.worker_id) in registry.workers.drains()
    assert registry.workers.resume(worker.worker_id)
