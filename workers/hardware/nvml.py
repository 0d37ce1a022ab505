"""NVIDIA's devices, asked through NVML in a child process that may hang, crash or be abandoned.

The child stays while there are devices: it collects the driver's errors (Xids), which are not kept for latecomers, and
it keeps GPUs awake that would take seconds to wake for each look. A child that does not answer is killed and not waited
for; while it has not ended, no other one is started, so that a hanging driver collects one process and not many.
"""

import os
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from threading import Lock
from typing import Any, Final

from workers.hardware.devices import Device, Inventory, Presence
from workers.hardware.nvml_child import END_WITHIN, NvmlChild

# GPUs that nobody keeps awake take one or two seconds each to wake.
START_WITHIN: Final = timedelta(seconds=60)
ANSWER_WITHIN: Final = timedelta(seconds=10)
# NVIDIA's words for what mends a device; 0 is nothing.
_RECOVERY: Final = {
    1: "reset the GPU",
    2: "restart the machine",
    3: "drain its peer-to-peer traffic",
    4: "drain the GPU and reset it",
    5: "recover the IMEX domain",
    6: "reset the GPU's PCIe bus",
    7: "restart the whole system",
}
_NO_GPU: Final = "NVIDIA's driver knows no GPU"
# What makes a machine one without GPUs, for as long as nobody mends it; any other error may pass.
_WHY: Final = {
    "ModuleNotFoundError": "nvidia-ml-py is not installed: pip install 'jobqueue[gpu]'",
    "NVMLError_LibraryNotFound": "there is no libnvidia-ml.so.1, which comes with NVIDIA's driver",
    "NVMLError_DriverNotLoaded": "NVIDIA's driver is installed and not loaded: modprobe nvidia",
    "NVMLError_LibRmVersionMismatch": "NVIDIA's driver was changed and the old one is loaded: restart the machine",
    "NVMLError_FunctionNotFound": "NVIDIA's driver is too old: version 390 or newer is needed",
    "NVMLError_NoPermission": "this user may not use NVIDIA's driver: see who may open /dev/nvidiactl",
}


class NvmlDevices:
    """NVIDIA's devices of this machine.

    Args:
        environ: where the child's variables are taken from; by default this process's.
        start_within: how long the first answer of a child may take.
        answer_within: how long each one after it may take.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        start_within: timedelta = START_WITHIN,
        answer_within: timedelta = ANSWER_WITHIN,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._start_within, self._answer_within = start_within, answer_within
        self._lock = Lock()
        self._is_closed = False
        self._child: NvmlChild | None = None
        # A child that was told to end, and why.
        self._stuck: tuple[NvmlChild, str] | None = None
        self._xids: dict[str, Counter[int]] = {}

    def look(self) -> Inventory:
        """Return what the driver says now, or that it does not answer."""
        with self._lock:
            if self._is_closed:
                return _unknown("closed")
            if self._stuck is not None:
                child, detail = self._stuck
                if not child.is_gone:
                    return _unknown(f"{detail}, and the process that asked it cannot be ended")
                child.close()
                self._stuck = None
            return self._ask()

    def close(self) -> None:
        """End the child; one that hangs is left to itself."""
        self._is_closed = True
        child = self._child
        if child is not None:
            # Whoever waits for its answer learns at once that there will be none.
            child.kill()
        if self._lock.acquire(timeout=END_WITHIN.total_seconds()):
            try:
                self._leave()
                if self._stuck is not None:
                    self._stuck[0].close()
            finally:
                self._lock.release()

    def _ask(self) -> Inventory:
        within = self._answer_within if self._child is not None else self._start_within
        try:
            self._child = self._child or NvmlChild(self._environ)
            answer = self._child.ask(within=within)
        except TimeoutError as error:
            return self._give_up(f"NVML hangs: {error}")
        except (EOFError, OSError, ValueError) as error:
            self._leave()
            return _unknown(f"NVML cannot be asked: {error}")
        if answer.get("count"):
            return self._read(answer)
        # A node without GPUs keeps no process for them, and one that failed asks a new one.
        self._leave()
        why = _WHY.get(answer["error"]) if "error" in answer else _NO_GPU
        if why is None:
            return _unknown(f"NVML cannot be used: {answer['message']}")
        return Inventory(presence=Presence.ABSENT, detail=why)

    def _read(self, answer: Mapping[str, Any]) -> Inventory:
        for uuid, counts in answer["xids"].items():
            self._xids.setdefault(uuid, Counter()).update({int(code): times for code, times in counts.items()})
        return Inventory(
            presence=Presence.PRESENT,
            devices=tuple(_read_device(each, self._xids.get(each["uuid"], {})) for each in answer["devices"]),
            problems=tuple(answer["problems"]),
            driver_version=answer["driver_version"],
            cuda_version=answer["cuda_version"],
        )

    def _give_up(self, detail: str) -> Inventory:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            self._stuck = (child, detail)
        return _unknown(detail)

    def _leave(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


def _unknown(detail: str) -> Inventory:
    return Inventory(presence=Presence.UNKNOWN, detail=detail)


def _read_device(told: Mapping[str, Any], xids: Mapping[int, int]) -> Device:
    return Device(
        uuid=told["uuid"],
        index=told["index"],
        mig_index=told.get("mig_index"),
        parent_uuid=told.get("parent_uuid", ""),
        minor=told.get("minor"),
        instance=_read_instance(told.get("gpu_instance"), told.get("compute_instance")),
        name=told.get("name", ""),
        memory_bytes=told["memory_bytes"],
        free_bytes=told["free_bytes"],
        used_bytes=told["used_bytes"],
        utilisation_percent=told.get("utilisation_percent"),
        ecc_uncorrected=told.get("ecc_uncorrected"),
        xids=dict(xids),
        process_ids=tuple(told["process_ids"]),
        recovery=_RECOVERY.get(told["recovery"], f"action {told['recovery']}") if told["recovery"] else "",
        fault=told["fault"],
    )


def _read_instance(gpu_instance: int | None, compute_instance: int | None) -> tuple[int, int] | None:
    return None if gpu_instance is None or compute_instance is None else (gpu_instance, compute_instance)
