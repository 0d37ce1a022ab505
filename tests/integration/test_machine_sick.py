"""A GPU of a machine vanishes in mid-run: what its slot says, what others notice, and what a restart changes."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from services.fake_nvml import FakeDriver, compile_library
from services.place import Place, open_place, sleepers
from services.process import Process
from services.redis import RedisServer
from services.site import ROOT
from services.waiting import wait_until

from jobqueue.registry.presence import WorkerRecord
from jobqueue.routing import request_queues
from producers.handle import Experiment
from workers.hardware.devices import Device

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
DEVICE = Device(uuid="GPU-00000003-d72c-4106-c12f-20bd9faed9f6", index=0, name="X200", memory_bytes=2**34)
GPU_SLOT = f"gpu0@{socket.gethostname()}"
LONG = timedelta(seconds=90)


@pytest.fixture
def place(redis_server: RedisServer, tmp_path: Path) -> Iterator[Place]:
    url = redis_server.url
    with open_place(tmp_path, broker=url, registry=url, engine=None, lease="60s", grace="2s") as opened:
        opened.create(*request_queues(opened.site.settings.project))
        yield opened


@pytest.fixture
def driver(tmp_path: Path) -> FakeDriver:
    (tmp_path / "driver").mkdir()
    made = FakeDriver(compile_library(tmp_path), tmp_path / "driver")
    made.show(DEVICE)
    return made


@pytest.fixture
def machine(place: Place, driver: FakeDriver, tmp_path: Path) -> Iterator[Process]:
    log = tmp_path / "machine.log"
    with Process(
        name="the machine's server",
        command=[sys.executable, "-m", "celery", "-A", "jobqueue", "worker", "-l", "INFO"],
        log=log,
        ready=lambda: log.exists() and log.read_text(errors="replace").count("worker.ready") == 2,
        environment={**place.site.environment, **driver.environ, "PYTHONPATH": str(ROOT)},
    ) as started:
        yield started


def test_a_gpu_that_vanishes_in_mid_run_closes_its_slot_alone_and_a_restart_does_not_open_it(
    place: Place, driver: FakeDriver, machine: Process
) -> None:
    seconds = f"{1000 + secrets.randbelow(9000)}.{secrets.randbelow(10**9):09d}"
    running = place.submit(f"sleep {seconds}; true", gpus=1)
    sleeper = wait_until(lambda: sleepers(seconds), what="it sleeping", within=LONG)[0]
    check_what_is_told_of_those_that_cannot_start(place, running)
    driver.show()
    wait_until(lambda: told(place).condition == "UNHEALTHY(GPU_LOST)", what="the loss told", within=LONG)
    assert "is not there any more" in told(place).detail
    waiting = place.submit("true", gpus=1)
    assert f"{GPU_SLOT} is UNHEALTHY(GPU_LOST): " in waiting.why()
    assert place.submit("true").result(timeout=60) == {"exit_code": 0}

    driver.show(DEVICE)
    before = told(place).started_at
    os.kill(int(re.findall(r"slot\.started slot=gpu0 pid=(\d+)", machine.log.read_text())[-1]), signal.SIGKILL)
    wait_until(lambda: told(place).started_at != before, what="its slot again", within=LONG)
    assert told(place).condition == "UNHEALTHY(GPU_LOST)", "its quarantine goes on"
    wait_until(lambda: [each.name for each in told(place).gauges] == ["X200"], what="the device told of", within=LONG)
    os.kill(sleeper, signal.SIGTERM)
    assert running.result(timeout=60) == {"exit_code": 0}
    assert (running.attempt, waiting.attempt) == (1, 0)
    assert machine.log.read_text().count("slot.started slot=cpu") == 1


def check_what_is_told_of_those_that_cannot_start(place: Place, running: Experiment) -> None:
    causes = {
        f"{GPU_SLOT} runs {running.id}": {"gpus": 1},
        f"it asks for 16 GPUs, the best of them offers 1 ({GPU_SLOT})": {"gpus": 16},
        f"it asks for 80 GiB of GPU memory, the largest device has 16 GiB ({GPU_SLOT})": {
            "gpus": 1,
            "gpu_memory": "80GiB",
        },
        "it asks for 2 TiB of memory, the best of them offers ": {"memory": "2TiB"},
    }
    for cause, fields in causes.items():
        experiment = place.submit("true", **fields)
        # A worker may have it in hand for a moment, to find that out itself.
        await_cause(experiment, cause)
        experiment.cancel()


def test_another_node_of_the_same_machine_cannot_have_its_device(
    place: Place, driver: FakeDriver, machine: Process, tmp_path: Path
) -> None:
    del machine
    own = {"JOBQUEUE_STATE_DIR": str(tmp_path / "elsewhere" / "state"), "JOBQUEUE_SLOT": "gpu0"}
    locks = {"JOBQUEUE_DEVICE_LOCKS": str(place.site.settings.device_locks_dir)}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "jobqueue", "worker", "-n", "gpu0@other"],
        env={**place.site.environment, **driver.environ, "PYTHONPATH": str(ROOT), **own, **locks},
        capture_output=True,
        text=True,
        timeout=LONG.total_seconds(),
        check=False,
    )
    assert done.returncode == 69
    assert f"{DEVICE.uuid} is taken by {GPU_SLOT}" in done.stderr


def await_cause(experiment: Experiment, cause: str) -> None:
    wait_until(lambda: cause in experiment.why(), what=cause, within=LONG)


def told(place: Place) -> WorkerRecord:
    """Return what the slot with the device says of itself; a killed one still does, for a lease."""
    present = place.client._connections.registry.workers.present()
    (record,) = [worker for worker in present if worker.worker_id == GPU_SLOT]
    return record
