"""A client whose servers are all in this process, and a worker that does by hand what a node does."""

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobqueue.artifacts import Manifest, OutputFile, attempt_prefix, log_key, manifest_key, output_key, result_key
from jobqueue.config import Settings
from jobqueue.ids import NodeId, WorkerId
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.marker import Marker, marker_to_json
from jobqueue.registry import open_registry
from jobqueue.registry.base import Granted, Lease
from jobqueue.storage.manifests import save_manifest
from producers.client import Client
from producers.handle import Experiment
from producers.preparation import JobqueueWarning

SPEC = {"image": "python:3.12-slim", "command": ["python", "train.py"]}
TTL = timedelta(seconds=60)


class HandWorker:
    """Holds the lease of one experiment and plays its attempt."""

    def __init__(self, client: Client, exp: Experiment) -> None:
        self.registry = client._connections.registry
        self.store = client._connections.store
        self.exp = exp
        self.offsets = {"stdout": 0, "stderr": 0}
        self.lease = self._acquire()
        self.prefix = attempt_prefix(exp.id, self.lease.attempt, self.lease.token)

    def _acquire(self) -> Lease:
        submission = self.registry.experiments.get(self.exp.id).submission
        answer = self.registry.leases.acquire(
            submission, worker_id=WorkerId("cpu@host"), node_id=NodeId("host"), ttl=TTL, platform_budget=5
        )
        assert isinstance(answer, Granted), answer
        return answer.lease

    def run(self, progress: str | None = None) -> None:
        """Say that a container runs."""
        self.registry.leases.advance(self.lease, State.PREPARING)
        self.registry.leases.advance(self.lease, State.RUNNING, progress=progress)

    def store_log(self, offset: int, data: bytes, *, stream: str = "stdout") -> None:
        """Put one chunk."""
        self.store.put(log_key(self.prefix, stream, offset), data)

    def send_log(self, offset: int, data: bytes, *, stream: str = "stdout") -> None:
        """Send one live piece."""
        self.registry.live_logs.append(self.lease, stream, data, offset=offset)

    def put_outputs(self, files: dict[str, bytes], *, left_out: tuple[str, ...] = ()) -> None:
        """Store outputs and their manifest."""
        for path, content in files.items():
            self.store.put(output_key(self.prefix, path), content)
        listed = tuple(
            OutputFile(path=path, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for path, content in files.items()
        )
        save_manifest(self.store, self.prefix, manifest=Manifest(files=listed, left_out=left_out))

    def mark(self, outcome: Outcome, state: State) -> None:
        """Write the result marker."""
        marker = Marker(
            experiment_id=self.exp.id,
            attempt=self.lease.attempt,
            token=self.lease.token,
            state=state,
            reason=outcome.reason,
            detail=outcome.detail,
            exit_code=outcome.exit_code,
            last_lines=outcome.last_lines,
            manifest=manifest_key(self.prefix) if self.store.size(manifest_key(self.prefix)) else "",
            finished_at=datetime.now(UTC),
        )
        self.store.put_if_absent(result_key(self.exp.id), marker_to_json(marker))

    def finish(self, reason: Reason = Reason.EXITED_ZERO, *, state: State | None = None, **fields: Any) -> None:
        """Commit the end."""
        outcome = Outcome(reason=reason, **fields)
        final = state or reason.verdict.state
        assert final is not None
        self.mark(outcome, final)
        if final is not State.CANCELLED:
            self.registry.leases.advance(self.lease, State.FINALIZING)
        self.registry.leases.finish(self.lease, outcome, state=final)

    def give_back(self, reason: Reason) -> None:
        """End the attempt, so that another one may follow at once."""
        self.registry.leases.release(self.lease, Outcome(reason=reason), delay=timedelta(0))


@pytest.fixture(autouse=True)
def _nobody_is_there() -> None:
    """Forget the workers of earlier tests: the registry in memory is one for the process."""
    workers = open_registry("memory://").workers
    for worker in workers.present():
        workers.leave(worker.worker_id)


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
    return lambda exp: HandWorker(client, exp)


@pytest.fixture
def exp(client: Client) -> Experiment:
    """A submitted experiment."""
    with pytest.warns(JobqueueWarning):
        return client.submit(**SPEC, name="mine")


@pytest.fixture
def worker(exp: Experiment, take: Callable[[Experiment], HandWorker]) -> HandWorker:
    """A worker that holds the lease of `exp`."""
    return take(exp)
