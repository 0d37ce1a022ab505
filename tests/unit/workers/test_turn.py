"""An attempt that waits for its share of the machine: it can be told everything that a running one can."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from services.lease_files import keep
from services.node import FakeNode, Running
from services.waiting import wait_until

from jobqueue.envelope import Verified
from jobqueue.errors import RegistryUnavailable
from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.lifecycle import Phase, Reason, State
from jobqueue.registry.base import Record
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Resources
from producers.timeline import explain
from workers.attempt import ledger as ledger_module
from workers.attempt import turn as module
from workers.attempt.conclude import MISFIT_DELAY
from workers.attempt.elsewhere import has_left
from workers.attempt.lease_files import LeaseFile, read_leases
from workers.attempt.ledger import Ledger
from workers.attempt.node_folder import open_node_folder
from workers.attempt.runtimes.fake import Script
from workers.attempt.site import Site
from workers.attempt.supervise import PutOff
from workers.hardware.devices import Device

GIB = 2**30
UUIDS = ("GPU-0", "GPU-1")


class Machine:
    """A machine with two devices, the worker of one of them as a fake node, and somebody else's work."""

    def __init__(self, fake: FakeNode, state_dir: Path) -> None:
        self.fake, self.node = fake, open_node_folder(state_dir)
        self.claims: list[int] = []
        self.ledgers = [self._join(number) for number in range(2)]
        fake.site = self.site = replace(
            fake.site,
            worker_id=WorkerId("gpu0@host"),
            node_id=NodeId(self.node.node_id),
            leases=self.node.leases,
            slot="gpu0",
            gpus=UUIDS[:1],
            ledger=self.ledgers[0],
        )

    def _join(self, number: int) -> Ledger:
        worker_id = WorkerId(f"gpu{number}@host")
        self.claims.append(self.node.claim(worker_id))
        ledger = Ledger(self.node, worker_id=worker_id, cpus=4, memory_bytes=8 * GIB)
        ledger.join(cpus=4, device=Device(uuid=UUIDS[number], index=number, memory_bytes=16 * GIB))
        return ledger

    def occupy(self, *, gpus: int = 1) -> LeaseFile:
        """Let the other worker run something."""
        file = keep(self.node.leases, worker_id=WorkerId("gpu1@host"), queue=self.fake.queue)
        asked = Resources(cpus=1, memory_bytes=GIB, disk_bytes=0, shm_bytes=0, gpus=gpus)
        assert self.ledgers[1].take(file, asked, seconds=3600)
        return file

    def start_waiting(self, **fields: Any) -> tuple[Verified, Running]:
        """Start what needs both devices."""
        message = self.fake.message(gpus=2, memory="1GiB", **fields)
        self.fake.register(message)
        running = self.fake.start(message)
        wait_until(lambda: self.record(message).phase is Phase.WAITING, what="it waiting")
        return message, running

    def record(self, message: Verified) -> Record:
        return self.fake.record(message)

    def entries(self) -> dict[ExperimentId, bool]:
        """Return who is in the ledger, and whether he has what he asked for."""
        return {
            kept.experiment_id: kept.entry.is_granted for kept in read_leases(self.node.leases).values() if kept.entry
        }

    def close(self) -> None:
        for claim in self.claims:
            os.close(claim)


@pytest.fixture
def machine(node: FakeNode, tmp_path: Path) -> Iterator[Machine]:
    node.runtime.script = Script(is_held=True)
    machine = Machine(node, tmp_path / "state")
    yield machine
    machine.close()
    assert not list(machine.node.leases.iterdir()), "a lease file is left on the node"


def test_an_experiment_sees_all_the_devices_that_it_was_given(machine: Machine) -> None:
    message = machine.fake.message(gpus=2)
    running = machine.fake.start(message)
    container = machine.fake.container()
    assert container.plan.gpus == UUIDS
    assert container.plan.env["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
    assert machine.entries() == {message.header.experiment_id: True}
    assert not machine.ledgers[1].takes_more()
    container.finish()
    running.join()
    assert machine.entries() == {}
    assert machine.ledgers[1].takes_more()


def test_what_waits_says_so_and_goes_on_when_its_devices_are_free(machine: Machine) -> None:
    other = machine.occupy()
    message, running = machine.start_waiting()
    said = explain(machine.record(message))
    assert said.startswith("PREPARING (waiting) attempt 1 on gpu0@host: waits_for=2 GPUs, 1 cpus, 1 GiB at_most=")
    assert not machine.ledgers[0].can_start(machine.ledgers[0].ask(_one_device(), seconds=7200)), "they are kept for it"
    other.remove()
    container = machine.fake.container()
    wait_until(lambda: machine.record(message).state is State.RUNNING, what="it running")
    assert explain(machine.record(message)) == "RUNNING attempt 1 on gpu0@host"
    assert container.plan.gpus == UUIDS
    container.finish()
    running.join()
    assert machine.record(message).attempt == 1


def _one_device() -> Resources:
    return Resources(cpus=1, memory_bytes=GIB, disk_bytes=0, shm_bytes=0, gpus=1)


def test_what_waits_can_be_cancelled(machine: Machine) -> None:
    other = machine.occupy()
    message, running = machine.start_waiting()
    machine.site.registry.experiments.cancel(message.header.experiment_id)
    running.join()
    assert machine.record(message).reason is Reason.CANCELLED_BY_USER
    assert list(machine.entries()) == [other.kept.experiment_id]
    other.remove()


def test_what_waits_is_handed_back_by_a_drain(machine: Machine) -> None:
    other = machine.occupy()
    message, running = machine.start_waiting()
    running.attempt.ask(Reason.DRAINED)
    result = running.join()
    assert isinstance(result, PutOff)
    assert (result.delay, machine.record(message).platform_failures) == (timedelta(0), 0)
    assert list(machine.entries()) == [other.kept.experiment_id]
    other.remove()


def test_what_waits_expires_in_its_time(machine: Machine) -> None:
    other = machine.occupy()
    message = machine.fake.message(gpus=2, expires_at=datetime.now(UTC) + timedelta(seconds=1))
    machine.fake.run(message)
    assert machine.record(message).reason is Reason.EXPIRED
    other.remove()


def test_what_waits_goes_on_waiting_while_the_registry_is_away(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = machine.occupy()
    message, running = machine.start_waiting()

    def refuse(*_: Any, **__: Any) -> None:
        raise RegistryUnavailable("away")

    with monkeypatch.context() as away:
        away.setattr(type(machine.site.registry.leases), "renew", refuse)
        other.remove()
        wait_until(lambda: machine.entries().get(message.header.experiment_id), what="its share")
    machine.fake.container().finish()
    running.join()
    assert machine.record(message).state is State.SUCCEEDED


def test_what_lacks_a_sick_device_for_long_is_left_to_other_nodes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LACK", timedelta(milliseconds=300))
    os.close(machine.claims.pop())
    monkeypatch.setattr(type(machine.site), "best_offer", replace(machine.site.offer, gpu_memory_bytes=(GIB, GIB)))
    message = machine.fake.message(gpus=2, memory="1GiB")
    result = machine.fake.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.DOES_NOT_FIT
    assert result.outcome.detail.startswith("asks for 2 GPUs, 1 cpus, 1 GiB")
    assert machine.record(message).state is State.QUEUED


@pytest.fixture
def free(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> WorkerRecord:
    """Another node that runs nothing, which is looked for again and again; not announced yet."""
    monkeypatch.setattr(module, "LOOK_ELSEWHERE", timedelta(milliseconds=50))
    offer = replace(machine.site.offer, gpu_memory_bytes=(16 * GIB,) * 2)
    queues = (machine.fake.queue,)
    return WorkerRecord(
        worker_id=WorkerId("gpu0@free"), node_id=NodeId("free"), queues=queues, offer=offer, runtime="fake"
    )


def test_what_waits_leaves_for_a_node_that_stays_free_and_pays_no_attempt(machine: Machine, free: WorkerRecord) -> None:
    other = machine.occupy()
    message, running = machine.start_waiting()
    machine.fake.registry.workers.announce(free, ttl=timedelta(minutes=5))
    result = running.join()
    other.remove()
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.DOES_NOT_FIT
    assert result.outcome.detail == "waited for 2 GPUs, 1 cpus, 1 GiB, and another node is free: free"
    record = machine.record(message)
    assert (record.state, record.user_failures, record.platform_failures) == (State.QUEUED, 0, 0)


def test_who_has_left_a_place_once_and_is_back_stays(
    machine: Machine, free: WorkerRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bool] = []

    def ask(site: Site, experiment_id: ExperimentId) -> bool:
        answers.append(has_left(site, experiment_id))
        return answers[-1]

    monkeypatch.setattr(module, "has_left", ask)
    other = machine.occupy()
    message, running = machine.start_waiting()
    machine.fake.registry.workers.announce(free, ttl=timedelta(minutes=5))
    running.join()
    machine.fake.clock.ahead += MISFIT_DELAY
    again = machine.fake.start(message)
    wait_until(lambda: answers[-1], what="another node being free for what has left before")
    other.remove()
    machine.fake.container().finish()
    again.join()
    assert machine.record(message).state is State.SUCCEEDED


def test_a_worker_that_is_stopped_while_it_decides_costs_nobody_an_attempt(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_LOCK_WITHIN", timedelta(seconds=0.05))
    message = machine.fake.message(gpus=1)
    machine.fake.register(message)
    with machine.ledgers[1]._deciding():
        running = machine.fake.start(message)
        wait_until(lambda: machine.record(message).phase is Phase.WAITING, what="it waiting")
    machine.fake.container().finish()
    running.join()
    record = machine.record(message)
    assert (record.state, record.attempt, record.platform_failures) == (State.SUCCEEDED, 1, 0)


def test_who_waits_long_for_a_worker_that_is_stopped_is_left_to_other_nodes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_LOCK_WITHIN", timedelta(seconds=0.05))
    monkeypatch.setattr(module, "LACK", timedelta(milliseconds=300))
    message = machine.fake.message(gpus=1)
    with machine.ledgers[1]._deciding():
        result = machine.fake.run(message)
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert result.outcome.reason is Reason.DOES_NOT_FIT
    assert "/ledger for 0.05 seconds" in result.outcome.detail
    assert machine.record(message).platform_failures == 0


def test_what_needs_more_than_its_machine_has_is_handed_back_with_the_numbers(machine: Machine) -> None:
    result = machine.fake.run(machine.fake.message(gpus=16))
    assert isinstance(result, PutOff)
    assert result.outcome is not None
    assert (result.outcome.reason, result.outcome.detail) == (Reason.DOES_NOT_FIT, "asks for 16 GPUs, 2 are there")


def test_a_share_that_preparing_has_used_up_is_asked_for_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AROUND", timedelta(seconds=-1))
    taken: list[Any] = []
    take = Ledger.take

    def note(ledger: Ledger, *arguments: Any, **options: Any) -> Any:
        taken.append(take(ledger, *arguments, **options))
        return taken[-1]

    monkeypatch.setattr(Ledger, "take", note)
    monkeypatch.setattr(Ledger, "remaining_seconds", lambda *_: 0.0)
    machine.fake.runtime.script = Script()
    machine.fake.run(machine.fake.message(gpus=1))
    assert [start.devices for start in taken] == [("GPU-0",)] * 2
