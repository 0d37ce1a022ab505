"""What every adapter checks before it asks: which calls are a mistake of the caller, and how a refusal is worded."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NoReturn

from jobqueue.errors import IdempotencyMismatch, NotFound, RegistryUnavailable, Superseded
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import MOVES, Budget, Outcome, State
from jobqueue.registry.base import Lease

LARGEST_PIECE_BYTES: Final = 64 * 2**10
KEPT_LOG_BYTES: Final = 2**20
HISTORY_LENGTH: Final = 20
RETENTION: Final = timedelta(days=30)

_ADVANCES: Final = (State.PREPARING, State.RUNNING, State.FINALIZING)
_COUNTERS: Final = {Budget.USER: "user_failures", Budget.PLATFORM: "platform_failures", Budget.FREE: ""}


def sources_of(state: State) -> Sequence[State]:
    """Return the states from which an attempt may advance to `state`.

    Raises:
        ValueError: an attempt never advances to it.
    """
    if state not in _ADVANCES:
        raise ValueError(f"an attempt does not advance to {state} (use release or finish)")
    return [source for source, targets in MOVES.items() if state in targets]


def counter_of(outcome: Outcome) -> str:
    """Return the field of `Record` that counts an attempt given back for this reason; empty when none does.

    Raises:
        ValueError: no other attempt follows this reason.
    """
    budget = outcome.reason.verdict.budget
    if budget not in _COUNTERS:
        raise ValueError(f"no other attempt follows {outcome.reason.name} (use finish)")
    return _COUNTERS[budget]


def require_final(state: State) -> None:
    """Check the state that an experiment is to end in.

    Raises:
        ValueError: it is not a final one.
    """
    if not state.is_final:
        raise ValueError(f"{state} is not a final state (use advance or release)")


def refuse_move(lease: Lease, *, known: State, asked: State) -> NoReturn:
    """Raise what an impossible move deserves.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"attempt {lease.attempt} of {lease.experiment_id} cannot go from {known} to {asked}")


def refuse_write(lease: Lease, *, known_token: int | None, known_state: State | None) -> NoReturn:
    """Raise what the write of a holder deserves that is none any more.

    Args:
        lease: what it believes to hold.
        known_token: the newest one; None for an unknown experiment.
        known_state: where it is; None for an unknown experiment.

    Raises:
        Superseded: always.
    """
    attempt = f"attempt {lease.attempt} of {lease.experiment_id} may not write"
    if known_state is None:
        raise Superseded(f"{attempt}: the registry does not know it")
    if known_state.is_final:
        raise Superseded(f"{attempt}: it is {known_state}")
    if known_token == lease.token:
        raise Superseded(f"{attempt}: its lease was given back")
    raise Superseded(f"{attempt}: token {known_token} was granted after its {lease.token}")


def refuse_forgotten(lease: Lease) -> NoReturn:
    """Raise what the write of a holder deserves that the registry may have forgotten.

    Raises:
        RegistryUnavailable: always.
    """
    raise RegistryUnavailable(
        f"the registry has forgotten attempt {lease.attempt} of {lease.experiment_id}: its holder has to renew it first"
    )


def refuse_key(experiment_id: ExperimentId) -> NoReturn:
    """Raise what a repeated submission with other content deserves.

    Raises:
        IdempotencyMismatch: always.
    """
    raise IdempotencyMismatch(f"{experiment_id} was submitted before, for another spec")


def not_found(experiment_id: ExperimentId) -> NotFound:
    """Return the error for an id that the registry does not know."""
    return NotFound(f"no such experiment: {experiment_id}")


def check_cursor(cursor: str) -> None:
    """Check where a reader of live logs wants to go on.

    Raises:
        ValueError: it is not a cursor of these logs.
    """
    if cursor and not (cursor.isascii() and cursor.isdigit()):
        raise ValueError(f"not a cursor: {cursor!r} (use one of an earlier piece, or an empty one)")
