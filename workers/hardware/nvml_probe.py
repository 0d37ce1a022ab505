"""The child process that asks the driver: one line in is one look, and its answer one line of JSON out.

It is the only importer of NVML. A call of NVML may block in the kernel for ever, and then nothing ends the process that
made it, not even SIGKILL: a worker that called NVML itself, on whatever thread, could neither end nor give back its
sockets and locks. This process holds nothing that anybody waits for. It ends with its input, also within a call.
"""

import ctypes
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TextIO

_UUID: Final = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")
_EVENTS_AT_ONCE: Final = 1000
_EVENT_WAIT_MS: Final = 1
_NO_INSTANCE: Final = 0xFFFFFFFF
# NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, which older bindings have no name for.
_RECOVERY_FIELD: Final = 230


class Probe:
    """What is kept between two looks: the library, and what collects the driver's errors.

    Args:
        nvml: the module pynvml.
        tell: takes what is looked at now, so that whoever waits knows what hangs.
    """

    def __init__(self, nvml: Any, tell: Callable[[str], None]) -> None:
        self._nvml, self._tell = nvml, tell
        # What only says that this driver or device does not tell; everything else is a fault of the device.
        self._untold = {
            nvml.NVML_ERROR_INVALID_ARGUMENT,
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_NO_PERMISSION,
            nvml.NVML_ERROR_NOT_FOUND,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        }
        self._events: Any = None
        self._uuids: dict[int | None, str] = {}

    def look(self) -> dict[str, Any]:
        """Return all devices, with the errors of the driver since the last look."""
        nvml = self._nvml
        found: list[dict[str, Any]] = []
        problems: list[str] = []
        count = nvml.nvmlDeviceGetCount()
        for index in range(count):
            self._tell(f"GPU {index}")
            try:
                found += self._read_gpu(index, problems)
            except nvml.NVMLError as error:
                problems.append(f"GPU {index} cannot be used: {error}")
        self._tell("the driver's events")
        return {
            "count": count,
            "devices": found,
            "problems": problems,
            "xids": self._drain_events(found),
            "driver_version": _text(self._ask([], "nvmlSystemGetDriverVersion")),
            "cuda_version": _cuda_version(self._ask([], "nvmlSystemGetCudaDriverVersion")),
        }

    def _read_gpu(self, index: int, problems: list[str]) -> list[dict[str, Any]]:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        faults: list[str] = []
        whole = {"index": index, **self._read_device(handle, faults), "recovery": self._read_recovery(handle, faults)}
        whole["minor"] = self._ask(faults, "nvmlDeviceGetMinorNumber", handle)
        # A GPU that is lost may not even tell who it is.
        whole["uuid"] = whole["uuid"] or self._uuids.get(_address(handle), "")
        if not _UUID.fullmatch(whole["uuid"]):
            why = "; ".join(faults) or f"no UUID to pin it by: {whole['uuid']!r}"
            problems.append(f"GPU {index} cannot be used: {why}")
            return []
        self._watch(handle, whole["uuid"])
        mode = self._ask(faults, "nvmlDeviceGetMigMode", handle)
        if not mode or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            return [{**whole, "fault": "; ".join(faults)}]
        instances = self._read_instances(handle, whole, faults)
        if not instances:
            problems.append(f"GPU {index} ({whole['uuid']}) is in MIG mode and has no instances")
        return instances

    def _read_instances(self, handle: Any, whole: dict[str, Any], faults: list[str]) -> list[dict[str, Any]]:
        instances = []
        for number in range(self._ask(faults, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            # Numbers without an instance are not found, which is no fault.
            instance = self._ask(faults, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if instance is None:
                continue
            own: list[str] = []
            read = self._read_device(instance, own)
            if _UUID.fullmatch(read["uuid"]):
                shared = {name: whole[name] for name in ("index", "minor", "ecc_uncorrected", "recovery")}
                told = {name: value for name, value in read.items() if value not in (None, "")}
                instances.append(
                    {**shared, **told, "mig_index": number, "parent_uuid": whole["uuid"]}
                    | {"gpu_instance": self._ask(own, "nvmlDeviceGetGpuInstanceId", instance)}
                    | {"compute_instance": self._ask(own, "nvmlDeviceGetComputeInstanceId", instance)}
                    | {"fault": "; ".join([*faults, *own])}
                )
        return instances

    def _read_device(self, handle: Any, faults: list[str]) -> dict[str, Any]:
        nvml = self._nvml
        uuid = _text(self._ask(faults, "nvmlDeviceGetUUID", handle))
        self._tell(uuid)
        use = self._ask(faults, "nvmlDeviceGetUtilizationRates", handle)
        running = self._ask(faults, "nvmlDeviceGetComputeRunningProcesses", handle)
        ecc = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        return {
            "uuid": uuid,
            "name": _text(self._ask(faults, "nvmlDeviceGetName", handle)),
            "utilisation_percent": int(use.gpu) if use else None,
            "ecc_uncorrected": self._ask(faults, "nvmlDeviceGetTotalEccErrors", handle, *ecc),
            "process_ids": [int(process.pid) for process in running or ()],
            **self._read_memory(handle, faults),
        }

    def _read_recovery(self, handle: Any, faults: list[str]) -> int:
        told = self._ask(faults, "nvmlDeviceGetFieldValues", handle, [_RECOVERY_FIELD])
        return int(told[0].value.uiVal) if told and told[0].nvmlReturn == self._nvml.NVML_SUCCESS else 0

    def _read_memory(self, handle: Any, faults: list[str]) -> dict[str, int]:
        # The newer call does not count as used what the driver itself keeps.
        memory = self._ask(faults, "nvmlDeviceGetMemoryInfo", handle, self._nvml.nvmlMemory_v2)
        memory = memory or self._ask(faults, "nvmlDeviceGetMemoryInfo", handle)
        names = {"memory_bytes": "total", "free_bytes": "free", "used_bytes": "used"}
        return {name: int(getattr(memory, field, 0)) for name, field in names.items()}

    def _ask(self, faults: list[str], function: str, *arguments: Any) -> Any:
        """Return the answer, or None when there is none; a reason that speaks against the device goes to `faults`."""
        called = getattr(self._nvml, function)
        try:
            # Undecorated, because what pynvml wraps around it raises on a name that is no UTF-8.
            return getattr(called, "__wrapped__", called)(*arguments)
        except self._nvml.NVMLError as error:
            if error.value not in self._untold and str(error) not in faults:
                faults.append(str(error))
            return None

    def _watch(self, handle: Any, uuid: str) -> None:
        if _address(handle) in self._uuids:
            return
        self._uuids[_address(handle)] = uuid
        with suppress(self._nvml.NVMLError):
            self._events = self._events or self._nvml.nvmlEventSetCreate()
            self._nvml.nvmlDeviceRegisterEvents(handle, self._nvml.nvmlEventTypeXidCriticalError, self._events)

    def _drain_events(self, found: list[dict[str, Any]]) -> dict[str, dict[int, int]]:
        """Return how often each error came for each device; an error of a whole GPU is one of all its instances."""
        xids: dict[str, Counter[int]] = {}
        for _ in range(_EVENTS_AT_ONCE if self._events else 0):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, _EVENT_WAIT_MS)
            except self._nvml.NVMLError:  # none is left, or this driver has none to give
                break
            whole = self._uuids.get(_address(event.device), "")
            instances = [each for each in found if each.get("parent_uuid") == whole]
            if event.gpuInstanceId != _NO_INSTANCE:
                instances = [each for each in instances if each["gpu_instance"] == event.gpuInstanceId]
            for uuid in [each["uuid"] for each in instances] or [whole]:
                xids.setdefault(uuid, Counter())[int(event.eventData)] += 1
        return {uuid: dict(counts) for uuid, counts in xids.items()}


def main() -> None:
    """Answer until the input ends, which ends the process."""
    # Whatever a library prints is no answer.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        probe: Probe | None = None
        asked: SimpleQueue[str] = SimpleQueue()
        Thread(target=_listen, args=(asked,), daemon=True).start()
        while asked.get():
            _write(answers, _at("the driver's start"))
            try:
                probe = probe or _start(lambda place: _write(answers, _at(place)))
                answer = json.dumps(probe.look())
            except Exception as error:  # noqa: BLE001 - the edge of a process: whoever waits is told
                answer = json.dumps({"error": type(error).__name__, "message": str(error)})
            _write(answers, answer)


def _listen(asked: "SimpleQueue[str]") -> None:
    for line in sys.stdin:
        asked.put(line)
    os._exit(0)


def _start(tell: Callable[[str], None]) -> Probe:
    import pynvml

    pynvml.nvmlInit()
    return Probe(pynvml, tell)


def _write(answers: TextIO, answer: str) -> None:
    print(answer, file=answers, flush=True)


def _at(place: str) -> str:
    return json.dumps({"at": place})


def _text(told: Any) -> str:
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told or "")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text).strip()


def _cuda_version(number: int | None) -> str:
    """Return `12.4` for 12040."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


if __name__ == "__main__":
    main()
