"""What may begin beside what runs and waits already, and what becomes of the message of what may not."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from services.lease_files import keep
from services.node import FakeNode

from jobqueue.envelope import Verified
from jobqueue.errors import BrokerUnavailable
from jobqueue.ids import WorkerId
from jobqueue.resources import Offer
from workers.attempt import elsewhere
from workers.attempt.elsewhere import note_leaving
from workers.attempt.lease_files import LeaseFile
from workers.attempt.ledger import Ledger
from workers.attempt.node_folder import open_node_folder
from workers.delivery import returning
from workers.delivery.room import LATEST, LONGEST_REST, PATIENCE, PATIENCE_FOR_CORES, SETTLES, SOON, Room, make_room
from workers.hardware.devices import Device
from workers.hardware.fitness import Ailment, Unfit

GIB = 2**30
SICK = Unfit(ailment=Ailment.XID, detail="GPU-1: Xid 79 1 times")


class Slot:
    """A machine with four cores, 8 GiB and two devices, as the worker of one slot sees it."""

    def __init__(self, fake: FakeNode, state_dir: Path, name: str) -> None:
        self.fake, self.name, self.now = fake, name, datetime.now(UTC)
        self.folder = open_node_folder(state_dir)
        self.claims, self.ledgers = [], {}
        for each, device in (("cpu", None), ("gpu0", "GPU-0"), ("gpu1", "GPU-1")):
            worker_id = WorkerId(f"{each}@host")
            self.claims.append(self.folder.claim(worker_id))
            self.ledgers[each] = Ledger(self.folder, worker_id=worker_id, cpus=4, memory_bytes=8 * GIB)
            gpu = Device(uuid=device, index=0, memory_bytes=16 * GIB) if device else None
            self.ledgers[each].join(cpus=4, device=gpu)
        self.taken: list[str] = []
        self.deferred: list[timedelta] = []
        self.error: Exception | None = None
        sizes = () if name == "cpu" else (16 * GIB, 16 * GIB)
        offer = Offer(cpus=4, memory_bytes=8 * GIB, disk_bytes=2**40, gpu_memory_bytes=sizes)
        site = SimpleNamespace(
            best_offer=offer,
            deliveries=self,
            keys=fake.site.keys,
            grace=timedelta(0),
            leases=self.folder.leases,
            ledger=self.ledgers[name],
            gpus=sizes and ("GPU-0",),
        )
        self.node = cast("Any", SimpleNamespace(site=site))
        self.room = Room(self.node, self.ledgers[name], taken=lambda: self.taken, clock=lambda: self.now)

    def defer(self, message: Any, *, queue: str, delay: timedelta) -> None:
        if self.error:
            raise self.error
        self.deferred.append(delay)

    def make(self, cpus: float = 1, memory: int = 1, **fields: Any) -> Verified:
        return self.fake.message(cpus=cpus, memory=f"{memory}GiB", **fields)

    def take(self, message: Verified) -> bool:
        is_taken = self.room.admit(object(), message)
        self.taken += [message.header.experiment_id] if is_taken else []
        return is_taken

    def begin(self, message: Verified, worker: str) -> LeaseFile:
        """Let an attempt of some worker ask for its share."""
        header = message.header
        holder = WorkerId(f"{worker}@host")
        file = keep(self.folder.leases, experiment_id=header.experiment_id, worker_id=holder, queue=header.queue)
        self.ledgers[worker].take(file, header.resources, seconds=3600)
        return file

    def close(self) -> None:
        for claim in self.claims:
            os.close(claim)


@pytest.fixture
def cores(node: FakeNode, tmp_path: Path) -> Iterator[Slot]:
    slot = Slot(node, tmp_path / "state", "cpu")
    yield slot
    slot.close()


@pytest.fixture
def device(node: FakeNode, tmp_path: Path) -> Iterator[Slot]:
    slot = Slot(node, tmp_path / "state", "gpu0")
    yield slot
    slot.close()


@pytest.mark.parametrize(("cpus", "memory", "most"), [(2, 1, 2), (1, 4, 2), (0.4, 0.5, 10), (1, 1, 4)])
def test_no_more_runs_at_once_than_there_are_cores_and_memory_for(
    cores: Slot, cpus: float, memory: float, most: int
) -> None:
    messages = [cores.fake.message(cpus=cpus, memory=f"{memory}GiB") for _ in range(12)]
    assert [cores.take(message) for message in messages] == [True] * most + [False] * (12 - most)
    assert cores.deferred[:1] == [SOON]


def test_smaller_work_behind_what_does_not_fit_is_taken_meanwhile(cores: Slot) -> None:
    assert cores.take(cores.make(3))
    assert not cores.take(cores.make(2))
    assert cores.take(cores.make(1))


def test_what_did_not_fit_is_taken_when_something_has_ended(cores: Slot) -> None:
    cores.take(cores.make(3))
    large = cores.make(4)
    assert not cores.take(large)
    cores.taken.clear()
    assert cores.take(large)


def test_what_runs_on_devices_needs_its_cores_and_memory_too(cores: Slot) -> None:
    cores.begin(cores.make(3, gpus=1), "gpu0")
    assert not cores.take(cores.make(2))
    assert cores.take(cores.make(1))


def test_a_second_delivery_of_what_runs_needs_no_room_of_its_own(cores: Slot) -> None:
    message = cores.make(4)
    assert cores.take(message)
    assert cores.take(message)


def test_what_never_fits_says_so_once_through_its_attempt_and_is_put_off_then(
    cores: Slot, caplog: pytest.LogCaptureFixture
) -> None:
    cores.take(cores.make(4))
    huge = cores.make(5)
    assert cores.take(huge)
    cores.taken.remove(huge.header.experiment_id)
    assert [cores.take(huge) for _ in range(8)] == [False] * 8
    assert cores.deferred == sorted(cores.deferred)
    assert (cores.deferred[0], cores.deferred[-1]) == (2 * SOON, LATEST)
    said = [record for record in caplog.records if record.message == "delivery.does_not_fit"]
    assert said[0].detail == "asks for 5 cpus, 4 are there"  # type: ignore[attr-defined]


def test_a_long_backlog_that_does_not_fit_goes_round_slowly(cores: Slot) -> None:
    cores.take(cores.make(4))
    message = cores.make()
    for _ in range(400):
        assert not cores.take(message)
    assert cores.deferred == sorted(cores.deferred)
    assert (cores.deferred[0], cores.deferred[-1]) == (SOON, LATEST)


def test_large_work_that_has_waited_long_waits_in_line_and_small_work_no_longer_passes_it(cores: Slot) -> None:
    cores.begin(cores.make(1), "cpu")
    large = cores.make(4)
    assert not cores.take(large)
    cores.now += PATIENCE_FOR_CORES + SOON
    assert cores.take(large)
    cores.begin(large, "cpu")
    assert not cores.take(cores.make(1)), "an endless stream of these would starve it"
    assert not cores.take(cores.make(4)), "one at a time waits here, another machine may have room"
    assert cores.take(cores.make(1, timeout="50m")), "over by then"


def test_work_for_several_devices_is_left_to_other_nodes_for_a_moment_and_waits_here_then(device: Slot) -> None:
    device.begin(device.make(gpus=1), "gpu1")
    pair = device.make(gpus=2)
    assert not device.take(pair)
    device.now += PATIENCE + SOON
    assert device.take(pair)
    device.begin(pair, "gpu0")
    device.taken.clear()
    assert not device.take(device.make(gpus=1))
    assert device.take(device.make(gpus=1, timeout="50m")), "it fills the gap"
    assert not device.take(device.make(gpus=2))


def test_what_has_just_left_for_a_free_node_is_not_let_wait_here_again(
    device: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.begin(device.make(gpus=1), "gpu1")
    large = device.make(gpus=2)
    device.now += PATIENCE + SOON
    note_leaving(device.node.site, large.header.experiment_id)
    assert not device.take(large), "whatever worker of the machine had it"
    monkeypatch.setattr(elsewhere, "AWAY", timedelta(0))
    assert device.take(large)


def test_who_waits_for_one_device_keeps_nobody_from_waiting_for_several_and_the_other_way_round(device: Slot) -> None:
    one, several, cores = device.make(gpus=1), device.make(gpus=2), device.make(4)
    device.begin(device.make(gpus=2), "gpu1")
    device.now += PATIENCE_FOR_CORES + SOON
    device.begin(device.make(gpus=1), "gpu1")
    assert [device.take(each) for each in (one, several, cores)] == [False, True, True]
    device.begin(several, "gpu0")
    device.taken.clear()
    assert [device.take(each) for each in (one, device.make(gpus=2), cores)] == [False, False, True]


def test_a_worker_whose_device_is_kept_for_who_waits_does_not_go_through_its_whole_backlog(device: Slot) -> None:
    device.begin(device.make(gpus=1), "gpu1")
    device.begin(device.make(gpus=2), "gpu1")
    rests = []
    for _ in range(40):
        assert not device.take(device.make(gpus=1))
        rested_since = device.now
        while device.room.is_resting:
            device.now += LONGEST_REST / 20
        rests.append(device.now - rested_since)
    assert rests == sorted(rests)
    assert (rests[0], rests[-1]) == (LONGEST_REST / 20, LONGEST_REST)


def test_what_lacks_a_sick_device_keeps_nobody_from_the_healthy_one(device: Slot) -> None:
    pair = device.make(gpus=2)
    device.ledgers["gpu1"].note(SICK)
    device.now += PATIENCE_FOR_CORES + SOON
    assert not device.take(pair), "waiting, it would have the place of what can run"
    assert (device.deferred, device.room.is_resting) == ([SOON], False)
    assert device.take(device.make(gpus=1))
    device.taken.clear()
    device.ledgers["gpu1"].note(None)
    assert device.take(pair)


def test_what_lacks_a_sick_device_goes_round_more_slowly_the_more_there_is(device: Slot) -> None:
    device.ledgers["gpu1"].note(SICK)
    for _ in range(400):
        assert not device.take(device.make(gpus=2))
    assert (device.deferred, device.deferred[-1]) == (sorted(device.deferred), LATEST)


def test_work_for_several_devices_is_not_told_off_while_their_workers_start(device: Slot) -> None:
    both = device.node.site.best_offer
    device.node.site.best_offer = replace(both, gpu_memory_bytes=both.gpu_memory_bytes[:1])
    room = Room(device.node, device.ledgers["gpu0"], taken=lambda: device.taken, clock=lambda: device.now)
    pair = device.make(gpus=2)
    assert not room.admit(object(), pair)
    device.node.site.best_offer = both
    assert room.admit(object(), pair)


def test_work_for_more_devices_than_there_are_is_told_so_once_nobody_starts(device: Slot) -> None:
    many = device.make(gpus=16)
    assert not device.take(many)
    device.now += SETTLES
    assert device.take(many)
    device.taken.clear()
    assert not device.take(many)


def test_what_fits_again_is_told_anew_when_it_no_longer_does(device: Slot) -> None:
    both, pair = device.node.site.best_offer, device.make(gpus=2)
    outcomes = []
    for offer in (replace(both, gpu_memory_bytes=both.gpu_memory_bytes[:1]), both) * 2:
        device.node.site.best_offer = offer
        is_taken_at_once = device.take(pair)
        device.now += SETTLES
        device.taken.clear()
        outcomes.append((is_taken_at_once, device.take(pair)))
        device.taken.clear()
    assert outcomes == [(False, True), (True, True)] * 2


def test_a_worker_of_the_cores_does_not_rest_because_smaller_work_may_fit(cores: Slot) -> None:
    cores.take(cores.make(4))
    assert not cores.take(cores.make(1))
    assert not cores.room.is_resting


def test_what_needs_a_larger_device_than_the_workers_own_gets_anothers(device: Slot) -> None:
    device.ledgers["gpu1"].join(cpus=4, device=Device(uuid="GPU-1", index=1, memory_bytes=80 * GIB))
    large = device.make(gpus=1, gpu_memory="16GiB")
    assert device.take(large)
    assert device.begin(large, "gpu0").kept.entry.devices == ("GPU-0",)  # type: ignore[union-attr]
    device.taken.clear()
    device.node.site.best_offer = Offer(
        cpus=4, memory_bytes=8 * GIB, disk_bytes=2**40, gpu_memory_bytes=(16 * GIB, 80 * GIB)
    )
    larger = device.make(gpus=1, gpu_memory="40GiB")
    assert device.take(larger)
    assert device.begin(larger, "gpu0").kept.entry.devices == ("GPU-1",)  # type: ignore[union-attr]


def test_a_broker_that_cannot_put_it_off_gets_it_back(cores: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    back: list[Any] = []
    monkeypatch.setattr(returning, "requeue_later", back.append)
    cores.error = BrokerUnavailable("away")
    cores.take(cores.make(4))
    assert not cores.take(cores.make())
    assert len(back) == 1


def test_only_a_slot_has_a_room(cores: Slot) -> None:
    assert make_room(cores.node) is not None
    cores.node.site.ledger = None
    assert make_room(cores.node) is None
