"""Submitting to real servers: confirmed or withdrawn, told quickly, from threads and from forked children."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from services.broker_client import patiently
from services.moto import SqsServer
from services.process import Process
from services.rabbitmq import RabbitServer
from services.redis import RedisServer
from services.registries import make_submission
from services.waiting import TOLD_WITHIN_SECONDS, waited_seconds

from jobqueue.config import Settings
from jobqueue.errors import BrokerUnavailable, NoSuchQueue, NotFound, RegistryUnavailable, Unavailable
from jobqueue.keys import ensure_laptop_keys
from jobqueue.lifecycle import State
from jobqueue.routing import first_queue
from producers.client import Client
from producers.preparation import JobqueueWarning

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
SPEC: dict[str, Any] = {"image": "python:3.12-slim", "command": ["python", "train.py"]}


@pytest.fixture(params=["redis", "rabbitmq", "sqs"])
def servers(request: pytest.FixtureRequest, redis_server: RedisServer) -> tuple[str, str, Process]:
    """The broker's and the registry's address, and the broker's process."""
    if request.param == "redis":
        return redis_server.url, redis_server.url, redis_server.process
    server: RabbitServer | SqsServer = request.getfixturevalue(f"{request.param}_server")
    return server.url, redis_server.url, server.process


@pytest.fixture
def client(servers: tuple[str, str, Process], tmp_path: Path) -> Iterator[Client]:
    project = f"p{uuid4().hex[:12]}"
    settings = Settings(broker_url=servers[0], registry_url=servers[1], state_dir=tmp_path, project=project)
    ensure_laptop_keys(settings.keys_dir)
    with Client(settings) as opened:
        yield opened


def depth(client: Client, queue: str = "") -> int:
    return client._connections.broker.queues.depth(queue or f"{client.settings.project}_cpu").ready


def test_a_submission_lies_in_its_queue_as_a_celery_message(client: Client) -> None:
    exp = client.submit(**SPEC, name="real")

    mail = client._connections.broker.post.receive(f"{client.settings.project}_cpu", timeout=timedelta(seconds=5))
    assert mail is not None
    client._connections.broker.post.acknowledge(mail)
    assert mail.content_type == "application/vnd.jobqueue.envelope"
    assert mail.headers["task"] == "jobqueue.run_experiment"
    assert mail.headers["id"] == exp.id
    assert mail.headers["argsrepr"] == "<sealed>"
    assert (exp.state, exp.name) == (State.QUEUED, "real")
    assert client.get(exp.id[:20]) is exp


def test_the_second_queue_of_the_pair_is_made_with_the_first(client: Client) -> None:
    client.submit(**SPEC)

    assert client._connections.broker.queues.exists(f"{client.settings.project}_gpu")


@pytest.mark.usefixtures("as_users_wait")
@pytest.mark.parametrize("is_warm", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("fault", ["killed", "hung"])
def test_a_broker_that_is_away_is_told_within_two_seconds_and_nothing_is_left(
    client: Client,
    servers: tuple[str, str, Process],
    tmp_path: Path,
    fault: str,
    is_warm: bool,  # noqa: FBT001
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "train.py").write_text("print(1)")
    if is_warm:
        patiently(lambda: client.submit(**SPEC))
    process = servers[2]
    (process.kill if fault == "killed" else process.pause)()
    try:
        began = waited_seconds()
        with pytest.raises((BrokerUnavailable, RegistryUnavailable)):
            client.submit(**SPEC, workspace=folder, name="lost")
        told_cold = waited_seconds() - began
        began = waited_seconds()
        with pytest.raises((BrokerUnavailable, RegistryUnavailable)):
            client.submit(**SPEC, name="lost")
        told = waited_seconds() - began
    finally:
        (process.start if fault == "killed" else process.resume)()

    assert told_cold < TOLD_WITHIN_SECONDS
    assert told < TOLD_WITHIN_SECONDS
    assert list(client._connections.store.list("")) == []
    with pytest.raises(NotFound):
        client.get("lost")
    assert patiently(lambda: client.submit(**SPEC)).state is State.QUEUED


@pytest.mark.usefixtures("as_users_wait")
def test_a_message_that_a_hung_broker_does_not_confirm_is_told_in_time(
    client: Client, servers: tuple[str, str, Process]
) -> None:
    patiently(lambda: client.submit(**SPEC))
    publisher = client._sender._publisher
    submission = make_submission(queue=f"{client.settings.project}_cpu", message=b"sealed")
    servers[2].pause()
    try:
        for _ in range(2):  # over a connection that was open, and over a new one
            began = waited_seconds()
            with pytest.raises(BrokerUnavailable):
                publisher.publish([submission])
            assert waited_seconds() - began < TOLD_WITHIN_SECONDS
    finally:
        servers[2].resume()


def test_many_are_handed_over_together_and_each_lies_in_its_queue_once(client: Client) -> None:
    other = f"{client.settings.project}x"

    handles = client.submit_many([*[SPEC] * 70, *[{**SPEC, "project": other}] * 2])

    assert len({handle.id for handle in handles}) == 72
    assert depth(client) == 70
    assert depth(client, f"{other}_cpu") == 2
    assert {handle.state for handle in handles} == {State.QUEUED}
    assert [client.get(handle.id).id for handle in handles[:2]] == [handle.id for handle in handles[:2]]


def test_many_find_their_queue_again_when_it_was_deleted_meanwhile(client: Client) -> None:
    client.submit(**SPEC)
    client._connections.broker.queues.delete(f"{client.settings.project}_cpu")

    handles = client.submit_many([SPEC] * 3)

    assert {handle.state for handle in handles} == {State.QUEUED}


@pytest.mark.parametrize("servers", ["redis", "rabbitmq"], indirect=True)
def test_of_many_none_is_left_when_one_names_a_queue_that_was_deleted(client: Client) -> None:
    queue = f"{client.settings.project}x_cpu"
    client._connections.broker.queues.create(queue)
    first = client.submit(**SPEC, queue=queue)
    client._connections.broker.queues.delete(queue)
    before = {handle.id for handle in client.list(project=client.settings.project)}

    with pytest.raises(NoSuchQueue):
        client.submit_many([{**SPEC, "queue": queue}] * 3)

    assert {handle.id for handle in client.list(project=client.settings.project)} == before == {first.id}


@pytest.mark.parametrize("servers", ["rabbitmq"], indirect=True)  # on Redis the registry goes too
def test_of_many_the_error_names_those_that_went_before(client: Client, servers: tuple[str, str, Process]) -> None:
    client.submit(**SPEC)
    servers[2].pause()
    try:
        with pytest.raises(BrokerUnavailable) as caught:
            client.submit_many([SPEC] * 3)
    finally:
        servers[2].resume()
    assert caught.value.__notes__ == ["0 of 3 were submitted before: none"]
    assert len(client.list(project=client.settings.project)) == 1


@pytest.mark.parametrize("servers", ["redis", "rabbitmq"], indirect=True)  # moto forgets its queues
def test_a_broker_that_was_restarted_meanwhile_takes_the_next_one(
    client: Client, servers: tuple[str, str, Process]
) -> None:
    client.submit(**SPEC)
    servers[2].restart()

    client.submit(**SPEC)

    assert depth(client) == 2


def test_a_named_queue_that_was_deleted_is_told(client: Client) -> None:
    queue, queues = f"{client.settings.project}-own", client._connections.broker.queues
    with pytest.raises(NoSuchQueue):
        client.submit(**SPEC, queue=queue)
    queues.create(queue)
    client.submit(**SPEC, queue=queue)
    queues.delete(queue)
    client._sender._seen_queues.clear()

    with pytest.raises(NoSuchQueue):
        client.submit(**SPEC, queue=queue, name="lost")
    with pytest.raises(NotFound):
        client.get("lost")
    queues.create(queue)
    client.submit(**SPEC, queue=queue)
    assert depth(client, queue) == 1


@pytest.mark.parametrize("servers", ["redis", "rabbitmq"], indirect=True)
def test_a_queue_that_was_deleted_a_moment_ago_is_told(client: Client) -> None:
    queue, queues = f"{client.settings.project}-own", client._connections.broker.queues
    queues.create(queue)
    client.submit(**SPEC, queue=queue)
    queues.delete(queue)

    with pytest.raises(NoSuchQueue):
        client.submit(**SPEC, queue=queue, name=queue)

    assert client.list(name=queue) == []
    queues.create(queue)
    client.submit(**SPEC, queue=queue)
    assert depth(client, queue) == 1, "the next message did not take the old one's answer for its own"


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "made"])
def test_what_is_fast_lies_with_the_others_where_the_queue_ahead_was_deleted_a_moment_ago(
    client: Client, *, is_named: bool
) -> None:
    queue = f"{client.settings.project}_cpu"
    named = {"queue": queue} if is_named else {}
    patiently(lambda: client.submit(**SPEC))  # where asking costs, what is fast goes ahead only of what waits
    patiently(lambda: client.submit(**SPEC, timeout="5m", priority="fast"))
    patiently(lambda: client._connections.broker.queues.delete(first_queue(queue)))
    before = depth(client)
    with pytest.warns(JobqueueWarning, match=f"queues create {queue}"):
        late = client.submit(**SPEC, timeout="5m", priority="fast", **named)
    assert (late.state, depth(client) - before) == (State.QUEUED, 1)
    assert not client._connections.broker.queues.exists(first_queue(queue))


def test_threads_share_a_client(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        handles = list(pool.map(lambda _: client.submit(**SPEC), range(40)))

    assert len({handle.id for handle in handles}) == 40
    assert depth(client) == 40


def test_a_forked_child_submits_over_connections_of_its_own(client: Client) -> None:
    before = client.submit(**SPEC)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            client.submit(**SPEC)
            status = 0 if before.state is State.QUEUED and not before.wait(0.01) else 2
        finally:
            os._exit(status)
    for _ in range(10):
        client.submit(**SPEC)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.submit(**SPEC).state is State.QUEUED
    assert depth(client) == 13


def test_many_handles_are_watched_to_their_end(client: Client) -> None:
    handles = client.submit_many([SPEC] * 50)
    for handle in handles:
        client._connections.registry.experiments.cancel(handle.id)

    assert all(handle.wait(60) for handle in handles)
    assert all(handle.cancelled() for handle in handles)


def test_without_a_registry_nothing_is_submitted(redis_server: RedisServer, tmp_path: Path) -> None:
    settings = Settings(broker_url=redis_server.url, registry_url="redis://127.0.0.1:1/0", state_dir=tmp_path)
    ensure_laptop_keys(settings.keys_dir)
    with Client(settings) as client, pytest.raises(Unavailable):
        client.submit(**SPEC)
