"""An engine that answers and starts nothing: its node must not take one experiment after the other from those that can.

Real workers over a real engine; between one of them and the engine something refuses every start.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from services.engine import Engine
from services.engine_proxy import SAID, EngineProxy, open_engine_proxy
from services.place import LONG, Place, open_place
from services.process import Process
from services.rabbitmq import RabbitServer
from services.redis import RedisServer
from services.waiting import wait_until

from jobqueue.lifecycle import State
from producers.cli import jobqueue
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

_SECONDS = 150


@pytest.fixture
def place(rabbitmq_server: RabbitServer, redis_server: RedisServer, engine: Engine, tmp_path: Path) -> Iterator[Place]:
    with open_place(tmp_path, broker=rabbitmq_server.url, registry=redis_server.url, engine=engine) as opened:
        yield opened


@pytest.fixture
def proxy(engine: Engine) -> Iterator[EngineProxy]:
    with open_engine_proxy(engine) as opened:
        yield opened


@pytest.fixture
def bad(place: Place, proxy: EngineProxy) -> Iterator[Process]:
    """A worker of a node of its own, whose engine starts nothing."""
    settings = place.site.settings
    own = {
        "DOCKER_HOST": proxy.url,
        "JOBQUEUE_STATE_DIR": str(settings.state_dir.with_name("bad-state")),
        "JOBQUEUE_CACHE_DIR": str(settings.cache_dir.with_name("bad-cache")),
        "JOBQUEUE_KEYS": str(settings.keys_dir),
    }
    with place.make_worker("bad", environment=own) as worker:
        yield worker
        worker.stop()  # killed, it would leave the container that it tries to start


def find_states(place: Place) -> dict[str, tuple[str, str]]:
    """Return each worker's state and its evidence, as `jobqueue nodes ls` shows them."""
    done = CliRunner().invoke(jobqueue, ["nodes", "ls", "-o", "json"], env=dict(place.site.environment))
    assert done.exit_code == 0, done.output
    suffix = f".{place.site.settings.project}@test"
    shown = {each["worker"]: each for each in json.loads(done.stdout)}
    return {
        name.removesuffix(suffix): (each["state"], each["detail"])
        for name, each in shown.items()
        if name.endswith(suffix)
    }


def submit_ten(place: Place) -> list[Experiment]:
    return [place.submit("true") for _ in range(10)]


def wait_for_all(experiments: list[Experiment]) -> None:
    for experiment in experiments:
        assert experiment.wait(_SECONDS), experiment.why()
        assert experiment.state is State.SUCCEEDED, experiment.why()


def wait_for_trouble(place: Place) -> None:
    # A worker whose beat is late is told of again with the next one.
    wait_until(
        lambda: find_states(place).get("bad", ("",))[0] == "UNHEALTHY(STARTS_FAIL)",
        what="its engine found out",
        within=LONG,
    )


@pytest.mark.usefixtures("bad")
def test_a_node_that_starts_nothing_leaves_the_experiments_to_another_one(place: Place) -> None:
    experiments = submit_ten(place)
    wait_for_trouble(place)
    with place.make_worker("good") as good:
        wait_for_all(experiments)
        wait_until(lambda: find_states(place).get("good") == ("OK", ""), what="the good one told of", within=LONG)
        wait_until(lambda: SAID in find_states(place).get("bad", ("", ""))[1], what="the engine's words", within=LONG)
        wait_for_trouble(place)
        good.stop()
    wait_until(lambda: "good" not in find_states(place), what="the good one gone", within=LONG)
    waiting = place.submit("true")
    wait_until(
        lambda: "is UNHEALTHY(STARTS_FAIL): no container starts" in waiting.why(), what="why it waits", within=LONG
    )
    waiting.cancel()


@pytest.mark.usefixtures("bad")
def test_a_node_whose_engine_is_mended_goes_on_by_itself(place: Place, proxy: EngineProxy) -> None:
    experiments = submit_ten(place)
    wait_for_trouble(place)
    proxy.is_refusing = False
    wait_for_all(experiments)
    wait_until(lambda: find_states(place).get("bad") == ("OK", ""), what="it fit", within=LONG)
