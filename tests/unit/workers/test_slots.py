"""Slots: how they are written, and which device each of them is."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from jobqueue.errors import InvalidSetting
from workers.attempt.health import NodeHealth, Trouble
from workers.attempt.runtimes.fake import FakeRuntime
from workers.hardware.custody_files import CustodyFiles
from workers.hardware.devices import Device, Inventory, Presence
from workers.hardware.fitness import FREE_WITHIN
from workers.hardware.holding import HeldDevice
from workers.hardware.in_memory import MemoryDevices
from workers.hardware.locks import open_device_locks
from workers.hardware.quarantine import FIRST_BACK_OFF
from workers.hardware.slots import Slot, find_device, make_slots, parse_slot

A, B = (Device(uuid=f"GPU-{name}", index=index, memory_bytes=2**34) for index, name in enumerate("ab"))


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("cpu", Slot(name="cpu")),
        ("gpu0", Slot(name="gpu0", number=0)),
        ("gpu07", Slot(name="gpu7", number=7)),
        ("gpu1=GPU-8932f937-d72c", Slot(name="gpu1", number=1, uuid="GPU-8932f937-d72c")),
        ("gpu0=MIG-GPU-a/1/0", Slot(name="gpu0", number=0, uuid="MIG-GPU-a/1/0")),
    ],
)
def test_a_slot_is_read_and_written_alike(text: str, slot: Slot) -> None:
    assert parse_slot(text) == slot
    assert parse_slot(str(slot)) == slot


@pytest.mark.parametrize(
    "text", ["", "gpu", "gpu-1", "GPU0", "cpu0", "0", "gpu0=", "gpu0 gpu1", "gpu12345", "cpu=GPU-a"]
)
def test_what_is_no_slot_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(InvalidSetting, match="not a slot") as refused:
        parse_slot(text)
    assert "gpu0" in refused.value.hint


def test_a_machine_has_one_slot_for_each_device_and_one_for_its_cores() -> None:
    assert [str(slot) for slot in make_slots((A, B))] == ["gpu0=GPU-a", "gpu1=GPU-b", "cpu"]


def test_a_slot_with_a_uuid_stays_that_device_when_the_drivers_order_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for order in ((A, B), (B, A)):
        assert find_device(parse_slot("gpu0=GPU-b"), MemoryDevices(*order)) == B
        assert find_device(parse_slot("gpu0"), MemoryDevices(*order)) == order[0]


@pytest.mark.parametrize("text", ["gpu2", "gpu0=GPU-c"])
def test_a_slot_without_its_device_is_refused(text: str) -> None:
    with pytest.raises(InvalidSetting, match="gpu"):
        find_device(parse_slot(text), MemoryDevices(A, B))


@dataclass(kw_only=True)
class Held:
    """One device in a worker's hands, on a clock that a test moves; what was told of it."""

    folder: Path
    now_seconds: float = 0.0
    is_idle: bool = True

    def __post_init__(self) -> None:
        self.driver = MemoryDevices(A, B)
        self.device = HeldDevice(
            parse_slot("gpu0"),
            devices=self.driver,
            locks=open_device_locks(self.folder / "state"),
            owner="gpu0@host",
            kept=CustodyFiles(folder=self.folder / "devices", boot_id="b"),
            clock=lambda: self.now_seconds,
        )
        self.health = NodeHealth(FakeRuntime(), self.folder, floor_bytes=0, judge_device=lambda: self.device.unfit)
        self.told: list[Trouble | None] = []
        self.device.is_idle = lambda: self.is_idle
        self.device.on_change = self._note

    def _note(self) -> None:
        self.health.look()
        self.told.append(self.health.trouble)

    def look(self, *devices: Device, after: timedelta = timedelta(0)) -> Trouble | None:
        self.now_seconds += after.total_seconds()
        self.driver.show(*devices)
        self.device.look()
        return self.health.trouble


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Held(folder=tmp_path)


def sick(**fields: object) -> Device:
    return Device(**{"uuid": A.uuid, "index": 0, "memory_bytes": A.memory_bytes, **fields})  # type: ignore[arg-type]


def test_a_device_that_another_worker_has_is_refused_with_its_name(held: Held) -> None:
    with pytest.raises(InvalidSetting, match="gpu0@host"):
        Held(folder=held.folder)
    held.device.close()
    Held(folder=held.folder).device.close()


def test_a_sick_device_takes_no_work_until_its_quarantine_is_over(held: Held) -> None:
    assert held.look(A) is None
    assert held.look(sick(xids={79: 1})) is Trouble.GPU_XID
    assert held.look(sick(xids={79: 1}), after=FIRST_BACK_OFF / 2) is Trouble.GPU_XID
    assert held.look(sick(xids={79: 1}), after=FIRST_BACK_OFF) is None
    assert held.told == [Trouble.GPU_XID, None]
    held.device.close()


def test_a_device_that_is_gone_takes_no_work(held: Held) -> None:
    assert held.look(B) is Trouble.GPU_LOST
    held.device.close()


def test_a_sick_device_is_not_tested_while_something_of_ours_still_runs_on_it(held: Held) -> None:
    held.is_idle = False
    assert held.look(sick(ecc_uncorrected=1, used_bytes=2**33)) is Trouble.GPU_ECC
    assert held.look(sick(ecc_uncorrected=1, used_bytes=2**33), after=2 * FIRST_BACK_OFF) is Trouble.GPU_ECC
    held.is_idle = True
    assert held.look(sick(ecc_uncorrected=1)) is None
    held.device.close()


def test_a_strangers_program_on_the_device_closes_it_and_our_own_does_not(held: Held) -> None:
    used = sick(used_bytes=2**33)
    held.is_idle = False
    assert held.look(used, after=2 * FREE_WITHIN) is None
    assert held.look(used, after=2 * FREE_WITHIN) is None
    held.is_idle = True
    assert held.look(used) is None, "what a program of ours had comes back a moment after its end"
    assert held.look(used, after=FREE_WITHIN) is Trouble.GPU_OCCUPIED
    held.device.close()


def test_a_driver_that_is_silent_twice_closes_the_device_and_its_next_answer_opens_it(held: Held) -> None:
    held.driver.inventory = Inventory(presence=Presence.UNKNOWN, detail="it hangs")
    held.device.look()
    assert held.told == []
    held.device.look()
    assert held.told == [Trouble.GPU_UNKNOWN]
    assert held.look(A) is None
    held.device.close()
