"""Every registry keeps the same promises about leases, experiments, live logs and workers."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from services.redis import RedisServer
from services.waiting import wait_until

from jobqueue.errors import IdempotencyMismatch, NotFound, Superseded
from jobqueue.ids import ExperimentId, NodeId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Outcome, Phase, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import (
    Answer,
    Cancelled,
    Exhausted,
    Final,
    Granted,
    Held,
    Lease,
    Registry,
    Submission,
    WorkerRecord,
)
from jobqueue.registry.memory import MemoryRegistry
from jobqueue.resources import Offer, Resources

LONG = timedelta(minutes=5)
SHORT = timedelta(milliseconds=60)
AT_ONCE = timedelta(0)
SUBMITTED_AT = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SUCCESS = Outcome(reason=Reason.EXITED_ZERO, exit_code=0)
DRAINED = Outcome(reason=Reason.DRAINED)
BROKEN = Outcome(reason=Reason.RUNTIME_FAILURE, detail="no engine")


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    registry = MemoryRegistry() if url == "memory://" else open_registry(url)
    yield registry
    registry.close()


def make_submission(**fields: object) -> Submission:
    defaults: dict[str, object] = {
        "id": make_experiment_id(),
        "queue": "default_cpu",
        "project": "default",
        "resources": Resources(cpus=1.5, memory_bytes=2**30, disk_bytes=2**30, shm_bytes=2**20, gpus=1),
        "submitted_at": SUBMITTED_AT,
        "expires_at": SUBMITTED_AT + timedelta(days=2),
        "message": b"\x00sealed\xff",
    }
    return Submission(**(defaults | fields))  # type: ignore[arg-type]


def acquire(
    registry: Registry, submission: Submission, *, worker: str = "gpu0@a", ttl: timedelta = LONG, budget: int = 5
) -> Answer:
    return registry.leases.acquire(
        submission, worker_id=WorkerId(worker), node_id=NodeId("a"), ttl=ttl, platform_budget=budget
    )


def granted(registry: Registry, submission: Submission, **options: object) -> Granted:
    answer = acquire(registry, submission, **options)  # type: ignore[arg-type]
    assert isinstance(answer, Granted), answer
    return answer


def registered(registry: Registry, **fields: object) -> Submission:
    submission = make_submission(**fields)
    assert registry.experiments.register(submission) == submission.id
    return submission


def next_grant(registry: Registry, submission: Submission, **options: object) -> Granted:
    """Ask until the lease or the back-off before it is over."""
    answers: list[Answer] = []

    def ask() -> bool:
        answers.append(acquire(registry, submission, **options))  # type: ignore[arg-type]
        return not isinstance(answers[-1], Held)

    wait_until(ask, what="the lease is over")
    assert isinstance(answers[-1], Granted), answers[-1]
    return answers[-1]


# Leases


def test_the_first_grant_is_attempt_one_of_a_preparing_experiment(registry: Registry) -> None:
    submission = registered(registry)
    answer = granted(registry, submission, worker="gpu0@a")
    assert answer.lease.attempt == 1
    assert answer.lease.experiment_id == submission.id
    assert answer.record.state is State.PREPARING
    assert (answer.record.worker_id, answer.record.node_id) == ("gpu0@a", "a")
    assert (answer.record.attempt, answer.record.token) == (1, answer.lease.token)
    assert answer.record.submission == replace(submission, message=b"")


def test_tokens_come_from_the_registrys_clock(registry: Registry) -> None:
    before = datetime.now(UTC) - timedelta(seconds=5)
    token = granted(registry, registered(registry)).lease.token
    assert before < datetime.fromtimestamp(token / 1000, UTC) < datetime.now(UTC) + timedelta(seconds=5)


def test_an_experiment_the_registry_forgot_is_recorded_from_the_message(registry: Registry) -> None:
    submission = make_submission()
    assert granted(registry, submission).lease.attempt == 1
    assert registry.experiments.get(submission.id).submission == submission


def test_a_live_lease_is_held_against_everybody_its_owner_too(registry: Registry) -> None:
    submission = registered(registry)
    granted(registry, submission, worker="gpu0@a")
    for worker in ("gpu1@a", "gpu0@a"):
        answer = acquire(registry, submission, worker=worker)
        assert isinstance(answer, Held)
        assert LONG - timedelta(seconds=30) < answer.remaining <= LONG


def test_a_lease_that_ran_out_counts_as_a_lost_worker_and_the_next_attempt_has_a_greater_token(
    registry: Registry,
) -> None:
    submission = registered(registry)
    first = granted(registry, submission, worker="gpu0@a", ttl=SHORT)
    second = next_grant(registry, submission, worker="gpu1@b")
    assert second.lease.attempt == 2
    assert second.lease.token > first.lease.token
    assert second.record.platform_failures == 1
    assert second.record.reason is Reason.WORKER_LOST
    (past,) = second.record.history
    assert (past.attempt, past.token, past.reason) == (1, first.lease.token, Reason.WORKER_LOST)
    assert past.detail == "gpu0@a"


def test_a_lease_that_ran_out_is_still_its_holders_until_somebody_asks(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=timedelta(milliseconds=1)).lease
    assert registry.leases.renew(lease, ttl=LONG) is False
    assert isinstance(acquire(registry, submission), Held)


def test_renewing_extends_the_lease(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=timedelta(seconds=30)).lease
    registry.leases.renew(lease, ttl=LONG)
    answer = acquire(registry, submission)
    assert isinstance(answer, Held)
    assert answer.remaining > timedelta(minutes=4)


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
    submission = registered(registry)
    first = granted(registry, submission).lease
    registry.leases.advance(first, State.PREPARING, phase=Phase.PULLING)
    outcome = Outcome(reason=Reason.EXITED_NONZERO, detail="code 3", exit_code=3, last_lines=("a\u00e9", 'b"'))
    registry.leases.release(first, outcome, delay=timedelta(milliseconds=200))
    record = registry.experiments.get(submission.id)
    assert (record.state, record.phase, record.worker_id) == (State.QUEUED, None, None)
    assert (record.reason, record.detail, record.exit_code) == (Reason.EXITED_NONZERO, "code 3", 3)
    assert record.last_lines == ("a\u00e9", 'b"')
    assert (record.user_failures, record.platform_failures) == (1, 0)
    answer = acquire(registry, submission)
    assert isinstance(answer, Held)
    assert AT_ONCE < answer.remaining <= timedelta(milliseconds=200)
    second = next_grant(registry, submission)
    assert (second.lease.attempt, second.record.reason) == (2, Reason.EXITED_NONZERO)
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


# Experiments


def test_a_registered_experiment_is_queued_and_complete(registry: Registry) -> None:
    submission = registered(registry, name="nightly \u00e9", labels={"a": "1"}, spec_digest="d1", idempotency_key="k")
    record = registry.experiments.get(submission.id)
    assert record.submission == submission
    assert (record.state, record.attempt, record.token, record.worker_id) == (State.QUEUED, 0, 0, None)
    assert (record.history, record.started_at, record.finished_at, record.is_cancelled) == ((), None, None, False)


def test_registering_again_changes_nothing(registry: Registry) -> None:
    submission = registered(registry, spec_digest="d1")
    lease = granted(registry, submission).lease
    assert registry.experiments.register(submission) == submission.id
    assert registry.experiments.get(submission.id).token == lease.token
    with pytest.raises(IdempotencyMismatch):
        registry.experiments.register(replace(submission, spec_digest="d2"))


def test_an_idempotency_key_leads_to_the_first_submission_of_its_project(registry: Registry) -> None:
    key = make_experiment_id()
    first = registered(registry, idempotency_key=key, spec_digest="d1")
    again = make_submission(idempotency_key=key, spec_digest="d1")
    assert registry.experiments.register(again) == first.id
    with pytest.raises(NotFound):
        registry.experiments.get(again.id)
    with pytest.raises(IdempotencyMismatch, match=first.id):
        registry.experiments.register(make_submission(idempotency_key=key, spec_digest="d2"))
    registered(registry, idempotency_key=key, spec_digest="d2", project="other")


def test_the_message_goes_with_the_end_and_only_get_has_it(registry: Registry) -> None:
    submission = registered(registry)
    (found,) = registry.experiments.find(prefix=submission.id)
    assert found.submission.message == b""
    assert registry.experiments.get(submission.id).submission.message == submission.message
    lease = granted(registry, submission).lease
    registry.leases.finish(lease, SUCCESS, state=State.SUCCEEDED)
    assert registry.experiments.get(submission.id).submission.message == b""


def test_an_unknown_experiment_is_an_error(registry: Registry) -> None:
    unknown = make_experiment_id()
    with pytest.raises(NotFound, match=unknown):
        registry.experiments.get(unknown)
    with pytest.raises(NotFound, match=unknown):
        registry.experiments.cancel(unknown)


def test_states_tells_of_the_known_ones_only(registry: Registry) -> None:
    queued, running = registered(registry), registered(registry)
    registry.leases.advance(granted(registry, running).lease, State.RUNNING)
    asked = [queued.id, make_experiment_id(), running.id]
    assert registry.experiments.states(asked) == {queued.id: State.QUEUED, running.id: State.RUNNING}
    assert registry.experiments.states([]) == {}


def found_ids(registry: Registry, **criteria: object) -> list[ExperimentId]:
    return [record.submission.id for record in registry.experiments.find(**criteria)]  # type: ignore[arg-type]


def test_find_lists_the_newest_first_by_project_name_and_prefix(registry: Registry) -> None:
    project, name = make_experiment_id(), make_experiment_id()
    ids = sorted(make_experiment_id() for _ in range(4))
    for index, experiment_id in enumerate(ids):
        registered(registry, id=experiment_id, project=project, name=name if index % 2 else "")
    other = registered(registry, name=name)
    assert found_ids(registry, project=project) == ids[::-1]
    assert found_ids(registry, project=project, limit=2) == [ids[3], ids[2]]
    assert found_ids(registry, project=project, name=name) == [ids[3], ids[1]]
    assert found_ids(registry, name=name) == sorted([ids[1], ids[3], other.id], reverse=True)
    assert found_ids(registry, prefix=ids[2]) == [ids[2]]
    assert found_ids(registry, prefix=ids[2], name=name) == []
    assert set(ids) <= set(found_ids(registry, prefix="exp-", limit=10**6))
    assert found_ids(registry, prefix="exp-zzz") == []
    assert found_ids(registry, limit=3) == sorted(found_ids(registry, limit=10**6), reverse=True)[:3]


def test_cancelling_a_waiting_experiment_ends_it_at_once(registry: Registry) -> None:
    submission = registered(registry)
    assert registry.experiments.cancel(submission.id) is State.CANCELLED
    record = registry.experiments.get(submission.id)
    assert (record.state, record.reason, record.is_cancelled) == (State.CANCELLED, Reason.CANCELLED_BY_USER, True)
    assert isinstance(acquire(registry, submission), Final)
    assert registry.experiments.cancel(submission.id) is State.CANCELLED


def test_cancelling_a_running_experiment_is_seen_at_the_next_renewal(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.leases.advance(lease, State.RUNNING)
    assert registry.experiments.cancel(submission.id) is State.RUNNING
    assert registry.experiments.get(submission.id).is_cancelled
    assert registry.leases.renew(lease, ttl=LONG) is True
    registry.leases.finish(lease, Outcome(reason=Reason.CANCELLED_BY_USER), state=State.CANCELLED)
    assert registry.experiments.get(submission.id).state is State.CANCELLED


def test_cancelling_waits_for_no_holder_that_went_silent(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission, ttl=SHORT).lease
    wait_until(lambda: registry.experiments.cancel(submission.id) is State.CANCELLED, what="cancelled")
    with pytest.raises(Superseded):
        registry.leases.renew(lease, ttl=LONG)


def test_a_tombstone_gives_a_lease_that_only_commits(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.experiments.cancel(submission.id)
    registry.leases.release(lease, DRAINED, delay=AT_ONCE)
    answer = acquire(registry, submission)
    assert isinstance(answer, Cancelled)
    assert (answer.lease.attempt, answer.record.is_cancelled) == (1, True)
    assert answer.lease.token > lease.token
    registry.leases.finish(answer.lease, Outcome(reason=Reason.CANCELLED_BY_USER), state=State.CANCELLED)
    assert registry.experiments.get(submission.id).state is State.CANCELLED


def test_cancelling_never_changes_a_final_state(registry: Registry) -> None:
    submission = registered(registry)
    registry.leases.finish(granted(registry, submission).lease, SUCCESS, state=State.SUCCEEDED)
    before = registry.experiments.get(submission.id)
    assert registry.experiments.cancel(submission.id) is State.SUCCEEDED
    registry.experiments.withdraw(submission.id)
    assert registry.experiments.get(submission.id) == before


def test_a_withdrawn_submission_is_forgotten_and_its_stray_message_cancelled(registry: Registry) -> None:
    name = make_experiment_id()
    submission = registered(registry, name=name, idempotency_key=name, spec_digest="d1")
    registry.experiments.withdraw(submission.id)
    with pytest.raises(NotFound):
        registry.experiments.get(submission.id)
    assert found_ids(registry, name=name) == []
    again = registered(registry, idempotency_key=name, spec_digest="d2")
    assert again.id != submission.id
    answer = acquire(registry, submission)
    assert isinstance(answer, Cancelled)
    assert answer.lease.attempt == 0
    registry.leases.finish(answer.lease, Outcome(reason=Reason.CANCELLED_BY_USER), state=State.CANCELLED)
    assert isinstance(acquire(registry, submission), Final)


def test_withdrawing_what_a_worker_has_taken_cancels_it(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.experiments.withdraw(submission.id)
    assert registry.leases.renew(lease, ttl=LONG) is True


def test_a_withdrawn_experiment_may_be_submitted_again(registry: Registry) -> None:
    submission = registered(registry)
    registry.experiments.withdraw(submission.id)
    registry.experiments.withdraw(submission.id)
    registry.experiments.register(submission)
    assert granted(registry, submission).lease.attempt == 1


# Live logs


def test_live_logs_are_read_on_from_a_cursor(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    assert registry.live_logs.read(submission.id, "stdout") == []
    registry.live_logs.append(lease, "stdout", b"one\n", offset=0)
    registry.live_logs.append(lease, "stderr", b"apart\n", offset=0)
    (first,) = registry.live_logs.read(submission.id, "stdout")
    assert (first.attempt, first.offset, first.data) == (1, 0, b"one\n")
    assert registry.live_logs.read(submission.id, "stdout", after=first.cursor) == []
    registry.live_logs.append(lease, "stdout", b"\xff\x00two", offset=4)
    (second,) = registry.live_logs.read(submission.id, "stdout", after=first.cursor)
    assert (second.offset, second.data) == (4, b"\xff\x00two")
    assert [piece.data for piece in registry.live_logs.read(submission.id, "stderr")] == [b"apart\n"]


def test_bytes_that_are_sent_again_are_kept_once(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.live_logs.append(lease, "stdout", b"012345", offset=0)
    registry.live_logs.append(lease, "stdout", b"345678", offset=3)
    registry.live_logs.append(lease, "stdout", b"0", offset=0)
    registry.live_logs.append(lease, "stdout", b"", offset=9)
    pieces = registry.live_logs.read(submission.id, "stdout")
    assert [(piece.offset, piece.data) for piece in pieces] == [(0, b"012345"), (6, b"678")]


def test_the_next_attempt_begins_its_log_anew(registry: Registry) -> None:
    submission = registered(registry)
    first = granted(registry, submission).lease
    registry.live_logs.append(first, "stdout", b"first", offset=0)
    registry.leases.release(first, DRAINED, delay=AT_ONCE)
    second = granted(registry, submission).lease
    registry.live_logs.append(second, "stdout", b"second", offset=0)
    pieces = registry.live_logs.read(submission.id, "stdout")
    assert [(piece.attempt, piece.offset, piece.data) for piece in pieces] == [(1, 0, b"first"), (2, 0, b"second")]


def test_live_logs_keep_about_the_newest_megabyte_in_pieces(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    data = bytes(index % 251 for index in range(300_000))
    for turn in range(6):
        registry.live_logs.append(lease, "stdout", data, offset=turn * len(data))
    pieces = registry.live_logs.read(submission.id, "stdout")
    kept = b"".join(piece.data for piece in pieces)
    assert 2**20 <= len(kept) <= 2**20 + 2**16
    assert kept == (data * 6)[-len(kept) :]
    assert pieces[0].offset == 6 * len(data) - len(kept)
    assert max(len(piece.data) for piece in pieces) <= 2**16


def test_a_strange_cursor_is_a_mistake(registry: Registry) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        registry.live_logs.read(make_experiment_id(), "stdout", after="$; DROP")


# Workers


def make_worker(name: str) -> WorkerRecord:
    return WorkerRecord(
        worker_id=WorkerId(name),
        node_id=NodeId("a"),
        queues=("default_cpu", "default_gpu"),
        offer=Offer(cpus=2.5, memory_bytes=2**33, disk_bytes=2**34, gpu_memory_bytes=(2**34,)),
        runtime="docker",
        experiment_id=make_experiment_id(),
    )


def test_a_worker_is_present_until_it_leaves(registry: Registry) -> None:
    worker = make_worker(make_experiment_id())
    registry.workers.announce(replace(worker, experiment_id=None), ttl=LONG)
    registry.workers.announce(worker, ttl=LONG)
    assert [known for known in registry.workers.present() if known.worker_id == worker.worker_id] == [worker]
    registry.workers.leave(worker.worker_id)
    registry.workers.leave(worker.worker_id)
    assert worker not in registry.workers.present()


def test_a_silent_worker_vanishes_and_comes_back(registry: Registry) -> None:
    worker = make_worker(make_experiment_id())
    registry.workers.announce(worker, ttl=SHORT)
    wait_until(lambda: worker not in registry.workers.present(), what="the silent worker is gone")
    registry.workers.announce(worker, ttl=LONG)
    assert worker in registry.workers.present()


# Races


def test_of_many_threads_one_gets_the_lease(registry: Registry) -> None:
    submission = registered(registry)
    answers: list[Answer] = []
    start = threading.Barrier(8)

    def ask(worker: str) -> None:
        start.wait()
        answers.append(acquire(registry, submission, worker=worker))

    threads = [threading.Thread(target=ask, args=(f"cpu@{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(answer).__name__ for answer in answers) == ["Granted"] + ["Held"] * 7


def test_a_cancel_and_an_acquire_at_once_agree(registry: Registry) -> None:
    for _ in range(20):
        submission = registered(registry)
        start = threading.Barrier(2)
        states: list[State] = []

        def cancel(submission: Submission = submission, start: threading.Barrier = start) -> None:
            start.wait()
            states.append(registry.experiments.cancel(submission.id))  # noqa: B023

        thread = threading.Thread(target=cancel)
        thread.start()
        start.wait()
        answer = acquire(registry, submission)
        thread.join()
        if isinstance(answer, Granted):
            assert states == [State.PREPARING]
            assert registry.leases.renew(answer.lease, ttl=LONG) is True
        else:
            assert isinstance(answer, Final)
            assert states == [State.CANCELLED]


RACES = 60
RACER = """
import sys
from datetime import UTC, datetime, timedelta
from jobqueue.registry import open_registry
from jobqueue.registry.base import Granted, Submission
from jobqueue.resources import Resources

url, *ids = sys.argv[1:]
registry, now = open_registry(url), datetime.now(UTC)
nothing = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)
registry.ping()
print("ready", flush=True)
sys.stdin.readline()
for name in ids:
    submission = Submission(
        id=name, queue="q", project="p", resources=nothing, submitted_at=now, expires_at=now, message=b"m"
    )
    answer = registry.leases.acquire(
        submission, worker_id="w", node_id="n", ttl=timedelta(minutes=5), platform_budget=5
    )
    if isinstance(answer, Granted):
        print(name)
registry.close()
"""


def test_of_two_processes_one_gets_each_lease(redis_server: RedisServer) -> None:
    ids = [make_experiment_id() for _ in range(RACES)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, redis_server.url, *ids],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert sorted(won[0] + won[1]) == sorted(ids)
