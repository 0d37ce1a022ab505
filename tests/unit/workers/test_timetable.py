"""When something can start beside what runs and what has waited longer."""

from dataclasses import replace
from typing import Any

import pytest

from jobqueue.ids import WorkerId
from jobqueue.resources import Resources
from workers.hardware.timetable import OVERDUE, Entry, Machine, SlotRecord, Start, find_start, takes_more

GIB = 2**30
HOUR = 3600.0
NOW = 1000.0


def gpu(number: int, **fields: Any) -> SlotRecord:
    worker = WorkerId(f"gpu{number}@host")
    return SlotRecord(**{"worker_id": worker, "cpus": 8, "device": f"GPU-{number}", "device_bytes": 16 * GIB, **fields})


CORES = SlotRecord(worker_id=WorkerId("cpu@host"), cpus=4)
MACHINE = Machine(cpus=8, memory_bytes=64 * GIB, slots=(gpu(0), gpu(1), gpu(2), gpu(3), CORES))


def asks(worker: str = "cpu", *, since: float = NOW, seconds: float = HOUR, **resources: Any) -> Entry:
    asked = {"cpus": 1, "memory_bytes": GIB, "disk_bytes": 0, "shm_bytes": 0, **resources}
    return Entry(
        worker_id=WorkerId(f"{worker}@host"), resources=Resources(**asked), since_seconds=since, seconds=seconds
    )


def has(worker: str, *devices: str, until: float = NOW + HOUR, **resources: Any) -> Entry:
    entry = asks(worker, since=0, gpus=len(devices), **resources)
    return replace(entry, is_granted=True, until_seconds=until, devices=devices)


def start(asking: Entry, *others: Entry, machine: Machine = MACHINE) -> Start | None:
    return find_start(asking, machine=machine, others=others, now_seconds=NOW)


def starts_in(asking: Entry, *others: Entry, machine: Machine = MACHINE) -> float | None:
    found = start(asking, *others, machine=machine)
    return None if found is None else found.at_seconds - NOW


def test_several_devices_are_had_at_once_the_workers_own_first() -> None:
    found = start(asks("gpu2", gpus=3))
    assert found == Start(at_seconds=NOW, devices=("GPU-2", "GPU-0", "GPU-1"))


def test_a_device_that_somebody_has_is_not_had_before_he_has_to_give_it_back() -> None:
    assert start(asks("gpu0", gpus=1), has("gpu1", "GPU-0")) == Start(at_seconds=NOW, devices=("GPU-1",))
    assert starts_in(asks("gpu0", gpus=4), has("gpu1", "GPU-1"), has("gpu2", "GPU-2", until=NOW + 60)) == HOUR


def test_memory_of_devices_decides_which_and_the_smallest_that_will_do_is_given() -> None:
    machine = replace(MACHINE, slots=(gpu(0), gpu(1, device_bytes=80 * GIB), gpu(2, device_bytes=40 * GIB)))
    large = asks("gpu0", gpus=1, gpu_memory_bytes=24 * GIB)
    assert start(large, machine=machine) == Start(at_seconds=NOW, devices=("GPU-2",))
    assert starts_in(replace(large, resources=replace(large.resources, gpus=3)), machine=machine) is None


def test_a_sick_device_is_given_to_nobody() -> None:
    machine = replace(MACHINE, slots=(gpu(0), gpu(1, unfit="GPU-1: Xid 79")))
    assert start(asks("gpu1", gpus=1), machine=machine) == Start(at_seconds=NOW, devices=("GPU-0",))
    assert start(asks("gpu1", gpus=2), machine=machine) is None


def test_cores_and_memory_of_work_with_devices_are_counted() -> None:
    training = has("gpu0", "GPU-0", cpus=6, memory_bytes=60 * GIB)
    assert starts_in(asks(cpus=2), training) == 0
    assert starts_in(asks(cpus=3), training) == HOUR
    assert starts_in(asks(memory_bytes=5 * GIB), training) == HOUR


def test_work_without_devices_leaves_the_cores_that_are_kept_for_them() -> None:
    assert starts_in(asks(cpus=4)) == 0
    assert starts_in(asks(cpus=1), has("cpu", cpus=4)) == HOUR
    assert starts_in(asks("gpu0", gpus=1), has("cpu", cpus=4)) == 0


@pytest.mark.parametrize(
    ("later", "delay"),
    [
        (asks("gpu1", gpus=1, seconds=HOUR), 0),  # over by then
        (asks("gpu1", gpus=1, seconds=HOUR + 1), 3 * HOUR),
        (asks("cpu", cpus=1, seconds=99 * HOUR), 0),  # it needs no device
    ],
)
def test_who_came_later_starts_before_who_waits_only_where_that_takes_nothing_from_him(
    later: Entry, delay: float
) -> None:
    waits = asks("gpu2", gpus=4, seconds=2 * HOUR, since=NOW - 60)
    assert starts_in(later, has("gpu0", "GPU-0"), waits) == delay


def test_a_reservation_holds_whoever_asks_and_the_oldest_goes_first() -> None:
    first, second = asks("gpu1", gpus=4, since=NOW - 9), asks("gpu2", gpus=2, since=NOW - 5, seconds=HOUR + 1)
    held = has("gpu0", "GPU-0")
    assert [starts_in(first, held, second), starts_in(second, held, first)] == [HOUR, 2 * HOUR]


def test_what_follows_one_another_is_not_counted_at_once() -> None:
    runs = has("gpu0", "GPU-0", cpus=5, until=NOW + 60)
    waits = asks("gpu1", gpus=1, cpus=5, since=NOW - 9)
    assert starts_in(waits, runs) == 60
    assert starts_in(asks(cpus=3, seconds=2 * HOUR), runs, waits) == 0
    assert starts_in(asks(cpus=4, seconds=2 * HOUR), runs, waits) == HOUR + 60


def test_what_cannot_be_planned_is_in_nobodys_way() -> None:
    machine = replace(MACHINE, slots=(gpu(0), gpu(1, unfit="lost")))
    assert starts_in(asks("gpu0", gpus=1), asks("gpu0", gpus=2, since=NOW - 9), machine=machine) == 0


def test_what_should_be_over_is_expected_to_end_within_a_minute() -> None:
    late = has("gpu0", "GPU-0", until=NOW - HOUR)
    assert starts_in(asks("gpu1", gpus=4), late) == OVERDUE.total_seconds()


def test_large_work_for_the_cores_is_planned_though_small_work_goes_on_coming() -> None:
    small = [has("cpu", until=NOW + ends) for ends in (60, 120)]
    large = asks(cpus=4, since=NOW - 60)
    assert starts_in(large, *small) == 120
    assert starts_in(asks(cpus=1, seconds=120), *small, large) == 0
    assert starts_in(asks(cpus=1, seconds=121), *small, large) == HOUR + 120


def takes(number: int, *entries: Entry, machine: Machine = MACHINE) -> bool:
    return takes_more(WorkerId(f"gpu{number}@host"), machine=machine, entries=entries, now_seconds=NOW)


def test_as_many_workers_take_messages_as_there_are_free_devices() -> None:
    assert [takes(number) for number in range(4)] == [True] * 4
    pair = has("gpu0", "GPU-0", "GPU-1")
    assert [takes(number, pair) for number in (1, 2, 3)] == [False, True, True]
    swapped = has("gpu0", "GPU-3")
    assert [takes(number, swapped) for number in (1, 2, 3)] == [True, True, True], "the free device of gpu0 is for gpu3"
    assert [takes(number, swapped, has("gpu1", "GPU-0")) for number in (2, 3)] == [True, True]
    assert not takes(3, swapped, replace(pair, devices=("GPU-0", "GPU-1"), worker_id=WorkerId("gpu1@host")))


def test_no_worker_takes_more_while_all_free_devices_are_kept_for_who_waits() -> None:
    waits = asks("gpu1", gpus=4, since=NOW - 9)
    assert not takes(2, has("gpu0", "GPU-0", until=NOW + 30), waits)
    assert takes(2, has("gpu0", "GPU-0"), waits), "there is an hour for something short"


def test_a_worker_takes_messages_though_no_core_is_free() -> None:
    assert takes(1, has("gpu0", "GPU-0", cpus=8, memory_bytes=64 * GIB))


def test_a_worker_whose_device_is_sick_takes_nothing() -> None:
    machine = replace(MACHINE, slots=(gpu(0, unfit="lost"), gpu(1)))
    assert [takes(0, machine=machine), takes(1, machine=machine)] == [False, True]
