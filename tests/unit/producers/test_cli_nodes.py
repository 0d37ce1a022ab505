"""`jobqueue nodes`: what is told of workers, and which of them a name means."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from jobqueue.config import Settings
from jobqueue.errors import RegistryUnavailable
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.registry import open_registry
from jobqueue.registry.presence import Drain, Gauge, WorkerRecord
from jobqueue.resources import Offer
from producers.cli import jobqueue
from producers.cli.dev import wait_until_served

TTL = timedelta(minutes=1)
WORKERS = open_registry("memory://").workers
Announce = Callable[..., WorkerRecord]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JOBQUEUE_BROKER_URL", "memory://")
    return f"h{uuid4().hex}"


@pytest.fixture
def announce(host: str) -> Iterator[Announce]:
    """Lets a slot's worker be there, of one of the test's own hosts, until the test is over."""
    there: list[WorkerRecord] = []

    def announce(slot: str = "cpu", *, of: str = "", **fields: object) -> WorkerRecord:
        record = WorkerRecord(
            worker_id=WorkerId(f"{slot}@{host}{of}"),
            node_id=NodeId(f"{host}{of}-1a2b"),
            host=f"{host}{of}",
            slot=slot,
            queues=("q_cpu",),
            offer=Offer(cpus=4, memory_bytes=2**34, disk_bytes=2**40),
            runtime="docker",
        )
        record = replace(record, **fields)  # type: ignore[arg-type]
        there.append(record)
        WORKERS.announce(record, ttl=TTL)
        return record

    yield announce
    for record in there:
        WORKERS.leave(record.worker_id)
        WORKERS.resume(record.worker_id)
        WORKERS.resume(record.node_id)


def call(*words: str) -> Result:
    return CliRunner().invoke(jobqueue, ("nodes", *words))


def targets(host: str) -> list[Drain]:
    return [drain for drain in WORKERS.drains() if host in drain.target]


def test_each_slot_has_a_row_with_what_it_runs_and_on_what(host: str, announce: Announce) -> None:
    first, second = sorted(make_experiment_id() for _ in range(2))
    announce(experiment_ids=(first, second), started_at=datetime.now(UTC) - timedelta(hours=3), free_disk_bytes=2**31)
    gauge = Gauge(uuid="GPU-1", name="X200", memory_bytes=2**35, used_bytes=2**33, utilisation_percent=97)
    announce("gpu0", gauges=(gauge,), state="GPU_XID", detail="GPU-1: Xid 79 1 times")

    shown = call("ls", host).stdout.splitlines()

    columns = "NODE WORKER STATE EXPERIMENT DEVICE USE GPU MEMORY CPUS MEMORY DISK RUNTIME AGE"
    assert " ".join(shown[0].split()) == columns
    cpu, gpu = shown[1:]
    assert cpu.split() == [
        *(f"{host}-1a2b", f"cpu@{host}", "OK", first, "+1", "-", "-", "-"),
        *("4", "16", "GiB", "2", "GiB", "docker", "3h"),
    ]
    assert gpu.split() == [
        *(f"{host}-1a2b", f"gpu0@{host}", "UNHEALTHY(GPU_XID)", "-", "X200", "97%"),
        *("8", "GiB", "of", "32", "GiB", "4", "16", "GiB", "-", "docker", "-"),
    ]


def test_a_program_is_told_everything(host: str, announce: Announce) -> None:
    gauge = Gauge(uuid="GPU-1", name="X200", memory_bytes=2**35)
    announce("gpu0", gauges=(gauge,), state="DISK_FULL", detail="1 GiB free", version="1.2", runtime="process")

    (told,) = json.loads(call("ls", host, "-o", "json").stdout)

    assert (told["node"], told["host"], told["worker"]) == (f"{host}-1a2b", host, f"gpu0@{host}")
    assert (told["state"], told["detail"], told["version"]) == ("UNHEALTHY(DISK_FULL)", "1 GiB free", "1.2")
    assert told["devices"][0]["uuid"] == "GPU-1"
    assert told["devices"][0]["utilisation_percent"] is None
    assert (told["offer"]["cpus"], told["experiments"], told["started_at"]) == (4, [], None)
    assert call("ls", host, "-o", "name").stdout == f"gpu0@{host}\n"


@pytest.mark.parametrize("name", ["{host}-1a2b", "{host}", "{host}-1a"])
def test_a_node_is_meant_by_its_id_its_host_or_the_beginning_of_one(host: str, announce: Announce, name: str) -> None:
    announce("cpu")
    announce("gpu0")

    assert call("drain", name.format(host=host)).stdout == f"{host}-1a2b\n"
    assert targets(host) == [Drain(target=f"{host}-1a2b")]


@pytest.mark.parametrize("name", ["gpu0@{host}", "gpu0@{host:.20}"])
def test_one_worker_of_a_node_can_be_meant(host: str, announce: Announce, name: str) -> None:
    announce("cpu")
    announce("gpu0")

    assert call("drain", "--now", name.format(host=host)).stdout == f"gpu0@{host}\n"
    assert targets(host) == [Drain(target=f"gpu0@{host}", is_hurried=True)]


def test_what_may_mean_several_nodes_means_none(host: str, announce: Announce) -> None:
    announce(of="x")
    announce(of="y")

    result = call("drain", host)

    assert result.exit_code == 102
    assert f"may be {host}x-1a2b, {host}y-1a2b" in result.stderr
    assert targets(host) == []


def test_a_whole_host_is_meant_though_another_ones_name_begins_so(host: str, announce: Announce) -> None:
    announce()
    announce(of="2")

    assert call("drain", host).stdout == f"{host}-1a2b\n"


@pytest.mark.parametrize("verb", ["drain", "resume", "ls"])
def test_a_node_that_is_not_there_is_told_with_those_that_are(host: str, announce: Announce, verb: str) -> None:
    announce()

    result = call(verb, "no-such")

    assert result.exit_code == 102
    assert "there is no node or worker 'no-such'" in result.stderr
    assert f"{host}-1a2b" in result.stderr


def test_a_node_is_resumed_with_its_workers(host: str, announce: Announce) -> None:
    announce()
    call("drain", host)
    call("drain", f"cpu@{host}")

    assert call("resume", host).stdout == f"{host}-1a2b\n"
    assert targets(host) == []
    assert "was not to drain" in call("resume", host).stderr


def test_a_worker_whose_node_drains_is_told_what_to_resume(host: str, announce: Announce) -> None:
    announce()
    call("drain", host)

    assert f"jobqueue nodes resume {host}-1a2b" in call("resume", f"cpu@{host}").stderr
    assert targets(host) == [Drain(target=f"{host}-1a2b")]


def test_a_node_that_is_to_drain_and_has_gone_is_told_of_and_can_be_resumed(host: str, announce: Announce) -> None:
    record = announce()
    call("drain", host)
    WORKERS.leave(record.worker_id)

    assert f"jobqueue nodes resume {host}-1a2b" in call("ls").stderr
    assert call("resume", f"{host}-1").stdout == f"{host}-1a2b\n"
    assert targets(host) == []


def test_who_waits_for_a_node_waits_for_the_registry_too(announce: Announce, monkeypatch: pytest.MonkeyPatch) -> None:
    present, silences = WORKERS.present, [RegistryUnavailable("it is away")]

    def stumble() -> list[WorkerRecord]:
        if silences:
            raise silences.pop()
        return present()

    monkeypatch.setattr(WORKERS, "present", stumble)
    announce()

    assert wait_until_served(Settings(registry_url="memory://"), is_over=lambda: False)
    assert not silences


def test_nobody_waits_for_a_node_that_has_ended_with_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[WorkerRecord]:
        raise RegistryUnavailable("it has ended")

    monkeypatch.setattr(WORKERS, "present", fail)

    assert not wait_until_served(Settings(registry_url="memory://"), is_over=lambda: True)
