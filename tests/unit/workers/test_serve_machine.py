"""Whether a worker serves its whole machine, and which part of it when it was told one."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobqueue.config import Settings
from workers.delivery import signals as delivery
from workers.hardware.devices import Device, Inventory, Presence
from workers.hardware.in_memory import MemoryDevices
from workers.node import signals as module
from workers.node.serve import Serving

A, B = (Device(uuid=f"GPU-{name}", index=index, memory_bytes=2**34) for index, name in enumerate("ab"))


class Start:
    """One start of `celery -A jobqueue worker` on a machine with two GPUs and eight cores; what became of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.devices = MemoryDevices(A, B)
        self.looks = 0
        self.became: list[tuple[Serving, Sequence[str]]] = []
        self.folder = folder
        monkeypatch.setattr(module, "has_driver", lambda: True)
        monkeypatch.setattr(module, "NvmlDevices", self._open)
        monkeypatch.setattr(module, "become", lambda serving, words: self.became.append((serving, words)))
        monkeypatch.setattr(module, "count_cores", lambda *_: 8)
        monkeypatch.setattr(sys, "argv", ["celery", "-A", "jobqueue", "worker", "-l", "INFO"])
        for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)

    def _open(self) -> MemoryDevices:
        self.looks += 1
        return self.devices

    def __call__(self, name: str = "celery", *, setting: dict[str, str] | None = None, **options: Any) -> None:
        settings = Settings(state_dir=self.folder, **(setting or {}))
        conf = SimpleNamespace(jobqueue_settings=settings)
        module.serve_machine(sender=f"{name}@host", conf=conf, options=options)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    return Start(tmp_path, monkeypatch)


def test_a_machine_with_devices_is_served_as_a_whole_with_the_same_words(start: Start) -> None:
    start(pidfile=None)
    ((serving, words),) = start.became
    assert serving.slots == {"gpu0=GPU-a": 1, "gpu1=GPU-b": 1, "cpu": 6}
    assert list(words) == ["-A", "jobqueue", "worker", "-l", "INFO"]


@pytest.mark.parametrize(("setting", "options"), [({"queues": "lab_*,!lab_x_*"}, {}), ({}, {"queues": "lab_*"})])
def test_a_machine_whose_queues_are_to_be_found_is_served_as_a_whole(
    start: Start, setting: dict[str, str], options: dict[str, Any]
) -> None:
    start(setting=setting, **options)
    assert len(start.became) == 1


def test_a_pattern_that_no_queue_can_match_ends_the_start(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start(queues="lab.*")
    assert "lab.*" in capsys.readouterr().err


def test_more_devices_than_cores_leave_one_place_for_other_work(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "count_cores", lambda *_: 1)
    start()
    assert start.became[0][0].slots["cpu"] == 1


def test_only_devices_that_a_preset_variable_names_are_served(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    start()
    assert start.became[0][0].slots == {"gpu0=GPU-b": 1, "cpu": 7}


def test_a_preset_variable_that_names_what_is_not_there_ends_the_start(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c")
    with pytest.raises(SystemExit):
        start()
    assert "GPU-c" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "setting", "options"),
    [
        ("left", {}, {}),
        ("celery", {"slot": "gpu0"}, {}),
        ("celery", {"queues": "a_cpu"}, {}),
        ("celery", {}, {"slot": "cpu"}),
        ("celery", {}, {"queues": "a_cpu"}),
        ("celery", {}, {"concurrency": 1}),
    ],
)
def test_who_was_told_what_to_serve_serves_that_and_asks_no_driver(
    start: Start, name: str, setting: dict[str, str], options: dict[str, Any]
) -> None:
    start(name, setting=setting, **options)
    assert (start.became, start.looks) == ([], 0)


def test_a_machine_without_a_driver_pays_for_no_look(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_driver", lambda: False)
    start()
    assert (start.became, start.looks) == ([], 0)


def test_a_driver_that_does_not_answer_leaves_the_cores_and_is_told_of(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start.devices.inventory = Inventory(presence=Presence.UNKNOWN, detail="NVML hangs")
    start()
    assert start.became == []
    assert "NVML hangs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("slot", "concurrency", "places"),
    [("", None, 1), ("", 4, None), ("gpu0", None, 1), ("gpu0", 1, None), ("cpu", 3, None)],
)
def test_a_worker_has_one_place_unless_it_was_told_otherwise(slot: str, concurrency: Any, places: int | None) -> None:
    conf = SimpleNamespace(worker_concurrency=None)
    chosen = delivery._choose_slot(slot, conf, concurrency)
    assert (chosen.name if chosen else "", conf.worker_concurrency) == (slot, places)


@pytest.mark.parametrize(("given_away", "places"), [(0, len(os.sched_getaffinity(0))), (8, 8), (2.5, 2), (0.5, 1)])
def test_the_cpu_slot_has_a_place_for_each_core_that_is_given_away(given_away: float, places: int) -> None:
    conf = SimpleNamespace(worker_concurrency=None, jobqueue_settings=SimpleNamespace(cpus=given_away))
    delivery._choose_slot("cpu", conf, None)
    assert conf.worker_concurrency == places


@pytest.mark.parametrize(("slot", "concurrency"), [("gpu0", 2), ("gpus", None)])
def test_a_slot_that_cannot_be_ends_the_worker_with_what_to_do(
    slot: str, concurrency: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        delivery._choose_slot(slot, SimpleNamespace(), concurrency)
    assert ended.value.code == 69
    assert "hint: " in capsys.readouterr().err
