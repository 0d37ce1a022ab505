"""Every registry counts attempts, moves them through their states and ends them in one way."""

from datetime import timedelta

import pytest
from services.registries import AT_ONCE, BROKEN, DRAINED, SHORT, SUCCESS, acquire, granted, next_grant, registered
from services.waiting import wait_until

from jobqueue.errors import Superseded
from jobqueue.lifecycle import Outcome, Phase, Reason, State
from jobqueue.registry.base import (
    Exhausted,
    Final,
    Held,
    Registry,
)


def test_an_attempt_advances_through_its_states_and_starts_once(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.leases.advance(lease, State.PREPARING, phase=Phase.PULLING)
    assert registry.experiments.get(submission.id).phase is Phase.PULLING
    registry.leases.advance(lease, State.PREPARING, progress='{"pulled": 0.5}')
    record = registry.experiments.get(submission.id)
    assert (record.phase, record.progress, record.started_at) == (Phase.PULLING, '{"pulled": 0.5}', None)
    registry.leases.advance(lease, State.RUNNING)
    started = registry.experiments.get(submission.id)
    assert (started.state, started.phase, started.progress) == (State.RUNNING, None, '{"pulled": 0.5}')
    assert started.started_at
    registry.leases.advance(lease, State.RUNNING, progress='{"loss": "\u00e9"}')
    record = registry.experiments.get(submission.id)
    assert (record.progress, record.started_at) == ('{"loss": "\u00e9"}', started.started_at)
    registry.leases.advance(lease, State.FINALIZING)
    registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED)
    record = registry.experiments.get(submission.id)
    assert (record.state, record.reason, record.exit_code) == (State.SUCCEEDED, Reason.EXITED_ZERO, 0)
    assert record.finished_at
    assert record.finished_at >= started.started_at
    assert (record.worker_id, record.node_id) == (None, None)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (None, State.FINALIZING),
        (State.RUNNING, State.PREPARING),
        (None, State.QUEUED),
        (State.RUNNING, State.SUCCEEDED),
    ],
)
def test_an_impossible_move_is_a_mistake(registry: Registry, first: State | None, then: State) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    if first:
        registry.leases.advance(lease, first)
    before = registry.experiments.get(submission.id)
    with pytest.raises(ValueError, match=then):
        registry.leases.advance(lease, then)
    assert registry.experiments.get(submission.id) == before


def test_finishing_needs_a_final_state_and_releasing_a_reason_to_try_again(registry: Registry) -> None:
    lease = granted(registry, registered(registry)).lease
    with pytest.raises(ValueError, match="not a final state"):
        registry.leases.finish(lease, SUCCESS, state=State.RUNNING)
    with pytest.raises(ValueError, match="no other attempt"):
        registry.leases.release(lease, SUCCESS, delay=AT_ONCE)


def test_a_released_attempt_is_queued_again_after_its_delay(registry: Registry) -> None:
    submission, delay = registered(registry), timedelta(seconds=2)
    first = granted(registry, submission).lease
    registry.leases.advance(first, State.PREPARING, phase=Phase.PULLING)
    outcome = Outcome(reason=Reason.EXITED_NONZERO, detail="code 3", exit_code=3, last_lines=("a\u00e9", 'b"'))
    assert registry.experiments.get(submission.id).next_try_at is None
    registry.leases.release(first, outcome, delay=delay)
    record = registry.experiments.get(submission.id)
    assert record.next_try_at is not None
    assert AT_ONCE < record.next_try_at - registry.ping() <= delay
    assert registry.experiments.find(prefix=submission.id)[0].next_try_at == record.next_try_at
    assert (record.state, record.phase, record.worker_id) == (State.QUEUED, None, None)
    assert (record.reason, record.detail, record.exit_code) == (Reason.EXITED_NONZERO, "code 3", 3)
    assert record.last_lines == ("a\u00e9", 'b"')
    assert (record.user_failures, record.platform_failures) == (1, 0)
    answer = acquire(registry, submission)
    assert isinstance(answer, Held)
    assert AT_ONCE < answer.remaining <= delay
    second = next_grant(registry, submission)
    assert (second.lease.attempt, second.record.reason) == (2, Reason.EXITED_NONZERO)
    assert second.record.next_try_at is None
    assert [(past.attempt, past.token, past.detail) for past in second.record.history] == [(1, first.token, "code 3")]


def test_a_drained_attempt_grows_the_number_and_spends_nothing(registry: Registry) -> None:
    submission = registered(registry)
    for attempt in range(1, 5):
        answer = granted(registry, submission, budget=1)
        assert answer.lease.attempt == attempt
        registry.leases.release(answer.lease, DRAINED, delay=AT_ONCE)
    record = registry.experiments.get(submission.id)
    assert (record.user_failures, record.platform_failures, len(record.history)) == (0, 0, 4)


def test_a_spent_budget_gives_a_lease_that_only_commits(registry: Registry) -> None:
    submission = registered(registry)
    for _ in range(2):
        registry.leases.release(granted(registry, submission, budget=2).lease, BROKEN, delay=AT_ONCE)
    answer = acquire(registry, submission, budget=2)
    assert isinstance(answer, Exhausted)
    assert (answer.lease.attempt, answer.record.state, answer.record.platform_failures) == (2, State.QUEUED, 2)
    assert isinstance(acquire(registry, submission, budget=2), Held)
    registry.leases.finish(answer.lease, Outcome(reason=Reason.ATTEMPTS_EXHAUSTED), state=State.FAILED)
    final = acquire(registry, submission, budget=2)
    assert isinstance(final, Final)
    assert [past.reason for past in final.record.history] == [Reason.RUNTIME_FAILURE] * 2


def test_a_lost_worker_is_counted_before_the_budget_is_looked_at(registry: Registry) -> None:
    submission = registered(registry)
    granted(registry, submission, ttl=SHORT, budget=1)
    answers = wait_until(
        lambda: [a for a in [acquire(registry, submission, ttl=SHORT, budget=1)] if not isinstance(a, Held)],
        what="the lease is over",
    )
    assert isinstance(answers[0], Exhausted)
    assert answers[0].record.platform_failures == 1


def test_a_lost_lease_that_only_commits_is_not_an_attempt(registry: Registry) -> None:
    submission = registered(registry)
    granted(registry, submission, ttl=SHORT, budget=1)
    tokens: list[int] = []

    def exhausted_twice() -> bool:
        answer = acquire(registry, submission, ttl=SHORT, budget=1)
        if isinstance(answer, Exhausted):
            tokens.append(answer.lease.token)
        return len(tokens) == 2

    wait_until(exhausted_twice, what="two leases for committing")
    record = registry.experiments.get(submission.id)
    assert (record.attempt, record.platform_failures, len(record.history)) == (1, 1, 1)
    assert tokens[0] < tokens[1]


def test_the_history_keeps_the_newest_twenty(registry: Registry) -> None:
    submission = registered(registry)
    for _ in range(22):
        registry.leases.release(granted(registry, submission).lease, DRAINED, delay=AT_ONCE)
    history = registry.experiments.get(submission.id).history
    assert [past.attempt for past in history] == list(range(3, 23))


def test_a_repeated_finish_is_fine_and_another_end_is_not(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    for _ in range(2):
        registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED)
    with pytest.raises(Superseded):
        registry.leases.finish(lease, Outcome(reason=Reason.TIMED_OUT), state=State.FAILED)
    answer = acquire(registry, submission)
    assert isinstance(answer, Final)
    assert answer.record.state is State.SUCCEEDED
    assert answer.record.finished_at == registry.experiments.get(submission.id).finished_at
