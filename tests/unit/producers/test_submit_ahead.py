"""Where a small experiment goes that is to begin before the others, and what is told when it cannot; paused queues."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobqueue.errors import InvalidSpec
from jobqueue.ids import NodeId, WorkerId
from jobqueue.registry.pauses import Pause
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Offer
from jobqueue.routing import first_queue
from producers.client import Client
from producers.handle import Experiment
from producers.preparation import JobqueueWarning

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
Announce = Callable[..., None]


@pytest.fixture
def announce(client: Client) -> Iterator[Announce]:
    """Lets a worker of the project be there, until the test is over."""
    workers, worker_id = client._connections.registry.workers, WorkerId(f"cpu@{client.settings.project}")

    def announce(*, takes_first: bool) -> None:
        record = WorkerRecord(
            worker_id=worker_id,
            node_id=NodeId(f"{client.settings.project}-1a2b"),
            queues=(queue_of(client),),
            offer=Offer(cpus=8, memory_bytes=2**35, disk_bytes=2**42),
            runtime="docker",
            takes_first=takes_first,
        )
        workers.announce(record, ttl=client.settings.lease)
        client._sender._workers_at = float("-inf")

    yield announce
    workers.leave(worker_id)


def queue_of(client: Client) -> str:
    return f"{client.settings.project}_cpu"


def submit(client: Client, **fields: Any) -> Experiment:
    return client.submit(image="python:3.12-slim", command="true", **fields)


def warned(client: Client, **fields: Any) -> str:
    with pytest.warns(JobqueueWarning) as caught:
        submit(client, **fields)
    return "\n".join(str(warning.message) for warning in caught)


def ahead(client: Client) -> int:
    """Return how many messages lie in the queue that is served first."""
    return client._connections.broker.queues.depth(first_queue(queue_of(client))).ready


def test_what_is_fast_lies_in_the_queue_that_is_served_first(client: Client) -> None:
    experiment = submit(client, priority="fast")
    assert ahead(client) == 1
    assert experiment.look().submission.queue == queue_of(client)
    submit(client)
    assert ahead(client) == 1


def test_a_whole_list_goes_where_each_belongs(client: Client) -> None:
    spec = {"image": "python:3.12-slim", "command": "true"}
    client.submit_many([spec, {**spec, "priority": "fast"}, spec, {**spec, "priority": "fast"}])
    assert ahead(client) == 2
    assert client._connections.broker.queues.depth(queue_of(client)).ready == 4


def test_a_queue_without_a_companion_takes_it_with_a_warning(client: Client) -> None:
    submit(client)
    client._connections.broker.queues.delete(first_queue(queue_of(client)))
    told = warned(client, priority="fast")
    assert f"`jobqueue queues create {queue_of(client)}`" in told
    assert client._connections.broker.queues.depth(queue_of(client)).ready == 2


def test_a_queue_whose_companion_was_deleted_a_moment_ago_takes_it_with_a_warning(client: Client) -> None:
    submit(client, priority="fast")
    queues, queue = client._connections.broker.queues, queue_of(client)
    queues.delete(first_queue(queue))
    assert f"`jobqueue queues create {queue}`" in warned(client, priority="fast")
    assert (queues.depth(queue).ready, queues.exists(first_queue(queue))) == (1, False)


def test_while_an_older_worker_serves_the_queue_it_waits_like_others_with_a_warning(
    client: Client, announce: Announce
) -> None:
    announce(takes_first=False)
    assert "older workers know no priority" in warned(client, priority="fast")
    assert ahead(client) == 0
    announce(takes_first=True)
    submit(client, priority="fast")
    assert ahead(client) == 1


def test_files_that_are_too_large_to_go_ahead_are_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(65 * 2**20))
    with pytest.raises(InvalidSpec, match="of files"):
        submit(client, priority="fast", inputs={"data": str(tmp_path / "noise")})


def test_the_same_experiment_is_found_under_its_key_whatever_its_priority(client: Client) -> None:
    slow = submit(client, timeout="5m", idempotency_key="once")
    assert submit(client, timeout="5m", idempotency_key="once", priority="fast").id == slow.id
    assert ahead(client) == 0


def test_the_place_in_line_counts_what_goes_ahead(client: Client, announce: Announce) -> None:
    announce(takes_first=True)
    for _ in range(2):
        submit(client)
    slow, fast, later = submit(client), submit(client, priority="fast"), submit(client, priority="fast")
    told = "experiments that wait in the queue: 5, and"
    assert f"{told} 2 were submitted before it, 2 later ones are fast and go ahead" in slow.why()
    assert f"{told} 0 were submitted before it as fast ones like it" in fast.why()
    assert f"{told} 1 were submitted before it as fast ones like it" in later.why()


def test_a_paused_queue_takes_what_is_submitted_and_says_so(client: Client, announce: Announce) -> None:
    announce(takes_first=True)
    pauses = client._connections.registry.pauses
    pauses.pause(Pause(queue=queue_of(client), at=datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC), by="ann@desk", reason="x"))
    told = f"the queue '{queue_of(client)}' is paused by ann@desk since 2031-02-03 04:05:06 UTC (x)"
    try:
        assert told in warned(client)
        experiment = submit(client)
        assert told in experiment.why()
        assert "could run it now" not in experiment.why()
    finally:
        pauses.resume(queue_of(client))
    assert "paused" not in experiment.why()
