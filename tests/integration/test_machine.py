"""One command serves a machine: a worker for each of four GPUs, which are only said to be there, and its cores."""

import itertools
import os
import re
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from services.machine import SLOTS, UP, UUIDS, Machine, open_machine
from services.place import LONG, OpenAt, Place, sleepers
from services.redis import open_redis
from services.waiting import wait_until

from jobqueue.lifecycle import State
from workers.hardware.machine import count_cores

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
HOST = socket.gethostname()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    # `celery status` asks all workers of a server: one of its own.
    with (
        open_redis(tmp_path / "redis") as server,
        open_machine(tmp_path, broker=server.url, registry=server.url) as opened,
    ):
        yield opened


def test_a_machine_is_served_by_one_command(machine: Machine) -> None:
    """One start for all, because five workers take seconds to start."""
    said = machine.celery("status").stdout
    assert [f"{slot}@{HOST}: OK" in said for slot in SLOTS] == [True] * len(SLOTS), said
    check_that_no_two_experiments_share_a_device(machine)
    check_that_a_killed_slot_comes_back_and_goes_on_with_its_container(machine)
    check_that_sigterm_drains_every_slot(machine)


def check_that_no_two_experiments_share_a_device(machine: Machine) -> None:
    telling = "echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES [$JOBQUEUE_GPUS]; "
    timing = "cut -d' ' -f1 /proc/uptime; sleep 0.2; cut -d' ' -f1 /proc/uptime"
    gpus = [machine.place.submit(telling + timing, gpus=1, gpu_memory="1GiB") for _ in range(9)]
    cpus = [machine.place.submit(telling + timing) for _ in range(3)]
    assert [each.result(timeout=60) for each in (*gpus, *cpus)] == [{"exit_code": 0}] * 12
    assert {next(iter(each.logs())) for each in cpus} == {"-1 void []"}
    spans: dict[str, list[tuple[float, float]]] = {}
    for experiment in gpus:
        named, began, ended = experiment.logs()
        uuid = named.split()[0]
        assert named == f"{uuid} {uuid} [{uuid}]"
        spans.setdefault(uuid, []).append((float(began), float(ended)))
    assert set(spans) <= set(UUIDS)
    assert len(spans) > 1, "one device did everything"
    for used in spans.values():
        used.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(used))
    records = machine.place.client._connections.registry.workers.present()
    devices = {record.slot: record.devices for record in records}
    assert devices == {"cpu": (), **{f"gpu{number}": (uuid,) for number, uuid in enumerate(UUIDS)}}


def check_that_a_killed_slot_comes_back_and_goes_on_with_its_container(machine: Machine) -> None:
    experiment, sleeper, slot = machine.sleep(gpus=1)
    before = machine.pid_of(slot)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: f"experiment={experiment.id}" in machine.adoptions(), what="the adoption", within=UP)
    assert machine.pid_of(slot) != before
    os.kill(sleeper, signal.SIGTERM)
    assert experiment.result(timeout=60) == {"exit_code": 0}
    assert experiment.attempt == 1


def check_that_sigterm_drains_every_slot(machine: Machine) -> None:
    running = [machine.sleep(gpus=1), machine.sleep()]
    machine.process._signal(signal.SIGTERM)
    wait_until(lambda: "node.told signal=SIGTERM" in machine.log, what="the signal")
    for _experiment, sleeper, _slot in running:
        os.kill(sleeper, signal.SIGTERM)
    wait_until(lambda: "node.ended" in machine.log, what="the end of all", within=LONG)
    assert [experiment.state for experiment, _, _ in running] == [State.SUCCEEDED] * 2
    assert machine.log.count("slot.ended") == len(SLOTS)
    assert not re.findall(r"slot\.ended .*status=[^0]", machine.log)


@pytest.fixture(params=["rabbitmq", "redis"])
def place(request: pytest.FixtureRequest, open_at: OpenAt) -> Iterator[Place]:
    with open_at(request.param, lease="6s", grace="1s") as opened:
        yield opened


def test_what_does_not_fit_beside_what_runs_waits_and_smaller_work_passes_it(place: Place) -> None:
    most = count_cores() - 0.5
    with place.make_worker("cores", environment={"JOBQUEUE_SLOT": "cpu"}) as worker:
        seconds = f"{1000 + secrets.randbelow(9000)}.{secrets.randbelow(10**9):09d}"
        first = place.submit(f"sleep {seconds}; true", cpus=most)
        pid = wait_until(lambda: sleepers(seconds), what="it sleeping", within=LONG)[0]
        large = place.submit("true", cpus=1)
        wait_until(lambda: "delivery.no_room" in worker.log.read_text(), what="the large one put off", within=LONG)
        small = place.submit("true", cpus=0.25)
        assert small.result(timeout=90) == {"exit_code": 0}
        assert (first.state, large.state, large.attempt) == (State.RUNNING, State.QUEUED, 0)
        os.kill(pid, signal.SIGTERM)
        assert [each.result(timeout=60) for each in (first, large)] == [{"exit_code": 0}] * 2
        assert large.attempt == 1
