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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from jobqueue.envelope import seal
from jobqueue.errors import InvalidSpec, JobqueueError, NoSuchQueue, Unavailable
from jobqueue.header import Header
from jobqueue.ids import ExperimentId, make_experiment_id
from jobqueue.lifecycle import State
from jobqueue.printable import plain_lines
from jobqueue.priority import FAST, NORMAL, judge_priority
from jobqueue.publishing import Publisher
from jobqueue.registry.base import Submission
from jobqueue.registry.pauses import Pause
from jobqueue.registry.presence import WorkerRecord
from jobqueue.routing import choose_queue, first_queue, request_queues
from jobqueue.spec import ExperimentSpec
from producers.causes import find_obstacles, find_refusal, judge_clock, tell_pause
from producers.connections import Connections
from producers.preparation import Draft, JobqueueWarning, Packed, placed, upload

log = logging.getLogger(__name__)

# How long an answer about queues and workers is believed.
_BELIEVED: Final = timedelta(seconds=10)
_ABSENCE_BELIEVED: Final = timedelta(seconds=1)
# So many of a queue's newest experiments are looked at to see whether any waits.
_LOOKED_AT: Final = 100
_OWN_PACKAGES: Final = ("producers", "jobqueue")


class Sender:
    """Sends drafts over the connections of one client. Safe in threads."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._publisher = Publisher(broker=lambda: connections.broker, app=lambda: connections.app)
        self._seen_queues: dict[str, float] = {}
        self._workers: Sequence[WorkerRecord] = ()
        self._pauses: Mapping[str, Pause] = {}
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
        _warn(draft.notes)
        self._check_servers(draft, queue)
        obstacles = self._find_obstacles(queue, draft.spec)
        delays = self._find_delays(queue) if draft.spec.priority == FAST else []
        try:
            spec, notes = upload(draft, store=self._connections.store, packed=packed)
            _check_priority(spec)
            submission = self._seal(spec.model_copy(update={"priority": NORMAL}) if delays else spec, queue)
        except InvalidSpec as error:
            raise placed(error, draft.place) from None
        _warn(filter(None, [*notes, *obstacles, *delays, self._clock_fault]))
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
            is_fast=spec.priority == FAST,
            spec_digest=digest_spec(spec),
            message=message,
        )

    def _publish(self, submissions: Sequence[Submission], *, projects: Collection[str]) -> None:
        """Publish them; where a queue of one of `projects` has gone meanwhile, make it again.

        Where only the one that is served before it has gone, what is fast waits like the others.
        """
        try:
            try:
                self._publisher.publish(self._aim(submissions))
            except NoSuchQueue:
                self._seen_queues.clear()
                for project in projects:
                    self._make_queues(project)
                late = [sent.queue for sent in submissions if sent.is_fast and not self._has_first(sent.queue)]
                if not (projects or late):
                    raise
                _warn(map(_tell_late, dict.fromkeys(late)))
                self._publisher.publish(self._aim(submissions))
        except BaseException as error:  # also Ctrl-C: who has no handle must not have an experiment
            self._withdraw(submissions, error)
            raise
        log.debug("experiment.submitted experiments=%s", ",".join(submission.id for submission in submissions))

    def _aim(self, submissions: Sequence[Submission]) -> list[Submission]:
        """Return them for the queues in which they are to lie: what is fast, for the one that is served first."""
        new = {submission.id for submission in submissions}
        fast = {submission.queue for submission in submissions if submission.is_fast}
        ahead = {queue for queue in fast if self._has_first(queue) and self._is_ahead_needed(queue, new)}
        return [
            replace(submission, queue=first_queue(submission.queue))
            if submission.is_fast and submission.queue in ahead
            else submission
            for submission in submissions
        ]

    def _is_ahead_needed(self, queue: str, new: Collection[ExperimentId]) -> bool:
        """Tell whether something waits there; where asking costs, an idle worker asks the request queue alone."""
        if not self._connections.broker.is_charging:
            return True
        found = self._connections.registry.experiments.find(queue=queue, limit=len(new) + _LOOKED_AT)
        others = [record for record in found if record.submission.id not in new]
        return len(others) >= _LOOKED_AT or any(record.state is State.QUEUED for record in others)

    def _withdraw(self, submissions: Sequence[Submission], error: BaseException) -> None:
        for submission in submissions:
            try:
                self._connections.registry.experiments.withdraw(submission.id)
            except JobqueueError as failure:
                log.info("experiment.not_withdrawn experiment=%s error=%s", submission.id, failure)
                told = f"the registry could not be told either: {submission.id} may still be started by the sweep"
                error.add_note(told)

    def _find_obstacles(self, queue: str, spec: ExperimentSpec) -> list[str]:
        obstacles = self._judge(queue, spec)
        if not _is_recent(self._workers_at, _ABSENCE_BELIEVED if obstacles else _BELIEVED):
            registry = self._connections.registry
            self._workers, self._pauses = registry.workers.present(), registry.pauses.paused()
            self._workers_at = time.monotonic()
            obstacles = self._judge(queue, spec)
        return obstacles

    def _judge(self, queue: str, spec: ExperimentSpec) -> list[str]:
        told = [tell_pause(self._pauses[queue])] if queue in self._pauses else []
        obstacles = find_obstacles(queue, spec.resources, self._workers)
        return [*told, *obstacles, *find_refusal(spec, queue, self._workers)]

    def _find_delays(self, queue: str) -> list[str]:
        """Return why what is fast has to wait like the others; the workers have just been looked at."""
        if not self._has_first(queue):
            return [_tell_late(queue)]
        old = [worker.worker_id for worker in self._workers if queue in worker.queues and not worker.takes_first]
        return [f"{', '.join(old[:3])}: older workers know no priority: it waits like the others"] if old else []

    def _has_first(self, queue: str) -> bool:
        """Tell whether there is a queue that is served before it."""
        first = first_queue(queue)
        if not _is_recent(self._seen_queues.get(first, float("-inf"))):
            if not self._connections.broker.queues.exists(first):
                return False
            self._seen_queues[first] = time.monotonic()
        return True


def digest_spec(spec: ExperimentSpec) -> str:
    """Return the sha256 over a spec in hex: the same for the same experiment, whatever the order of its mappings.

    Of secrets only the names count, so that nobody can try values against it; how soon it begins makes no other one.
    """
    fields = spec.model_dump(mode="json", exclude={"idempotency_key", "priority", "secrets"})
    return hashlib.sha256(json.dumps([fields, sorted(spec.secrets)], sort_keys=True).encode()).hexdigest()


def _check_priority(spec: ExperimentSpec) -> None:
    """Raise InvalidSpec if it is too large to go ahead: by now the sizes of its files are known."""
    if problems := judge_priority(spec):
        raise InvalidSpec(problems)


def _tell_late(queue: str) -> str:
    told = "it waits like the others"
    return f"the queue {queue!r} has none that is served before it: {told} (`jobqueue queues create {queue}` makes it)"


def _is_recent(at: float, believed: timedelta = _BELIEVED) -> bool:
    return time.monotonic() - at < believed.total_seconds()


def _warn(texts: Iterable[str]) -> None:
    """Warn where the user's own code has called."""
    level = 1
    while _is_ours(level):
        level += 1
    for text in texts:
        warnings.warn(plain_lines(text), JobqueueWarning, stacklevel=level)


def _is_ours(level: int) -> bool:
    try:
        name = str(sys._getframe(level).f_globals.get("__name__", ""))  # noqa: SLF001 - what warnings.warn itself uses
    except ValueError:
        return False
    return name.partition(".")[0] in _OWN_PACKAGES
