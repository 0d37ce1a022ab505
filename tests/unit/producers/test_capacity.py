"""What workers have for an experiment, and what is in its way, to the last number."""

from collections.abc import Mapping
from typing import Any

import pytest

from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Offer, Resources
from producers.capacity import find_busy, find_shortfalls

GIB = 2**30
ONE, TWO, UNKNOWN = (ExperimentId(f"exp-01arz3ndektsv4rrffq69g5fa{letter}") for letter in "abc")


def asks(**fields: Any) -> Resources:
    return Resources(**{"cpus": 1, "memory_bytes": GIB, "disk_bytes": GIB, "shm_bytes": 0, **fields})


def offers(*device_gib: int, cpus: float = 8, memory_gib: int = 32) -> Offer:
    devices = tuple(size * GIB for size in device_gib)
    return Offer(cpus=cpus, memory_bytes=memory_gib * GIB, disk_bytes=2**42, gpu_memory_bytes=devices)


def worker(slot: str = "cpu", *runs: ExperimentId, node: str = "n", **fields: Any) -> WorkerRecord:
    known = {"queues": ("q",), "offer": offers(24, 24, 24, 24), "runtime": "docker", "places": 8}
    return WorkerRecord(
        worker_id=WorkerId(f"{slot}@{node}"),
        node_id=NodeId(node),
        slot=slot,
        experiment_ids=runs,
        **{**known, **fields},  # type: ignore[arg-type]
    )


def busy(
    asked: Resources, first: WorkerRecord, *others: WorkerRecord, running: Mapping[ExperimentId, Resources]
) -> str:
    """Return why the first of the workers that are there has no room."""
    found = find_busy(asked, [first], present=[first, *others], running=running)
    return found.get(first.worker_id, "")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"cpus": 2, "memory_bytes": 16 * GIB}, ""),
        ({"cpus": 2.5}, f"has 2 of its 8 cpus free, 2.5 are asked for: it runs {ONE} and 1 more"),
        (
            {"memory_bytes": 17 * GIB},
            f"has 16 GiB of its node's 32 GiB of memory free, 17 GiB are asked for: its node runs {ONE} and 1 more",
        ),
    ],
)
def test_all_that_is_left_may_be_had_and_not_more(asked: dict[str, Any], told: str) -> None:
    running = {ONE: asks(cpus=4, memory_bytes=10 * GIB), TWO: asks(cpus=2, memory_bytes=6 * GIB)}
    assert busy(asks(**asked), worker("cpu", ONE, TWO), running=running) == told


def test_nothing_that_is_left_is_told_as_none() -> None:
    cores, node = worker("cpu", ONE), worker("gpu1")
    assert busy(asks(), cores, running={ONE: asks(cpus=9)}).startswith("has 0 of its 8 cpus free, 1 are asked for")
    took = {ONE: asks(cpus=9, gpus=5)}
    assert busy(asks(), node, cores, running=took).startswith("has 0 of its node's 8 cpus free, 1 are asked for")
    told = f"has 0 of 4 GPUs free, 1 are asked for: its node runs {ONE}"
    assert busy(asks(gpus=1), node, cores, running=took) == told


def test_devices_are_those_of_the_own_node_and_of_what_is_known() -> None:
    taken = {ONE: asks(gpus=4), TWO: asks()}
    elsewhere = worker("gpu0", ONE, node="other")
    assert busy(asks(gpus=4), worker("gpu0"), elsewhere, worker("gpu1", TWO, UNKNOWN), running=taken) == ""
    assert busy(asks(gpus=1), worker("gpu0"), worker("gpu1", ONE, TWO, UNKNOWN), running=taken) == (
        f"has 0 of 4 GPUs free, 1 are asked for: its node runs {ONE}"
    )


def test_the_largest_device_of_all_is_named_where_it_is_too_small() -> None:
    small, mixed = worker("gpu0", offer=offers(24)), worker("gpu1", offer=offers(24, 80))
    assert find_shortfalls(asks(gpus=1, gpu_memory_bytes=80 * GIB), [small, mixed]) == []
    assert find_shortfalls(asks(gpus=1, gpu_memory_bytes=81 * GIB), [small, mixed]) == [
        "it asks for 81 GiB of GPU memory, the largest device has 80 GiB (gpu1@n)"
    ]
    assert find_shortfalls(asks(gpus=2, gpu_memory_bytes=80 * GIB), [small, mixed]) == [
        "it asks for 2 GPUs with 80 GiB of memory each, the best of them offers 1 (gpu1@n)"
    ]


def test_what_one_worker_has_of_each_is_no_shortfall() -> None:
    devices, cores = worker("gpu0", offer=offers(80, 80, cpus=2)), worker("cpu", offer=offers(cpus=64))
    assert find_shortfalls(asks(cpus=8, gpus=2, gpu_memory_bytes=40 * GIB), [devices, cores]) == []
    assert find_shortfalls(asks(cpus=8, gpus=2), [devices, cores]) == []
    assert find_shortfalls(asks(gpus=3, gpu_memory_bytes=40 * GIB), [devices, cores]) == [
        "it asks for 3 GPUs, the best of them offers 2 (gpu0@n)"
    ]
