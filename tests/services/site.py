"""A whole site for one test: settings of its own over shared servers, and real worker processes."""

import json
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jobqueue.config import Settings
from jobqueue.keys import ensure_laptop_keys
from producers.client import Client
from services.process import Process
from workers.attempt.runtimes.base import Labels
from workers.attempt.runtimes.process_container import ProcessContainer

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Servers, keys and a project of its own.

    Attributes:
        settings: what a producer and a worker of this site share.
        environment: the same as variables, for a process.
        folder: of the test.
    """

    settings: Settings
    environment: Mapping[str, str]
    folder: Path
    client: Client = field(repr=False)

    @property
    def queue(self) -> str:
        """The request queue for CPU work."""
        return f"{self.settings.project}_cpu"

    def make_worker(
        self,
        name: str = "cpu",
        *,
        environment: Mapping[str, str] | None = None,
        app: str = "jobqueue",
        is_copy: bool = True,
    ) -> Process:
        """Return a worker of an application that is not started yet; its node name is unique to the site.

        One whose process shows its own command and environment is no copy (`fork_server`).
        """
        log = self.folder / f"{name}.log"
        worker = f"{name}.{self.settings.project}@test"
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO", "-n", worker]
        return Process(
            name=f"worker {name}",
            command=command,
            log=log,
            ready=lambda: log.exists() and "worker.ready" in log.read_text(errors="replace"),
            environment={**self.environment, "PYTHONPATH": str(ROOT), **(environment or {})},
            is_copy=is_copy,
        )


@contextmanager
def open_site(folder: Path, *, broker: str, registry: str, **settings: str) -> Iterator[Site]:
    """Open a site over running servers; `settings` are further ones, by name, as text."""
    project = f"t{uuid.uuid4().hex[:10]}"
    values = {
        "broker_url": broker,
        "registry_url": registry,
        "project": project,
        "state_dir": str(folder / "state"),
        "cache_dir": str(folder / "cache"),
        "lease": "6s",
        "grace": "2s",
        **settings,
    }
    environment = {f"JOBQUEUE_{name.upper()}": value for name, value in values.items()}
    shared = Settings(**values)
    ensure_laptop_keys(shared.keys_dir)
    client = Client(shared)
    try:
        yield Site(settings=shared, environment=environment, folder=folder, client=client)
    finally:
        client.close()
        _remove_process_containers(folder)


def _remove_process_containers(folder: Path) -> None:
    """Remove what killed workers have left: it would wait for them to come back."""
    for labels in folder.glob("*/process/*/labels.json"):
        ProcessContainer(Labels(**json.loads(labels.read_text())), labels.parent).remove()
