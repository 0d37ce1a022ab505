"""A place to run experiments in: a site, and what its workers start containers with."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.codec import decode_report
from jobqueue.registry.base import Record
from jobqueue.report import Report
from jobqueue.routing import reporting_queue
from producers.client import Client
from producers.handle import Experiment
from services.broker_client import patiently
from services.engine import Engine
from services.images import BUSYBOX
from services.process import Process
from services.site import Site, open_site
from services.waiting import wait_until

LONG = timedelta(seconds=90)
DENIED = "denied/image:1"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One broker, one registry, one kind of runtime, and a queue that nobody else uses."""

    site: Site
    engine: Engine | None

    @property
    def client(self) -> Client:
        """Whoever submits."""
        return self.site.client

    def submit(self, *command: str, **fields: Any) -> Experiment:
        """Submit a small experiment: words, or one line for a shell."""
        words = ["sh", "-c", *command] if len(command) == 1 else list(command)
        small = {"image": BUSYBOX, "command": words, "memory": "128MiB", "disk": "1GiB", **fields}
        return self.client.submit(**small)

    def record_of(self, experiment: Experiment) -> Record:
        """Return what the registry knows of an experiment."""
        return self.client._connections.registry.experiments.get(experiment.id)

    def make_worker(
        self,
        name: str = "cpu",
        *,
        environment: Mapping[str, str] | None = None,
        app: str = "jobqueue",
        is_copy: bool = True,
    ) -> Process:
        """Return a worker of this place that is not started yet."""
        host = {"DOCKER_HOST": self.engine.url} if self.engine else {}
        return self.site.make_worker(name, environment={**host, **(environment or {})}, app=app, is_copy=is_copy)

    def open_broker(self) -> closing[Broker]:
        """Open the broker, for `with`."""
        return closing(open_broker(self.site.settings.broker, lease=self.site.settings.lease))

    def create(self, *queues: str, is_reported: bool = False) -> None:
        """Create request queues, with a reporting queue for each where somebody is to hear of them."""
        with self.open_broker() as broker:
            for queue in queues:
                patiently(partial(broker.queues.create, queue))
                if is_reported:
                    patiently(partial(broker.queues.create_plain, reporting_queue(queue)))

    def depth(self, ending: str = "") -> int:
        """Return how much lies in the request queue, or in a companion of it."""
        with self.open_broker() as broker:
            return patiently(lambda: broker.queues.depth(self.site.queue + ending)).ready

    def take_reports(self, experiment: Experiment) -> list[Report]:
        """Wait for the final report of an experiment, and return all of its reports."""
        reports: list[Report] = []
        with self.open_broker() as broker:

            def is_final() -> bool:
                mail = broker.post.receive(reporting_queue(self.site.queue), timeout=timedelta(seconds=1))
                if mail:
                    broker.post.acknowledge(mail)
                    report = decode_report(mail.body)
                    reports.extend([report] if report.experiment_id == experiment.id else [])
                return bool(reports) and reports[-1].state is not None and reports[-1].state.is_final

            wait_until(is_final, what="the final report", within=LONG)
        return reports


# Opens a place at a broker, by name, with a runtime and further settings.
OpenAt = Callable[..., AbstractContextManager[Place]]


@contextmanager
def open_place(folder: Path, *, broker: str, registry: str, engine: Engine | None, **settings: str) -> Iterator[Place]:
    """Open a place over running servers, with its request queue; without an engine, containers are processes."""
    runtime = "docker" if engine else "process"
    with open_site(
        folder, broker=broker, registry=registry, runtime=runtime, images="jobqueue-test/*,127.0.0.1:*/*", **settings
    ) as site:
        place = Place(site=site, engine=engine)
        place.create(site.queue)
        yield place


def with_settings(**settings: str) -> pytest.MarkDecorator:
    """Give the place of a test further settings."""
    return pytest.mark.parametrize("settings", [settings], ids=[""])


def sleepers(seconds: str) -> list[int]:
    """Return the processes of this machine that run `sleep` for exactly so long, in containers too, frozen or not."""
    words, found = f"sleep\0{seconds}\0".encode(), []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdecimal() and (process / "cmdline").read_bytes() == words:
                found.append(int(process.name))
    return found


def number() -> str:
    """Return a time to sleep for that no other process of this machine sleeps for."""
    return f"{1000 + secrets.randbelow(9000)}.{secrets.randbelow(10**9):09d}"


def wait_for_sleep(seconds: str) -> int:
    """Wait until something sleeps for so long, and return its process id."""
    return wait_until(lambda: sleepers(seconds), what="it sleeping", within=LONG)[0]
