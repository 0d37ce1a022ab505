"""A worker sees to it that a guard is there, and goes easy on one that cannot start."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from services.waiting import wait_until

from workers.attempt.node_folder import NodeFolder, open_node_folder
from workers.file_locks import lock
from workers.node import guarding
from workers.node.guarding import GuardStarter


class Started:
    """A guard that does nothing; a test ends it."""

    returncode: int | None = None
    pid = 1

    def poll(self) -> int | None:
        return self.returncode


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    return open_node_folder(tmp_path)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Started, dict[str, Any]]]:
    found: list[tuple[Started, dict[str, Any]]] = []

    def spawn(_words: list[str], **options: Any) -> Started:
        found.append((Started(), options))
        return found[-1][0]

    monkeypatch.setattr(guarding.subprocess, "Popen", spawn)
    monkeypatch.setattr(guarding, "LOOK_EVERY", timedelta(milliseconds=5))
    return found


@pytest.fixture
def starter(node: NodeFolder, tmp_path: Path, started: object) -> Iterator[GuardStarter]:
    starter = GuardStarter(node, state_dir=tmp_path, runtime="docker")
    yield starter
    starter.close()


def test_a_guard_that_ended_is_replaced(starter: GuardStarter, started: list[Any]) -> None:
    starter.start()
    assert len(started) == 1
    started[0][0].returncode = -9
    wait_until(lambda: len(started) == 2, what="another guard")


def test_where_a_guard_is_already_none_is_started(starter: GuardStarter, started: list[Any], node: NodeFolder) -> None:
    held = lock(node.guard)
    assert held is not None
    starter.start()
    assert started == []


def test_a_guard_that_cannot_start_is_tried_less_and_less_often(starter: GuardStarter, started: list[Any]) -> None:
    starter.start()
    pauses = []
    for number in range(5):
        wait_until(lambda number=number: len(started) > number, what="another guard")  # type: ignore[misc]
        pauses.append(starter._pause())
        started[number][0].returncode = 1
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 8 * pauses[0]


def test_it_is_given_the_way_to_the_engine_and_no_secret(
    starter: GuardStarter, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///engine.sock")
    monkeypatch.setenv("JOBQUEUE_BROKER_URL", "amqp://secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    starter.start()
    environment = started[0][1]["env"]
    assert environment["DOCKER_HOST"] == "unix:///engine.sock"
    assert "secret" not in str(environment.values())
    assert started[0][1]["start_new_session"]
