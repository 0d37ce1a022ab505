"""Whatever becomes of the registry, its clock and its callers: never two live holders, and tokens that only grow."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from services.registries import make_worker
from services.registry_worlds import MemoryWorld, RedisWorld, open_world

from jobqueue.errors import NotFound, RegistryUnavailable, Superseded
from jobqueue.ids import NodeId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry.base import Cancelled, Exhausted, Final, Granted, Holder, Lease, Quarantined, Submission
from jobqueue.resources import Resources

TTL = timedelta(minutes=1)
# As `workers.attempt.lease` has it: the holder's own deadline comes before the lease is over.
LIVE_SECONDS = TTL.total_seconds() * 5 / 6
BUDGET = 100
NOW = datetime(2030, 1, 1, tzinfo=UTC)
NOTHING = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)

attempts = Bundle("attempts")
indexes, callers = st.sampled_from([0, 0, 0, 1]), st.integers(0, 2)
durations = st.sampled_from([1, 4, 11, 35, 62]).map(lambda seconds: timedelta(seconds=seconds))
steps = st.sampled_from([3600, 3600, -1800, 20]).map(lambda seconds: timedelta(seconds=seconds))


@dataclass(eq=False)
class Attempt:
    """A lease as its holder knows it."""

    caller: int
    lease: Lease
    submission: Submission
    deadline_seconds: float
    is_over: bool = False


@dataclass
class Model:
    """What is to be remembered of one experiment."""

    submission: Submission
    attempts: list[Attempt] = field(default_factory=list)
    newest_token: int = 0
    is_cancelled: bool = False
    end: tuple[Reason, State] | None = None


class Holders(RuleBasedStateMachine):
    """Three processes want two experiments, on a server that fails in every way."""

    def __init__(self, world: MemoryWorld | RedisWorld) -> None:
        super().__init__()
        self.world = world
        self.models: list[Model] = []
        self.behind = timedelta(0)

    @initialize()
    def begin_anew_and_submit(self) -> None:
        self.world.wipe()
        for caller in range(3):
            self.world.replace_caller(caller)
        for _ in range(2):
            submission = Submission(
                id=make_experiment_id(), queue="q", project="p", resources=NOTHING, submitted_at=NOW, expires_at=NOW
            )
            self.world.caller(0).experiments.register(submission)
            self.models.append(Model(submission=submission))
        self.world.note()

    @rule(target=attempts, index=indexes, caller=callers)
    def acquire(self, index: int, caller: int) -> object:
        model, sent_at = self.models[index], self.world.now_seconds
        answer = self.world.caller(caller).leases.acquire(
            model.submission,
            worker_id=WorkerId(f"cpu@{caller}"),
            node_id=NodeId("a"),
            ttl=TTL,
            platform_budget=BUDGET,
        )
        if isinstance(answer, Quarantined):
            assert answer.remaining <= TTL + timedelta(seconds=1)
        assert isinstance(answer, Final) or model.end is None
        if not isinstance(answer, Granted | Cancelled | Exhausted):
            return multiple()
        assert not self.live(model), "granted while somebody held it"
        assert answer.lease.token > model.newest_token
        model.newest_token = answer.lease.token
        attempt = Attempt(
            caller=caller,
            lease=answer.lease,
            submission=model.submission,
            deadline_seconds=sent_at + LIVE_SECONDS,
        )
        model.attempts.append(attempt)
        return attempt

    @rule(attempt=attempts)
    def renew(self, attempt: Attempt) -> None:
        if attempt.is_over:
            return
        model, sent_at = self.model_of(attempt), self.world.now_seconds
        is_live = sent_at < attempt.deadline_seconds
        holder = Holder(
            submission=attempt.submission,
            worker_id=WorkerId(f"cpu@{attempt.caller}"),
            node_id=NodeId("a"),
            is_in_doubt=not is_live,
        )
        try:
            self.world.caller(attempt.caller).leases.renew(attempt.lease, ttl=TTL, holder=holder)
        except Superseded:
            assert not is_live or model.end or model.is_cancelled, "a live holder was refused"
            attempt.is_over = True
        except RegistryUnavailable:
            assert not is_live
        else:
            assert self.live(model) in ([], [attempt])
            attempt.deadline_seconds = sent_at + LIVE_SECONDS

    @rule(attempt=attempts, delay=st.sampled_from([timedelta(0), TTL]))
    def release(self, attempt: Attempt, delay: timedelta) -> None:
        def give_back() -> None:
            outcome = Outcome(reason=Reason.DRAINED)
            self.world.caller(attempt.caller).leases.release(attempt.lease, outcome, delay=delay)

        if not attempt.is_over:
            attempt.is_over = self.write(attempt, give_back)

    @rule(attempt=attempts)
    def finish(self, attempt: Attempt) -> None:
        def end() -> None:
            outcome = Outcome(reason=Reason.EXITED_ZERO)
            self.world.caller(attempt.caller).leases.finish(attempt.lease, outcome, state=State.SUCCEEDED)
            self.model_of(attempt).end = self.model_of(attempt).end or (Reason.EXITED_ZERO, State.SUCCEEDED)

        if not attempt.is_over:
            attempt.is_over = self.write(attempt, end)

    @rule(attempt=attempts)
    def die(self, attempt: Attempt) -> None:
        attempt.is_over = True

    @rule(index=indexes, caller=callers)
    def cancel(self, index: int, caller: int) -> None:
        model = self.models[index]
        try:
            state = self.world.caller(caller).experiments.cancel(model.submission.id)
        except NotFound:
            return
        model.is_cancelled = True
        if state.is_final and not model.end:
            # One that a restarted server remembers all the same.
            reason = Reason.EXITED_ZERO if state is State.SUCCEEDED else Reason.CANCELLED_BY_USER
            model.end = (reason, state)

    @rule(duration=durations)
    def time_passes(self, duration: timedelta) -> None:
        self.world.pass_time(duration)

    @rule(caller=callers)
    def announce(self, caller: int) -> None:
        self.world.caller(caller).workers.announce(make_worker(f"cpu@{caller}"), ttl=TTL)

    @rule(step=steps)
    def clock_steps(self, step: timedelta) -> None:
        self.world.step_clock(step)
        self.behind = max(self.behind - step, timedelta(0))

    @rule(caller=callers)
    def process_is_replaced(self, caller: int) -> None:
        self.world.replace_caller(caller)

    @rule()
    def file_is_synced(self) -> None:
        self.world.note()

    @rule()
    def server_is_wiped(self) -> None:
        self.world.wipe()
        self.forget()

    @rule(forgets=st.booleans())
    def server_is_restarted(self, *, forgets: bool) -> None:
        if self.world.restart(forgets=forgets):
            self.forget()

    @invariant()
    def one_holder_at_most_is_live(self) -> None:
        for model in self.models:
            assert len(self.live(model)) <= 1

    @invariant()
    def an_end_stays(self) -> None:
        for model in self.models:
            if model.end:
                record = self.world.caller(0).experiments.get(model.submission.id)
                assert (record.reason, record.state) == model.end

    def forget(self) -> None:
        for model in self.models:
            model.end = None
            if self.behind:
                model.newest_token = 0  # nobody may be left who has heard of a token that is ahead of the clock

    def write(self, attempt: Attempt, act: Callable[[], None]) -> bool:
        """Do what only a holder may; returns whether it is none any more."""
        is_live = self.world.now_seconds < attempt.deadline_seconds
        model = self.model_of(attempt)
        try:
            act()
        except RegistryUnavailable:
            return False
        except Superseded:
            assert not is_live or model.end or model.is_cancelled
        return True

    def live(self, model: Model) -> list[Attempt]:
        now = self.world.now_seconds
        return [attempt for attempt in model.attempts if not attempt.is_over and now < attempt.deadline_seconds]

    def model_of(self, attempt: Attempt) -> Model:
        return next(model for model in self.models if model.submission is attempt.submission)


@pytest.fixture(params=["memory", "redis"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MemoryWorld | RedisWorld]:
    with open_world(request.param, tmp_path / "redis", monkeypatch) as world:
        yield world


def run(world: MemoryWorld | RedisWorld, *, examples: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    run_machine(
        lambda: Holders(world),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_that_befalls_the_registry_makes_two_live_holders(world: MemoryWorld | RedisWorld) -> None:
    run(world, examples=100)


def test_without_the_quarantine_the_same_events_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        open_world("redis", tmp_path / "redis", monkeypatch, off=["quarantine"]) as world,
        pytest.raises(AssertionError),
    ):
        run(world, examples=1000, phases=[Phase.generate])
