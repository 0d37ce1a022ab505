"""Whoever holds no lease writes nothing: the fencing token decides, in every registry."""

from collections.abc import Callable

import pytest
from services.registries import AT_ONCE, BROKEN, LONG, SHORT, SUCCESS, granted, next_grant, registered

from jobqueue.errors import Superseded
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry.base import (
    Lease,
    Registry,
)

WRITES: dict[str, Callable[[Registry, Lease], object]] = {
    "renew": lambda registry, lease: registry.leases.renew(lease, ttl=LONG),
    "advance": lambda registry, lease: registry.leases.advance(lease, State.RUNNING),
    "release": lambda registry, lease: registry.leases.release(lease, BROKEN, delay=AT_ONCE),
    "finish": lambda registry, lease: registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED),
    "append": lambda registry, lease: registry.live_logs.append(lease, "stdout", b"late", offset=0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_with_an_older_token_is_superseded_and_changes_nothing(
    registry: Registry, write: Callable[[Registry, Lease], object]
) -> None:
    submission = registered(registry)
    old = granted(registry, submission, ttl=SHORT).lease
    next_grant(registry, submission)
    before = registry.experiments.get(submission.id)
    with pytest.raises(Superseded, match=str(old.token)):
        write(registry, old)
    assert registry.experiments.get(submission.id) == before
    assert registry.live_logs.read(submission.id, "stdout") == []


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nothing_is_written_to_a_final_experiment(
    registry: Registry, write: Callable[[Registry, Lease], object]
) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.leases.finish(lease, Outcome(reason=Reason.TIMED_OUT), state=State.FAILED)
    before = registry.experiments.get(submission.id)
    with pytest.raises(Superseded, match="FAILED"):
        write(registry, lease)
    assert registry.experiments.get(submission.id) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nothing_is_written_to_an_experiment_that_the_registry_does_not_know(
    registry: Registry, write: Callable[[Registry, Lease], object]
) -> None:
    lease = Lease(experiment_id=make_experiment_id(), token=7, attempt=1)
    with pytest.raises(Superseded, match="does not know"):
        write(registry, lease)
    assert registry.experiments.find(prefix=lease.experiment_id) == []


@pytest.mark.parametrize("write", [WRITES[name] for name in WRITES if name != "release"])
def test_a_lease_that_was_given_back_is_no_lease(
    registry: Registry, write: Callable[[Registry, Lease], object]
) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.leases.release(lease, BROKEN, delay=LONG)
    before = registry.experiments.get(submission.id)
    with pytest.raises(Superseded, match="given back"):
        write(registry, lease)
    registry.leases.release(lease, BROKEN, delay=LONG)
    assert registry.experiments.get(submission.id) == before
