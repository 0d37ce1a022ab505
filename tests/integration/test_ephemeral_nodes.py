"""Workers that end by themselves, one alone and all of a machine, and what they leave to others."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from services.fake_nvml import FakeDriver, compile_library
from services.place import LONG, Place, open_place
from services.process import Process
from services.redis import RedisServer
from services.site import ROOT
from services.waiting import wait_until

from jobqueue.lifecycle import State
from jobqueue.routing import request_queues
from workers.hardware.devices import Device

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
_UP = timedelta(seconds=120)


@pytest.fixture
def place(redis_server: RedisServer, tmp_path: Path) -> Iterator[Place]:
    url = redis_server.url
    with open_place(tmp_path, broker=url, registry=url, engine=None, lease="20s", grace="5s") as opened:
        opened.create(*request_queues(opened.site.settings.project))
        yield opened


def await_end(process: Process) -> int | None:
    wait_until(lambda: not process.running, what="its end", within=_UP)
    return process._child.returncode if process._child else None


def test_a_worker_of_an_idle_node_ends_with_0(place: Place) -> None:
    with place.make_worker(environment={"JOBQUEUE_EXIT_WHEN_IDLE": "2s"}) as worker:
        assert await_end(worker) == 0
        assert "idle for 2s" in worker.log.read_text()
    serving = place.client._connections.registry.workers.present()
    assert [worker for worker in serving if place.site.queue in worker.queues] == []


def make_machine(place: Place, folder: Path, *words: str) -> Process:
    """Return the server of a machine with one GPU, which is only said to be there, that is not started yet."""
    (folder / "driver").mkdir()
    driver = FakeDriver(compile_library(folder), folder / "driver")
    driver.show(Device(uuid="GPU-00000001-d72c-4106-c12f-20bd9faed9f6", index=0, memory_bytes=2**34))
    log = folder / "machine.log"
    return Process(
        name="the machine's server",
        command=[sys.executable, "-m", "celery", "-A", "jobqueue", "worker", "-l", "INFO", *words],
        log=log,
        ready=lambda: log.exists() and "node.serving" in log.read_text(errors="replace"),
        environment={**place.site.environment, **driver.environ, "PYTHONPATH": str(ROOT)},
    )


def has_ended_well(said: str) -> bool:
    """Tell whether each slot of such a machine has ended by itself, and the command with them."""
    ends = [f"slot.ended slot={slot} status=0" in said for slot in ("gpu0", "cpu")]
    return all(ends) and "node.ended" in said


def test_all_slots_of_a_machine_that_have_run_enough_end_and_with_them_the_command(
    place: Place, tmp_path: Path
) -> None:
    cpu, gpu = place.submit("true"), place.submit("true", gpus=1)
    with make_machine(place, tmp_path, "--max-experiments", "1") as machine:
        assert [each.result(timeout=90) for each in (cpu, gpu)] == [{"exit_code": 0}] * 2
        left = [place.submit("true"), place.submit("true", gpus=1)]
        assert await_end(machine) == 0
    said = machine.log.read_text()
    assert said.count("experiments run: 1") == 2, said
    assert has_ended_well(said), said
    assert [(each.state, each.attempt) for each in left] == [(State.QUEUED, 0)] * 2


def test_all_slots_of_an_idle_machine_end_and_with_them_the_command(place: Place, tmp_path: Path) -> None:
    cpu, gpu = place.submit("true"), place.submit("true", gpus=1)
    # Long enough for a slot to take its message on a machine that has much to do.
    with make_machine(place, tmp_path, "--exit-when-idle", "10s") as machine:
        assert [each.result(timeout=90) for each in (cpu, gpu)] == [{"exit_code": 0}] * 2
        assert await_end(machine) == 0
    said = machine.log.read_text()
    assert said.count("idle for 10s") == 2, said
    assert has_ended_well(said), said


@pytest.mark.parametrize("words", [["--exit-when-idle", "soon"], ["--max-experiments", "0.5"]])
def test_what_cannot_be_read_is_told_and_nothing_is_started(place: Place, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "jobqueue", "worker", "-n", f"wrong@{socket.gethostname()}", *words],
        env={**place.site.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LONG.total_seconds(),
        check=False,
    )
    assert done.returncode == 69
    assert f"error: {words[0]}: " in done.stderr
