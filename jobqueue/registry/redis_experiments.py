"""Experiments in Redis: a hash for each, its message beside it, and indexes ordered by id."""

from collections.abc import Sequence
from typing import Final

from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Reason, State
from jobqueue.registry.base import Record, Submission
from jobqueue.registry.redis_client import RedisClient, as_bytes, words
from jobqueue.registry.redis_fields import parse_record, submission_arguments
from jobqueue.registry.rules import not_found, refuse_key

_EXPERIMENT: Final = "jobqueue:experiment:"
_MESSAGE: Final = "jobqueue:message:"


class RedisExperiments:
    """`Experiments` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def register(self, *submissions: Submission) -> list[ExperimentId]:
        """Record them as QUEUED, all or none, and return their ids, or the older ones of their idempotency keys."""
        arguments = (argument for submission in submissions for argument in submission_arguments(submission))
        word, rest = words(self._client.run("register", *arguments))
        ids = [ExperimentId(found.decode()) for found in rest]
        if word == "mismatch":
            refuse_key(ids[0])
        return ids

    def withdraw(self, experiment_id: ExperimentId) -> None:
        """Forget a submission that could not be published."""
        self._client.run("withdraw", experiment_id)

    def get(self, experiment_id: ExperimentId) -> Record:
        """Return the record."""
        fields, message = self._client.ask(("HGETALL", _EXPERIMENT + experiment_id), ("GET", _MESSAGE + experiment_id))
        if not fields:
            raise not_found(experiment_id)
        flat = [part for pair in fields.items() for part in pair]
        return parse_record(flat, message=message or b"")

    def states(self, experiment_ids: Sequence[ExperimentId]) -> dict[ExperimentId, State]:
        """Return where each known one is, in one round trip."""
        if not experiment_ids:
            return {}
        found = self._client.ask(*(("HGET", _EXPERIMENT + name, "state") for name in experiment_ids))
        return {name: State(state.decode()) for name, state in zip(experiment_ids, found, strict=True) if state}

    def find(
        self, *, prefix: str = "", name: str = "", project: str = "", queue: str = "", limit: int = 100
    ) -> list[Record]:
        """Return matching records, newest first."""
        found = self._client.run("find", as_bytes(project), as_bytes(name), as_bytes(prefix), limit, as_bytes(queue))
        return [parse_record(flat) for flat in found]

    def cancel(self, experiment_id: ExperimentId, *, reason: Reason = Reason.CANCELLED_BY_USER) -> State:
        """Put a tombstone; without a live lease the experiment is CANCELLED at once."""
        word, rest = words(self._client.run("cancel", experiment_id, reason.name))
        if word == "unknown":
            raise not_found(experiment_id)
        return State(rest[0].decode())
