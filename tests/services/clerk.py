"""A clerk of a store in this process, with the keys of all three roles in folders of their own."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jobqueue.artifacts import Artifact, attempt_prefix
from jobqueue.envelope import Opened, Verified, open_sealed, seal, verify
from jobqueue.header import Header
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.keys import KeyRing, Reader, Signer, make_pair, trust
from jobqueue.registry.base import Granted, Lease
from jobqueue.registry.memory import MemoryRegistry
from jobqueue.spec import parse_spec
from jobqueue.storage import Allowed, locate, show_permit
from jobqueue.storage.base import Store
from jobqueue.storage.granted import GrantedStore
from producers.clerk import Clerk
from producers.pace import Pace
from services.submissions import submission_of

TTL = timedelta(minutes=5)
SOON = timedelta(seconds=2)


@dataclass(frozen=True, kw_only=True)
class Started:
    """An experiment whose first attempt holds the lease, and the store as it may use it.

    Attributes:
        prefix: of the attempt.
    """

    message: Verified
    opened: Opened
    lease: Lease
    prefix: str
    store: GrantedStore


@dataclass(frozen=True, kw_only=True)
class Counter:
    """Where a clerk serves, and who asks it.

    Attributes:
        whole: the store itself, with its credentials.
        sender, node, clerk_keys: folders of keys; each trusts those that it needs, for one queue.
        passed: all that went to the clerk and came from it.
    """

    queue: str
    whole: Store
    registry: MemoryRegistry
    sender: KeyRing
    node: KeyRing
    clerk_keys: KeyRing
    clerk: Clerk
    passed: list[bytes] = field(default_factory=list)

    def ask(self, question: bytes, *, within: timedelta) -> bytes:
        """Put a question to the clerk, as the registry would carry it."""
        del within
        answer = self.clerk.answer(question)
        self.passed.extend([question, answer])
        return answer

    def open_store(
        self, keys: KeyRing | None = None, *, ask: Callable[..., bytes | None] | None = None
    ) -> GrantedStore:
        """Return what a node opens for `granted:`."""
        return GrantedStore(ask or self.ask, keys or self.node, within=SOON)

    def submit(
        self, inputs: Mapping[str, str] | None = None, *, sender: KeyRing | None = None, queue: str = ""
    ) -> Verified:
        """Submit an experiment that reads these addresses; return its message as a worker knows it."""
        artifacts = {name: Artifact(uri=uri) for name, uri in (inputs or {}).items()}
        spec = parse_spec({"image": "any:1", "command": ["true"], "disk": "1MiB", "inputs": artifacts})
        now = datetime.now(UTC)
        header = Header(
            experiment_id=make_experiment_id(),
            queue=queue or self.queue,
            project=spec.project,
            resources=spec.resources,
            submitted_at=now,
            expires_at=now + timedelta(hours=1),
        )
        sealed = seal(spec, header, keys=sender or self.sender)
        self.registry.experiments.register(submission_of(header, message=sealed))
        return verify(sealed, keys=self.node, queue=header.queue, now=now)

    def acquire(self, message: Verified) -> Lease:
        """Take the lease of an experiment for a worker."""
        answer = self.registry.leases.acquire(
            submission_of(message.header), worker_id=WorkerId("cpu"), node_id=NodeId("n"), ttl=TTL, platform_budget=5
        )
        assert isinstance(answer, Granted), answer
        return answer.lease

    def start(self, **inputs: str) -> Started:
        """Submit an experiment and begin with its first attempt."""
        return self.begin(self.submit(inputs))

    def begin(self, message: Verified) -> Started:
        """Begin with an attempt."""
        lease, opened = self.acquire(message), open_sealed(message, keys=self.node)
        header = message.header
        store = self.open_store().scoped(
            queue=header.queue, experiment_id=header.experiment_id, envelope=message.message
        )
        show_permit(store, opened.permit, attempt=lease.attempt, token=lease.token)
        prefix = attempt_prefix(lease.experiment_id, lease.attempt, lease.token)
        return Started(message=message, opened=opened, lease=lease, prefix=prefix, store=store)


def open_counter(folder: Path, whole: Store, *, endpoint: str = "", pace: Pace | None = None) -> Counter:
    """Make the keys of a sender, a node and a clerk, and let the clerk serve `whole`."""
    queue = f"q{uuid.uuid4().hex[:10]}_cpu"
    sender, node, clerk = (KeyRing(folder / name) for name in ("sender", "node", "clerk"))
    node_lines = [make_pair(node.folder, Reader.NODE).line, make_pair(node.folder, Signer.NODE).line]
    sender_line, clerk_line = make_pair(sender.folder, Signer.SENDER).line, make_pair(clerk.folder, Signer.CLERK).line
    introduce(sender, node_lines, queue=queue)
    introduce(node, [sender_line, clerk_line], queue=queue)
    introduce(clerk, [*node_lines, sender_line], queue=queue)
    registry = MemoryRegistry()

    def find(uri: str) -> tuple[Any, str]:
        return locate(uri, default=whole, allowed=Allowed(endpoint=endpoint, buckets=("shared-*",)))

    serving = Clerk(whole, locate=find, registry=registry, keys=clerk, name="clerk:1", pace=pace)
    return Counter(
        queue=queue, whole=whole, registry=registry, sender=sender, node=node, clerk_keys=clerk, clerk=serving
    )


def introduce(keys: KeyRing, lines: list[str], *, queue: str) -> None:
    """Have a folder trust some keys for one queue."""
    for line in lines:
        trust(keys.folder, line, queue_prefix=queue)
