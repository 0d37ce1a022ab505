"""Leases in Redis: each step is one script on the server's clock."""

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from jobqueue.ids import NodeId, WorkerId
from jobqueue.lifecycle import Outcome, Phase, Reason, State
from jobqueue.registry.base import Answer, Cancelled, Exhausted, Granted, Held, Lease, Submission
from jobqueue.registry.base import Final as FinalAnswer
from jobqueue.registry.redis_client import Argument, RedisClient, as_bytes, words
from jobqueue.registry.redis_fields import milliseconds, parse_record, submission_arguments
from jobqueue.registry.rules import counter_of, refuse_move, refuse_write, require_final, sources_of

_WITH_LEASE: Final[dict[str, type[Granted | Cancelled | Exhausted]]] = {
    "granted": Granted,
    "cancelled": Cancelled,
    "exhausted": Exhausted,
}


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
        reply = self._client.run(
            "acquire",
            *submission_arguments(submission),
            *(worker_id, node_id, milliseconds(ttl), platform_budget, uuid.uuid4().hex),
        )
        word, rest = words(reply)
        if word == "held":
            return Held(remaining=timedelta(milliseconds=rest[0]))
        record = parse_record(rest[0])
        if word == "final":
            return FinalAnswer(record=record)
        lease = Lease(experiment_id=submission.id, token=record.token, attempt=record.attempt)
        return _WITH_LEASE[word](lease=lease, record=record)

    def renew(self, lease: Lease, *, ttl: timedelta) -> Reason | None:
        """Hold on for `ttl` from now; returns the reason of the tombstone that lies."""
        (reason,) = self._write("renew", lease, milliseconds(ttl))
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
        word, rest = words(self._client.run(script, lease.experiment_id, lease.token, *arguments))
        if word == "superseded":
            refuse_superseded(lease, rest)
        if word == "illegal":
            refuse_move(lease, known=State(rest[0].decode()), asked=State(str(arguments[0])))
        return rest


def refuse_superseded(lease: Lease, known: Sequence[bytes]) -> None:
    """Raise what a script's answer `superseded` means.

    Args:
        lease: what was written with.
        known: the newest token and the state, both empty for an unknown experiment.

    Raises:
        Superseded: always.
    """
    token, state = (value.decode() for value in known)
    refuse_write(lease, known_token=int(token) if token else None, known_state=State(state) if state else None)


def _outcome_arguments(outcome: Outcome) -> tuple[Argument, ...]:
    exit_code = "" if outcome.exit_code is None else str(outcome.exit_code)
    return (outcome.reason.name, as_bytes(outcome.detail), exit_code, json.dumps(outcome.last_lines))
