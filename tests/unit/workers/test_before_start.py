"""A device is looked at before each start on it: what is sick or in use goes into quarantine first."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from services.node import FakeNode

from jobqueue.lifecycle import Reason
from workers.attempt.health import NodeHealth, Trouble
from workers.attempt.supervise import Ended, PutOff
from workers.hardware.custody_files import CustodyFiles
from workers.hardware.devices import Device, Inventory, Presence
from workers.hardware.fitness import Ailment
from workers.hardware.holding import HeldDevice
from workers.hardware.in_memory import MemoryDevices
from workers.hardware.locks import open_device_locks
from workers.hardware.slots import parse_slot

OWN, OTHER = (Device(uuid=f"GPU-{name}", index=index, memory_bytes=2**34) for index, name in enumerate("ab"))
BOTH = (OWN.uuid, OTHER.uuid)


@pytest.fixture
def driver() -> MemoryDevices:
    return MemoryDevices(OWN, OTHER)


@pytest.fixture
def held(driver: MemoryDevices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldDevice]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = hold("gpu0", driver, tmp_path)
    yield made
    made.close()


def hold(slot: str, driver: MemoryDevices, folder: Path) -> HeldDevice:
    return HeldDevice(
        parse_slot(slot),
        devices=driver,
        locks=open_device_locks(folder / "state"),
        owner=f"{slot}@host",
        kept=CustodyFiles(folder=folder / "devices", boot_id="b"),
        clock=lambda: 0.0,
    )


def test_devices_that_are_fit_and_free_take_a_start_at_once(held: HeldDevice) -> None:
    assert held.check_before_start(BOTH, wait=lambda _: pytest.fail("waited")) is None
    assert held.unfit is None


def test_the_own_device_that_somebody_uses_goes_into_quarantine(
    held: HeldDevice, driver: MemoryDevices, tmp_path: Path
) -> None:
    told: list[object] = []
    held.on_change = lambda: told.append(held.unfit)
    driver.show(replace(OWN, used_bytes=2**33, process_ids=(77,)), OTHER)
    unfit = held.check_before_start(BOTH, wait=lambda _: None)
    assert unfit is not None
    assert unfit.ailment is Ailment.OCCUPIED
    assert "processes: 77" in unfit.detail
    assert told == [unfit]
    assert len(list((tmp_path / "devices").iterdir())) == 1
    held.look()
    assert held.unfit == unfit, "it stays out until it is tested again"


def test_another_workers_device_is_left_to_that_one(held: HeldDevice, driver: MemoryDevices) -> None:
    driver.show(OWN, replace(OTHER, used_bytes=2**33))
    unfit = held.check_before_start(BOTH, wait=lambda _: None)
    assert unfit is not None
    assert (unfit.ailment, held.unfit) == (Ailment.OCCUPIED, None)


def test_another_worker_takes_its_device_out_at_its_next_look_whatever_is_tried_on_it_meanwhile(
    held: HeldDevice, driver: MemoryDevices, tmp_path: Path
) -> None:
    other = hold("gpu1", driver, tmp_path)
    other.is_idle = lambda: False
    driver.show(OWN, replace(OTHER, used_bytes=2**33))
    unfit = held.check_before_start(BOTH, wait=lambda _: None)
    notes = CustodyFiles(folder=tmp_path / "devices", boot_id="b")
    assert notes.told(OTHER.uuid) == unfit, "until then nobody is given it"
    other.look()
    assert (held.unfit, other.unfit, notes.told(OTHER.uuid)) == (None, unfit, None)
    other.close()


def test_a_worker_that_starts_does_not_believe_what_its_predecessor_was_told(
    held: HeldDevice, driver: MemoryDevices, tmp_path: Path
) -> None:
    driver.show(OWN, replace(OTHER, used_bytes=2**33))
    held.check_before_start(BOTH, wait=lambda _: None)
    driver.show(OWN, OTHER)
    other = hold("gpu1", driver, tmp_path)
    other.look()
    assert other.unfit is None
    other.close()


@pytest.mark.parametrize("gone", BOTH)
def test_a_device_that_has_gone_takes_no_start(held: HeldDevice, driver: MemoryDevices, gone: str) -> None:
    driver.show(*(device for device in (OWN, OTHER) if device.uuid != gone))
    unfit = held.check_before_start(BOTH, wait=lambda _: None)
    assert unfit is not None
    assert unfit.ailment is Ailment.LOST
    assert gone in unfit.detail


def test_a_driver_that_is_silent_takes_no_start_until_it_answers(held: HeldDevice, driver: MemoryDevices) -> None:
    driver.inventory = Inventory(presence=Presence.UNKNOWN, detail="it hangs")
    unfit = held.check_before_start([OWN.uuid], wait=lambda _: None)
    assert unfit is not None
    assert (unfit.ailment, held.unfit) == (Ailment.UNKNOWN, unfit)
    driver.show(OWN, OTHER)
    held.look()
    assert held.unfit is None


def test_a_driver_that_is_silent_about_anothers_device_closes_this_worker_too(
    held: HeldDevice, driver: MemoryDevices
) -> None:
    driver.inventory = Inventory(presence=Presence.UNKNOWN, detail="it hangs")
    unfit = held.check_before_start([OTHER.uuid], wait=lambda _: None)
    assert unfit is not None
    assert held.unfit == unfit


def test_the_files_of_devices_are_the_drivers_word_of_now(held: HeldDevice, driver: MemoryDevices) -> None:
    driver.show(replace(OWN, minor=3), replace(OTHER, minor=1))
    assert held.nodes_of(BOTH)[-2:] == ("nvidia3", "nvidia1")
    driver.show(replace(OWN, minor=1), replace(OTHER, minor=3))
    assert held.nodes_of([OWN.uuid])[-1] == "nvidia1"


@pytest.fixture
def slot(node: FakeNode, held: HeldDevice) -> FakeNode:
    """A node whose worker has the device."""
    health = NodeHealth(node.runtime, node.site.folder, floor_bytes=0, judge_device=lambda: held.unfit)
    held.on_change = health.look
    offer = replace(node.site.offer, gpu_memory_bytes=(OWN.memory_bytes,))
    node.site = replace(node.site, device=held, gpus=(OWN.uuid,), health=health, offer=offer)
    return node


def test_an_attempt_on_a_sick_device_ends_before_its_container_and_is_for_another_one(
    slot: FakeNode, driver: MemoryDevices
) -> None:
    driver.show(replace(OWN, xids={79: 1}), OTHER)
    put_off = slot.run(slot.message(gpus=1))
    assert isinstance(put_off, PutOff)
    assert put_off.outcome is not None
    assert put_off.outcome.reason is Reason.DEVICE_FAILURE
    assert "Xid 79" in put_off.outcome.detail
    assert slot.runtime.containers == []
    assert slot.site.health.trouble is Trouble.GPU_XID, "it takes no further message"


def test_an_attempt_without_a_gpu_asks_no_driver(slot: FakeNode, driver: MemoryDevices) -> None:
    driver.show(replace(OWN, xids={79: 1}), OTHER)
    running = slot.start(slot.message())
    slot.container().finish()
    assert isinstance(running.join(), Ended)


def test_an_attempt_on_a_fit_device_starts_with_it(slot: FakeNode) -> None:
    running = slot.start(slot.message(gpus=1))
    container = slot.container()
    assert container.plan.gpus == (OWN.uuid,)
    container.finish()
    assert isinstance(running.join(), Ended)
