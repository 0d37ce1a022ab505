"""A queue ends with its experiments, and dead letters are dealt with, on real brokers and with real workers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from services.broker_client import Consumer, publish
from services.site import Site, open_site
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.codec import decode_report
from jobqueue.errors import ExperimentCancelled
from jobqueue.lifecycle import Reason, State
from jobqueue.report import Report
from jobqueue.routing import reporting_queue
from producers.cli import jobqueue
from producers.handle import Experiment
from producers.preparation import JobqueueWarning

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

LONG = timedelta(seconds=60)


@pytest.fixture(params=["rabbitmq", "redis"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    registry = request.getfixturevalue("redis_server")
    broker = request.getfixturevalue(f"{request.param}_server")
    with open_site(tmp_path, broker=broker.url, registry=registry.url, runtime="process") as opened:
        yield opened


@pytest.fixture
def broker(site: Site) -> Iterator[Broker]:
    with closing(open_broker(site.settings.broker, lease=site.settings.lease)) as opened:
        opened.queues.create(site.queue)
        yield opened
        opened.queues.delete(site.queue)


def call(site: Site, *words: str) -> Result:
    result = CliRunner().invoke(jobqueue, words, env=_as_text(site.environment))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.stderr
    return result


def _as_text(environment: Mapping[str, str]) -> dict[str, str | None]:
    return dict(environment)


def start_sleeper(site: Site) -> Experiment:
    experiment = site.client.submit(image="any:1", command=["sleep", "600"])
    wait_until(lambda: experiment.state == "RUNNING", what="something that runs", within=LONG)
    return experiment


def assert_queue_deleted(experiment: Experiment) -> None:
    with pytest.raises(ExperimentCancelled, match="its queue was deleted"):
        experiment.result(timeout=LONG.total_seconds())
    record = experiment.look()
    assert (record.state, record.reason and record.reason.name) == ("CANCELLED", "QUEUE_DELETED")


def assert_it_serves_again(site: Site, broker: Broker) -> None:
    broker.queues.create(site.queue)
    assert site.client.submit(image="any:1", command=["true"]).result(timeout=60) == {"exit_code": 0}


def test_deleting_a_queue_ends_what_runs_and_what_waits(site: Site, broker: Broker) -> None:
    with site.make_worker() as worker:
        running = start_sleeper(site)
        waiting = site.client.submit(image="any:1", command=["true"])
        assert call(site, "queues", "delete", site.queue, "--yes").stdout.split() == [site.queue]
        assert_queue_deleted(waiting)
        assert_queue_deleted(running)
        assert_it_serves_again(site, broker)
        assert worker.running


def test_what_runs_ends_although_nobody_told_the_registry(site: Site, broker: Broker) -> None:
    with site.make_worker() as worker:
        broker.queues.create_plain(reporting_queue(site.queue))
        running = start_sleeper(site)
        broker.queues.delete(site.queue)
        assert_queue_deleted(running)
        final = last_report(site, broker)
        assert (final.experiment_id, final.reason) == (running.id, Reason.QUEUE_DELETED)
        assert (final.state, final.fault) == (State.CANCELLED, Reason.QUEUE_DELETED.verdict.fault)
        assert_it_serves_again(site, broker)
        assert worker.running
    broker.queues.delete(reporting_queue(site.queue))


def last_report(site: Site, broker: Broker) -> Report:
    """Wait for a report of an end."""

    def find() -> Report | None:
        mail = broker.post.receive(reporting_queue(site.queue), timeout=timedelta(seconds=1))
        if mail is None:
            return None
        broker.post.acknowledge(mail)
        report = decode_report(mail.body)
        return report if report.reason else None

    found = wait_until(find, what="the final report", within=LONG)
    assert found
    return found


def test_dead_letters_are_listed_put_back_and_purged(site: Site, broker: Broker) -> None:
    with pytest.warns(JobqueueWarning):
        experiment = site.client.submit(image="any:1", command=["true"])
    set_aside(site, broker)
    publish(broker, site.queue, b"foreign", headers={})
    set_aside(site, broker)

    for _ in range(2):
        rows = json.loads(call(site, "dlq", "ls", site.queue, "-o", "json").stdout)
        assert [row["experiment_id"] for row in rows] == [experiment.id, None]
    assert experiment.id in call(site, "dlq", "show", experiment.id).stdout

    refused = call(site, "dlq", "replay", "--all", "-q", site.queue)
    assert (refused.exit_code, refused.stdout.split()[1]) == (1, experiment.id)
    with site.make_worker():
        assert experiment.result(timeout=60) == {"exit_code": 0}
    (row,) = json.loads(call(site, "dlq", "ls", site.queue, "-o", "json").stdout)
    assert row["size_bytes"] == len(b"foreign")
    assert call(site, "dlq", "purge", row["message"], "-q", site.queue, "--yes").exit_code == 0
    assert broker.queues.depth(f"{site.queue}_dead").ready == 0


def set_aside(site: Site, broker: Broker) -> None:
    with closing(Consumer(broker, site.queue)) as consumer:
        message = consumer.next()
        broker.deliveries.dead_letter(message, queue=site.queue, reason="BAD_ENVELOPE", detail="by hand")


@pytest.mark.parametrize("site", ["rabbitmq"], indirect=True)
def test_a_queue_that_ends_while_a_busy_worker_listens_to_none_keeps_it_from_no_other(
    site: Site, broker: Broker
) -> None:
    other = f"{site.settings.project}_other"
    broker.queues.create(other)
    worker = site.make_worker()
    worker._command.extend(["-Q", f"{other}, {site.queue},"])
    with worker:
        running = start_sleeper(site)
        wait_until(lambda: broker.queues.depth(other).consumers == 0, what="nobody at the other queue", within=LONG)
        broker.queues.delete(other)
        waiting = site.client.submit(image="any:1", command=["true"])
        running.cancel()
        assert waiting.result(timeout=60) == {"exit_code": 0}
        broker.queues.create(other)
        assert site.client.submit(image="any:1", command=["true"], queue=other).result(timeout=60) == {"exit_code": 0}
        log = worker.log.read_text()
        assert "connection to the broker" not in log
        assert log.count("queue.not_there") == 1
    broker.queues.delete(other)
