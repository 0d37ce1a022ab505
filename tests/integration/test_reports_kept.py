"""Reports over an outage of a real broker and the death of the worker in it: none lost, in order, known by number."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from services.place import LONG, Place, open_place, sleepers
from services.process import Process
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.codec import decode_report
from jobqueue.ids import make_experiment_id
from jobqueue.keys import KeyRing
from jobqueue.lifecycle import State
from jobqueue.report import Report
from jobqueue.routing import reporting_queue
from workers.attempt.reporting import Outbox

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

LEASE = timedelta(seconds=6)

TELLER = """
import signal, sys
from datetime import timedelta
from pathlib import Path
from jobqueue.brokers import open_broker
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.lifecycle import Reason, State
from jobqueue.keys import KeyRing
from workers.attempt.reporting import Addressee, Outbox, Reporter

url, queue, folder, experiment = sys.argv[1:]
outbox = Outbox(open_broker(url, lease=timedelta(seconds=6)).post, Path(folder), keys=KeyRing(Path(folder)))
to = Addressee(queue=queue)
reporter = Reporter(
    outbox, to=to, experiment_id=ExperimentId(experiment), worker_id=WorkerId("cpu@test"), attempt=1, token=7
)
reporter.entered(State.PREPARING)
reporter.entered(State.RUNNING)
assert outbox.flush(timedelta(seconds=20))
print("up", flush=True)
sys.stdin.readline()
for number in range(20):
    reporter.progressed('{"progress": %d}' % number)
reporter.entered(State.FINALIZING)
reporter.ended(Reason.EXITED_NONZERO, state=State.FAILED, sentence="exit code 3", exit_code=3, last_lines=("bye",))
print("said", flush=True)
signal.pause()
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A broker's process, and a connection to it."""

    url: str
    process: Process
    broker: Broker


@pytest.fixture(params=["rabbitmq", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    running = request.getfixturevalue(f"{request.param}_server")
    broker = open_broker(running.url, lease=LEASE)
    yield Server(url=running.url, process=running.process, broker=broker)
    broker.close()


@pytest.fixture
def queue(server: Server) -> Iterator[str]:
    """A request queue that somebody listens for."""
    name = f"q{secrets.token_hex(5)}_cpu"
    server.broker.queues.create_plain(reporting_queue(name))
    yield name
    server.broker.queues.delete(reporting_queue(name))


def take(broker: Broker, queue: str) -> list[Report]:
    """Return all that lies in a reporting queue."""
    found = []
    while mail := broker.post.receive(reporting_queue(queue), timeout=timedelta(seconds=1)):
        broker.post.acknowledge(mail)
        found.append(decode_report(mail.body))
    return found


def known_once(reports: list[Report]) -> list[Report]:
    """Return what a listener passes on: what comes again is left out."""
    return list({(report.experiment_id, report.token, report.sequence): report for report in reports}.values())


def test_what_a_killed_worker_could_not_send_is_sent_by_its_next_process(
    server: Server, queue: str, tmp_path: Path
) -> None:
    folder = tmp_path / "reports"
    command = [sys.executable, "-c", TELLER, server.url, queue, str(folder), make_experiment_id()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as teller:
        assert teller.stdin
        assert teller.stdout
        try:
            assert teller.stdout.readline() == "up\n"
            server.process.stop()
            teller.stdin.write("go on\n")
            teller.stdin.flush()
            assert teller.stdout.readline() == "said\n"
        finally:
            teller.kill()
    assert len(list(folder.glob("*.report"))) == 23
    outbox = Outbox(server.broker.post, folder, keys=KeyRing(tmp_path))
    try:
        assert not outbox.flush(timedelta(seconds=1))
        server.process.start()
        assert outbox.flush(timedelta(seconds=30))
    finally:
        outbox.close(timedelta(seconds=5))
    assert list(folder.glob("*.report")) == []
    reports = known_once(take(server.broker, queue))
    assert [report.sequence for report in reports] == list(range(25))
    assert [report.state for report in reports if report.state] == [
        State.PREPARING,
        State.RUNNING,
        State.FINALIZING,
        State.FAILED,
    ]


def test_where_nobody_listens_no_queue_is_made(server: Server, tmp_path: Path) -> None:
    queue = f"q{secrets.token_hex(5)}_cpu"
    command = [sys.executable, "-c", TELLER, server.url, queue, str(tmp_path), make_experiment_id()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as teller:
        assert teller.stdout
        assert teller.stdout.readline() == "up\n"
        teller.kill()
    assert not server.broker.queues.exists(reporting_queue(queue))
    assert list(tmp_path.glob("*.report")) == []


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    rabbitmq, redis = request.getfixturevalue("rabbitmq_server"), request.getfixturevalue("redis_server")
    with open_place(tmp_path, broker=rabbitmq.url, registry=redis.url, engine=None) as opened:
        opened.create(opened.site.queue, is_reported=True)
        yield opened


def test_the_end_of_an_experiment_is_told_though_broker_and_worker_died_over_it(
    place: Place, request: pytest.FixtureRequest
) -> None:
    rabbitmq = request.getfixturevalue("rabbitmq_server")
    seconds = f"{1000 + secrets.randbelow(9000)}.{secrets.randbelow(10**9):09d}"
    with place.make_worker() as worker:
        experiment = place.submit(f"sleep {seconds}; echo done; exit 3")
        pid = wait_until(lambda: sleepers(seconds), what="it sleeping", within=LONG)[0]
        wait_until(lambda: experiment.state == State.RUNNING, what="a record that it runs", within=LONG)
        rabbitmq.process.stop()
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: experiment.state == State.FAILED, what="its end", within=LONG)
        spool = place.site.settings.state_dir / "reports"
        wait_until(lambda: len(list(spool.glob("*/*.report"))) >= 3, what="reports that wait")
        worker.kill()
        rabbitmq.process.start()
        worker.start()
        wait_until(lambda: not list(spool.glob("*/*.report")), what="reports that left", within=LONG)
        wait_until(lambda: place.depth() == 0, what="an acknowledged message", within=LONG)
    with place.open_broker() as broker:
        reports = known_once(take(broker, place.site.queue))
    of_attempt = [report for report in reports if report.token]
    assert [report.sequence for report in of_attempt] == list(range(len(of_attempt)))
    assert [report.state for report in of_attempt if report.state] == [
        State.PREPARING,
        State.RUNNING,
        State.FINALIZING,
        State.FAILED,
    ]
    assert of_attempt[-1].exit_code == 3
