"""Handing a checked draft over: the servers are asked, files uploaded, the spec sealed, registered, and published last.

Nothing is half submitted: while a server is away nothing is uploaded, and what the broker has not confirmed is
withdrawn.
"""

import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from jobqueue.envelope import seal
from jobqueue.errors import InvalidSpec, JobqueueError, NoSuchQueue, Unavailable
from jobqueue.header import Header
from jobqueue.ids import make_experiment_id
from jobqueue.publishing import Publisher
from jobqueue.registry.base import Submission
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Resources
from jobqueue.routing import choose_queue, request_queues
from jobqueue.spec import ExperimentSpec
from producers.causes import find_obstacles, judge_clock
from producers.connections import Connections
from producers.preparation import Draft, JobqueueWarning, Packed, placed, upload

log = logging.getLogger(__name__)

# How long an answer about queues and workers is believed.
_BELIEVED: Final = timedelta(seconds=10)
_ABSENCE_BELIEVED: Final = timedelta(seconds=1)
_OWN_PACKAGES: Final = ("producers", "jobqueue")


class Sender:
    """Sends drafts over the connections of one client. Safe in threads."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._publisher = Publisher(broker=lambda: connections.broker, app=lambda: connections.app)
        self._seen_queues: dict[str, float] = {}
        self._workers: Sequence[WorkerRecord] = ()
        self._workers_at = float("-inf")
        self._clock_fault = ""

    def send(self, *drafts: Draft, packed: Packed) -> list[Submission]:
        """Submit drafts; with an idempotency key that was used before, return a submission with the older id.

        Raises:
            BrokerUnavailable, RegistryUnavailable, StoreUnavailable: nothing was submitted.
            NoSuchQueue: the queue that a draft names does not exist.
            IdempotencyMismatch: a key was used for another spec.
            InvalidSpec: a file cannot be packed, or the whole is too large.
        """
        try:
            return self._send(drafts, packed)
        except Unavailable:
            self._seen_queues.clear()
            raise

    def close(self) -> None:
        """Close the connections to the broker."""
        self._publisher.close()

    def _send(self, drafts: Sequence[Draft], packed: Packed) -> list[Submission]:
        sealed = [self._prepare(draft, packed) for draft in drafts]
        ids = self._connections.registry.experiments.register(*sealed)
        new = [submission for submission, known in zip(sealed, ids, strict=True) if submission.id == known]
        if new:
            self._publish(new, projects={draft.spec.project for draft in drafts if draft.spec.queue is None})
        return [
            submission if submission.id == known else replace(submission, id=known)
            for submission, known in zip(sealed, ids, strict=True)
        ]

    def _prepare(self, draft: Draft, packed: Packed) -> Submission:
        queue = choose_queue(draft.spec)
        self._check_servers(draft, queue)
        try:
            spec, notes = upload(draft, store=self._connections.store, packed=packed)
            submission = self._seal(spec, queue)
        except InvalidSpec as error:
            raise placed(error, draft.place) from None
        obstacles = self._find_obstacles(queue, spec.resources)
        _warn(filter(None, [*notes, *obstacles, self._clock_fault]))
        return submission

    def _check_servers(self, draft: Draft, queue: str) -> None:
        """Ask the broker and the registry before anything is uploaded, and see to it that the queue exists."""
        seen_at = self._seen_queues.get(queue)
        if seen_at is not None and not draft.has_uploads and _is_recent(seen_at):
            return
        exists = self._connections.broker.queues.exists(queue)
        self._clock_fault = judge_clock(datetime.now(UTC) - self._connections.registry.ping())
        if not exists:
            if draft.spec.queue is not None:
                raise NoSuchQueue(f"there is no queue {queue!r}")
            self._make_queues(draft.spec.project)
        self._seen_queues[queue] = time.monotonic()

    def _make_queues(self, project: str) -> None:
        queues = self._connections.broker.queues
        for name in request_queues(project):
            if not queues.exists(name):
                queues.create(name)
                log.info("queue.created queue=%s", name)

    def _seal(self, spec: ExperimentSpec, queue: str) -> Submission:
        now = datetime.now(UTC)
        header = Header(
            experiment_id=make_experiment_id(),
            queue=queue,
            project=spec.project,
            resources=spec.resources,
            submitted_at=now,
            expires_at=now + spec.expires,
        )
        message = seal(spec, header, keys=self._connections.keys)
        return Submission(
            id=header.experiment_id,
            queue=queue,
            project=spec.project,
            resources=spec.resources,
            submitted_at=header.submitted_at,
            expires_at=header.expires_at,
            name=spec.name or "",
            labels=dict(spec.labels),
            idempotency_key=spec.idempotency_key or "",
            spec_digest=digest_spec(spec),
            message=message,
        )

    def _publish(self, submissions: Sequence[Submission], *, projects: Collection[str]) -> None:
        """Publish them; where a queue of one of `projects` has gone meanwhile, make it again."""
        try:
            try:
                self._publisher.publish(submissions)
            except NoSuchQueue:
                self._seen_queues.clear()
                if not projects:
                    raise
                for project in projects:
                    self._make_queues(project)
                self._publisher.publish(submissions)
        except BaseException as error:  # also Ctrl-C: who has no handle must not have an experiment
            self._withdraw(submissions, error)
            raise
        log.debug("experiment.submitted experiments=%s", ",".join(submission.id for submission in submissions))

    def _withdraw(self, submissions: Sequence[Submission], error: BaseException) -> None:
        for submission in submissions:
            try:
                self._connections.registry.experiments.withdraw(submission.id)
            except JobqueueError as failure:
                log.warning("experiment.not_withdrawn experiment=%s error=%s", submission.id, failure.message)
                told = f"the registry could not be told either: {submission.id} may still be started by the sweep"
                error.add_note(told)

    def _find_obstacles(self, queue: str, resources: Resources) -> list[str]:
        obstacles = find_obstacles(queue, resources, self._workers)
        if not _is_recent(self._workers_at, _ABSENCE_BELIEVED if obstacles else _BELIEVED):
            self._workers = self._connections.registry.workers.present()
            self._workers_at = time.monotonic()
            obstacles = find_obstacles(queue, resources, self._workers)
        return obstacles


def digest_spec(spec: ExperimentSpec) -> str:
    """Return the sha256 over a spec in hex: the same for the same experiment, whatever the order of its mappings.

    Of secrets only the names count, so that nobody can try values against it.
    """
    fields = spec.model_dump(mode="json", exclude={"idempotency_key", "secrets"})
    return hashlib.sha256(json.dumps([fields, sorted(spec.secrets)], sort_keys=True).encode()).hexdigest()


def _is_recent(at: float, believed: timedelta = _BELIEVED) -> bool:
    return time.monotonic() - at < believed.total_seconds()


def _warn(texts: Iterable[str]) -> None:
    """Warn where the user's own code has called."""
    level = 1
    while _is_ours(level):
        level += 1
    for text in texts:
        warnings.warn(text, JobqueueWarning, stacklevel=level)


def _is_ours(level: int) -> bool:
    try:
        name = str(sys._getframe(level).f_globals.get("__name__", ""))  # noqa: SLF001 - what warnings.warn itself uses
    except ValueError:
        return False
    return name.partition(".")[0] in _OWN_PACKAGES
