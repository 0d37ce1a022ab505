"""A machine with four GPUs that are only said to be there, and the one command that serves it."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from jobqueue.routing import request_queues
from producers.handle import Experiment
from services.fake_nvml import FakeDriver, compile_library
from services.place import LONG, Place, open_place, sleepers
from services.process import Process
from services.site import ROOT
from services.waiting import wait_until
from workers.hardware.devices import Device

UUIDS = tuple(f"GPU-0000000{number}-d72c-4106-c12f-20bd9faed9f6" for number in range(4))
SLOTS = ("gpu0", "gpu1", "gpu2", "gpu3", "cpu")
UP = timedelta(seconds=120)


@dataclass(kw_only=True)
class Machine:
    """A machine with GPUs, and the one command that serves it."""

    place: Place
    process: Process

    @property
    def log(self) -> str:
        """What its workers have said."""
        return self.process.log.read_text(errors="replace")

    def pid_of(self, slot: str) -> int:
        """Return the process of a slot's worker."""
        return int(re.findall(rf"slot\.started slot={slot} pid=(\d+)", self.log)[-1])

    def adoptions(self) -> str:
        """Return what was logged of containers that were gone on with."""
        return "\n".join(line for line in self.log.splitlines() if "attempt.adopted" in line)

    def celery(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command of Celery's on it."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "jobqueue", *words],
            env={**os.environ, **self.process._environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def sleep(self, **fields: object) -> tuple[Experiment, int, str]:
        """Submit what sleeps until it is told to end; return it, its process, and its slot."""
        seconds = f"{1000 + secrets.randbelow(9000)}.{secrets.randbelow(10**9):09d}"
        experiment = self.place.submit(f"sleep {seconds}; true", **fields)
        pid = wait_until(lambda: sleepers(seconds), what="it sleeping", within=LONG)[0]
        worker_id = self.place.record_of(experiment).worker_id
        assert worker_id
        return experiment, pid, worker_id.partition("@")[0]


@contextmanager
def open_machine(folder: Path, *, broker: str, registry: str, gpus: int = 4, **settings: str) -> Iterator[Machine]:
    """Open one with queues of its own, and with all of its workers there.

    `gpus` is how many of the devices it has, `settings` are further ones, as text.
    """
    (folder / "driver").mkdir()
    driver = FakeDriver(compile_library(folder), folder / "driver")
    driver.show(*(Device(uuid=uuid, index=index, memory_bytes=2**34) for index, uuid in enumerate(UUIDS[:gpus])))
    settings = {"lease": "30s", "grace": "10s", **settings}
    with open_place(folder, broker=broker, registry=registry, engine=None, **settings) as place:
        place.create(*request_queues(place.site.settings.project))
        log = folder / "node.log"
        process = Process(
            name="the machine's server",
            command=[sys.executable, "-m", "celery", "-A", "jobqueue", "worker", "-l", "INFO"],
            log=log,
            ready=lambda: log.exists() and "node.serving" in log.read_text(errors="replace"),
            environment={**place.site.environment, **driver.environ, "PYTHONPATH": str(ROOT)},
        )
        machine = Machine(place=place, process=process)
        with process:
            wait_until(lambda: machine.log.count("worker.ready") == gpus + 1, what="all workers", within=UP)
            yield machine
