"""The ledger: experiments that nobody has seen for long are found, and one worker at a time looks after them."""

from collections.abc import Callable
from datetime import timedelta

from services.registries import AT_ONCE, BROKEN, LONG, SHORT, SUCCESS, acquire, granted, registered
from services.waiting import wait_until

from jobqueue.ids import ExperimentId, WorkerId, make_experiment_id
from jobqueue.lifecycle import State
from jobqueue.registry.base import Registry, Submission

MANY = 100_000


def lost_ids(registry: Registry, older_than: timedelta = AT_ONCE, *, among: list[Submission]) -> list[ExperimentId]:
    names = {submission.id for submission in among}
    found = registry.ledger.lost(older_than, limit=MANY)
    return [submission.id for submission in found if submission.id in names]


def test_what_nobody_has_seen_for_long_is_lost_with_its_message(registry: Registry) -> None:
    first, second = registered(registry), registered(registry, message=b"other")
    assert lost_ids(registry, LONG, among=[first, second]) == []
    found = {submission.id: submission for submission in registry.ledger.lost(AT_ONCE, limit=MANY)}
    assert (found[first.id], found[second.id]) == (first, second)


def test_no_more_are_found_than_wanted(registry: Registry) -> None:
    for _ in range(3):
        registered(registry)

    def find_two() -> bool:
        found = registry.ledger.lost(AT_ONCE, limit=2)
        assert len(found) <= 2
        return len(found) == 2

    # What is held is looked at too, and each look at it makes room for those behind.
    wait_until(find_two, what="two")


def test_what_is_lost_can_be_asked_for_by_its_queue(registry: Registry) -> None:
    queue = f"{make_experiment_id()}_cpu"
    here, elsewhere = registered(registry, queue=queue), registered(registry)

    def lost_here() -> list[ExperimentId]:
        return [found.id for found in registry.ledger.lost(AT_ONCE, limit=MANY, queue=queue)]

    assert lost_here() == [here.id]
    assert set(lost_ids(registry, among=[here, elsewhere])) == {here.id, elsewhere.id}
    lease = granted(registry, here).lease
    assert lost_here() == []
    registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED)
    assert lost_here() == []


def test_what_is_held_waits_or_has_ended_is_not_lost(registry: Registry) -> None:
    held, waiting, ended, withdrawn, cancelled = all_of_them = [registered(registry) for _ in range(5)]
    granted(registry, held)
    registry.leases.release(granted(registry, waiting).lease, BROKEN, delay=LONG)
    registry.leases.finish(granted(registry, ended).lease, SUCCESS, state=State.SUCCEEDED)
    registry.experiments.withdraw(withdrawn.id)
    registry.experiments.cancel(cancelled.id)
    assert lost_ids(registry, among=all_of_them) == []


def test_what_its_holder_no_longer_renews_is_lost_also_when_it_is_cancelled(registry: Registry) -> None:
    abandoned = registered(registry)
    granted(registry, abandoned, ttl=timedelta(seconds=2))  # it is still held when it is cancelled
    registry.experiments.cancel(abandoned.id)
    wait_until(lambda: lost_ids(registry, among=[abandoned]) == [abandoned.id], what="it is lost")


def test_the_longest_unseen_comes_first_and_who_asks_holds_or_publishes_again_has_seen_it(registry: Registry) -> None:
    a, b, c = all_of_them = [registered(registry) for _ in range(3)]

    def seen_last(act: Callable[[], object], submission: Submission) -> None:
        def is_last() -> bool:
            act()
            return lost_ids(registry, among=all_of_them)[-1] == submission.id

        wait_until(is_last, what="it was seen after the others")

    seen_last(lambda: registry.ledger.republished([c.id]), c)
    seen_last(lambda: acquire(registry, a, ttl=AT_ONCE), a)
    seen_last(lambda: registry.ledger.republished([b.id]), b)
    lease = granted(registry, a, ttl=AT_ONCE).lease
    seen_last(lambda: registry.ledger.republished([b.id]), b)
    seen_last(lambda: registry.leases.renew(lease, ttl=AT_ONCE), a)
    assert lost_ids(registry, among=all_of_them) == [c.id, b.id, a.id]


def test_noting_an_unknown_one_as_published_makes_nothing_known(registry: Registry) -> None:
    registry.ledger.republished([])
    registry.ledger.republished([unknown := make_experiment_id()])
    assert unknown not in [submission.id for submission in registry.ledger.lost(AT_ONCE, limit=MANY)]


def test_a_role_is_one_workers_until_it_no_longer_asks(registry: Registry) -> None:
    role, other_role = make_experiment_id(), make_experiment_id()
    a, b = WorkerId("gpu0@a"), WorkerId("gpu0@b")
    assert registry.ledger.elect(role, a, ttl=LONG)
    assert not registry.ledger.elect(role, b, ttl=LONG)
    assert registry.ledger.elect(other_role, b, ttl=LONG)
    assert registry.ledger.elect(role, a, ttl=SHORT)
    wait_until(lambda: registry.ledger.elect(role, b, ttl=LONG), what="the role is free")
    assert not registry.ledger.elect(role, a, ttl=LONG)
