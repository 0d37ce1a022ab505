"""Reports come out of queues in order, and rubbish in between hurts nobody."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from uuid import uuid4

import pytest

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.codec import encode_report
from jobqueue.errors import NoSuchQueue
from jobqueue.ids import ExperimentId, WorkerId
from jobqueue.keys import KeyRing
from jobqueue.report import Report
from jobqueue.routing import dead_letter_queue
from producers.inbox import Inbox
from producers.listener import listen

NO_KEYS = KeyRing(Path("/nonexistent"))


def report(sequence: int, *, token: int = 7, experiment: str = "exp-01k0000000000000000000000a") -> Report:
    return Report(
        at=datetime(2026, 1, 1, tzinfo=UTC),
        experiment_id=ExperimentId(experiment),
        worker_id=WorkerId("gpu0@host"),
        sequence=sequence,
        attempt=1,
        token=token,
        payload=f"line {sequence}",
    )


@pytest.fixture
def broker() -> Iterator[Broker]:
    opened = open_broker("memory://", lease=timedelta(seconds=1))
    yield opened
    opened.close()


@pytest.fixture
def queue(broker: Broker) -> Iterator[str]:
    name = f"q-{uuid4().hex[:8]}_reporting"
    broker.queues.create_plain(name)
    yield name
    broker.queues.delete(name)


def send(broker: Broker, queue: str, *contents: Report | bytes) -> None:
    for content in contents:
        body = encode_report(content) if isinstance(content, Report) else content
        assert broker.post.send(queue, body, content_type="application/x-protobuf")


def listen_until(broker: Broker, queues: list[str], *, count: int) -> list[int]:
    """Return the sequences of the first `count` reports that the callback gets."""
    stop = threading.Event()
    got: list[int] = []

    def callback(each: Report) -> None:
        got.append(each.sequence)
        if len(got) == count:
            stop.set()

    listen(broker, queues, callback, keys=NO_KEYS, stop=stop)
    return got


def test_a_number_that_leaves_out_more_than_there_can_be_ends_no_listening(broker: Broker, queue: str) -> None:
    send(broker, queue, report(0), report(2**64 - 1), report(1))
    assert listen_until(broker, [queue], count=3) == [0, 2**64 - 1, 1]


def test_reports_come_in_order_and_are_acknowledged_one_after_the_other(broker: Broker, queue: str) -> None:
    send(broker, queue, report(0), report(1), report(2))
    assert [each.sequence for each in islice(Inbox(broker, [queue], keys=NO_KEYS), 2)] == [0, 1]
    broker.close()
    # The second one's loop body never came to its end.
    assert [each.sequence for each in islice(Inbox(broker, [queue], keys=NO_KEYS), 2)] == [1, 2]


def test_the_same_inbox_begins_with_what_was_not_finished(broker: Broker, queue: str) -> None:
    send(broker, queue, report(0), report(1))
    inbox = Inbox(broker, [queue], keys=NO_KEYS)
    assert [each.sequence for each in islice(inbox, 1)] == [0]
    assert [each.sequence for each in islice(inbox, 2)] == [0, 1]


def test_several_queues_are_served_in_turn(broker: Broker, queue: str) -> None:
    other = queue.replace("q-", "r-")
    broker.queues.create_plain(other)
    send(broker, queue, report(0), report(1))
    send(broker, other, report(10), report(11))
    assert [each.sequence for each in islice(Inbox(broker, [queue, other], keys=NO_KEYS), 4)] == [0, 10, 1, 11]
    broker.queues.delete(other)


@pytest.mark.parametrize("rubbish", [b"\xff" * 40, b"no report", b"\x0a\xff\xff\xff\xff\x0f", b"\x00" * 300_000])
def test_bytes_that_are_no_report_are_counted_and_passed_over(broker: Broker, queue: str, rubbish: bytes) -> None:
    send(broker, queue, rubbish, report(1))
    inbox = Inbox(broker, [queue], keys=NO_KEYS)
    assert [each.sequence for each in islice(inbox, 1)] == [1]
    assert inbox.refused == {"bad_envelope": 1}


def test_rubbish_is_kept_where_a_queue_for_it_exists(broker: Broker, queue: str) -> None:
    broker.queues.create_plain(dead_letter_queue(queue))
    send(broker, queue, b"\xff rubbish", report(0))
    next(iter(Inbox(broker, [queue], keys=NO_KEYS)))
    kept = broker.post.receive(dead_letter_queue(queue), timeout=timedelta())
    assert kept
    assert kept.body == b"\xff rubbish"
    assert kept.headers["jobqueue-reason"] == "BAD_REPORT"
    broker.queues.delete(dead_letter_queue(queue))


def test_without_its_queue_an_inbox_says_so(broker: Broker) -> None:
    with pytest.raises(NoSuchQueue):
        next(iter(Inbox(broker, ["missing_reporting"], keys=NO_KEYS)))
    assert not broker.queues.exists("missing_reporting")


def test_an_inbox_that_was_told_to_stop_ends(broker: Broker, queue: str) -> None:
    stop = threading.Event()
    stop.set()
    assert list(Inbox(broker, [queue], keys=NO_KEYS, stop=stop)) == []


def test_a_listener_creates_the_reporting_queue(broker: Broker) -> None:
    name = f"new-{uuid4().hex[:8]}_reporting"
    stop = threading.Event()
    listener = threading.Thread(target=listen, args=(broker, [name], print), kwargs={"keys": NO_KEYS, "stop": stop})
    listener.start()
    while not broker.queues.exists(name):
        assert listener.is_alive()
    stop.set()
    listener.join()
    broker.queues.delete(name)


def test_a_listener_passes_each_report_once(broker: Broker, queue: str) -> None:
    other_attempt, other_experiment = report(1, token=8), report(1, experiment="exp-01k0000000000000000000000b")
    send(broker, queue, report(0), report(1), report(0), other_attempt, report(1), other_experiment, report(2))
    assert listen_until(broker, [queue], count=5) == [0, 1, 1, 1, 2]
    assert broker.queues.depth(queue).ready == 0


def test_a_listener_remembers_only_so_many_attempts(broker: Broker, queue: str) -> None:
    contents = [report(0, token=1), report(0, token=2), report(0, token=1), report(0, token=3), report(0, token=1)]
    send(broker, queue, *contents, report(0, token=2), report(1, token=9))
    stop = threading.Event()
    got: list[int] = []

    def callback(each: Report) -> None:
        got.append(each.token)
        if each.token == 9:
            stop.set()

    listen(broker, [queue], callback, keys=NO_KEYS, stop=stop, window=2)
    assert got == [1, 2, 3, 1, 2, 9]


def test_a_report_whose_callback_fails_is_not_acknowledged(broker: Broker, queue: str) -> None:
    def fail(each: Report) -> None:
        raise RuntimeError(f"cannot keep {each.sequence}")

    send(broker, queue, report(0), report(1))
    with pytest.raises(RuntimeError, match="cannot keep 0"):
        listen(broker, [queue], fail, keys=NO_KEYS)
    broker.close()
    assert listen_until(broker, [queue], count=2) == [0, 1]
