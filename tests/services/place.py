"""A place to run experiments in: a site, and what its workers start containers with."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.codec import decode_report
from jobqueue.report import Report
from jobqueue.routing import reporting_queue
from producers.client import Client
from producers.handle import Experiment
from services.engine import Engine
from services.images import BUSYBOX
from services.process import Process
from services.site import Site, open_site
from services.waiting import wait_until

LONG = timedelta(seconds=40)
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

    def make_worker(
        self, name: str = "cpu", *, environment: Mapping[str, str] | None = None, app: str = "jobqueue"
    ) -> Process:
        """Return a worker of this place that is not started yet."""
        host = {"DOCKER_HOST": self.engine.url} if self.engine else {}
        return self.site.make_worker(name, environment={**host, **(environment or {})}, app=app)

    def open_broker(self) -> closing[Broker]:
        """Open the broker, for `with`."""
        return closing(open_broker(self.site.settings.broker, lease=self.site.settings.lease))

    def depth(self, ending: str = "") -> int:
        """Return how much lies in the request queue, or in a companion of it."""
        with self.open_broker() as broker:
            return broker.queues.depth(self.site.queue + ending).ready

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


@contextmanager
def open_place(folder: Path, *, broker: str, registry: str, engine: Engine | None, **settings: str) -> Iterator[Place]:
    """Open a place over running servers; without an engine, containers are processes."""
    runtime = "docker" if engine else "process"
    with open_site(
        folder, broker=broker, registry=registry, runtime=runtime, images="jobqueue-test/*,127.0.0.1:*", **settings
    ) as site:
        yield Place(site=site, engine=engine)


def sleepers(seconds: str) -> list[int]:
    """Return the processes of this machine that run `sleep` for exactly so long, in containers too, frozen or not."""
    known = psutil.process_iter(["cmdline"])
    return [process.pid for process in known if process.info["cmdline"] == ["sleep", seconds]]
