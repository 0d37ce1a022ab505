"""A worker that does by hand what a node does for one experiment: a lease, log lines, outputs, an end."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from jobqueue.artifacts import Manifest, OutputFile, attempt_prefix, log_key, manifest_key, output_key, result_key
from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.marker import Marker, marker_to_json
from jobqueue.registry.base import Granted, Lease, Registry
from jobqueue.storage.base import Store
from jobqueue.storage.manifests import save_manifest

TTL: Final = timedelta(seconds=60)


class HandWorker:
    """Holds the lease of one experiment and plays its attempt."""

    def __init__(self, experiment_id: ExperimentId, *, registry: Registry, store: Store) -> None:
        self.id = experiment_id
        self.registry = registry
        self.store = store
        self.lease = self._acquire()
        self.prefix = attempt_prefix(self.id, self.lease.attempt, self.lease.token)

    def _acquire(self) -> Lease:
        submission = self.registry.experiments.get(self.id).submission
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

    def put_outputs(self, files: Mapping[str, bytes], *, left_out: tuple[str, ...] = ()) -> None:
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
            experiment_id=self.id,
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
        self.store.put_if_absent(result_key(self.id), marker_to_json(marker))

    def finish(self, reason: Reason = Reason.EXITED_ZERO, *, state: State | None = None, **fields: Any) -> None:
        """Commit the end, of which `fields` are what an outcome has beside its reason."""
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
