"""Situations in which an experiment is stuck: each one's true cause, with numbers, and what ends it."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry.base import Granted, Lease
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Offer
from producers.client import Client
from producers.handle import Experiment
from producers.preparation import JobqueueWarning

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
TTL = timedelta(minutes=1)
GIB = 2**30
Announce = Callable[..., WorkerRecord]


@pytest.fixture
def announce(client: Client) -> Iterator[Announce]:
    """Lets a slot of one node of the project be there, until the test is over."""
    workers, project = client._connections.registry.workers, client.settings.project
    there: list[WorkerRecord] = []

    def announce(slot: str = "cpu", **fields: object) -> WorkerRecord:
        kind = "cpu" if slot == "cpu" else "gpu"
        record = WorkerRecord(
            worker_id=WorkerId(f"{slot}@{project}"),
            node_id=NodeId(f"{project}-1a2b"),
            slot=slot,
            queues=(f"{project}_{kind}",),
            offer=Offer(cpus=8, memory_bytes=32 * GIB, disk_bytes=2**42, gpu_memory_bytes=(24 * GIB,) * 4),
            runtime="docker",
        )
        record = replace(record, **fields)  # type: ignore[arg-type]
        there.append(record)
        workers.announce(record, ttl=TTL)
        client._sender._workers_at = float("-inf")
        return record

    yield announce
    for record in there:
        workers.leave(record.worker_id)


@pytest.mark.parametrize(
    ("allowed", "fields", "told"),
    [
        ({"networks": ("none",)}, {"network": "egress"}, "allows the network none and not 'egress'"),
        ({"images": ("torch:*", "a/*")}, {}, "allows the images torch:*, a/* and not 'python:3.12-slim'"),
        ({"max_timeout_seconds": 60.0}, {"timeout": "2m"}, "allows 1m and not a timeout of 2m"),
    ],
)
def test_who_submits_what_no_worker_allows_is_warned_as_long_as_that_is_so(
    client: Client, announce: Announce, allowed: dict[str, Any], fields: dict[str, Any], told: str
) -> None:
    queue, first = f"{client.settings.project}_cpu", announce(**allowed)
    lack = f"no worker of the queue {queue!r} allows what it asks for now (of 1 large enough)"
    assert warned(client, **fields) == f"{lack}: {first.worker_id} {told}"
    announce(worker_id=WorkerId("another"))  # it does not say what it allows: an older one may allow anything
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        submit(client, **fields)


def test_a_worker_that_is_too_small_allows_nothing(client: Client, announce: Announce) -> None:
    announce(networks=("none",))
    announce(worker_id=WorkerId("small"), offer=Offer(cpus=0.5, memory_bytes=1, disk_bytes=1), networks=("egress",))
    assert "(of 1 large enough)" in warned(client, network="egress")


def submit(client: Client, **fields: Any) -> Experiment:
    return client.submit(image="python:3.12-slim", command="true", **fields)


def run(client: Client, announce: Announce, slot: str, **fields: Any) -> ExperimentId:
    """Let a slot run something."""
    experiment = submit(client, **fields)
    registry = client._connections.registry
    answer = registry.leases.acquire(
        experiment.look().submission,
        worker_id=WorkerId(f"{slot}@{client.settings.project}"),
        node_id=NodeId("n"),
        ttl=TTL,
        platform_budget=5,
    )
    assert isinstance(answer, Granted)
    return experiment.id


def warned(client: Client, **fields: Any) -> str:
    """Return what is warned of at the submit."""
    with pytest.warns(JobqueueWarning) as caught:
        submit(client, **fields)
    return "\n".join(str(warning.message) for warning in caught)


def test_nobody_consumes(client: Client, announce: Announce) -> None:
    announce("cpu")
    why = submit(client, gpus=1).why()
    assert f"no worker serves the queue '{client.settings.project}_gpu' now (" in why
    assert "`celery -A jobqueue worker` starts one" in why


def test_more_gpus_than_any_node_has(client: Client, announce: Announce) -> None:
    announce("gpu0")
    announce("gpu1", offer=Offer(cpus=8, memory_bytes=32 * GIB, disk_bytes=2**42, gpu_memory_bytes=(24 * GIB,)))
    told = f"it asks for 16 GPUs, the best of them offers 4 (gpu0@{client.settings.project})"
    assert told in submit(client, gpus=16).why()
    assert told in warned(client, gpus=16)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"memory": "2TiB"}, "it asks for 2 TiB of memory, the best of them offers 32 GiB"),
        ({"cpus": 64}, "it asks for 64 cpus, the best of them offers 8"),
        ({"disk": "8TiB"}, "it asks for 8 TiB of disk, the best of them offers 4 TiB"),
    ],
)
def test_more_of_one_thing_than_anybody_offers(
    client: Client, announce: Announce, fields: dict[str, Any], told: str
) -> None:
    announce()
    told = f"{told} (cpu@{client.settings.project})"
    assert told in submit(client, **fields).why()
    assert told in warned(client, **fields)


def test_more_gpu_memory_than_any_device_has(client: Client, announce: Announce) -> None:
    announce("gpu0")
    why = submit(client, gpus=1, gpu_memory="80GiB").why()
    assert f"it asks for 80 GiB of GPU memory, the largest device has 24 GiB (gpu0@{client.settings.project})" in why


def test_too_few_devices_that_are_large_enough(client: Client, announce: Announce) -> None:
    offer = Offer(cpus=8, memory_bytes=32 * GIB, disk_bytes=2**42, gpu_memory_bytes=(24 * GIB, 80 * GIB))
    announce("gpu0", offer=offer)
    why = submit(client, gpus=2, gpu_memory="40GiB").why()
    told = "it asks for 2 GPUs with 40 GiB of memory each, the best of them offers 1 (gpu0@"
    assert told in why


def test_every_device_is_busy(client: Client, announce: Announce) -> None:
    slots = ("gpu0", "gpu1")
    offer = Offer(cpus=8, memory_bytes=32 * GIB, disk_bytes=2**42, gpu_memory_bytes=(24 * GIB,) * 2)
    for slot in slots:
        announce(slot, offer=offer)
    running = {slot: run(client, announce, slot, gpus=1) for slot in slots}
    for slot, experiment_id in running.items():
        announce(slot, offer=offer, experiment_ids=(experiment_id,))
    submit(client, gpus=1)
    why = submit(client, gpus=1).why()
    assert "every worker that could run it is busy, it starts when one of them has room (of 2): " in why
    for slot, experiment_id in running.items():
        assert f"{slot}@{client.settings.project} runs {experiment_id}" in why
    assert "experiments that wait in the queue: 2, and 1 were submitted before it" in why


def test_a_node_whose_devices_are_taken_by_another_slot_is_busy(client: Client, announce: Announce) -> None:
    for slot in ("gpu0", "gpu1"):
        announce(slot)
    announce("gpu0", experiment_ids=(run(client, announce, "gpu0", gpus=3),))
    why = submit(client, gpus=2).why()
    assert "every worker that could run it is busy" in why
    assert f"gpu1@{client.settings.project} has 1 of 4 GPUs free, 2 are asked for: its node runs exp-" in why


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"cpus": 3}, "has 2 of its 8 cpus free, 3 are asked for: it runs exp-"),
        (
            {"cpus": 1, "memory": "20GiB"},
            "has 16 GiB of its node's 32 GiB of memory free, 20 GiB are asked for: its node runs exp-",
        ),
    ],
)
def test_cores_that_are_promised_are_told_with_what_is_left(
    client: Client, announce: Announce, fields: dict[str, Any], told: str
) -> None:
    announce(places=8)
    announce(places=8, experiment_ids=(run(client, announce, "cpu", cpus=6, memory="16GiB"),))
    assert told in submit(client, **fields).why()
    assert "workers that could run it now: 1, of which 0 are busy" in submit(client, cpus=1, memory="1GiB").why()


@pytest.mark.parametrize(
    ("taken", "asked", "told"),
    [
        (
            {"memory": "60GiB"},
            {"memory": "32GiB"},
            "has 4 GiB of its node's 64 GiB of memory free, 32 GiB are asked for",
        ),
        ({"cpus": 7}, {"cpus": 2}, "has 1 of its node's 8 cpus free, 2 are asked for"),
    ],
)
def test_cores_and_memory_that_another_slot_of_the_node_has_are_not_free(
    client: Client, announce: Announce, taken: dict[str, Any], asked: dict[str, Any], told: str
) -> None:
    offer = Offer(cpus=8, memory_bytes=64 * GIB, disk_bytes=2**42, gpu_memory_bytes=(24 * GIB,) * 2)
    for slot in ("gpu0", "gpu1"):
        announce(slot, offer=offer)
    announce("gpu0", offer=offer, experiment_ids=(run(client, announce, "gpu0", gpus=1, **taken),))
    why = submit(client, gpus=1, **asked).why()
    assert "every worker that could run it is busy" in why
    assert f"gpu1@{client.settings.project} {told}: its node runs exp-" in why
    least = {"cpus": 1, "memory": "1GiB"}
    assert "workers that could run it now: 2, of which 1 are busy" in submit(client, gpus=1, **least).why()


def test_the_cores_worker_has_no_more_than_its_machine_has_left(client: Client, announce: Announce) -> None:
    announce("gpu0")
    announce("cpu", places=4, offer=Offer(cpus=4, memory_bytes=32 * GIB, disk_bytes=2**42))
    announce("gpu0", experiment_ids=(run(client, announce, "gpu0", gpus=1, cpus=6),))
    told = f"cpu@{client.settings.project} has 2 of its node's 8 cpus free, 3 are asked for: its node runs exp-"
    assert told in submit(client, cpus=3).why()
    assert "workers that could run it now: 1, of which 0 are busy" in submit(client, cpus=2).why()


def test_what_another_machine_runs_leaves_this_one_free(client: Client, announce: Announce) -> None:
    announce("gpu0", node_id=NodeId("other"))
    announce("gpu0", node_id=NodeId("other"), experiment_ids=(run(client, announce, "gpu0", gpus=1, cpus=6),))
    announce("cpu", places=8)
    assert "workers that could run it now: 1, of which 0 are busy" in submit(client, cpus=4).why()


def test_who_left_a_queue_that_it_found_since_nothing_of_it_fits_is_told_with_numbers(
    client: Client, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = announce(queues=("others_cpu",))
    monkeypatch.setattr(client._connections.registry.workers, "present", lambda: [worker])
    told = f"it asks for 64 cpus, the best of them offers 8 ({worker.worker_id})"
    why = submit(client, cpus=64).why()
    assert "no worker serves the queue" in why
    assert "it fits into none of the workers that are there (of 1), and one that finds its queues by patterns " in why
    assert told in why
    assert "it fits into none" not in submit(client, cpus=8).why()


def test_who_goes_away_meanwhile_is_told_as_it_was(
    client: Client, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = submit(client)
    answers = iter([[announce()]])
    monkeypatch.setattr(client._connections.registry.workers, "present", lambda: next(answers, []))
    assert "workers that could run it now: 1, of which 0 are busy" in experiment.why()


def test_a_node_drains(client: Client, announce: Announce) -> None:
    announce(state="DRAINING")
    why = submit(client).why()
    project = client.settings.project
    assert f"cpu@{project} is DRAINING" in why
    assert f"`jobqueue nodes resume {project}-1a2b`" in why
    assert f"cpu@{project} is DRAINING" in warned(client)


def test_a_device_is_in_quarantine(client: Client, announce: Announce) -> None:
    announce("gpu0", state="GPU_XID", detail="GPU-1: Xid 79 1 times: it has fallen off the bus")
    why = submit(client, gpus=1).why()
    assert f"gpu0@{client.settings.project} is UNHEALTHY(GPU_XID): GPU-1: Xid 79 1 times" in why


def test_one_that_runs_on_a_sick_node_tells_so(client: Client, announce: Announce) -> None:
    experiment_id = run(client, announce, "cpu")
    announce(state="DISK_FULL", detail="1 MiB free", experiment_ids=(experiment_id,))
    why = client.get(experiment_id).why()
    assert f"its worker cpu@{client.settings.project} is UNHEALTHY(DISK_FULL): 1 MiB free" in why


def test_a_failed_attempt_is_waited_for(client: Client, announce: Announce) -> None:
    announce()
    experiment = submit(client)
    registry = client._connections.registry
    answer = registry.leases.acquire(
        experiment.look().submission,
        worker_id=WorkerId("w"),
        node_id=NodeId("n"),
        ttl=TTL,
        platform_budget=5,
    )
    assert isinstance(answer, Granted)
    failed = Outcome(reason=Reason.IMAGE_PULL_FAILED, detail="503")
    registry.leases.release(answer.lease, failed, delay=timedelta(minutes=3))
    why = experiment.why()
    assert "for attempt 2, as " in why
    assert "503 [IMAGE_PULL_FAILED]" in why
    assert "it is not tried again before " in why


def test_what_a_worker_has_begun_or_ended_since_it_said_so_counts(client: Client, announce: Announce) -> None:
    announce()
    running = run(client, announce, "cpu")
    assert f"cpu@{client.settings.project} runs {running}" in submit(client).why(), "begun since"
    registry = client._connections.registry
    record = registry.experiments.get(running)
    lease = Lease(experiment_id=running, token=record.token, attempt=record.attempt)
    announce(experiment_ids=(running,))
    registry.leases.finish(lease, Outcome(reason=Reason.EXITED_NONZERO, exit_code=1), state=State.FAILED)
    assert "workers that could run it now: 1, of which 0 are busy" in submit(client).why(), "ended since"


def test_what_runs_and_is_not_known_takes_no_room(client: Client, announce: Announce) -> None:
    announce(places=8, experiment_ids=(ExperimentId("exp-01arz3ndektsv4rrffq69g5fav"),))
    assert "workers that could run it now: 1, of which 0 are busy" in submit(client).why()
