"""The guard of a node freezes what nobody may run any longer, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from services.lease_files import keep as keep_file

from jobqueue.errors import RuntimeFailure
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.resources import Resources
from workers.attempt.lease import clock_seconds
from workers.attempt.lease_files import LeaseFile
from workers.attempt.node_folder import NodeFolder, open_node_folder
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.fake import FakeContainer, FakeRuntime, Script
from workers.node import guard as module
from workers.node.guard import Guard

PAST, AHEAD = -1.0, 60.0


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    return open_node_folder(tmp_path)


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime(Script(is_held=True))


@pytest.fixture
def guard(node: NodeFolder, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setattr(module, "LOOK_AT_ENGINE", timedelta(0))
    return Guard(node, runtime)


def keep(node: NodeFolder, seconds: float, *, experiment_id: str = "exp-1") -> LeaseFile:
    deadline_seconds = clock_seconds() + seconds
    return keep_file(node.leases, experiment_id=ExperimentId(experiment_id), token=7, deadline_seconds=deadline_seconds)


def start(node: NodeFolder, runtime: FakeRuntime, *, experiment_id: str = "exp-1") -> FakeContainer:
    labels = Labels(experiment_id=experiment_id, attempt=1, token=7, node_id=node.node_id)
    asked = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)
    place = Path("/nowhere")
    runtime.start(Plan(labels=labels, image="any", command=("x",), env={}, workspace=place, inputs={}, resources=asked))
    return runtime.containers[-1]


def test_what_is_overdue_is_frozen_and_the_rest_runs(node: NodeFolder, runtime: FakeRuntime, guard: Guard) -> None:
    keep(node, PAST)
    keep(node, AHEAD, experiment_id="exp-2")
    overdue, running = start(node, runtime), start(node, runtime, experiment_id="exp-2")
    guard.look()
    assert (overdue.is_paused, running.is_paused) == (True, False)
    assert running.calls == []


def test_a_lease_of_another_boot_is_overdue(node: NodeFolder, runtime: FakeRuntime, guard: Guard) -> None:
    file = keep(node, AHEAD)
    LeaseFile(node.leases, replace(file.kept, boot_id="another")).update()
    container = start(node, runtime)
    guard.look()
    assert container.is_paused


def test_what_was_renewed_while_it_was_frozen_goes_on(node: NodeFolder, runtime: FakeRuntime, guard: Guard) -> None:
    file = keep(node, PAST)
    container = start(node, runtime)
    pause = container.pause

    def renewed() -> None:
        pause()
        file.update(deadline_seconds=clock_seconds() + AHEAD)

    container.pause = renewed  # type: ignore[method-assign]
    guard.look()
    assert not container.is_paused


def test_it_thaws_nothing_that_its_holder_froze(node: NodeFolder, runtime: FakeRuntime, guard: Guard) -> None:
    keep(node, AHEAD)
    container = start(node, runtime)
    container.pause()
    guard.look()
    assert container.is_paused


def test_what_has_no_lease_file_is_frozen_after_a_moment(
    node: NodeFolder, runtime: FakeRuntime, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = start(node, runtime)
    guard.look()
    assert not container.is_paused
    monkeypatch.setattr(module, "UNKNOWN", timedelta(0))
    guard.look()
    assert container.is_paused


def test_what_is_another_nodes_is_left_alone(node: NodeFolder, runtime: FakeRuntime, guard: Guard) -> None:
    keep(node, PAST)
    other = start(replace(node, node_id="other"), runtime)  # type: ignore[arg-type]
    guard.look()
    assert other.calls == []


def test_an_engine_that_is_away_is_asked_again(node: NodeFolder, runtime: FakeRuntime, guard: Guard) -> None:
    keep(node, PAST)
    container = start(node, runtime)
    runtime.is_down = True
    guard.look()
    runtime.is_down = False
    guard.look()
    assert container.is_paused


def test_a_container_that_cannot_be_frozen_stops_no_other(node: NodeFolder, runtime: FakeRuntime, guard: Guard) -> None:
    keep(node, PAST)
    keep(node, PAST, experiment_id="exp-2")
    stuck, other = start(node, runtime), start(node, runtime, experiment_id="exp-2")
    stuck.pause = failing  # type: ignore[method-assign]
    guard.look()
    assert other.is_paused


def failing() -> None:
    raise RuntimeFailure("stuck")


@pytest.mark.parametrize("what", ["worker", "container"])
def test_it_is_needed_while_there_is_a_worker_or_a_container(
    node: NodeFolder, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(module, "LINGER", timedelta(0))
    guard = Guard(node, runtime)
    assert not guard.is_needed()
    keepers: dict[str, Callable[[], object]] = {
        "worker": lambda: node.claim(WorkerId("cpu@host")),
        "container": lambda: start(node, runtime),
    }
    keepers[what]()
    guard.look()
    monkeypatch.setattr(module, "LINGER", timedelta(seconds=5))
    assert guard.is_needed()


def test_it_stays_for_what_a_worker_left_that_died_before_the_guard_asked_the_engine(
    node: NodeFolder, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", timedelta(microseconds=1))
    guard = Guard(node, runtime)
    guard.look()
    keep(node, AHEAD)
    guard.look()
    assert guard.is_needed(), "its container may be starting"
    keep(node, PAST)
    container = start(node, runtime)
    guard.look()
    assert guard.is_needed()
    assert container.is_paused
