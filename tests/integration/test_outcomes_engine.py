"""What an engine that is away, or an image that cannot be fetched, leads to: the rows that need a real engine."""

from collections.abc import Iterator

import pytest
from services.engine import Engine
from services.image_registry import ImageRegistry
from services.place import LONG
from services.rabbitmq import RabbitServer
from services.waiting import free_port, wait_until
from services.walk import Walk, error_of, open_walk

from jobqueue.lifecycle import Reason, State

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


@pytest.fixture(scope="module")
def walk(rabbitmq_server: RabbitServer, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    with open_walk(tmp_path_factory.mktemp("engine"), broker=rabbitmq_server.url, engine=engine) as opened:
        yield opened


def test_an_image_that_cannot_be_fetched_now_is_tried_again(walk: Walk) -> None:
    experiment = walk.submit("true", image=f"127.0.0.1:{free_port()}/never:1", queue=walk.later)
    assert "never:1" in error_of(walk.given_back(experiment, Reason.IMAGE_PULL_FAILED))
    experiment.cancel()
    assert experiment.wait(90)
    assert walk.record(experiment).state is State.CANCELLED


def test_an_image_that_is_nowhere_is_refused(walk: Walk, image_registry: ImageRegistry) -> None:
    experiment = walk.submit("true", image=f"{image_registry.address}/never-pushed:1", retries=3)
    assert "never-pushed" in error_of(walk.ended(experiment, Reason.IMAGE_REFUSED))


def test_an_engine_that_is_away_is_waited_for(walk: Walk) -> None:
    assert walk.engine
    walk.engine.process.stop()
    try:
        experiment = walk.submit("true")
        walk.given_back(experiment, Reason.RUNTIME_FAILURE)
        wait_until(lambda: states(walk) == {"NO_ENGINE"}, what="the worker without an engine", within=LONG)
    finally:
        walk.engine.process.start()
    walk.ended(experiment, Reason.EXITED_ZERO, after=[Reason.RUNTIME_FAILURE], told=[])
    assert walk.engine.client.containers.list(all=True) == []


def states(walk: Walk) -> set[str]:
    return {worker.state for worker in walk.registry.workers.present()}
