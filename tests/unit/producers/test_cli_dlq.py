"""Dead letters are listed, shown, put back and removed, and none is lost by being looked at."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result
from services.broker_client import Consumer, publish
from services.registries import granted

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.config import Settings
from jobqueue.envelope import MAX_ENVELOPE_BYTES
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry import open_registry
from jobqueue.routing import first_queue
from producers.cli import jobqueue
from producers.cli.dead_letters import open_pile
from producers.client import Client
from producers.preparation import JobqueueWarning

pytestmark = pytest.mark.usefixtures("laptop_keys")


@pytest.fixture
def queue(project: str) -> str:
    return f"{project}_cpu"


@pytest.fixture
def broker(queue: str) -> Iterator[Broker]:
    with closing(open_broker("memory://", lease=timedelta(seconds=5))) as opened:
        opened.queues.create(queue)
        yield opened
        opened.queues.delete(queue)


def call(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(jobqueue, ["dlq", *words], input=stdin)


def listed(*words: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(call("ls", "-o", "json", *words).stdout)
    return found


def set_aside(broker: Broker, queue: str, reason: str, detail: str = "why") -> None:
    """Set the next message of a queue aside."""
    with closing(Consumer(broker, queue)) as consumer:
        broker.deliveries.dead_letter(consumer.next(), queue=queue, reason=reason, detail=detail)


def dead_experiment(broker: Broker, queue: str, reason: str = "BAD_ENVELOPE", **fields: object) -> ExperimentId:
    with Client(Settings()) as client:
        with pytest.warns(JobqueueWarning):
            experiment = client.submit(image="any:1@sha256:" + "0" * 64, command=["secret"], queue=queue, **fields)
        set_aside(broker, queue, reason)
        return experiment.id


def dead_foreigner(broker: Broker, queue: str, body: bytes = b"foreign") -> None:
    publish(broker, queue, body, headers={"id": "x"})
    set_aside(broker, queue, "BAD_ENVELOPE", "the content type is not an envelope's")


@pytest.mark.security_case("Flood of large dead letters")
def test_what_is_no_envelope_is_not_held_while_it_is_looked_at(broker: Broker, queue: str) -> None:
    """Somebody with a producer's password puts a thousand messages of 16 MiB where the dead letters lie.

    Refused: of what is no envelope, no body is held; they can be listed and removed.
    Evidence: the pile in hand, its sizes and numbers; each body is back in the queue as it was.
    Red before: every body that was looked at was held until the end, sixteen gigabytes of them.
    """
    bodies = [b"x" * (MAX_ENVELOPE_BYTES + number) for number in range(3)]
    for body in bodies:
        dead_foreigner(broker, queue, body)
    with open_pile(broker, [queue], limit=10) as pile:
        assert [(letter.size_bytes, letter.mail.body) for letter in pile.letters] == [
            (len(each), b"") for each in bodies
        ]
        assert len({letter.number for letter in pile.letters}) == len(bodies)
    again = [broker.post.receive(f"{queue}_dead", timeout=timedelta()) for _ in bodies]
    assert sorted(mail.body for mail in again if mail) == bodies


def test_listing_says_what_was_set_aside_and_why_and_takes_nothing_away(broker: Broker, queue: str) -> None:
    dead_foreigner(broker, queue)
    experiment_id = dead_experiment(broker, queue, "UNDECRYPTABLE")
    first, second = listed()
    assert (first["queue"], first["experiment_id"], first["reason"]) == (queue, None, "BAD_ENVELOPE")
    assert (first["size_bytes"], first["detail"]) == (7, "the content type is not an envelope's")
    assert (second["experiment_id"], second["reason"]) == (experiment_id, "UNDECRYPTABLE")
    assert datetime.now(UTC) - datetime.fromisoformat(str(second["set_aside_at"])) < timedelta(minutes=1)
    assert listed() == listed(queue) == listed(f"{queue}_dead") == [first, second]
    assert broker.queues.depth(f"{queue}_dead").ready == 2
    table = call("ls").stdout.splitlines()
    assert table[0].split()[:2] == ["MESSAGE", "QUEUE"]
    assert str(second["message"]) in table[2]
    assert call("ls", "-o", "name").stdout.split() == [first["message"], second["message"]]


def test_a_listing_that_is_cut_says_so(broker: Broker, queue: str) -> None:
    for number in range(3):
        dead_foreigner(broker, queue, f"{number}".encode())
    result = call("ls", "--limit", "2", "-o", "name")
    assert len(result.stdout.split()) == 2
    assert "more" in result.stderr
    assert broker.queues.depth(f"{queue}_dead").ready == 3


def test_a_queue_that_is_not_there_is_102_and_an_empty_one_is_none(broker: Broker, queue: str) -> None:
    assert call("ls", "nothing_cpu").exit_code == 102
    result = call("ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "nothing was set aside" in result.stderr


def test_showing_tells_all_but_the_body(broker: Broker, queue: str) -> None:
    experiment_id = dead_experiment(broker, queue)
    shown = call("show", experiment_id).stdout
    for part in (experiment_id, "BAD_ENVELOPE", "QUEUED", "jobqueue-reason: BAD_ENVELOPE", "task: jobqueue.run"):
        assert part in shown
    assert "secret" not in shown
    (as_json,) = json.loads(call("show", experiment_id[:4] + experiment_id[4:], "-o", "json").stdout)
    assert as_json["state"] == "QUEUED"
    assert "body" not in as_json
    assert call("show", "0000").exit_code == 102
    assert broker.queues.depth(f"{queue}_dead").ready == 1


def test_replaying_puts_it_back_as_its_producer_sent_it(broker: Broker, queue: str) -> None:
    experiment_id = dead_experiment(broker, queue)
    dead_foreigner(broker, queue)
    result = call("replay", experiment_id)
    assert (result.exit_code, result.stdout.split()[1]) == (0, experiment_id)
    assert broker.queues.depth(f"{queue}_dead").ready == 1
    with closing(Consumer(broker, queue)) as consumer:
        message = consumer.next()
        assert (message.headers["id"], message.headers["retries"]) == (experiment_id, 0)
        assert message.content_type == "application/vnd.jobqueue.envelope"
        assert "jobqueue-reason" not in message.headers
        assert bytes(message.body) == open_registry("memory://").experiments.get(experiment_id).submission.message
        message.ack()


@pytest.mark.parametrize("has_first", [True, False])
def test_replaying_puts_what_is_fast_ahead_again_where_there_is_a_queue_for_it(
    broker: Broker, queue: str, *, has_first: bool
) -> None:
    experiment_id = dead_experiment(broker, queue, priority="fast", timeout="5m")
    if not has_first:
        broker.queues.delete(first_queue(queue))
    assert call("replay", experiment_id).exit_code == 0
    mail = broker.post.receive(first_queue(queue) if has_first else queue, timeout=timedelta(0))
    assert mail
    assert mail.headers["id"] == experiment_id
    broker.post.acknowledge(mail)


def test_what_the_registry_has_forgotten_is_replayed_all_the_same(broker: Broker, queue: str) -> None:
    experiment_id = dead_experiment(broker, queue, priority="fast", timeout="5m")
    open_registry("memory://").experiments.withdraw(experiment_id)
    assert call("replay", experiment_id).exit_code == 0
    mail = broker.post.receive(queue, timeout=timedelta(0))
    assert mail
    broker.post.acknowledge(mail)


def test_what_is_final_stays_where_it_is_and_the_user_is_told_what_to_do(broker: Broker, queue: str) -> None:
    experiment_id = dead_experiment(broker, queue, "ATTEMPTS_EXHAUSTED")
    registry = open_registry("memory://")
    lease = granted(registry, registry.experiments.get(experiment_id).submission).lease
    registry.leases.finish(lease, Outcome(reason=Reason.ATTEMPTS_EXHAUSTED), state=State.FAILED)
    result = call("replay", "--all")
    assert result.exit_code == 1
    assert "FAILED (ATTEMPTS_EXHAUSTED)" in result.stderr
    assert "submit the experiment again" in result.stderr
    assert broker.queues.depth(f"{queue}_dead").ready == 1
    assert broker.queues.depth(queue).ready == 0


def test_what_is_no_envelope_is_never_put_back(broker: Broker, queue: str) -> None:
    dead_foreigner(broker, queue)
    result = call("replay", "--all")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "purge" in result.stderr
    assert broker.queues.depth(f"{queue}_dead").ready == 1


def test_what_was_sent_to_another_queue_is_never_put_back(broker: Broker, project: str, queue: str) -> None:
    other = f"{project}_gpu"
    broker.queues.create(other)
    dead_experiment(broker, other)
    mail = broker.post.receive(f"{other}_dead", timeout=timedelta(0))
    assert mail
    broker.post.acknowledge(mail)
    broker.post.send(f"{queue}_dead", mail.body, content_type=mail.content_type, headers=mail.headers)
    result = call("replay", "--all")
    assert result.exit_code == 1
    assert other in result.stderr
    broker.queues.delete(other)


def test_nothing_is_removed_when_its_request_queue_is_gone(broker: Broker, queue: str) -> None:
    experiment_id = dead_experiment(broker, queue)
    mail = broker.post.receive(f"{queue}_dead", timeout=timedelta(0))
    assert mail
    broker.post.give_back(mail)
    broker.queues.delete(queue)
    broker.queues.create_plain(f"{queue}_dead")
    broker.post.send(f"{queue}_dead", mail.body, content_type=mail.content_type, headers=mail.headers)
    result = call("replay", experiment_id, "-q", queue)
    assert result.exit_code == 1
    assert "queues create" in result.stderr
    assert broker.queues.depth(f"{queue}_dead").ready == 1


def test_purging_asks_first_and_removes_what_was_meant(broker: Broker, queue: str) -> None:
    experiment_id = dead_experiment(broker, queue, "UNDECRYPTABLE")
    for body in (b"one", b"two"):
        dead_foreigner(broker, queue, body)
    assert call("purge").exit_code == 2
    refused = call("purge", "--all", stdin="n\n")
    assert (refused.exit_code, broker.queues.depth(f"{queue}_dead").ready) == (1, 3)
    assert "3 of 3" in refused.stderr
    assert call("purge", "--older-than", "1h", "--yes").stdout == ""
    assert len(call("purge", "--reason", "BAD_ENVELOPE", "--yes").stdout.split()) == 2
    assert [letter["experiment_id"] for letter in listed()] == [experiment_id]
    assert call("purge", str(listed()[0]["message"]), "--yes").exit_code == 0
    assert broker.queues.depth(f"{queue}_dead").ready == 0
