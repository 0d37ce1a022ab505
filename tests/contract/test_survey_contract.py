"""Every broker tells which request queues there are and what waits in them: the same assertions over all of them."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from uuid import uuid4

import pytest
from services.broker_client import LEASE, SOON, Consumer, patiently, publish
from services.waiting import wait_until

from jobqueue.brokers import open_broker
from jobqueue.brokers.base import Broker
from jobqueue.errors import BrokerUnavailable
from jobqueue.routing import Selection, first_queue, parse_selection

# RabbitMQ's HTTP API tells what waited some seconds ago.
SETTLED = timedelta(seconds=30)


@pytest.fixture(params=["memory", "redis", "rabbitmq-http", "rabbitmq-ledger", "sqs"])
def broker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setattr("jobqueue.brokers.rabbitmq_survey._LISTED_LOOKS", 3)
    name, _, how = request.param.partition("-")
    server = request.getfixturevalue(f"{name}_server") if name != "memory" else None
    management = {"http": getattr(server, "management_url", ""), "ledger": "http://127.0.0.1:9"}.get(how, "")
    url = server.url if server else "memory://"
    with closing(open_broker(url, lease=LEASE, management_url=management)) as opened:
        yield opened


@pytest.fixture
def project(broker: Broker) -> Iterator[str]:
    """Two request queues, what looks like one, and one that a pattern leaves out."""
    name = f"p{uuid4().hex[:8]}"
    for queue in ("lab_a", "lab_b", "lab_private"):
        patiently(partial(broker.queues.create, f"{name}_{queue}"))
    for queue in ("lab_a_reporting", "lab_foreign"):
        patiently(partial(broker.queues.create_plain, f"{name}_{queue}"))
    yield name
    for queue in ("lab_a", "lab_b", "lab_private", "lab_a_reporting", "lab_foreign"):
        patiently(partial(broker.queues.delete, f"{name}_{queue}"))


def labs(project: str) -> Selection:
    return parse_selection([f"{project}_lab_*", f"!{project}_lab_p*"])


def test_what_patterns_match_is_found_without_companions_and_foreign_queues(broker: Broker, project: str) -> None:
    seen = broker.survey.look(labs(project))
    assert set(seen.waiting) == {f"{project}_lab_a", f"{project}_lab_b"}
    assert f"{project}_lab_private" in seen.others
    assert not {f"{project}_lab_foreign", f"{project}_lab_a_reporting"} & set(seen.others)


def test_what_waits_is_told(broker: Broker, project: str) -> None:
    for _ in range(3):
        publish(broker, f"{project}_lab_b")

    def told() -> bool:
        return broker.survey.look(labs(project)).waiting == {f"{project}_lab_a": 0, f"{project}_lab_b": 3}

    wait_until(told, what="three that wait", within=SETTLED)
    with closing(Consumer(broker, f"{project}_lab_b")) as consumer:
        for _ in range(3):
            consumer.next().ack()
        wait_until(
            lambda: broker.survey.look(labs(project)).waiting[f"{project}_lab_b"] == 0,
            what="none that waits",
            within=SETTLED,
        )


def test_a_queue_is_found_from_its_creation_to_its_deletion(broker: Broker, project: str) -> None:
    late = f"{project}_lab_late"
    assert late not in broker.survey.look(labs(project)).waiting
    broker.queues.create(late)
    wait_until(lambda: late in broker.survey.look(labs(project)).waiting, what="the new queue", within=SOON)
    broker.queues.delete(late)
    wait_until(lambda: late not in broker.survey.look(labs(project)).waiting, what="it is gone", within=SOON)


def test_what_is_served_first_counts(broker: Broker, project: str) -> None:
    queue = f"{project}_lab_a"
    first = first_queue(queue)
    if not broker.queues.exists(first):
        return  # this broker needs none
    publish(broker, first)
    wait_until(lambda: broker.survey.look(labs(project)).waiting[queue] == 1, what="one that waits", within=SETTLED)


def test_the_depths_of_many_queues_are_told_at_once_as_of_each_alone(broker: Broker, project: str) -> None:
    queues = [f"{project}_lab_{name}" for name in ("a", "b", "missing", "a_dead", "a_first", "a_reporting", "foreign")]
    for queue in (queues[0], queues[0], queues[4], queues[6]):
        publish(broker, queue)
    depths = broker.survey.depths(queues)
    assert {queue: depth.ready for queue, depth in depths.items()} == {
        queues[0]: 3, queues[1]: 0, queues[3]: 0, queues[4]: 1, queues[5]: 0, queues[6]: 1,
    }  # fmt: skip
    assert depths == {queue: broker.queues.depth(queue) for queue in depths}
    assert broker.survey.depths([]) == {}
    many = [*queues, *(f"{project}_lab_missing{number}" for number in range(100))]

    def told() -> bool:
        return {queue: depth.ready for queue, depth in broker.survey.depths(many).items()} == {
            queue: depth.ready for queue, depth in depths.items()
        }

    wait_until(told, what="the same of many", within=timedelta(minutes=1))


def test_a_broker_that_is_away_says_so() -> None:
    for url in ("amqp://127.0.0.1:9//", "redis://127.0.0.1:9/0", "sqs://key:secret@127.0.0.1:9?tls=false"):
        with closing(open_broker(url, lease=LEASE)) as broker, pytest.raises(BrokerUnavailable):
            broker.survey.look(parse_selection(["*"]))
