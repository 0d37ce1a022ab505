"""Whatever operators, workers and time do in whatever order: what was said last is what is known, until it is wiped."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from services.registries import make_worker
from services.registry_worlds import MemoryWorld, RedisWorld, open_world

from jobqueue.ids import NodeId, WorkerId
from jobqueue.registry.base import Registry
from jobqueue.registry.pauses import Pause
from jobqueue.registry.presence import Drain

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TTL = timedelta(hours=1)

callers = st.integers(0, 2)
names = st.sampled_from(["cpu@a", "gpu0@a", "cpu@b"])
targets = st.sampled_from(["a", "b", "cpu@a", "gpu0@a", "größe"])
queues = st.sampled_from(["lab_cpu", "lab_gpu", "größe_cpu"])
operators = st.sets(st.sampled_from(["one", "another"]), min_size=1)
documents = st.binary(min_size=1, max_size=8)
# No sum of them is near an hour: a real clock goes on meanwhile.
durations = st.sampled_from([timedelta(minutes=25), timedelta(hours=2)])


class Wishes(RuleBasedStateMachine):
    """Three processes say what they want of queues, nodes and keys, and which workers are there."""

    def __init__(self, world: MemoryWorld | RedisWorld) -> None:
        super().__init__()
        self.world = world
        self.forget()

    def forget(self) -> None:
        self.pauses: dict[str, Pause] = {}
        self.drains: dict[str, Drain] = {}
        self.left: dict[str, timedelta] = {}
        self.holders: dict[str, tuple[int, timedelta]] = {}
        self.documents: dict[str, bytes] = {}
        self.seen: dict[int, dict[str, bytes]] = {0: {}, 1: {}, 2: {}}

    def of(self, caller: int) -> Registry:
        return self.world.caller(caller)

    @initialize()
    def begin_anew(self) -> None:
        self.server_is_wiped()

    @rule()
    def server_is_wiped(self) -> None:
        self.world.wipe()
        self.forget()

    @rule(caller=callers)
    def process_is_replaced(self, caller: int) -> None:
        self.world.replace_caller(caller)

    @rule(duration=durations)
    def time_passes(self, duration: timedelta) -> None:
        self.world.pass_time(duration)
        self.left = {name: left - duration for name, left in self.left.items() if left > duration}
        self.holders = {
            role: (caller, left - duration) for role, (caller, left) in self.holders.items() if left > duration
        }

    @rule(caller=callers, queue=queues, by=st.sampled_from(["ann", "größe"]))
    def pause(self, caller: int, queue: str, by: str) -> None:
        pause = Pause(queue=queue, at=NOW, by=by)
        self.of(caller).pauses.pause(pause)
        self.pauses.setdefault(queue, pause)

    @rule(caller=callers, queue=queues)
    def resume_queue(self, caller: int, queue: str) -> None:
        assert self.of(caller).pauses.resume(queue) is (self.pauses.pop(queue, None) is not None)

    @rule(caller=callers, wanted=targets, is_hurried=st.booleans())
    def drain(self, caller: int, wanted: str, is_hurried: bool) -> None:  # noqa: FBT001
        drain = Drain(target=wanted, is_hurried=is_hurried)
        self.of(caller).workers.drain(drain)
        self.drains[wanted] = drain

    @rule(caller=callers, wanted=targets)
    def resume_node(self, caller: int, wanted: str) -> None:
        assert self.of(caller).workers.resume(wanted) is (self.drains.pop(wanted, None) is not None)

    @rule(caller=callers, name=names)
    def announce(self, caller: int, name: str) -> None:
        node = name.partition("@")[2]
        worker = replace(make_worker(name), node_id=NodeId(node))
        wanted = [self.drains[target] for target in (name, node) if target in self.drains]
        told = self.of(caller).workers.announce(worker, ttl=TTL)
        assert told == max(wanted, key=lambda drain: drain.is_hurried, default=None)
        self.left[name] = TTL

    @rule(caller=callers, name=names)
    def leave(self, caller: int, name: str) -> None:
        self.of(caller).workers.leave(WorkerId(name))
        self.left.pop(name, None)

    @rule(caller=callers, role=st.sampled_from(["sweep", "other"]))
    def elect(self, caller: int, role: str) -> None:
        holder, _ = self.holders.get(role, (caller, TTL))
        assert self.of(caller).ledger.elect(role, WorkerId(f"cpu@{caller}"), ttl=TTL) is (holder == caller)
        if holder == caller:
            self.holders[role] = caller, TTL

    @rule(caller=callers)
    def look_at_what_is_published(self, caller: int) -> None:
        self.seen[caller] = self.of(caller).directory.documents()

    @rule(caller=callers, names=operators, document=documents)
    def publish(self, caller: int, names: set[str], document: bytes) -> None:
        seen, put = self.seen[caller], dict.fromkeys(names, document)
        is_newest = all(seen.get(name) == self.documents.get(name) for name in names)
        assert self.of(caller).directory.put(put, seen=seen) is is_newest
        if is_newest:
            self.documents |= put

    @invariant()
    def everybody_is_told_the_same(self) -> None:
        for caller in range(3):
            registry = self.of(caller)
            assert list(registry.pauses.paused().items()) == sorted(self.pauses.items())
            assert registry.workers.drains() == [drain for _, drain in sorted(self.drains.items())]
            assert [worker.worker_id for worker in registry.workers.present()] == sorted(self.left)
            assert registry.directory.documents() == self.documents


@pytest.fixture(params=["memory", "redis"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MemoryWorld | RedisWorld]:
    with open_world(request.param, tmp_path / "redis", monkeypatch) as world:
        yield world


def test_what_was_said_last_is_known_to_all(world: MemoryWorld | RedisWorld) -> None:
    run_machine(
        lambda: Wishes(world),  # type: ignore[arg-type]
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
