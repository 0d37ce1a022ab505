"""Leases in Redis: each step is one script on the server's clock."""

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from jobqueue.ids import NodeId, WorkerId
from jobqueue.lifecycle import Outcome, Phase, Reason, State
from jobqueue.registry.base import (
    Another,
    Answer,
    Cancelled,
    Exhausted,
    Granted,
    Held,
    Holder,
    Lease,
    Quarantined,
    Submission,
)
from jobqueue.registry.base import Final as FinalAnswer
from jobqueue.registry.redis_client import Argument, RedisClient, as_bytes, words
from jobqueue.registry.redis_fields import milliseconds, parse_record, submission_arguments
from jobqueue.registry.rules import counter_of, refuse_forgotten, refuse_move, refuse_write, require_final, sources_of

# What a renewal says of a submission that it does not know, after its id.
_UNKNOWN: Final = ("",) * 8
_WITH_LEASE: Final[dict[str, type[Granted | Cancelled | Exhausted]]] = {
    "granted": Granted,
    "cancelled": Cancelled,
    "exhausted": Exhausted,
}
_WITHOUT_LEASE: Final[dict[str, type[Held | Quarantined]]] = {"held": Held, "quarantined": Quarantined}


class RedisLeases:
    """`Leases` over Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    def acquire(
        self,
        submission: Submission,
        *,
        worker_id: WorkerId,
        node_id: NodeId,
        ttl: timedelta,
        platform_budget: int,
    ) -> Answer:
        """Ask for the lease; a call that was sent twice, because its answer was lost, is granted once."""
        reply = self._client.witness(
            "acquire",
            *submission_arguments(submission),
            *(worker_id, node_id, milliseconds(ttl), platform_budget, uuid.uuid4().hex),
        )
        word, rest = words(reply)
        if word in _WITHOUT_LEASE:
            return _WITHOUT_LEASE[word](remaining=timedelta(milliseconds=rest[0]))
        if word == "another":
            return Another()
        record = parse_record(rest[0])
        if word == "final":
            return FinalAnswer(record=record)
        lease = Lease(experiment_id=submission.id, token=record.token, attempt=record.attempt)
        return _WITH_LEASE[word](lease=lease, record=record)

    def renew(self, lease: Lease, *, ttl: timedelta, holder: Holder | None = None) -> Reason | None:
        """Hold on for `ttl` from now; returns the reason of the tombstone that lies."""
        known = submission_arguments(holder.submission) if holder else (lease.experiment_id, *_UNKNOWN)
        named = (holder.worker_id, holder.node_id, int(holder.is_in_doubt)) if holder else ("", "", 0)
        reply = self._client.witness("renew", *known, lease.token, milliseconds(ttl), lease.attempt, *named)
        (reason,) = checked(lease, reply)
        return Reason[reason.decode()] if reason else None

    def advance(self, lease: Lease, state: State, *, phase: Phase | None = None, progress: str | None = None) -> None:
        """Record where the attempt is."""
        sources = sources_of(state)
        has_progress = progress is not None
        self._write("advance", lease, state, phase or "", int(has_progress), as_bytes(progress or ""), *sources)

    def release(self, lease: Lease, outcome: Outcome, *, delay: timedelta) -> None:
        """End the attempt without a final state."""
        counter = counter_of(outcome)
        self._write("release", lease, *_outcome_arguments(outcome), counter, milliseconds(delay))

    def finish(self, lease: Lease, outcome: Outcome, *, state: State) -> None:
        """Record the final state."""
        require_final(state)
        self._write("finish", lease, state, *_outcome_arguments(outcome))

    def _write(self, script: str, lease: Lease, *arguments: Argument) -> Sequence[Any]:
        reply = self._client.run(script, lease.experiment_id, lease.token, *arguments)
        if reply[0] == b"illegal":
            refuse_move(lease, known=State(reply[1].decode()), asked=State(str(arguments[0])))
        return checked(lease, reply)


def checked(lease: Lease, reply: Sequence[Any]) -> Sequence[Any]:
    """Return what a script answers after its first word, which says whether this holder may write.

    Raises:
        Superseded: it may not: a newer token was granted, the lease was given back, or it is final.
        RegistryUnavailable: nobody can say yet, because the registry may have forgotten.
    """
    word, rest = words(reply)
    if word == "forgotten":
        refuse_forgotten(lease)
    if word == "superseded":
        token, state = (value.decode() for value in rest)
        refuse_write(lease, known_token=int(token) if token else None, known_state=State(state) if state else None)
    return rest


def _outcome_arguments(outcome: Outcome) -> tuple[Argument, ...]:
    exit_code = "" if outcome.exit_code is None else str(outcome.exit_code)
    return (outcome.reason.name, as_bytes(outcome.detail), exit_code, json.dumps(outcome.last_lines))
