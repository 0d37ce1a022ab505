"""What the doctor tells of a machine's GPUs, through the real pynvml and a driver that tests steer."""

from dataclasses import replace
from pathlib import Path

import pytest
from services.fake_nvml import FakeDriver, compile_library

from producers.cli.devices import Told, describe_devices
from workers.hardware.devices import Device

ONE, TWO = (
    Device(uuid=f"GPU-0000000{index}-d72c-4106-c12f-20bd9faed9f6", index=index, name="X200", memory_bytes=2**36)
    for index in range(2)
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("library"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver(library, tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", made.environ["LD_LIBRARY_PATH"])
    for variable in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    return made


def test_each_device_has_a_line_and_what_is_wrong_with_it(driver: FakeDriver) -> None:
    driver.show(ONE, replace(TWO, used_bytes=2**35))
    fit, used = describe_devices()
    assert fit == Told(text=f"{ONE.uuid} X200, 64 GiB of memory, 0 B in use")
    assert used.text.startswith(f"{TWO.uuid} X200, 64 GiB of memory, 32 GiB in use: ")
    assert used.fix


def test_what_the_variables_leave_out_is_told_as_such(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.show(ONE, TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", TWO.uuid)
    one, two = describe_devices()
    assert one.text.endswith("the variables for visible devices leave it out")
    assert two.text.endswith("in use")


def test_a_variable_that_names_no_device_is_told_with_those_that_are_there(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.show(ONE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-9")
    wrong, one = describe_devices()
    assert "CUDA_VISIBLE_DEVICES: 'GPU-9' names no device that is here" in wrong.text
    assert wrong.fix
    assert ONE.uuid in one.text


def test_a_machine_without_a_gpu_says_so_in_one_line(driver: FakeDriver) -> None:
    driver.show()
    (told,) = describe_devices()
    assert told == Told(text="no GPU: NVIDIA's driver knows no GPU")


def test_a_driver_that_cannot_be_used_is_something_to_mend(driver: FakeDriver) -> None:
    driver.show(ONE)
    driver.fail("nvmlDeviceGetCount_v2", 999)
    (told,) = describe_devices()
    assert told.text.startswith("GPUs are not known: ")
    assert told.fix
