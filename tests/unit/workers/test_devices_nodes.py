"""Which files of /dev belong to a device: those of a GPU, those that open an instance, and never another one's."""

from pathlib import Path

import pytest

from jobqueue.errors import RuntimeFailure
from workers.hardware.devices import Device, Inventory, Presence
from workers.hardware.nodes import find_nodes

SHARED = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
WHOLE = tuple(Device(uuid=f"GPU-{index}", index=index, minor=7 - index) for index in range(3))
INSTANCE = Device(uuid="MIG-0", index=3, mig_index=0, parent_uuid="GPU-3", minor=4, instance=(9, 0))
HERE = Inventory(presence=Presence.PRESENT, devices=(*WHOLE, INSTANCE))


def write(folder: Path, minor: int) -> None:
    folder.mkdir(parents=True)
    (folder / "access").write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n")


def test_a_gpu_has_its_own_file_by_its_minor_number_and_those_of_all_programs() -> None:
    assert find_nodes(HERE, ["GPU-0"]) == (*SHARED, "nvidia7")
    assert find_nodes(HERE, ["GPU-2", "GPU-1"]) == (*SHARED, "nvidia5", "nvidia6")


def test_without_a_device_there_is_no_file() -> None:
    assert find_nodes(HERE, []) == ()


def test_an_instance_has_its_gpus_file_and_the_two_that_open_it(tmp_path: Path) -> None:
    write(tmp_path / "gpu4/mig/gi9", 102)
    write(tmp_path / "gpu4/mig/gi9/ci0", 103)
    write(tmp_path / "gpu4/mig/gi1", 30)
    own = ("nvidia4", "nvidia-caps/nvidia-cap102", "nvidia-caps/nvidia-cap103")
    assert find_nodes(HERE, ["MIG-0"], capabilities=tmp_path) == (*SHARED, *own)


@pytest.mark.parametrize(
    ("inventory", "uuid", "said"),
    [
        (HERE, "GPU-9", "does not tell"),
        (Inventory(presence=Presence.UNKNOWN, detail="NVML hangs"), "GPU-0", "NVML hangs"),
        (Inventory(presence=Presence.PRESENT, devices=(Device(uuid="GPU-0", index=0),)), "GPU-0", "does not tell"),
        (HERE, "MIG-0", "gpu4/mig/gi9/access"),
    ],
)
def test_files_that_are_not_known_are_not_guessed(tmp_path: Path, inventory: Inventory, uuid: str, said: str) -> None:
    with pytest.raises(RuntimeFailure, match=said):
        find_nodes(inventory, [uuid], capabilities=tmp_path)
