"""A node whose servers are all in this process: registry, store, broker and engine that a test leads by hand."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any, cast

from jobqueue.artifacts import result_key
from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker, Mail
from jobqueue.envelope import Verified, seal, verify
from jobqueue.header import Header
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.keys import KeyRing, ensure_laptop_keys
from jobqueue.marker import Marker, marker_from_json
from jobqueue.registry.base import Record, Submission
from jobqueue.registry.memory import MemoryRegistry
from jobqueue.report import Report
from jobqueue.resources import Offer
from jobqueue.routing import reporting_queue
from jobqueue.sealed_report import open_report
from jobqueue.spec import parse_spec
from jobqueue.storage import open_store
from jobqueue.storage.base import Store
from services.submissions import submission_of
from services.waiting import wait_until
from workers.attempt.health import NodeHealth
from workers.attempt.input_cache import InputCache
from workers.attempt.reporting import Outbox
from workers.attempt.runtimes.fake import FakeContainer, FakeRuntime
from workers.attempt.site import Policy, Site
from workers.attempt.supervise import Attempt, Ended, PutOff

LEASE = timedelta(milliseconds=600)


@dataclass(kw_only=True)
class Clock:
    """The registry's clock; it runs, and a test may push it on."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class BreakableStore:
    """A store of which a test chooses the calls that fail.

    Attributes:
        fault: called with the method and the key before each call; raises what the call is to raise.
        calls: every method and key, oldest first.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fault: Callable[[str, str], object] = lambda _method, _key: None
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, method: str) -> Any:
        def call(key: str, *arguments: Any, **options: Any) -> Any:
            self.calls.append((method, key))
            self.fault(method, key)
            return getattr(self._store, method)(key, *arguments, **options)

        return call


@dataclass(kw_only=True)
class Running:
    """An attempt on a thread of its own."""

    attempt: Attempt
    thread: Thread
    results: list[Ended | PutOff | BaseException] = field(default_factory=list)

    def join(self) -> Ended | PutOff:
        """Return what became of it."""
        self.thread.join(timeout=20)
        assert self.results, "the attempt goes on"
        (result,) = self.results
        if isinstance(result, BaseException):
            raise result
        return result


@dataclass(kw_only=True)
class FakeNode:
    """One node and what it stands on; the queue exists, and so does its reporting queue."""

    clock: Clock
    registry: MemoryRegistry
    store: BreakableStore
    runtime: FakeRuntime
    broker: Broker
    site: Site
    queue: str

    def message(self, *, expires_at: datetime | None = None, keys: KeyRing | None = None, **fields: Any) -> Verified:
        """Return a verified message of a new experiment, as the consumer hands it on."""
        sealed, _header = self.seal(expires_at=expires_at, keys=keys, **fields)
        return self.verify(sealed)

    def verify(self, sealed: bytes) -> Verified:
        """Return a message as the consumer does."""
        return verify(sealed, keys=self.site.keys, queue=self.queue, now=datetime.now(UTC))

    def seal(self, *, expires_at: datetime | None = None, keys: KeyRing | None = None, **fields: Any) -> Any:
        """Return the sealed bytes of a new experiment and their header."""
        spec = parse_spec({"image": "any:1", "command": ["true"], "disk": "1MiB", **fields})
        now = datetime.now(UTC)
        header = Header(
            experiment_id=make_experiment_id(),
            queue=self.queue,
            project=spec.project,
            resources=spec.resources,
            submitted_at=now,
            expires_at=expires_at or now + timedelta(hours=1),
        )
        return seal(spec, header, keys=keys or self.site.keys), header

    def register(self, message: Verified) -> Submission:
        """Let the registry know of an experiment, as its producer does."""
        submission = submission_of(message.header, message=message.message)
        self.registry.experiments.register(submission)
        return submission

    def run(self, message: Verified) -> Ended | PutOff:
        """Run one delivery to its end."""
        return Attempt(self.site, message).run()

    def start(self, message: Verified) -> Running:
        """Run one delivery on a thread."""
        attempt = Attempt(self.site, message)

        def run() -> None:
            try:
                running.results.append(attempt.run())
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                running.results.append(error)

        running = Running(attempt=attempt, thread=Thread(target=run, daemon=True))
        running.thread.start()
        return running

    def container(self, number: int = 1) -> FakeContainer:
        """Wait for the container of that number, and for somebody to watch it."""
        wait_until(lambda: len(self.runtime.containers) >= number, what=f"container {number}")
        container = self.runtime.containers[number - 1]
        wait_until(lambda: "wait" in container.calls, what="somebody who watches it")
        return container

    def record(self, message: Verified) -> Record:
        """Return what the registry knows."""
        return self.registry.experiments.get(message.header.experiment_id)

    def marker(self, message: Verified) -> Marker | None:
        """Return the result marker."""
        key = result_key(message.header.experiment_id)
        found = open_store(f"memory://{self.queue}")
        return marker_from_json(b"".join(found.get(key))) if found.size(key) is not None else None

    def stored(self, prefix: str = "") -> dict[str, bytes]:
        """Return every object of the store below a prefix."""
        found = open_store(f"memory://{self.queue}")
        return {each.key: b"".join(found.get(each.key)) for each in found.list(prefix)}

    def output(self, message: Verified, stream: str = "stdout") -> bytes:
        """Return all that the attempts printed, as it is stored."""
        prefix = f"experiments/{message.header.experiment_id}/attempts/"
        return b"".join(data for key, data in sorted(self.stored(prefix).items()) if f"/logs/{stream}/" in key)

    def mails(self) -> list[Mail]:
        """Return all that was sent to the reporting queue since the last call."""
        assert self.site.outbox.flush(timedelta(seconds=5))
        found = []
        while mail := self.broker.post.receive(reporting_queue(self.queue), timeout=timedelta(0)):
            self.broker.post.acknowledge(mail)
            found.append(mail)
        return found

    def reports(self) -> list[Report]:
        """Return all that was reported since the last call, as who shares the node's keys reads it."""
        return [
            open_report(mail.body, content_type=mail.content_type, queue=self.queue, keys=self.site.keys)
            for mail in self.mails()
        ]


@contextmanager
def open_fake_node(folder: Path) -> Iterator[FakeNode]:
    """Open one; at its end nothing may be left on its engine or in its folder."""
    queue = f"q{uuid.uuid4().hex[:10]}_cpu"
    ensure_laptop_keys(folder / "keys")
    broker = open_broker("memory://", lease=LEASE)
    broker.queues.create(queue)
    broker.queues.create_plain(reporting_queue(queue))
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    store, runtime = BreakableStore(open_store(f"memory://{queue}")), FakeRuntime()
    keys = KeyRing(folder / "keys")
    outbox = Outbox(broker.post, folder / "reports", keys=keys)
    site = Site(
        worker_id=WorkerId("cpu@host"),
        node_id=NodeId("host"),
        registry=registry,
        deliveries=broker.deliveries,
        store=cast("Store", store),
        runtime=runtime,
        health=NodeHealth(runtime, folder, floor_bytes=0),
        keys=keys,
        outbox=outbox,
        offer=Offer(cpus=4, memory_bytes=8 * 2**30, disk_bytes=2**40),
        policy=Policy(
            images=("*",),
            networks=("none",),
            max_timeout=timedelta(days=1),
            log_limit_bytes=2**20,
            platform_budget=3,
        ),
        lease=LEASE,
        grace=timedelta(seconds=1),
        folder=folder / "node",
        inputs=InputCache(folder=folder / "node", size_bytes=2**30),
        leases=folder / "node" / "leases",
    )
    yield FakeNode(clock=clock, registry=registry, store=store, runtime=runtime, broker=broker, site=site, queue=queue)
    outbox.close(timedelta(seconds=1))
    broker.queues.delete(reporting_queue(queue))
    broker.queues.delete(queue)
    broker.close()
    left = [container for container in runtime.containers if not container.is_removed]
    assert not left, "a container is left on the engine"
    assert not list((folder / "node" / "attempts").glob("*")), "a folder is left on the node"
    assert not list((folder / "node" / "leases").glob("*")), "a lease file is left on the node"
