"""When a node is fit to run anything, and how soon it finds out."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from services.node import FakeNode
from services.waiting import wait_until

from jobqueue.envelope import Verified
from jobqueue.errors import RuntimeFailure
from jobqueue.lifecycle import Reason
from workers.attempt import health as module
from workers.attempt import starts
from workers.attempt.health import NodeHealth, Trouble
from workers.attempt.runtimes.base import Container, Exit, Plan
from workers.attempt.runtimes.fake import FakeRuntime, Script
from workers.attempt.supervise import Ended, PutOff


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def health(runtime: FakeRuntime, tmp_path: Path) -> Iterator[NodeHealth]:
    made = NodeHealth(runtime, tmp_path, floor_bytes=1)
    yield made
    made.close()


def test_an_engine_that_is_late_once_is_no_trouble_and_one_that_stays_silent_is(
    health: NodeHealth, runtime: FakeRuntime
) -> None:
    runtime.is_down = True
    health.look()
    assert health.is_fit
    health.look()
    assert (health.is_fit, health.trouble) == (False, Trouble.NO_ENGINE)
    runtime.is_down = False
    health.look()
    assert health.is_fit


def test_an_engine_that_is_late_now_and_then_is_no_trouble(health: NodeHealth, runtime: FakeRuntime) -> None:
    for is_down in (True, False, True, False, True):
        runtime.is_down = is_down
        health.look()
        assert health.is_fit


def test_an_engine_that_an_attempt_has_failed_on_is_gone_at_once(health: NodeHealth, runtime: FakeRuntime) -> None:
    runtime.is_down = True
    health.note(Reason.RUNTIME_FAILURE)
    assert health.trouble is Trouble.NO_ENGINE


@pytest.mark.parametrize("reason", [Reason.RUNTIME_FAILURE, Reason.EXITED_NONZERO, Reason.STORE_UNAVAILABLE])
def test_a_failure_on_an_engine_that_answers_says_nothing_of_the_node(health: NodeHealth, reason: Reason) -> None:
    health.note(reason)
    assert health.is_fit


def test_no_engine_at_the_start_is_trouble_from_the_start_and_over_once_it_answers(
    health: NodeHealth, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", module.LOOK_EVERY / 200)
    runtime.is_down = True
    health.start()
    assert health.trouble is Trouble.NO_ENGINE
    runtime.is_down = False
    wait_until(lambda: health.is_fit, what="it fit again")


def test_a_look_that_is_upset_is_not_the_last_one(
    health: NodeHealth, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", module.LOOK_EVERY / 200)
    health.start()
    upset = []

    def check() -> None:
        upset.append(1)
        raise ValueError if len(upset) < 3 else RuntimeFailure("down")

    monkeypatch.setattr(runtime, "check", check)
    wait_until(lambda: health.trouble is Trouble.NO_ENGINE, what="a look after those")


def test_less_free_than_the_floor_is_a_full_disk(runtime: FakeRuntime, tmp_path: Path) -> None:
    free_bytes = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    health = NodeHealth(runtime, tmp_path, floor_bytes=2 * free_bytes + 1)
    health.look()
    assert health.trouble is Trouble.DISK_FULL


def test_a_disk_without_a_file_left_is_full(health: NodeHealth, monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"f_bavail": 10, "f_frsize": 4096}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=100, f_favail=0, **room))
    health.look()
    assert health.trouble is Trouble.DISK_FULL
    # Some file systems have as many as one likes, and say none.
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=0, f_favail=0, **room))
    health.look()
    assert health.is_fit


def test_a_folder_that_is_not_there_yet_is_no_trouble(runtime: FakeRuntime, tmp_path: Path) -> None:
    health = NodeHealth(runtime, tmp_path / "later", floor_bytes=1)
    health.look()
    assert health.is_fit


def test_a_disk_that_an_attempt_has_found_full_counts_as_full_for_a_while(
    health: NodeHealth, monkeypatch: pytest.MonkeyPatch
) -> None:
    health.note(Reason.NODE_DISK_FULL)
    assert health.trouble is Trouble.DISK_FULL
    later = module.time.monotonic() + module.AFTER_FULL.total_seconds()
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    health.look()
    assert health.is_fit


def test_a_change_is_told_once(health: NodeHealth, runtime: FakeRuntime) -> None:
    told: list[Trouble | None] = []
    health.on_change = lambda: told.append(health.trouble)
    for is_down in (False, True, True, True, True, False, False):
        runtime.is_down = is_down
        health.look()
    assert told == [Trouble.NO_ENGINE, None]


@pytest.mark.parametrize("minutes", [2, -2])
def test_a_clock_that_is_far_from_the_registrys_is_trouble_until_it_is_near(health: NodeHealth, minutes: int) -> None:
    health.note_clock(timedelta(minutes=minutes))
    assert health.trouble is Trouble.CLOCK_SKEW
    assert f"2m {'ahead of' if minutes > 0 else 'behind'} the registry's" in health.detail
    health.note_clock(timedelta(minutes=minutes) / 4)
    assert (health.trouble, health.detail) == (None, "")


def test_what_is_wrong_is_told_with_its_evidence_and_the_disk_with_its_room(
    health: NodeHealth, runtime: FakeRuntime
) -> None:
    runtime.is_down = True
    health.look(misses=1)
    assert health.detail
    assert health.free_bytes


def test_an_attempt_that_met_a_dead_engine_or_a_full_disk_makes_its_node_unfit_before_its_message_goes_back(
    node: FakeNode,
) -> None:
    node.runtime.is_down = True
    put_off = node.run(node.message())
    assert isinstance(put_off, PutOff)
    assert put_off.outcome is not None
    assert put_off.outcome.reason is Reason.RUNTIME_FAILURE
    assert node.site.health.trouble is Trouble.NO_ENGINE


class RefusingEngine:
    """Answers, and starts no container while it refuses; its time stands still."""

    def __init__(self, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node, self.is_refusing, self.now_seconds = node, True, 1000.0
        self._start = node.runtime.start
        monkeypatch.setattr(node.runtime, "start", self.start)
        monkeypatch.setattr(node.site.health._starts, "_clock", lambda: self.now_seconds)

    def start(self, plan: Plan) -> Container:
        if self.is_refusing:
            raise RuntimeFailure("the engine refused to start a container: no runc")
        return self._start(plan)

    def fail(self, message: Verified | None = None) -> None:
        """Have an attempt fail, of a new experiment by default."""
        put_off = self.node.run(message or self.node.message())
        assert isinstance(put_off, PutOff)
        assert put_off.outcome
        assert put_off.outcome.reason is Reason.RUNTIME_FAILURE
        self.node.clock.ahead += 2 * put_off.delay

    def wait(self, pause: timedelta) -> None:
        """Let a pause that is expected go by."""
        assert not self.node.site.health.is_on_trial
        self.now_seconds += pause.total_seconds() - 0.1
        assert not self.node.site.health.is_on_trial
        self.now_seconds += 0.1
        assert self.node.site.health.is_on_trial


@pytest.fixture
def engine(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> RefusingEngine:
    return RefusingEngine(node, monkeypatch)


def test_an_engine_that_answers_and_starts_nothing_is_trouble_after_three_experiments(
    node: FakeNode, engine: RefusingEngine
) -> None:
    health = node.site.health
    for _ in range(2):
        engine.fail()
        assert health.is_fit
    engine.fail()
    assert (health.trouble, health.is_on_trial) == (Trouble.STARTS_FAIL, False)
    assert "no container starts (3 experiments in a row, another one is tried after 5s)" in health.detail
    assert "the engine refused to start a container: no runc" in health.detail


def test_it_is_tried_with_one_after_longer_and_longer_pauses_and_one_that_starts_makes_it_fit_at_once(
    node: FakeNode, engine: RefusingEngine
) -> None:
    for _ in range(3):
        engine.fail()
    for seconds in (5, 10, 20, 40, 80, 160, 300, 300):
        engine.wait(timedelta(seconds=seconds))
        engine.fail()
    engine.wait(starts.LAST_PAUSE)
    engine.is_refusing = False
    running = node.start(message := node.message())
    assert isinstance(running.join(), Ended), message
    assert (node.site.health.trouble, node.site.health.detail) == (None, "")
    engine.is_refusing = True
    engine.fail()
    assert node.site.health.is_fit, "it begins to count anew"


def test_no_container_stays_though_its_start_cannot_be_noted(node: FakeNode, engine: RefusingEngine) -> None:
    def upset() -> None:
        raise OSError("odd")

    for _ in range(3):
        engine.fail()
    engine.is_refusing = False
    node.site.health.on_change = upset
    engine.fail()
    assert [container.is_removed for container in node.runtime.containers] == [True]
    assert node.site.health.is_fit


def test_one_that_starts_between_them_breaks_the_row(node: FakeNode, engine: RefusingEngine) -> None:
    for _ in range(4):
        engine.is_refusing = True
        for _ in range(2):
            engine.fail()
        engine.is_refusing = False
        assert isinstance(node.run(node.message()), Ended)
        assert node.site.health.is_fit


def test_one_experiment_that_never_starts_says_nothing_of_the_node(node: FakeNode, engine: RefusingEngine) -> None:
    message = node.message()
    for _ in range(2):
        engine.fail(message)
    assert isinstance(node.run(message), Ended), "its attempts are used up"
    assert node.site.health.is_fit


def test_what_has_failed_on_other_nodes_as_well_says_nothing_of_this_one(
    node: FakeNode, engine: RefusingEngine
) -> None:
    messages = [node.message() for _ in range(4)]
    for message in messages:
        engine.fail(message)
    assert node.site.health.trouble is Trouble.STARTS_FAIL
    node.site.health.note_start()  # or another node, which has seen none of them
    assert node.site.health.is_fit
    for message in messages:
        engine.fail(message)
    assert node.site.health.is_fit


def test_what_was_on_its_way_when_a_pause_began_makes_it_no_longer(node: FakeNode, engine: RefusingEngine) -> None:
    for _ in range(7):
        engine.fail()
    engine.wait(starts.FIRST_PAUSE)


def test_a_failure_after_the_start_says_nothing_of_the_next_start(node: FakeNode, engine: RefusingEngine) -> None:
    engine.is_refusing = False
    node.runtime.script = Script(exit=Exit(code=137, is_from_outside=True))
    for _ in range(4):
        engine.fail()
    assert node.site.health.is_fit


def test_an_engine_that_is_away_is_no_engine_and_its_failures_count_once_it_is_back(
    node: FakeNode, engine: RefusingEngine
) -> None:
    node.runtime.is_down = True
    for _ in range(3):
        engine.fail()
    assert node.site.health.trouble is Trouble.NO_ENGINE
    node.runtime.is_down = False
    node.site.health.look()
    assert node.site.health.is_fit
    engine.fail()
    assert node.site.health.trouble is Trouble.STARTS_FAIL
    node.runtime.is_down = True
    node.site.health.look()
    assert node.site.health.trouble is Trouble.STARTS_FAIL, "an engine that is late once"
    node.site.health.look()
    assert node.site.health.trouble is Trouble.NO_ENGINE
