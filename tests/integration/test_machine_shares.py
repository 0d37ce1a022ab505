"""Four GPUs, eight cores and some memory, which all experiments of a machine share."""

import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from services.machine import SLOTS, UP, UUIDS, Machine, open_machine
from services.rabbitmq import RabbitServer
from services.redis import open_redis
from services.waiting import wait_until

from jobqueue.lifecycle import State
from producers.handle import Experiment
from workers.attempt.lease_files import read_leases

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
CPUS, MEMORY_GIB = 8, 6
LONG = timedelta(seconds=100)
_TELL = "echo [$CUDA_VISIBLE_DEVICES] [$NVIDIA_VISIBLE_DEVICES] [$JOBQUEUE_GPUS] $OMP_NUM_THREADS; "
_TIME = "cut -d' ' -f1 /proc/uptime"


@dataclass(kw_only=True)
class Load:
    """What was submitted to a machine, with what each asks for."""

    machine: Machine
    asked: dict[Experiment, tuple[int, float, float]] = field(default_factory=dict)

    def submit(self, seconds: float, *, gpus: int = 0, cpus: float = 1, memory_gib: float = 0.125) -> Experiment:
        lasting = f"{_TELL}{_TIME}; sleep {seconds}; {_TIME}"
        memory = f"{int(memory_gib * 1024)}MiB"
        experiment = self.machine.place.submit(lasting, gpus=gpus, cpus=cpus, memory=memory)
        self.asked[experiment] = (gpus, cpus, memory_gib)
        return experiment

    def devices_of(self, experiment: Experiment) -> tuple[str, ...]:
        """Return what an experiment has now, as its node knows it."""
        folders = self.machine.place.site.settings.state_dir.glob("nodes/*/leases")
        kept = [each for folder in folders for each in read_leases(folder).values()]
        return next((each.entry.devices for each in kept if each.entry and each.experiment_id == experiment.id), ())

    def check(self) -> None:
        """Every one has what it asked for, for itself alone, and together they never have more than there is."""
        spans = []
        for experiment, (gpus, cpus, memory_gib) in self.asked.items():
            assert experiment.result(timeout=LONG.total_seconds()) == {"exit_code": 0}
            told, began, ended = experiment.logs()
            cuda, nvidia, ours, threads = told.split()
            granted = tuple(filter(None, ours.strip("[]").split(",")))
            assert (len(granted), set(granted) <= set(UUIDS), threads) == (gpus, True, str(max(1, int(cpus))))
            assert (cuda, nvidia) == ((ours, ours) if gpus else ("[-1]", "[void]"))
            spans.append((float(began), float(ended), granted, cpus, memory_gib))
        for at, *_ in spans:
            now = [span for span in spans if span[0] <= at < span[1]]
            devices = list(itertools.chain.from_iterable(span[2] for span in now))
            assert len(devices) == len(set(devices)), "two experiments share a device"
            assert sum(span[3] for span in now) <= CPUS
            assert sum(span[3] for span in now if not span[2]) <= CPUS - len(UUIDS)
            assert sum(span[4] for span in now) <= MEMORY_GIB


@pytest.fixture(scope="module")
def machine(rabbitmq_server: RabbitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    limits = {"cpus": str(CPUS), "memory": f"{MEMORY_GIB}GiB"}
    # `celery status` asks all workers of a server's events: one of its own.
    with (
        open_redis(folder / "redis") as registry,
        open_machine(folder, broker=rabbitmq_server.url, registry=registry.url, **limits) as opened,
    ):
        yield opened


def test_forty_experiments_share_a_machine_and_no_two_a_device(machine: Machine) -> None:
    """Of one, two and four devices and of none, with memory and cores that do not all fit at once."""
    load = Load(machine=machine)
    for number in range(5):
        load.submit(0.2, gpus=1)
        load.submit(0.2, cpus=1 + number % 4)
        load.submit(0.2, gpus=1, cpus=2, memory_gib=1.5)
        load.submit(0.2, memory_gib=2.5)
        load.submit(0.2, gpus=2 if number % 2 else 4)
        load.submit(0.2, gpus=1)
        load.submit(0.2, cpus=0.5)
        load.submit(0.2, gpus=1, cpus=1.5)
    assert len(load.asked) == 40
    load.check()
    records = machine.place.client._connections.registry.workers.present()
    assert {record.slot: len(record.offer.gpu_memory_bytes) for record in records} == {
        slot: 0 if slot == "cpu" else len(UUIDS) for slot in SLOTS
    }


def test_four_devices_are_had_at_once_among_an_endless_stream_of_work_for_one(machine: Machine) -> None:
    load = Load(machine=machine)
    states = machine.place.client._connections.registry.experiments.states
    waiting = 2 * len(UUIDS)

    def keep_streaming() -> None:
        found = states([experiment.id for experiment in load.asked])
        for _ in range(waiting - sum(state is State.QUEUED for state in found.values())):
            load.submit(0.3, gpus=1)

    keep_streaming()
    wait_until(lambda: any(each.state is not State.QUEUED for each in load.asked), what="the stream", within=LONG)
    large = load.submit(0.3, gpus=4)

    def has_started() -> bool:
        keep_streaming()
        return large.state in (State.RUNNING, State.FINALIZING, State.SUCCEEDED)

    wait_until(has_started, what="all devices at once", within=LONG)
    assert sum(state is State.QUEUED for state in states([experiment.id for experiment in load.asked]).values()) > 0
    load.check()
    assert large.attempt == 1


def test_what_a_killed_slot_has_is_given_to_nobody_and_goes_on(machine: Machine) -> None:
    load = Load(machine=machine)
    experiment, sleeper, slot = machine.sleep(gpus=2)
    held = load.devices_of(experiment)
    assert len(held) == 2
    os.kill(machine.pid_of(slot), signal.SIGKILL)
    others = [load.submit(0.1, gpus=1) for _ in range(4)]
    for other in others:
        assert other.result(timeout=LONG.total_seconds()) == {"exit_code": 0}
        assert not set(held) & set(UUIDS).intersection(next(iter(other.logs())).split()[2].strip("[]").split(","))
    wait_until(lambda: f"experiment={experiment.id}" in machine.adoptions(), what="the adoption", within=UP)
    assert load.devices_of(experiment) == held
    large = load.submit(0.1, gpus=4)
    wait_until(lambda: "waits_for=4 GPUs" in large.why(), what="it waiting", within=LONG)
    os.kill(sleeper, signal.SIGTERM)
    assert experiment.result(timeout=LONG.total_seconds()) == {"exit_code": 0}
    assert experiment.attempt == 1
    load.check()


def test_what_never_fits_occupies_nobody_and_says_why(machine: Machine) -> None:
    load = Load(machine=machine)
    huge = [machine.place.submit("true", gpus=16), machine.place.submit("true", memory="2TiB")]
    for experiment, told in zip(
        huge, ("asks for 16 GPUs, 4 are there", "asks for 2 TiB of memory, 6 GiB"), strict=True
    ):
        wait_until(lambda told=told, experiment=experiment: told in experiment.why(), what=told, within=LONG)  # type: ignore[misc]
    for gpus in (0, 1, 4):
        load.submit(0.1, gpus=gpus)
    load.check()
    for experiment in huge:
        experiment.cancel()
    wait_until(lambda: {each.state for each in huge} == {State.CANCELLED}, what="their end", within=LONG)
