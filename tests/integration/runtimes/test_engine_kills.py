"""Who killed a container: itself, or somebody who asked the engine."""

from contextlib import suppress
from datetime import timedelta

import docker
import pytest
from services.engine import Engine
from services.runtimes import StartContainer
from services.waiting import wait_until

LONG = timedelta(seconds=60)


@pytest.mark.parametrize("signal", ["SIGKILL", "KILL", 9])
def test_what_somebody_kills_through_the_engine_was_killed_from_outside(
    engine: Engine, start: StartContainer, signal: str | int
) -> None:
    container = start("sleep", "1000")
    (listed,) = engine.client.api.containers(filters={"label": "jobqueue.experiment=exp-integration"})
    engine.client.api.kill(listed["Id"], signal)
    ended = container.wait(LONG)
    assert ended
    assert (ended.code, ended.is_from_outside) == (137, True)


def test_what_kills_itself_was_not(engine: Engine, start: StartContainer) -> None:
    other = start("sleep", "1000")
    other.stop(timedelta(0))
    ended = start("sh", "-c", "kill -KILL $$").wait(LONG)
    assert ended
    assert (ended.code, ended.is_from_outside) == (137, False)


def test_what_was_told_to_end_gently_and_killed_itself_was_not(engine: Engine, start: StartContainer) -> None:
    container = start("sh", "-c", "trap 'kill -KILL $$' TERM; while true; do sleep 0.05; done")
    (listed,) = engine.client.api.containers(filters={"label": "jobqueue.experiment=exp-integration"})
    while not (ended := container.wait(timedelta(seconds=0.2))):
        with suppress(docker.errors.APIError):  # it has ended meanwhile
            engine.client.api.kill(listed["Id"], "SIGTERM")
    assert (ended.code, ended.is_from_outside) == (137, False)


def test_of_what_an_engine_has_forgotten_nobody_can_say_that_it_killed_itself(
    engine: Engine, start: StartContainer
) -> None:
    container = start("sleep", "1000")
    (listed,) = engine.client.api.containers(filters={"label": "jobqueue.experiment=exp-integration"})
    engine.client.api.kill(listed["Id"], "SIGKILL")
    wait_until(lambda: not engine.client.api.inspect_container(listed["Id"])["State"]["Running"], what="its end")
    engine.process.kill()
    engine.process.start()
    ended = container.wait(LONG)
    assert ended
    assert (ended.code, ended.is_from_outside) == (137, True)
