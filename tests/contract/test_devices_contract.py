"""Everything that tells devices tells the same: the one in memory, and NVIDIA's library as a driver has it."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pytest
from services.fake_nvml import FakeDriver, compile_library
from services.waiting import wait_until

from workers.hardware.devices import Device, Devices, Inventory, Presence
from workers.hardware.in_memory import MemoryDevices
from workers.hardware.nvml import ANSWER_WITHIN, NvmlDevices

GIB = 2**30
_BRIEF = timedelta(milliseconds=300)


class World(Protocol):
    """A machine whose devices a test changes."""

    @property
    def devices(self) -> Devices:
        """What tells them."""

    def show(self, *devices: Device) -> None:
        """Let these be there from now on."""

    def raise_xid(self, device: Device, code: int) -> None:
        """Let an error of the driver come for one of them."""

    def hang(self) -> None:
        """Let the driver not answer."""

    def heal(self) -> None:
        """Let it answer again."""


class MemoryWorld:
    def __init__(self) -> None:
        self.devices = self._told = MemoryDevices()

    def show(self, *devices: Device) -> None:
        if devices:
            self._told.show(*devices)
        else:
            self._told.inventory = Inventory(presence=Presence.ABSENT, detail="there is none")

    def raise_xid(self, device: Device, code: int) -> None:
        shown = self._told.inventory.devices
        sick = replace(device, xids=Counter(device.xids) + Counter([code]))
        self._told.show(*(sick if each.uuid == device.uuid else each for each in shown))

    def hang(self) -> None:
        self._before = self._told.inventory
        self._told.inventory = Inventory(presence=Presence.UNKNOWN, detail="it hangs")

    def heal(self) -> None:
        self._told.inventory = self._before


class NvmlWorld:
    def __init__(self, library: Path, folder: Path) -> None:
        self._driver = FakeDriver(library, folder)
        self.devices = self._nvml = NvmlDevices(environ=self._driver.environ)

    def show(self, *devices: Device) -> None:
        self._driver.show(*devices)

    def raise_xid(self, device: Device, code: int) -> None:
        self._driver.raise_xid(device.parent_uuid or device.uuid, code, instance=device.mig_index)

    def hang(self) -> None:
        self._driver.hang("nvmlDeviceGetUtilizationRates")
        self._nvml._answer_within = _BRIEF

    def heal(self) -> None:
        self._driver.heal()
        self._nvml._answer_within = ANSWER_WITHIN


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(params=["memory", "nvml"])
def world(request: pytest.FixtureRequest, library: Path, tmp_path: Path) -> Iterator[World]:
    made: World = MemoryWorld() if request.param == "memory" else NvmlWorld(library, tmp_path)
    yield made
    made.devices.close()


def gpu(index: int) -> Device:
    return Device(
        uuid=f"GPU-{index:08x}-d72c-4106-c12f-20bd9faed9f6",
        index=index,
        minor=7 - index,
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=80 * GIB,
        free_bytes=79 * GIB,
        used_bytes=GIB // 2,
        utilisation_percent=index,
        ecc_uncorrected=0,
    )


def instance(number: int, *, of: Device) -> Device:
    return Device(
        uuid=f"MIG-{of.index:04x}{number:04x}-d72c-4106-c12f-20bd9faed9f6",
        index=of.index,
        mig_index=number,
        parent_uuid=of.uuid,
        minor=of.minor,
        instance=(number, 0),
        name=f"{of.name} MIG 1g.10gb",
        memory_bytes=10 * GIB,
        free_bytes=10 * GIB,
        ecc_uncorrected=0,
    )


@pytest.mark.parametrize("count", [1, 4, 8])
def test_it_tells_all_devices_with_all_their_numbers(world: World, count: int) -> None:
    shown = tuple(gpu(index) for index in range(count))
    world.show(*shown)
    inventory = world.devices.look()
    assert (inventory.presence, inventory.detail) == (Presence.PRESENT, "")
    assert inventory.devices == shown


def test_a_machine_without_devices_says_why(world: World) -> None:
    world.show()
    inventory = world.devices.look()
    assert inventory.presence is Presence.ABSENT
    assert inventory.devices == ()
    assert inventory.detail


def test_instances_are_devices_and_their_gpu_is_not(world: World) -> None:
    shown = (gpu(0), instance(0, of=gpu(1)), instance(2, of=gpu(1)), gpu(2))
    world.show(*shown)
    assert world.devices.look().devices == shown
    assert [device.place for device in shown] == ["0", "1:0", "1:2", "2"]


def test_each_look_tells_what_is_there_then(world: World) -> None:
    world.show(gpu(0), gpu(1))
    world.devices.look()
    changed = replace(gpu(1), used_bytes=70 * GIB, free_bytes=9 * GIB, ecc_uncorrected=3, process_ids=(17, 99))
    world.show(gpu(0), changed)
    assert world.devices.look().devices == (gpu(0), changed)


def test_a_device_that_disappears_is_not_found_until_it_is_back(world: World) -> None:
    world.show(gpu(0), gpu(1))
    assert world.devices.look().find(gpu(1).uuid) == gpu(1)
    world.show(gpu(0))
    assert world.devices.look().find(gpu(1).uuid) is None
    world.show(gpu(0), gpu(1))
    assert world.devices.look().find(gpu(1).uuid) == gpu(1)


def test_a_device_that_cannot_be_read_says_why(world: World) -> None:
    world.show(gpu(0), gpu(1))
    world.devices.look()
    world.show(gpu(0), replace(gpu(1), fault="GPU is lost"))
    healthy, lost = world.devices.look().devices
    assert healthy.fault == ""
    assert lost.uuid == gpu(1).uuid
    assert lost.fault.lower() == "gpu is lost"


def test_a_device_that_asks_for_a_reset_tells_so(world: World) -> None:
    shown = (replace(gpu(0), recovery="reset the GPU"), replace(instance(0, of=gpu(1)), recovery="reset the GPU"))
    world.show(*shown)
    assert world.devices.look().devices == shown


def test_errors_of_the_driver_are_counted_for_the_device_that_they_came_for(world: World) -> None:
    world.show(gpu(0), gpu(1))
    world.devices.look()
    for code in (79, 31, 79):
        device = world.devices.look().find(gpu(1).uuid)
        assert device is not None
        world.raise_xid(device, code)
    assert [dict(device.xids) for device in world.devices.look().devices] == [{}, {79: 2, 31: 1}]
    assert [dict(device.xids) for device in world.devices.look().devices] == [{}, {79: 2, 31: 1}]


def test_an_error_of_one_instance_is_not_one_of_its_neighbours(world: World) -> None:
    world.show(instance(0, of=gpu(0)), instance(1, of=gpu(0)))
    _, second = world.devices.look().devices
    world.raise_xid(second, 94)
    assert [dict(device.xids) for device in world.devices.look().devices] == [{}, {94: 1}]


def test_a_driver_that_hangs_leaves_the_devices_unknown_until_it_answers(world: World) -> None:
    world.show(gpu(0))
    world.devices.look()
    world.hang()
    unknown = world.devices.look()
    assert (unknown.presence, unknown.devices) == (Presence.UNKNOWN, ())
    assert unknown.detail
    world.heal()
    wait_until(lambda: world.devices.look().devices == (gpu(0),), what="it answers again")


def test_nothing_is_known_after_its_end(world: World) -> None:
    world.show(gpu(0))
    world.devices.look()
    world.devices.close()
    world.devices.close()
    assert world.devices.look().presence is Presence.UNKNOWN


def test_many_threads_may_ask_at_once(world: World) -> None:
    world.show(*(gpu(index) for index in range(4)))
    together = threading.Barrier(8)

    def look(_: int) -> Inventory:
        together.wait()
        return world.devices.look()

    with ThreadPoolExecutor(8) as pool:
        assert {len(inventory.devices) for inventory in pool.map(look, range(8))} == {4}
