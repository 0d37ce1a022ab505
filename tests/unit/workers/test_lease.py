"""Keeping a lease while an attempt runs."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from services.lease_files import make_kept
from services.waiting import wait_until

from jobqueue.errors import RegistryUnavailable, Superseded
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Reason
from jobqueue.registry.base import Holder, Lease, Submission
from jobqueue.resources import Resources
from workers.attempt.lease import LeaseKeeper, Standing, clock_seconds, local_deadline
from workers.attempt.lease_files import LeaseFile

TTL = timedelta(milliseconds=1200)


class Leases:
    """Answers renewals as it is told."""

    def __init__(self) -> None:
        self.renewals = 0
        self.error: Exception | None = None
        self.holder: Holder | None = None
        self.cancel_reason: Reason | None = None

    def renew(self, lease: Lease, *, ttl: timedelta, holder: Holder | None = None) -> Reason | None:
        self.renewals += 1
        self.holder = holder
        if self.error:
            raise self.error
        return self.cancel_reason


@pytest.fixture
def file(tmp_path: Path) -> LeaseFile:
    return LeaseFile(tmp_path, make_kept())


@pytest.fixture
def holder() -> Holder:
    now = datetime.now(UTC)
    submission = Submission(
        id=make_experiment_id(),
        queue="q",
        project="p",
        resources=Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1),
        submitted_at=now,
        expires_at=now,
    )
    return Holder(submission=submission, worker_id=WorkerId("w"), node_id=NodeId("n"))


@pytest.fixture
def leases() -> Leases:
    return Leases()


@pytest.fixture
def keeper(leases: Any, file: LeaseFile, holder: Holder) -> Iterator[LeaseKeeper]:
    keeper = LeaseKeeper(leases, file, ttl=TTL, granted_at_seconds=clock_seconds(), holder=holder)
    keeper.start()
    yield keeper
    keeper.close()


def test_a_lease_that_is_renewed_stays_held(leases: Leases, keeper: LeaseKeeper) -> None:
    wait_until(lambda: leases.renewals > 8, what="renewals for two leases")
    assert keeper.standing is Standing.HELD


def test_a_silent_registry_puts_the_lease_in_doubt_before_it_ends(leases: Leases, keeper: LeaseKeeper) -> None:
    assert local_deadline(0.0, TTL) < TTL.total_seconds()
    leases.error = RegistryUnavailable("down")
    wait_until(lambda: keeper.standing is Standing.IN_DOUBT, what="doubt")
    leases.error = None
    wait_until(lambda: keeper.standing is Standing.HELD, what="trust again")


def test_a_holder_says_who_it_is_and_whether_it_is_in_doubt(
    leases: Leases, keeper: LeaseKeeper, holder: Holder
) -> None:
    wait_until(lambda: leases.holder == holder, what="a renewal beyond doubt")
    leases.error = RegistryUnavailable("down")
    wait_until(lambda: leases.holder == replace(holder, is_in_doubt=True), what="a renewal in doubt")
    assert keeper.standing is Standing.IN_DOUBT


def test_doubt_comes_even_while_a_renewal_hangs(leases: Any, file: LeaseFile, holder: Holder) -> None:
    long_ago = clock_seconds() - TTL.total_seconds()
    keeper = LeaseKeeper(leases, file, ttl=TTL, granted_at_seconds=long_ago, holder=holder)
    assert keeper.standing is Standing.IN_DOUBT


def test_a_superseded_lease_is_lost_for_good(leases: Leases, keeper: LeaseKeeper) -> None:
    leases.error = Superseded("newer")
    wait_until(lambda: keeper.standing is Standing.LOST, what="loss")
    leases.error = None
    renewals = leases.renewals
    keeper.close()
    assert (keeper.standing, leases.renewals) == (Standing.LOST, renewals)


def test_a_tombstone_is_seen_at_the_next_renewal(leases: Leases, keeper: LeaseKeeper) -> None:
    leases.cancel_reason = Reason.QUEUE_DELETED
    wait_until(lambda: keeper.standing is Standing.CANCELLED, what="the tombstone")
    assert keeper.cancel_reason is Reason.QUEUE_DELETED


def test_a_deadline_that_had_passed_before_a_renewal_is_told(
    leases: Leases, keeper: LeaseKeeper, file: LeaseFile
) -> None:
    wait_until(lambda: leases.renewals > 2, what="renewals")
    assert keeper.lapses == 0
    assert not file.kept.is_overdue(clock_seconds())
    leases.error = RegistryUnavailable("down")
    wait_until(lambda: keeper.standing is Standing.IN_DOUBT, what="doubt")
    assert file.kept.is_overdue(clock_seconds())
    leases.error = None
    wait_until(lambda: keeper.standing is Standing.HELD, what="trust again")
    assert keeper.lapses == 1
    assert not file.kept.is_overdue(clock_seconds())


def test_a_renewal_that_fails_as_nobody_has_thought_of_is_followed_by_others(
    leases: Leases, keeper: LeaseKeeper
) -> None:
    leases.error = KeyError("a reason of a later version")
    wait_until(lambda: keeper.standing is Standing.IN_DOUBT, what="doubt")
    leases.error = None
    wait_until(lambda: keeper.standing is Standing.HELD, what="trust again")
