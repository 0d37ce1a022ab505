"""The runtime that only pretends, and the choice between the real ones."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from jobqueue.errors import ImageRefused, RuntimeFailure
from jobqueue.resources import Resources
from workers.attempt.runtimes import open_runtime
from workers.attempt.runtimes.base import Exit, Labels, Plan
from workers.attempt.runtimes.fake import FakeContainer, FakeRuntime, Script

NOW = timedelta(0)
LONG = timedelta(seconds=10)
ASKED = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)
LABELS = Labels(experiment_id="exp-0", attempt=1, token=1, node_id="here")
PLAN = Plan(labels=LABELS, image="image", command=("true",), env={}, workspace=Path("/w"), inputs={}, resources=ASKED)


def start(runtime: FakeRuntime) -> FakeContainer:
    runtime.start(PLAN)
    return runtime.containers[-1]


def test_a_held_container_runs_until_it_is_finished() -> None:
    container = start(FakeRuntime(Script(is_held=True, exit=Exit(code=3))))
    assert container.wait(NOW) is None
    seen: list[tuple[str, bytes]] = []
    follower = threading.Thread(target=container.follow, args=(lambda *piece: seen.append(piece),))
    follower.start()
    container.emit("stdout", b"a")
    container.finish()
    follower.join(LONG.total_seconds())
    assert container.wait(LONG) == Exit(code=3)
    assert seen == [("stdout", b"a")]


def test_a_script_may_depend_on_the_plan() -> None:
    container = start(FakeRuntime(lambda plan: Script(exit=Exit(code=len(plan.command)))))
    assert container.wait(NOW) == Exit(code=1)


def test_what_was_done_can_be_asked() -> None:
    container = start(FakeRuntime(Script(is_held=True)))
    container.pause()
    assert container.is_paused
    container.stop(LONG)
    assert (container.calls, container.grace, container.is_paused) == (["pause", "stop"], LONG, False)
    assert container.wait(NOW) == Exit(code=143)


def test_found_is_what_was_not_removed_of_that_node() -> None:
    runtime = FakeRuntime()
    container = start(runtime)
    assert runtime.find("here") == [container]
    assert runtime.find("there") == []
    container.remove()
    assert runtime.find("here") == []


def test_everything_fails_while_it_is_down() -> None:
    runtime = FakeRuntime(Script(is_held=True))
    container = start(runtime)
    runtime.is_down = True
    attempts = [runtime.check, container.pause, container.remove]
    attempts += [lambda: runtime.find("here"), lambda: runtime.start(PLAN), lambda: container.wait(NOW)]
    for attempt in attempts:
        with pytest.raises(RuntimeFailure):
            attempt()
    runtime.is_down = False
    assert container.wait(NOW) is None


def test_an_image_may_be_refused() -> None:
    runtime = FakeRuntime()
    runtime.images["image"] = ImageRefused("no such image")
    with pytest.raises(ImageRefused):
        runtime.start(PLAN)


@pytest.mark.parametrize("name", ["docker", "process", "fake"])
def test_a_runtime_is_opened_by_its_name_whether_it_works_or_not(name: str, tmp_path: Path) -> None:
    runtime = open_runtime(name, state_dir=tmp_path, engine_url=f"unix://{tmp_path}/none")  # type: ignore[arg-type]
    assert runtime.name == name
    runtime.close()


def test_without_an_engine_the_choice_falls_on_processes(tmp_path: Path) -> None:
    runtime = open_runtime("auto", state_dir=tmp_path, engine_url=f"unix://{tmp_path}/none")
    assert runtime.name == "process"
    assert "not in containers" in runtime.notice


def test_an_engine_that_is_away_says_what_to_do(tmp_path: Path) -> None:
    runtime = open_runtime("docker", state_dir=tmp_path, engine_url=f"unix://{tmp_path}/none")
    with pytest.raises(RuntimeFailure, match="doctor"):
        runtime.check()
    assert runtime.notice == ""
