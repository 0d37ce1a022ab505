"""A driver that tests steer: a real `libnvidia-ml.so.1`, compiled here and loaded by the real pynvml."""

import os
import shutil
import subprocess
from pathlib import Path

from workers.hardware.devices import Device

DRIVER = "550.54.15"
CUDA = "12.4"
_NAME = "libnvidia-ml.so.1"
_CUDA_NUMBER = 12040


def compile_library(folder: Path, *, is_old: bool = False) -> Path:
    """Return the library; an old one lacks what drivers of some years ago lack."""
    library = folder / _NAME
    words = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-Wno-format-truncation"]
    source = Path(__file__).with_name("nvml.c")
    subprocess.run([*words, *(["-DOLD_DRIVER"] if is_old else []), "-o", library, source, "-ldl"], check=True)
    return library


class FakeDriver:
    """One driver with its GPUs; processes that have loaded it see every change at their next call.

    Args:
        library: as compiled.
        folder: of this driver alone.

    Attributes:
        environ: for a process that is to load it.
    """

    def __init__(self, library: Path, folder: Path) -> None:
        shutil.copy(library, folder / _NAME)
        self.environ = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(folder)}
        self._state = folder / "state"
        self._gpus: list[str] = []
        self._lines: list[str] = []
        self._xids: list[str] = []
        self._troubles: list[str] = []
        self._write()

    @property
    def hangs(self) -> bool:
        """Whether a call has begun to hang since the driver was made."""
        return self._state.with_name("hangs").exists()

    def show(self, *devices: Device) -> None:
        """Let these be there from now on; what was there and is not any more is gone.

        The GPU of an instance is there too. The only fault is `GPU is lost`, the only recovery `reset the GPU`.
        """
        for device in devices:
            if (uuid := device.parent_uuid or device.uuid) not in self._gpus:
                self._gpus.append(uuid)
        self._lines = [_whole(uuid, devices) for uuid in self._gpus]
        self._lines += [_instance(each, self._gpus.index(each.parent_uuid)) for each in devices if each.parent_uuid]
        self._write()

    def name(self, uuid: str, name: bytes) -> None:
        """Give a device a name of these very bytes."""
        self._lines = [line + f"|name={name.hex()}" if f"|uuid={uuid}|" in f"{line}|" else line for line in self._lines]
        self._write()

    def raise_xid(self, uuid: str, code: int, *, instance: int | None = None) -> None:
        """Let an error of a GPU come, or of one of its instances."""
        where = "" if instance is None else f"|instance={instance}"
        self._xids.append(f"xid|gpu={self._gpus.index(uuid)}|code={code}{where}")
        self._write()

    def hang(self, function: str) -> None:
        """Let calls of a function of the library (by its name there) never return."""
        self._trouble(f"hang|function={function}")

    def fail(self, function: str, code: int) -> None:
        """Let calls of it return an error of NVML."""
        self._trouble(f"fail|function={function}|code={code}")

    def crash(self, function: str) -> None:
        """Let calls of it end the process."""
        self._trouble(f"crash|function={function}")

    def heal(self) -> None:
        """Let every function work again."""
        self._troubles = []
        self._write()

    def _trouble(self, line: str) -> None:
        self._troubles.append(line)
        self._write()

    def _write(self) -> None:
        lines = [f"driver|version={DRIVER}|cuda={_CUDA_NUMBER}", *self._lines, *self._xids, *self._troubles]
        new = self._state.with_name("state.new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self._state)


def _whole(uuid: str, devices: tuple[Device, ...]) -> str:
    own = [device for device in devices if uuid in (device.uuid, device.parent_uuid)]
    if not own:
        return f"gpu|uuid={uuid}|gone=1"
    if own[0].uuid == uuid:
        return f"gpu|uuid={uuid}|{_fields(own[0])}"
    fields = ["mig=1", f"minor={_minor(own[0])}"]
    if own[0].ecc_uncorrected is not None:
        fields.append(f"ecc={own[0].ecc_uncorrected}")
    if own[0].recovery:
        fields.append("recovery=1")
    return "|".join([f"gpu|uuid={uuid}", *fields])


def _minor(device: Device) -> int:
    return device.index if device.minor is None else device.minor


def _instance(device: Device, parent: int) -> str:
    return f"mig|uuid={device.uuid}|parent={parent}|number={device.mig_index}|{_fields(device)}"


def _fields(device: Device) -> str:
    numbers = {
        "total": device.memory_bytes,
        "free": device.free_bytes,
        "used": device.used_bytes,
        "util": device.utilisation_percent,
        "minor": _minor(device),
        "ecc": device.ecc_uncorrected,
        "recovery": 1 if device.recovery else None,
        "fault": 15 if device.fault else None,
    }
    words = {
        "name": device.name.encode().hex(),
        "pids": ",".join(map(str, device.process_ids)),
    }
    told = {**words, **{key: number for key, number in numbers.items() if number is not None}}
    return "|".join(f"{key}={value}" for key, value in told.items())
