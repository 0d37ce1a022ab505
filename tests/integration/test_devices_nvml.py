"""NVIDIA's library where it is missing, old, wrong, crashes or hangs: the worker goes on, ends, and says why."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from services.fake_nvml import CUDA, DRIVER, FakeDriver, compile_library
from services.waiting import wait_until

from workers.hardware.devices import Device, Presence
from workers.hardware.nvml import ANSWER_WITHIN, START_WITHIN, NvmlDevices
from workers.hardware.nvml_child import NvmlChild

_BRIEF = timedelta(milliseconds=500)
# A fraction of what a first answer may take.
_SOON = START_WITHIN / 3
GPU = Device(
    uuid="GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
    index=0,
    minor=0,
    name="NVIDIA A100-SXM4-40GB",
    memory_bytes=40 * 2**30,
    free_bytes=38 * 2**30,
    used_bytes=2**20,
    utilisation_percent=0,
    ecc_uncorrected=0,
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path) -> FakeDriver:
    return FakeDriver(library, tmp_path)


@pytest.fixture
def devices(driver: FakeDriver) -> Iterator[NvmlDevices]:
    devices = NvmlDevices(environ=driver.environ)
    yield devices
    devices.close()


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "workers.hardware.nvml_probe" in each.cmdline()]


def test_the_versions_of_driver_and_cuda_are_told(driver: FakeDriver, devices: NvmlDevices) -> None:
    driver.show(GPU)
    inventory = devices.look()
    assert (inventory.driver_version, inventory.cuda_version) == (DRIVER, CUDA)


def test_a_machine_without_the_library_is_a_cpu_node_and_keeps_no_process(tmp_path: Path) -> None:
    # Also where these tests run on a machine with a driver.
    (tmp_path / "libnvidia-ml.so.1").touch()
    devices = NvmlDevices(environ={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(tmp_path)})
    inventory = devices.look()
    assert inventory.presence is Presence.ABSENT
    assert "libnvidia-ml.so.1" in inventory.detail
    assert children() == []


@pytest.mark.parametrize(("code", "said"), [(18, "restart the machine"), (9, "modprobe"), (4, "/dev/nvidiactl")])
def test_a_driver_that_cannot_be_used_makes_a_cpu_node_that_says_what_to_do(
    driver: FakeDriver, devices: NvmlDevices, code: int, said: str
) -> None:
    driver.show(GPU)
    driver.fail("nvmlInitWithFlags", code)
    inventory = devices.look()
    assert inventory.presence is Presence.ABSENT
    assert said in inventory.detail
    driver.heal()
    assert devices.look().devices == (GPU,)


def test_an_error_that_may_pass_is_not_taken_for_a_machine_without_devices(
    driver: FakeDriver, devices: NvmlDevices
) -> None:
    driver.show(GPU)
    driver.fail("nvmlDeviceGetCount_v2", 999)
    inventory = devices.look()
    assert inventory.presence is Presence.UNKNOWN
    assert "Unknown Error" in inventory.detail
    driver.heal()
    assert devices.look().devices == (GPU,)


def test_an_old_driver_tells_what_it_can(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    driver = FakeDriver(compile_library(tmp_path_factory.mktemp("old"), is_old=True), tmp_path)
    driver.show(GPU)
    devices = NvmlDevices(environ=driver.environ)
    try:
        inventory = devices.look()
    finally:
        devices.close()
    (device,) = inventory.devices
    assert inventory.cuda_version == ""
    assert (device.uuid, device.memory_bytes, device.ecc_uncorrected) == (GPU.uuid, GPU.memory_bytes, 0)
    # Its memory call counts what the driver itself keeps.
    assert device.used_bytes == GPU.memory_bytes - GPU.free_bytes
    assert device.fault == ""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Tésla Ω 超".encode(), "Tésla Ω 超"),
        (b"odd \xff\xfe name", "odd \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} name"),
        (b"two\nlines\x1b[31m", "two\N{REPLACEMENT CHARACTER}lines\N{REPLACEMENT CHARACTER}[31m"),
        (b"", ""),
    ],
)
def test_a_name_may_have_any_bytes_and_spoils_no_log(
    driver: FakeDriver, devices: NvmlDevices, name: bytes, told: str
) -> None:
    driver.show(GPU)
    driver.name(GPU.uuid, name)
    assert [device.name for device in devices.look().devices] == [told]


def test_a_uuid_that_could_not_be_pinned_is_a_problem_and_no_device(driver: FakeDriver, devices: NvmlDevices) -> None:
    driver.show(GPU, Device(uuid="../GPU", index=1))
    inventory = devices.look()
    assert [device.uuid for device in inventory.devices] == [GPU.uuid]
    assert "no UUID" in inventory.problems[0]


def test_a_device_that_is_lost_before_it_was_ever_seen_is_a_problem(driver: FakeDriver, devices: NvmlDevices) -> None:
    driver.show(GPU, Device(uuid="GPU-1", index=1, fault="GPU is lost"))
    inventory = devices.look()
    assert [device.uuid for device in inventory.devices] == [GPU.uuid]
    assert inventory.problems == ("GPU 1 cannot be used: GPU is lost",)


def test_an_error_of_a_whole_gpu_is_one_of_each_of_its_instances(driver: FakeDriver, devices: NvmlDevices) -> None:
    parts = [
        Device(uuid=f"MIG-{number}", index=0, mig_index=number, parent_uuid=GPU.uuid, memory_bytes=2**30)
        for number in (0, 1)
    ]
    driver.show(*parts)
    devices.look()
    driver.raise_xid(GPU.uuid, 79)
    assert [dict(device.xids) for device in devices.look().devices] == [{79: 1}, {79: 1}]


def test_counts_of_errors_outlive_the_process_that_counted_them(driver: FakeDriver, devices: NvmlDevices) -> None:
    driver.show(GPU)
    devices.look()
    driver.raise_xid(GPU.uuid, 48)
    devices.look()
    (child,) = children()
    child.kill()
    child.wait()
    assert devices.look().presence is Presence.UNKNOWN
    (device,) = devices.look().devices
    assert device.xids[48] >= 1


def test_a_library_that_crashes_takes_only_its_own_process_with_it(driver: FakeDriver, devices: NvmlDevices) -> None:
    driver.show(GPU)
    driver.crash("nvmlDeviceGetMemoryInfo_v2")
    inventory = devices.look()
    assert inventory.presence is Presence.UNKNOWN
    assert f"signal {signal.SIGSEGV.value}" in inventory.detail
    driver.heal()
    assert devices.look().devices == (GPU,)


@pytest.mark.parametrize(
    ("function", "said"),
    [("nvmlDeviceGetMemoryInfo_v2", f"at {GPU.uuid}"), ("nvmlEventSetWait_v2", "the driver's events")],
)
def test_a_call_that_hangs_is_given_up_and_says_where(
    driver: FakeDriver, devices: NvmlDevices, function: str, said: str
) -> None:
    driver.show(GPU)
    devices.look()
    driver.hang(function)
    devices._answer_within = _BRIEF
    inventory = devices.look()
    assert inventory.presence is Presence.UNKNOWN
    assert "hangs" in inventory.detail
    assert said in inventory.detail
    driver.heal()
    devices._answer_within = ANSWER_WITHIN
    wait_until(lambda: devices.look().devices == (GPU,), what="the driver is asked again")


def test_a_driver_that_hangs_from_the_start_is_given_up(driver: FakeDriver) -> None:
    driver.show(GPU)
    driver.hang("nvmlInitWithFlags")
    devices = NvmlDevices(environ=driver.environ, start_within=timedelta(seconds=1))
    try:
        inventory = devices.look()
        assert inventory.presence is Presence.UNKNOWN
        assert "hangs" in inventory.detail
        assert "start" in inventory.detail
    finally:
        devices.close()


def test_a_process_that_cannot_be_ended_is_neither_waited_for_nor_joined_by_another(
    driver: FakeDriver, devices: NvmlDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.show(GPU)
    devices.look()
    (child,) = children()
    # As one that the kernel does not let go.
    child.suspend()
    monkeypatch.setattr(NvmlChild, "kill", lambda _: None)
    devices._answer_within = _BRIEF
    assert devices.look().presence is Presence.UNKNOWN
    with monkeypatch.context() as patched:
        patched.setattr(NvmlChild, "ask", lambda *_, **__: pytest.fail("asked again"))
        for _ in range(3):
            assert "cannot be ended" in devices.look().detail
    assert children() == [child]
    devices.close()
    assert child.is_running()
    monkeypatch.undo()
    child.kill()
    child.wait()


def test_a_worker_ends_at_once_while_a_call_hangs(driver: FakeDriver) -> None:
    driver.show(GPU)
    driver.hang("nvmlDeviceGetMemoryInfo_v2")
    program = (
        "import threading\n"
        "from workers.hardware.nvml import NvmlDevices\n"
        "devices = NvmlDevices()\n"
        "threading.Thread(target=devices.look, daemon=True).start()\n"
        "print('asked', flush=True)\n"
        "input()\n"
        "devices.close()\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **driver.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"asked\n"
    (probe,) = wait_until(psutil.Process(worker.pid).children, what="the driver is asked")
    wait_until(lambda: driver.hangs, what="it hangs")
    began = time.monotonic()
    worker.communicate(b"\n", timeout=60)
    assert worker.returncode == 0
    assert time.monotonic() - began < _SOON.total_seconds()
    wait_until(lambda: not probe.is_running(), what="no process is left")


@pytest.mark.parametrize("hangs", [False, True])
def test_a_worker_that_is_killed_leaves_no_process(driver: FakeDriver, *, hangs: bool) -> None:
    driver.show(GPU)
    if hangs:
        driver.hang("nvmlDeviceGetMemoryInfo_v2")
    program = "from workers.hardware.nvml import NvmlDevices\nd = NvmlDevices()\nd.look()\ninput()"
    worker = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, **driver.environ}, stdin=subprocess.PIPE
    )
    (probe,) = wait_until(psutil.Process(worker.pid).children, what="the driver is asked")
    wait_until(lambda: driver.hangs or not hangs, what="it hangs")
    worker.kill()
    worker.communicate()
    wait_until(lambda: not probe.is_running(), what="no process is left")


def test_what_asks_the_driver_gets_no_secret_of_the_worker(driver: FakeDriver) -> None:
    driver.show(GPU)
    devices = NvmlDevices(environ={**driver.environ, "JOBQUEUE_BROKER_URL": "amqp://u:secret@h", "AWS_X": "y"})
    try:
        devices.look()
        (child,) = children()
        assert set(child.environ()) <= {"PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "LC_CTYPE"}
    finally:
        devices.close()
