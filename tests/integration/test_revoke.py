"""Celery's revoke, and the button of Flower that sends it: the experiment is cancelled and its message goes."""

import base64
import json
import sys
import urllib.request
from collections.abc import Iterator
from functools import partial

import pytest
from services.place import LONG, OpenAt, Place, number, sleepers, wait_for_sleep
from services.process import Process
from services.site import ROOT
from services.waiting import answers, free_port, wait_until

from jobqueue.application import make_app
from jobqueue.lifecycle import Reason, State
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


@pytest.fixture(params=["rabbitmq", "redis", "sqs"])
def place(request: pytest.FixtureRequest, open_at: OpenAt) -> Iterator[Place]:
    with open_at(request.param) as opened:
        yield opened


def await_bus(place: Place) -> None:
    """Wait for a worker that hears: what is said before it listens is lost, and it waits for no bus."""
    app = make_app(place.site.settings)
    with app.connection_for_write() as connection:
        ping = partial(app.control.ping, timeout=1, limit=1, connection=connection)
        wait_until(ping, what="an answer", within=LONG)


def revoke(place: Place, experiment: Experiment, *, terminate: bool) -> None:
    app = make_app(place.site.settings)
    with app.connection_for_write() as connection:
        app.control.revoke(experiment.id, terminate=terminate, connection=connection)


def is_over(place: Place, experiment: Experiment) -> None:
    """Check that it is cancelled, and nothing of it is left."""
    wait_until(lambda: experiment.state == State.CANCELLED, what="the end", within=LONG)
    record = place.record_of(experiment)
    assert record.reason is Reason.CANCELLED_BY_USER
    wait_until(lambda: place.depth() == 0, what="the message gone", within=LONG)


def test_what_runs_and_what_waits_behind_it_are_cancelled_with_and_without_terminate(place: Place) -> None:
    with place.make_worker() as worker:
        await_bus(place)
        for terminate in (False, True):
            seconds = number()
            running = place.submit(f"sleep {seconds}")
            wait_for_sleep(seconds)
            waiting = place.submit("true")
            revoke(place, waiting, terminate=terminate)
            wait_until(
                lambda waiting=waiting: waiting.state == State.CANCELLED, what="the end of what waits", within=LONG
            )
            wait_until(
                lambda running=running: running.state == State.RUNNING, what="the other one going on", within=LONG
            )
            revoke(place, running, terminate=terminate)
            is_over(place, running)
            is_over(place, waiting)
            assert (sleepers(seconds), place.depth("_dead")) == ([], 0)
        assert place.submit("true").result(timeout=90) == {"exit_code": 0}
        assert worker.running


def test_a_worker_that_hears_of_what_it_does_not_serve_cancels_it_too(place: Place) -> None:
    other = f"{place.site.queue}x"
    place.create(other)
    with place.make_worker("other", environment={"JOBQUEUE_QUEUES": other}):
        await_bus(place)
        experiment = place.submit("true")
        revoke(place, experiment, terminate=True)
        wait_until(lambda: experiment.state == State.CANCELLED, what="the end", within=LONG)
    with place.make_worker():
        is_over(place, experiment)


@pytest.mark.parametrize("place", ["redis"], indirect=True)
def test_the_terminate_button_of_flower_cancels(place: Place) -> None:
    seconds, port = "7002.125", free_port()
    command = [sys.executable, "-m", "celery", "-A", "jobqueue", "flower", "--address=127.0.0.1", f"--port={port}"]
    flower = Process(
        name="flower",
        command=[*command, "--basic-auth=a:b"],
        log=place.site.folder / "flower.log",
        ready=lambda: answers(port, b"GET /healthcheck HTTP/1.0\r\n\r\n", b"200 OK"),
        environment={**place.site.environment, "PYTHONPATH": str(ROOT)},
    )
    with place.make_worker(), flower:
        experiment = place.submit(f"sleep {seconds}")
        wait_until(lambda: sleepers(seconds), what="it running", within=LONG)
        button = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/task/revoke/{experiment.id}?terminate=true",
            headers={"Authorization": f"Basic {base64.b64encode(b'a:b').decode()}"},
            method="POST",
        )
        with urllib.request.urlopen(button, timeout=60) as reply:
            assert experiment.id in json.load(reply)["message"]
        is_over(place, experiment)
