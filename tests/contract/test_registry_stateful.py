"""Whatever happens in whatever order: one holder at most, tokens that only grow, an end that stays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from services.redis import RedisServer

from jobqueue.errors import Superseded
from jobqueue.ids import ExperimentId, NodeId, WorkerId, make_experiment_id
from jobqueue.lifecycle import MOVES, Outcome, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Answer, Cancelled, Exhausted, Final, Granted, Held, Lease, Registry, Submission
from jobqueue.registry.memory import MemoryRegistry
from jobqueue.registry.memory_leases import MemoryLeases
from jobqueue.registry.memory_table import EPOCH
from jobqueue.resources import Resources

LONG = timedelta(minutes=10)
BUDGET = 3
NOW = datetime(2030, 1, 1, tzinfo=UTC)
NOTHING = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)
RunOut = Callable[[ExperimentId], None]

leases = Bundle("leases")
indexes = st.integers(0, 2)
workers = st.sampled_from(["gpu0@a", "gpu1@a", "cpu@b"]).map(WorkerId)
reasons = st.sampled_from([Reason.EXITED_NONZERO, Reason.RUNTIME_FAILURE, Reason.DRAINED, Reason.DOES_NOT_FIT])
delays = st.sampled_from([timedelta(0), LONG])
states = st.sampled_from([State.PREPARING, State.RUNNING, State.FINALIZING])
ends = st.sampled_from(
    [
        (Reason.EXITED_ZERO, State.SUCCEEDED),
        (Reason.TIMED_OUT, State.FAILED),
        (Reason.CANCELLED_BY_USER, State.CANCELLED),
    ]
)


@dataclass
class Model:
    """What ought to be known of one experiment."""

    submission: Submission
    newest: Lease | None = None
    holder: WorkerId | None = None
    is_attempt: bool = False
    must_wait: bool = False
    is_cancelled: bool = False
    end: tuple[Reason, State] | None = None
    attempts: int = 0
    user_failures: int = 0
    platform_failures: int = 0
    ended: list[tuple[Reason, str]] = field(default_factory=list)
    place: State = State.QUEUED

    def give_back(self, reason: Reason, detail: str) -> None:
        if self.is_attempt:
            self.ended.append((reason, detail))
            self.user_failures += reason is Reason.EXITED_NONZERO
            self.platform_failures += reason in {Reason.RUNTIME_FAILURE, Reason.WORKER_LOST}
        self.holder, self.is_attempt, self.place = None, False, State.QUEUED

    @property
    def expected(self) -> type[Answer]:
        if self.end:
            return Final
        if self.must_wait:
            return Held
        if self.is_cancelled:
            return Cancelled
        lost = self.holder is not None and self.is_attempt
        return Exhausted if self.platform_failures + lost >= BUDGET else Granted


class Interleavings(RuleBasedStateMachine):
    """Workers, users and time act on three experiments in any order."""

    def __init__(self, registry: Registry, run_out: RunOut) -> None:
        super().__init__()
        self.registry = registry
        self.run_out = run_out
        self.models: list[Model] = []
        self.queue = f"q{uuid4().hex}"

    @initialize()
    def submit(self) -> None:
        for _ in range(3):
            submission = Submission(
                id=make_experiment_id(),
                queue=self.queue,
                project="p",
                resources=NOTHING,
                submitted_at=NOW,
                expires_at=NOW,
                message=b"sealed",
            )
            self.registry.experiments.register(submission)
            self.models.append(Model(submission=submission))

    @rule(target=leases, index=indexes, worker=workers)
    def acquire(self, index: int, worker: WorkerId) -> object:
        model = self.models[index]
        answer = self.registry.leases.acquire(
            model.submission, worker_id=worker, node_id=NodeId("a"), ttl=LONG, platform_budget=BUDGET
        )
        assert type(answer) is model.expected
        if not isinstance(answer, Granted | Cancelled | Exhausted):
            return multiple()
        if model.holder is not None:
            model.give_back(Reason.WORKER_LOST, model.holder)
        assert model.newest is None or answer.lease.token > model.newest.token
        model.is_attempt = isinstance(answer, Granted)
        model.attempts += model.is_attempt
        model.place = State.PREPARING if model.is_attempt else State.QUEUED
        model.newest, model.holder, model.must_wait = answer.lease, worker, True
        assert answer.lease.attempt == model.attempts
        return answer.lease

    @rule(index=indexes)
    def time_passes(self, index: int) -> None:
        model = self.models[index]
        self.run_out(model.submission.id)
        model.must_wait = False

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        model = self.model_of(lease)
        if not self.may_write(lease):
            with pytest.raises(Superseded):
                self.registry.leases.renew(lease, ttl=LONG)
            return
        reason = Reason.CANCELLED_BY_USER if model.is_cancelled else None
        assert self.registry.leases.renew(lease, ttl=LONG) is reason
        model.must_wait = True

    @rule(lease=leases, state=states)
    def advance(self, lease: Lease, state: State) -> None:
        model = self.model_of(lease)
        if not self.may_write(lease):
            with pytest.raises(Superseded):
                self.registry.leases.advance(lease, state)
        elif model.is_attempt and state is not model.place and state not in MOVES[model.place]:
            with pytest.raises(ValueError, match="cannot go"):
                self.registry.leases.advance(lease, state)
        elif model.is_attempt:
            self.registry.leases.advance(lease, state)
            model.place = state

    @rule()
    def somebody_looks_for_what_is_lost(self) -> None:
        lost = self.registry.ledger.lost(timedelta(0), limit=9, queue=self.queue)
        assert {each.id for each in lost} == {
            model.submission.id for model in self.models if not model.end and not model.must_wait
        }

    @rule(lease=leases, reason=reasons, delay=delays)
    def release(self, lease: Lease, reason: Reason, delay: timedelta) -> None:
        model = self.model_of(lease)
        repeats = lease == model.newest and model.holder is None and not model.end
        outcome = Outcome(reason=reason, detail=f"because of {reason.name}")
        if not self.may_write(lease) and not repeats:
            with pytest.raises(Superseded):
                self.registry.leases.release(lease, outcome, delay=delay)
            return
        self.registry.leases.release(lease, outcome, delay=delay)
        if not repeats:
            model.give_back(reason, outcome.detail)
            model.must_wait = bool(delay)

    @rule(lease=leases, end=ends)
    def finish(self, lease: Lease, end: tuple[Reason, State]) -> None:
        model = self.model_of(lease)
        reason, state = end
        if not self.may_write(lease) and not (lease == model.newest and model.end == end):
            with pytest.raises(Superseded):
                self.registry.leases.finish(lease, Outcome(reason=reason), state=state)
            return
        self.registry.leases.finish(lease, Outcome(reason=reason), state=state)
        model.end, model.holder = end, None

    @rule(index=indexes)
    def cancel(self, index: int) -> None:
        model = self.models[index]
        state = self.registry.experiments.cancel(model.submission.id)
        if model.end:
            assert state is model.end[1]
            return
        model.is_cancelled = True
        if model.holder is None or not model.must_wait:
            model.end, model.holder = (Reason.CANCELLED_BY_USER, State.CANCELLED), None
            assert state is State.CANCELLED
        else:
            assert not state.is_final

    @invariant()
    def every_record_is_as_it_ought_to_be(self) -> None:
        for model in self.models:
            record = self.registry.experiments.get(model.submission.id)
            assert record.worker_id == model.holder
            assert record.token == (model.newest.token if model.newest else 0)
            assert record.attempt == model.attempts
            assert record.is_cancelled is model.is_cancelled
            assert (record.user_failures, record.platform_failures) == (model.user_failures, model.platform_failures)
            assert [(past.reason, past.detail) for past in record.history] == model.ended[-20:]
            assert record.state.is_final is (record.finished_at is not None) is bool(model.end)
            if model.end:
                assert (record.reason, record.state) == model.end
            else:
                assert record.state is model.place

    def model_of(self, lease: Lease) -> Model:
        return next(model for model in self.models if model.submission.id == lease.experiment_id)

    def may_write(self, lease: Lease) -> bool:
        model = self.model_of(lease)
        return lease == model.newest and model.holder is not None and model.end is None


@pytest.fixture(params=["memory", "redis"])
def world(request: pytest.FixtureRequest) -> Iterator[tuple[Registry, RunOut]]:
    if request.param == "memory":
        yield _memory_world()
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    registry = open_registry(server.url)
    with redis.Redis.from_url(server.url) as client:

        def run_out(experiment_id: ExperimentId) -> None:
            client.hset(f"jobqueue:experiment:{experiment_id}", mapping={"until_ms": "0", "span_ms": "0"})

        yield registry, run_out
    registry.close()


def _memory_world() -> tuple[Registry, RunOut]:
    registry = MemoryRegistry()
    assert isinstance(registry.leases, MemoryLeases)
    table = registry.leases._table

    def run_out(experiment_id: ExperimentId) -> None:
        table.entries[experiment_id] = replace(table.entries[experiment_id], until=EPOCH)
        if experiment_id in table.seen:
            table.see(experiment_id)  # else the back-off would go on in the ledger

    return registry, run_out


def test_no_order_of_events_breaks_a_promise(world: tuple[Registry, RunOut]) -> None:
    run_state_machine_as_test(
        lambda: Interleavings(*world),
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
