"""SQS that errs, throttles, resets, forgets queues and credentials: a worker goes on, and loses nothing."""

import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from services.moto import SqsServer
from services.place import LONG, Place, open_place, sleepers
from services.redis import RedisServer, open_redis
from services.sqs_proxy import RESET, SqsProxy, open_sqs_proxy
from services.waiting import wait_until

from jobqueue.application import make_app
from jobqueue.config import Settings
from jobqueue.lifecycle import State

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

WORKERS_MAY_ASK = {"GetQueueUrl", "ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility"}
FAULTS = [
    (503, "ServiceUnavailable"),
    (500, "InternalError"),
    (429, "TooManyRequests"),
    (400, "RequestThrottled"),
    (400, "ExpiredToken"),
    (403, "AccessDenied"),
    (400, "QueueDoesNotExist"),
    (400, "Nonsense"),
    (RESET, ""),
]


@pytest.fixture
def proxy(sqs_server: SqsServer) -> Iterator[SqsProxy]:
    with open_sqs_proxy(sqs_server.moto.port) as opened:
        yield opened


@pytest.fixture
def options() -> str:
    """Further options of the broker's address; a test replaces them by parametrization."""
    return ""


@pytest.fixture
def lease() -> str:
    """The lease; a test replaces it by parametrization."""
    return "3s"


@pytest.fixture
def place(
    proxy: SqsProxy, sqs_server: SqsServer, redis_server: RedisServer, tmp_path: Path, options: str, lease: str
) -> Iterator[Place]:
    url = sqs_server.url.replace(f":{sqs_server.moto.port}", f":{proxy.port}") + options
    with open_place(tmp_path, broker=url, registry=redis_server.url, engine=None, lease=lease) as opened:
        yield opened


def number(least: int) -> str:
    """Return a time to sleep for that no other process of this machine sleeps for."""
    return f"{least}.{secrets.randbelow(10**9):09d}"


def is_empty(place: Place) -> bool:
    with place.open_broker() as broker:
        depth = broker.queues.depth(place.site.queue)
    return depth.ready + (depth.unacked or 0) == 0


@pytest.mark.parametrize("options", ["&wait=1s"])
def test_no_answer_to_a_poll_ends_the_worker_or_its_polling(place: Place, proxy: SqsProxy) -> None:
    with place.make_worker() as worker:
        pid = worker.pid
        for status, name in FAULTS:
            proxy.fail("ReceiveMessage", status, name)
            wait_until(lambda: proxy.is_through("ReceiveMessage"), what=f"the error {name}", within=LONG)
            asked = proxy.asked["ReceiveMessage"]
            wait_until(lambda asked=asked: proxy.asked["ReceiveMessage"] > asked, what="another poll", within=LONG)
        assert place.submit("true").result(timeout=60) == {"exit_code": 0}
        assert (worker.running, worker.pid) == (True, pid)


@pytest.mark.parametrize(("status", "name"), [(503, "ServiceUnavailable"), (403, "AccessDenied"), (RESET, "")])
def test_what_could_not_be_acknowledged_is_not_run_again(place: Place, proxy: SqsProxy, status: int, name: str) -> None:
    with place.make_worker() as worker:
        assert place.submit("true").result(timeout=90) == {"exit_code": 0}
        proxy.fail("DeleteMessage", status, name, times=2)
        experiment = place.submit("echo once")
        assert experiment.result(timeout=90) == {"exit_code": 0}
        assert place.submit("true").result(timeout=90) == {"exit_code": 0}
        wait_until(lambda: is_empty(place), what="the message gone", within=LONG)
        assert worker.running
    assert (list(experiment.logs()), experiment.attempt) == (["once"], 1)


def test_an_idle_worker_asks_one_question_at_a_time_and_makes_and_lists_no_queue(place: Place, proxy: SqsProxy) -> None:
    proxy.asked.clear()
    proxy.most_at_once.clear()
    with place.make_worker():
        wait_until(lambda: proxy.asked["ReceiveMessage"] >= 3, what="some polls", within=LONG)
    assert proxy.most_at_once["ReceiveMessage"] == 1
    assert set(proxy.asked) <= WORKERS_MAY_ASK


@pytest.mark.parametrize("options", ["&wait=20s"])
def test_a_worker_that_polls_for_long_stops_at_once(place: Place, proxy: SqsProxy) -> None:
    with place.make_worker() as worker:
        wait_until(lambda: proxy.asked["ReceiveMessage"], what="the poll", within=LONG)
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        assert worker._child is not None
        assert worker._child.wait(timeout=90) == 0
    assert time.monotonic() - began < 18  # of the 20 that it would have waited


def test_a_queue_that_was_deleted_is_served_again_when_it_is_back(place: Place) -> None:
    with place.make_worker() as worker, place.open_broker() as broker:
        assert place.submit("true").result(timeout=90) == {"exit_code": 0}
        broker.queues.delete(place.site.queue)
        wait_until(lambda: "queue.gone" in worker.log.read_text(), what="it noticed", within=LONG)
        broker.queues.create(place.site.queue)
        assert place.submit("true").result(timeout=60) == {"exit_code": 0}
        assert worker.running


@pytest.mark.parametrize("lease", ["2s"])
@pytest.mark.parametrize("options", ["", "&hold=3s"], ids=["kept", "relayed"])
def test_a_run_that_is_longer_than_a_delivery_lasts_runs_once(place: Place, options: str) -> None:
    seconds = number(9)  # four times as long as a delivery lasts
    with place.make_worker("one") as one, place.make_worker("two") as two:
        experiment = place.submit(f"sleep {seconds}; echo end")
        alive = 0
        while not experiment.wait(0.2):
            alive = max(alive, len(sleepers(seconds)))
        said = one.log.read_text() + two.log.read_text()
        assert place.submit("true").result(timeout=90) == {"exit_code": 0}
        wait_until(lambda: is_empty(place), what="no message left", within=LONG)
    assert alive == 1
    assert (experiment.state, experiment.attempt, list(experiment.logs())) == (State.SUCCEEDED, 1, ["end"])
    assert ("delivery.relayed" in said) == bool(options)
    assert len(re.findall("attempt.leased", said)) == 1


@pytest.mark.parametrize("lease", ["2s"])
def test_an_sqs_that_is_silent_for_longer_than_a_delivery_lasts_costs_nothing(
    place: Place, sqs_server: SqsServer
) -> None:
    seconds = number(1000)
    with place.make_worker("one") as one, place.make_worker("two") as two:
        experiment = place.submit(f"sleep {seconds}; echo end")
        (pid,) = wait_until(lambda: sleepers(seconds), what="it running", within=LONG)
        sqs_server.process.pause()
        try:
            silent = "delivery.not_kept_alive"
            wait_until(lambda: silent in one.log.read_text() + two.log.read_text(), what="the silence", within=LONG)
            time.sleep(3)  # more than a lease: at SQS the delivery is over
        finally:
            sqs_server.process.resume()
        # Two leases, in which another worker may be given it.
        alive = [sleepers(seconds) for _ in range(20) if not experiment.wait(0.2)]
        os.kill(pid, signal.SIGTERM)
        assert experiment.wait(90)
        assert place.submit("true").result(timeout=90) == {"exit_code": 0}
        wait_until(lambda: is_empty(place), what="no message left", within=LONG)
        assert one.running
        assert two.running
    assert alive == [[pid]] * 20
    assert (experiment.state, experiment.attempt, list(experiment.logs())) == (State.SUCCEEDED, 1, ["end"])


# Events and remote control


def test_a_worker_starts_and_works_while_the_bus_is_away_and_hears_when_it_is_back(
    place: Place, tmp_path: Path
) -> None:
    folder = tmp_path / "bus"
    folder.mkdir()
    with open_redis(folder) as bus:
        environment = {"JOBQUEUE_EVENTS_URL": bus.url}
        bus.process.stop()
        with place.make_worker(environment=environment) as worker:
            assert place.submit("true").result(timeout=90) == {"exit_code": 0}
            bus.process.start()
            settings = Settings(**{**place.site.settings.model_dump(exclude_defaults=True), "events_url": bus.url})
            with make_app(settings) as app, app.connection_for_write() as connection:
                ping = partial(app.control.ping, timeout=1, limit=1, connection=connection)
                wait_until(ping, what="an answer", within=LONG)
                bus.process.restart()
                assert place.submit("true").result(timeout=90) == {"exit_code": 0}
                wait_until(ping, what="another one", within=LONG)
            bus.process.pause()
            try:
                assert place.submit("true").result(timeout=90) == {"exit_code": 0}
            finally:
                bus.process.resume()
            assert worker.running
