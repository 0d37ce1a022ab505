"""One ledger for all workers of a machine: nothing is given away twice, and nobody starves."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from services.lease_files import keep

from jobqueue.errors import InvalidSetting, RuntimeFailure
from jobqueue.ids import ExperimentId, WorkerId, make_experiment_id
from jobqueue.resources import Resources
from workers.attempt import ledger as module
from workers.attempt.lease_files import LeaseFile, read_boot_id, read_leases
from workers.attempt.ledger import Ledger
from workers.attempt.node_folder import NodeFolder, open_node_folder
from workers.hardware.custody_files import CustodyFiles
from workers.hardware.devices import Device
from workers.hardware.fitness import Ailment, Unfit
from workers.hardware.timetable import find_start

GIB = 2**30
CPUS, MEMORY = 8.0, 16 * GIB
SIZES = (16 * GIB, 16 * GIB, 40 * GIB)


def resources(**asked: Any) -> Resources:
    return Resources(**{"cpus": 1, "memory_bytes": GIB, "disk_bytes": 0, "shm_bytes": 0, **asked})


class Machine:
    """A machine with three devices, a worker for each and one for the cores, on a clock that a test moves."""

    def __init__(self, state_dir: Path) -> None:
        self.now_seconds = 0.0
        self.node: NodeFolder = open_node_folder(state_dir)
        self.claims: dict[str, int] = {}
        self.ledgers: dict[str, Ledger] = {}
        for number, size_bytes in enumerate(SIZES):
            device = Device(uuid=f"GPU-{number}", index=number, memory_bytes=size_bytes)
            self.start(f"gpu{number}", device, cpus=CPUS)
        self.start("cpu", None, cpus=CPUS - len(SIZES))

    def start(self, slot: str, device: Device | None, *, cpus: float) -> None:
        worker_id = WorkerId(f"{slot}@host")
        self.claims[slot] = self.node.claim(worker_id)
        ledger = Ledger(self.node, worker_id=worker_id, cpus=CPUS, memory_bytes=MEMORY, clock=lambda: self.now_seconds)
        ledger.join(cpus=cpus, device=device)
        self.ledgers[slot] = ledger

    def begin(self, slot: str, *, experiment_id: ExperimentId | None = None) -> LeaseFile:
        worker_id = WorkerId(f"{slot}@host")
        return keep(self.node.leases, experiment_id=experiment_id or make_experiment_id(), worker_id=worker_id)

    def take(self, slot: str, *, seconds: float = 60, file: LeaseFile | None = None, **asked: Any) -> LeaseFile:
        file = file or self.begin(slot)
        self.ledgers[slot].take(file, resources(**asked), seconds=seconds)
        return file

    def die(self, slot: str) -> None:
        os.close(self.claims.pop(slot))

    def close(self) -> None:
        for claim in self.claims.values():
            os.close(claim)


@contextmanager
def open_machine(folder: Path) -> Iterator[Machine]:
    machine = Machine(folder / "state")
    try:
        yield machine
    finally:
        machine.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with open_machine(tmp_path) as opened:
        yield opened


def devices(file: LeaseFile) -> tuple[str, ...] | None:
    """Return the devices that an attempt has; None while it waits."""
    (found,) = (kept for name, kept in read_leases(file._folder).items() if name == file.kept.name)
    assert found.entry == file.kept.entry, "what is on disk is what counts"
    return found.entry.devices if found.entry and found.entry.is_granted else None


def test_workers_take_from_one_machine_and_what_one_has_no_other_gets(machine: Machine) -> None:
    assert devices(machine.take("gpu0", gpus=2)) == ("GPU-0", "GPU-1")
    assert devices(machine.take("gpu1", gpus=1)) == ("GPU-2",)
    assert devices(machine.take("gpu2", gpus=1)) is None
    assert devices(machine.take("cpu", cpus=5)) == ()
    assert devices(machine.take("cpu", cpus=0.5)) is None


def test_who_waits_has_his_share_once_enough_has_ended(machine: Machine) -> None:
    first = machine.take("gpu0", gpus=1)
    waits = machine.take("gpu1", gpus=3)
    assert devices(machine.take("gpu2", gpus=1, seconds=61)) is None, "that would delay who waits"
    first.remove()
    assert devices(machine.take("gpu1", gpus=3, file=waits)) == ("GPU-1", "GPU-0", "GPU-2")


def test_short_work_fills_the_gap_before_who_waits_can_start(machine: Machine) -> None:
    machine.take("gpu0", gpus=1, seconds=1000)
    machine.take("gpu1", gpus=3)
    assert devices(machine.take("gpu2", gpus=1, seconds=1001)) is None
    assert devices(machine.take("gpu2", gpus=1, seconds=1000)) == ("GPU-2",)


def test_a_share_that_is_asked_for_again_for_longer_is_judged_anew(machine: Machine) -> None:
    machine.take("gpu0", gpus=1, seconds=1000)
    waits = machine.take("gpu1", gpus=3)
    gap = machine.take("gpu2", gpus=1, seconds=500)
    machine.now_seconds = 500
    assert devices(machine.take("gpu2", gpus=1, seconds=500, file=gap)) == ("GPU-2",)
    machine.now_seconds = 501
    assert devices(machine.take("gpu2", gpus=1, seconds=500, file=gap)) is None, "it would end too late"
    waits.remove()
    assert devices(machine.take("gpu2", gpus=1, seconds=500, file=gap)) == ("GPU-2",)


def test_what_a_dead_worker_runs_keeps_its_share_and_what_nobody_watches_is_not_given(machine: Machine) -> None:
    runs = machine.take("gpu0", gpus=2)
    machine.die("gpu0")
    machine.die("gpu2")
    later = machine.take("gpu1", gpus=1)
    assert devices(later) is None, "GPU-2 has nobody who watches it, the others are in use"
    runs.remove()
    assert devices(machine.take("gpu1", gpus=1, file=later)) == ("GPU-1",)


def test_what_a_dead_worker_waited_for_is_free(machine: Machine) -> None:
    runs, waits, later = machine.take("gpu0", gpus=3), machine.take("gpu2", gpus=1), machine.begin("gpu1")
    machine.die("gpu2")
    machine.now_seconds = 1
    runs.remove()
    assert devices(machine.take("gpu1", gpus=2, file=later)) == ("GPU-1", "GPU-0")
    assert waits.kept.entry, "it is still there, for whoever tidies up"


def test_a_worker_that_comes_back_finds_its_share_where_it_was(machine: Machine) -> None:
    runs = machine.take("gpu0", gpus=2)
    machine.die("gpu0")
    machine.start("gpu0", Device(uuid="GPU-0", index=0, memory_bytes=SIZES[0]), cpus=CPUS)
    assert devices(runs) == ("GPU-0", "GPU-1")
    assert machine.ledgers["gpu1"].user_of("GPU-1") == runs.kept.experiment_id
    assert not machine.ledgers["gpu1"].takes_more()


def test_nothing_of_another_boot_counts(machine: Machine) -> None:
    runs = machine.take("gpu0", gpus=3)
    LeaseFile(machine.node.leases, replace(runs.kept, boot_id="before")).update()
    assert devices(machine.take("gpu1", gpus=3)) is not None


def test_an_attempt_does_not_wait_for_an_earlier_one_of_its_own_experiment(machine: Machine) -> None:
    left = machine.take("gpu0", gpus=3)
    kept = replace(left.kept, attempt=2, token=2, worker_id=WorkerId("gpu1@host"), entry=None)
    again = LeaseFile(machine.node.leases, kept)
    again.create(b"")
    assert devices(machine.take("gpu1", gpus=3, file=again)) is not None


def test_a_sick_device_is_not_given_until_it_is_well(machine: Machine) -> None:
    machine.ledgers["gpu1"].note(Unfit(ailment=Ailment.XID, detail="GPU-1: Xid 79"))
    waits = machine.take("gpu0", gpus=3)
    assert devices(waits) is None
    assert devices(machine.take("gpu2", gpus=1)) == ("GPU-2",), "nothing can be kept for who waits"
    machine.ledgers["gpu1"].note(None)
    assert devices(machine.take("gpu1", gpus=1, seconds=61)) is None


def test_what_is_wrong_with_a_device_is_written_once(machine: Machine) -> None:
    def file() -> int:
        (record,) = (machine.node.root / "slots").glob("gpu1@*")
        return record.stat().st_ino

    unfit = Unfit(ailment=Ailment.XID, detail="GPU-1: Xid 79")
    before = file()
    machine.ledgers["gpu1"].note(unfit)
    told = file()
    machine.ledgers["gpu1"].note(unfit)
    assert before != told == file()


def test_a_device_that_another_worker_has_found_unfit_is_not_given_either(machine: Machine) -> None:
    notes = CustodyFiles(folder=machine.node.root / "devices", boot_id=read_boot_id())
    notes.tell("GPU-1", Unfit(ailment=Ailment.OCCUPIED, detail="GPU-1: in use"))
    assert devices(machine.take("gpu0", gpus=2)) == ("GPU-0", "GPU-2")
    waits = machine.take("gpu1", gpus=1)
    assert devices(waits) is None
    notes.forget_told("GPU-1")
    assert devices(machine.take("gpu1", gpus=1, file=waits)) == ("GPU-1",)


def test_a_device_that_is_drained_is_given_to_nobody_else_either(machine: Machine) -> None:
    ledger = machine.ledgers["gpu2"]
    ledger.is_withheld = lambda: True
    ledger.note(None)
    waits = machine.take("gpu0", gpus=3)
    assert devices(waits) is None
    ledger.is_withheld = lambda: False
    ledger.note(None)
    assert devices(machine.take("gpu0", gpus=3, file=waits)) is not None


def test_a_share_lasts_from_when_it_was_given(machine: Machine) -> None:
    machine.now_seconds = 100
    kept = machine.take("gpu0", seconds=60, gpus=1).kept
    machine.now_seconds = 130
    assert kept.entry
    assert machine.ledgers["gpu1"].remaining_seconds(kept.entry) == 30


def test_each_device_has_its_own_user(machine: Machine) -> None:
    users = {}
    for slot in ("gpu0", "gpu1"):
        file = machine.take(slot, gpus=1)
        (device,) = devices(file) or ()
        users[device] = file.kept.experiment_id
    assert {f"GPU-{number}": machine.ledgers["cpu"].user_of(f"GPU-{number}") for number in range(3)} == {
        **dict.fromkeys(["GPU-0", "GPU-1", "GPU-2"]),
        **users,
    }


def test_workers_without_a_device_count_each_and_those_with_the_same_one_once(machine: Machine) -> None:
    before = len(machine.ledgers["cpu"].machine().slots)
    machine.start("cpu1", None, cpus=1)
    assert len(machine.ledgers["cpu"].machine().slots) == before + 1
    machine.start("gpu9", Device(uuid="GPU-0", index=0, memory_bytes=SIZES[0]), cpus=1)
    assert len(machine.ledgers["cpu"].machine().slots) == before + 1


def test_a_worker_that_cannot_say_what_it_brings_is_told_which_setting_to_look_at(tmp_path: Path) -> None:
    node = open_node_folder(tmp_path)
    (node.root / "slots").write_text("a file")
    ledger = Ledger(node, worker_id=WorkerId("cpu@host"), cpus=CPUS, memory_bytes=MEMORY, clock=lambda: 0.0)
    with pytest.raises(InvalidSetting) as refused:
        ledger.join(cpus=1, device=None)
    assert refused.value.hint == "check JOBQUEUE_STATE_DIR"


def test_a_worker_that_may_begin_something_sees_what_it_has_taken_and_not_yet_begun(machine: Machine) -> None:
    ledger = machine.ledgers["cpu"]
    asking = ledger.ask(resources(cpus=3), seconds=60)
    file = machine.begin("cpu")
    taken = [(file.kept.experiment_id, ledger.ask(resources(cpus=3), seconds=60))]
    assert ledger.can_start(asking)
    assert not ledger.can_start(asking, beside=taken)
    machine.take("cpu", cpus=2, file=file)
    assert ledger.can_start(asking, beside=taken), "what stands in the ledger is not counted twice"


def test_a_worker_of_the_cores_always_takes_more_and_one_with_a_device_while_one_is_free(machine: Machine) -> None:
    machine.take("cpu", cpus=5)
    machine.take("gpu0", gpus=3)
    assert [machine.ledgers[slot].takes_more() for slot in ("cpu", "gpu1", "gpu2")] == [True, False, False]


def test_two_workers_that_ask_at_once_get_different_devices(machine: Machine) -> None:
    files = [machine.begin(f"gpu{number % 3}") for number in range(12)]
    threads = [
        threading.Thread(target=machine.take, args=(f"gpu{number % 3}",), kwargs={"gpus": 1, "file": file})
        for number, file in enumerate(files)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given = [uuid for file in files for uuid in devices(file) or ()]
    assert sorted(given) == ["GPU-0", "GPU-1", "GPU-2"]


def test_a_worker_that_is_stopped_while_it_decides_does_not_hold_the_others_for_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_WITHIN", timedelta(seconds=0.05))
    with machine.ledgers["gpu0"]._deciding(), pytest.raises(RuntimeFailure, match="ledger"):
        machine.take("gpu1")
    assert devices(machine.take("gpu1")) == ()


def test_a_record_that_cannot_be_read_is_a_worker_that_is_not_there(machine: Machine) -> None:
    (machine.node.root / "slots" / "gpu0@host.json").write_text("{")
    assert [slot.device for slot in machine.ledgers["cpu"].machine().slots if slot.device] == ["GPU-1", "GPU-2"]


def test_what_a_later_version_writes_beside_is_passed_over(machine: Machine) -> None:
    path = machine.node.root / "slots" / "gpu0@host.json"
    path.write_text(path.read_text().replace("{", '{"colour": "blue", ', 1))
    file = machine.take("gpu0", gpus=1)
    lease = next(machine.node.leases.glob("*.lease"))
    lease.write_text(lease.read_text().replace('"entry": {', '"entry": {"colour": "blue", ', 1))
    assert devices(file) == ("GPU-0",)


class LedgerMachine(RuleBasedStateMachine):
    """Workers that begin, ask again and end, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.attempts: dict[LeaseFile, tuple[str, dict[str, Any], float]] = {}

    @initialize()
    def open(self) -> None:
        self.machine = Machine(Path(self._folder.name) / "state")

    def teardown(self) -> None:
        self.machine.close()
        self._folder.cleanup()

    @rule(
        slot=st.sampled_from(["gpu0", "gpu1", "gpu2"]),
        gpus=st.integers(0, 3),
        cpus=st.sampled_from([0.5, 1, 4, 8]),
        size=st.sampled_from([0, 16 * GIB, 40 * GIB]),
        seconds=st.integers(1, 1000),
    )
    def begin_with_devices(self, slot: str, gpus: int, cpus: float, size: int, seconds: int) -> None:
        self._begin(slot, seconds, gpus=min(gpus, 1) if size > SIZES[0] else gpus, cpus=cpus, gpu_memory_bytes=size)

    @rule(cpus=st.sampled_from([0.5, 1, 3, 5]), memory=st.sampled_from([1, 8, 16]), seconds=st.integers(1, 1000))
    def begin_on_the_cores(self, cpus: float, memory: int, seconds: int) -> None:
        self._begin("cpu", seconds, cpus=cpus, memory_bytes=memory * GIB)

    def _begin(self, slot: str, seconds: float, **asked: Any) -> None:
        self.machine.now_seconds += 0.001
        file = self.machine.begin(slot)
        self.attempts[file] = (slot, asked, seconds)
        self._ask(file)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        waiting = [file for file in self.attempts if devices(file) is None]
        if waiting:
            self._ask(data.draw(st.sampled_from(waiting)))

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(list(self.attempts)))
        file.remove()
        del self.attempts[file]

    @rule(seconds=st.integers(1, 500))
    def let_time_go_by(self, seconds: int) -> None:
        """Whatever runs ends in its time at the latest."""
        self.machine.now_seconds += seconds
        for file in list(self.attempts):
            entry = file.kept.entry
            if entry and entry.is_granted and entry.until_seconds <= self.machine.now_seconds:
                file.remove()
                del self.attempts[file]

    @rule()
    def let_everybody_have_a_turn(self) -> None:
        """The oldest is granted once enough has ended, and then each one in turn."""
        for _ in range(len(self.attempts)):
            for file in list(self.attempts):
                if devices(file) is not None:
                    file.remove()
                    del self.attempts[file]
            waiting = sorted(self.attempts, key=lambda file: file.kept.entry.since_seconds if file.kept.entry else 0)
            for file in waiting[:1]:
                self._ask(file)
                assert devices(file) is not None, "the oldest waits although nothing else runs"
        assert all(devices(file) is not None for file in self.attempts)

    def _ask(self, file: LeaseFile) -> None:
        slot, asked, seconds = self.attempts[file]
        promised = self._promised()
        self.machine.take(slot, file=file, seconds=seconds, **asked)
        assert all(self._promised()[each] <= at for each, at in promised.items() if each in self._promised()), (
            "who came later has delayed who waited longer"
        )

    def _promised(self) -> dict[LeaseFile, float]:
        """Return when each of those that wait can start at the latest, as they are told."""
        found = {}
        for file in self.attempts:
            entry = file.kept.entry
            if entry and not entry.is_granted:
                start = find_start(
                    entry,
                    machine=self.machine.ledgers["cpu"].machine(),
                    others=[each.kept.entry for each in self.attempts if each is not file and each.kept.entry],
                    now_seconds=self.machine.now_seconds,
                )
                found[file] = start.at_seconds if start else float("inf")
        return found

    @invariant()
    def nothing_is_given_away_twice(self) -> None:
        granted = [file.kept.entry for file in self.attempts if file.kept.entry and file.kept.entry.is_granted]
        given = [uuid for entry in granted for uuid in entry.devices]
        assert len(given) == len(set(given))
        assert all(len(entry.devices) == entry.resources.gpus for entry in granted)
        assert all(
            SIZES[int(uuid[-1])] >= entry.resources.gpu_memory_bytes for entry in granted for uuid in entry.devices
        )
        assert sum(entry.resources.cpus for entry in granted) <= CPUS
        assert sum(entry.resources.memory_bytes for entry in granted) <= MEMORY
        own = [entry.resources.cpus for entry in granted if entry.worker_id == "cpu@host"]
        assert sum(own) <= CPUS - len(SIZES)


LedgerMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_any_order_of_events = LedgerMachine.TestCase
