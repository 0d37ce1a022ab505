"""A client and a command line whose servers are all in this process, and a worker that is led by hand."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from services.hand_worker import HandWorker

from jobqueue.config import Settings
from jobqueue.keys import ensure_laptop_keys
from jobqueue.registry import open_registry
from producers.client import Client
from producers.handle import Experiment
from producers.preparation import JobqueueWarning

SPEC = {"image": "python:3.12-slim", "command": ["python", "train.py"]}


@pytest.fixture(autouse=True)
def _nobody_is_there() -> None:
    """Forget the workers of earlier tests: the registry in memory is one for the process."""
    workers = open_registry("memory://").workers
    for worker in workers.present():
        workers.leave(worker.worker_id)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A project of its own for the command line: servers in memory, and the test's folder to be in and for state."""
    name = f"p{uuid4().hex}"
    for variable, value in {
        "BROKER_URL": "memory://",
        "STORAGE_URL": f"memory://{name}",
        "STATE_DIR": str(tmp_path),
        "PROJECT": name,
    }.items():
        monkeypatch.setenv(f"JOBQUEUE_{variable}", value)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def laptop_keys(project: str, tmp_path: Path) -> None:
    """The keys of who submits at the command line."""
    ensure_laptop_keys(tmp_path / "keys")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """A client of a project of its own."""
    settings = Settings(
        broker_url="memory://",
        registry_url="memory://",
        storage_url=f"memory://{tmp_path}",
        state_dir=tmp_path / "state",
        project=f"p{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}",
    )
    with Client(settings) as opened:
        yield opened


@pytest.fixture
def take(client: Client) -> Callable[[Experiment], HandWorker]:
    """Takes an experiment as a worker would."""
    servers = client._connections
    return lambda exp: HandWorker(exp.id, registry=servers.registry, store=servers.store)


@pytest.fixture
def exp(client: Client) -> Experiment:
    """A submitted experiment."""
    with pytest.warns(JobqueueWarning):
        return client.submit(**SPEC, name="mine")


@pytest.fixture
def worker(exp: Experiment, take: Callable[[Experiment], HandWorker]) -> HandWorker:
    """A worker that holds the lease of `exp`."""
    return take(exp)
