"""Why an experiment does not go on: each cause that registry and broker know of, with its numbers."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from services.hand_worker import HandWorker

from jobqueue.brokers.base import Depth
from jobqueue.errors import BrokerUnavailable, RegistryUnavailable
from jobqueue.ids import ExperimentId, NodeId, WorkerId, make_experiment_id
from jobqueue.lifecycle import Outcome, Reason
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Offer, Resources
from producers.causes import CLOCK_LIMIT, find_obstacles, judge_clock
from producers.client import Client
from producers.handle import Experiment
from producers.preparation import JobqueueWarning

SPEC = {"image": "python:3.12-slim", "command": "true"}
TTL = timedelta(minutes=1)
Announce = Callable[..., None]


@pytest.fixture
def announce(client: Client) -> Iterator[Announce]:
    """Lets a worker of the project be there, until the test is over."""
    workers = client._connections.registry.workers
    there: list[WorkerId] = []

    def announce(
        name: str = "cpu@a",
        *,
        state: str = "OK",
        cpus: float = 4,
        memory_bytes: int = 2**34,
        runs: tuple[ExperimentId, ...] = (),
    ) -> None:
        client._sender._workers_at = float("-inf")
        there.append(WorkerId(f"{name}.{client.settings.project}"))
        record = WorkerRecord(
            worker_id=there[-1],
            node_id=NodeId("a"),
            queues=(f"{client.settings.project}_cpu",),
            offer=Offer(cpus=cpus, memory_bytes=memory_bytes, disk_bytes=2**40),
            runtime="docker",
            state=state,
            experiment_ids=runs,
        )
        workers.announce(record, ttl=TTL)

    yield announce
    for worker_id in there:
        workers.leave(worker_id)


def warnings_of(client: Client, **fields: Any) -> list[str]:
    with pytest.warns(JobqueueWarning) as caught:
        client.submit(**{**SPEC, "image": "python", **fields})
    return [text for text in (str(warning.message) for warning in caught) if "not pinned" not in text]


def test_a_queue_that_nobody_serves_is_warned_of(client: Client) -> None:
    (told,) = warnings_of(client)

    assert told.startswith(f"no worker serves the queue '{client.settings.project}_cpu' now (")


def test_it_is_told_whether_there_is_any_worker_at_all() -> None:
    offer = Offer(cpus=1, memory_bytes=1, disk_bytes=1)
    other = WorkerRecord(worker_id=WorkerId("w"), node_id=NodeId("a"), queues=("o",), offer=offer, runtime="docker")
    asked = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)

    assert "now (none is there): the experiment waits" in find_obstacles("q", asked, [])[0]
    assert "now (2 serve others): the experiment waits" in find_obstacles("q", asked, [other, other])[0]


def test_it_is_told_to_fit_nowhere_only_where_every_worker_is_too_small() -> None:
    asked = Resources(cpus=2, memory_bytes=1, disk_bytes=1, shm_bytes=1)
    small, large = (
        WorkerRecord(
            worker_id=WorkerId(f"w{cpus}"),
            node_id=NodeId("a"),
            queues=("o",),
            offer=Offer(cpus=cpus, memory_bytes=1, disk_bytes=1),
            runtime="docker",
        )
        for cpus in (1, 2)
    )

    _, misfit = find_obstacles("q", asked, [small])
    assert misfit.startswith("it fits into none of the workers that are there (of 1)")
    assert len(find_obstacles("q", asked, [small, large])) == 1


def test_what_fits_nowhere_is_warned_of_with_each_workers_numbers(client: Client, announce: Announce) -> None:
    announce("cpu@a", cpus=2)
    announce("cpu@b", memory_bytes=2**30)

    (told,) = warnings_of(client, cpus=3, memory="2GiB")

    assert f"it fits into no worker that serves the queue '{client.settings.project}_cpu' now (of 2 there)" in told
    assert "asks for 3 cpus, 2 are there" in told
    assert "asks for 2 GiB of memory, 1 GiB are there" in told


def test_many_workers_that_are_too_small_are_told_in_short(client: Client, announce: Announce) -> None:
    for number in range(9):
        announce(f"cpu@{number}", cpus=0.5 if number else 9, memory_bytes=1 if number == 0 else 2**34)

    (told,) = warnings_of(client)

    assert told.endswith("; and 6 more")
    assert told.count("asks for") == 3


def test_workers_that_take_nothing_are_warned_of(client: Client, announce: Announce) -> None:
    announce("cpu@small", cpus=0.5)
    announce("cpu@sick", state="DISK_FULL")

    (told,) = warnings_of(client)

    assert "(of 1 there)" in told
    assert f"cpu@sick.{client.settings.project} is UNHEALTHY(DISK_FULL)" in told


def test_one_worker_that_could_run_it_is_enough(client: Client, announce: Announce) -> None:
    announce("cpu@small", cpus=0.5)
    announce("cpu@sick", state="NO_ENGINE")
    announce("cpu@well")

    assert warnings_of(client) == []


def test_a_worker_that_has_just_come_is_seen_soon(client: Client, announce: Announce) -> None:
    announce("cpu@small", cpus=0.5)
    assert warnings_of(client) != []

    announce("cpu@well")
    assert warnings_of(client) == []


@pytest.mark.parametrize("ahead", [timedelta(0), CLOCK_LIMIT, -CLOCK_LIMIT])
def test_a_clock_within_the_limit_is_fine(ahead: timedelta) -> None:
    assert judge_clock(ahead) == ""


def test_a_clock_that_is_off_is_told_with_what_follows() -> None:
    assert "31s ahead of the registry's: nodes put off what is sent more than 1m ahead" in judge_clock(
        timedelta(seconds=31)
    )
    assert "1h behind the registry's: the experiment expires sooner by as much" in judge_clock(-timedelta(hours=1))


@pytest.mark.parametrize(("ahead", "word"), [(timedelta(minutes=-2), "ahead"), (timedelta(minutes=2), "behind")])
def test_a_clock_that_is_off_is_warned_of_at_submit(
    client: Client, announce: Announce, ahead: timedelta, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce()
    monkeypatch.setattr(client._connections.registry, "ping", lambda: datetime.now(UTC) + ahead)

    (told,) = warnings_of(client)

    assert f"this machine's clock is 2m {word}" in told


def causes(exp: Experiment) -> list[str]:
    return exp.why().splitlines()


def test_one_that_waits_tells_its_queue_its_place_its_message_and_its_time(client: Client, announce: Announce) -> None:
    announce()
    first, second = client.submit(**SPEC), client.submit(**SPEC, expires="1h")
    expires = second.look().submission.expires_at

    assert causes(second) == [
        f"QUEUED: waiting in '{client.settings.project}_cpu' for a worker to take it",
        "workers that could run it now: 1, of which 0 are busy",
        "experiments that wait in the queue: 2, and 1 were submitted before it",
        "messages that wait at the broker: 2",
        f"it expires at {expires:%Y-%m-%d %H:%M:%S} UTC unless a worker has begun with it by then",
    ]
    assert "2, and 0 were submitted before it" in first.why()


def test_one_that_waits_for_nobody_tells_that_in_place_of_who_serves(client: Client, exp: Experiment) -> None:
    assert causes(exp)[1].startswith("no worker serves the queue")
    assert "workers that could run it" not in exp.why()


def test_one_that_was_put_off_tells_when_it_is_tried_again(exp: Experiment, worker: HandWorker) -> None:
    outcome = Outcome(reason=Reason.STORE_UNAVAILABLE, detail="timed out")
    worker.registry.leases.release(worker.lease, outcome, delay=timedelta(minutes=5))
    at = exp.look().next_try_at
    assert at is not None

    first, second, *_ = causes(exp)

    assert "for attempt 2, as the artifact store did not answer: timed out" in first
    assert second in {
        f"it is not tried again before {at:%Y-%m-%d %H:%M:%S} UTC, in {left}"
        for left in ("5m", "4m59s", "4m58s", "4m57s")
    }


def test_who_was_refused_for_more_than_its_size_is_not_told_that_it_could_run(
    client: Client, exp: Experiment, worker: HandWorker, announce: Announce
) -> None:
    worker.give_back(Reason.DOES_NOT_FIT)
    announce()

    assert "workers that are large enough: 1, of which 0 are busy" in causes(exp)
    assert "could run it" not in exp.why()


def test_who_left_its_place_for_a_free_node_is_not_told_to_ask_for_less(exp: Experiment, worker: HandWorker) -> None:
    outcome = Outcome(reason=Reason.DOES_NOT_FIT, detail="waited for 1 cpus, and another node is free: n2")
    worker.registry.leases.release(worker.lease, outcome, delay=timedelta())

    first, *_ = causes(exp)

    assert "as it is left to another node: waited for 1 cpus, and another node is free: n2 [DOES_NOT_FIT]" in first
    assert "ask for less where `jobqueue why` says that none has" in first
    assert "larger node" not in first


def test_a_message_that_is_not_there_is_told(client: Client, exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client._connections.broker.queues, "depth", lambda _: Depth(ready=0, consumers=3))

    assert "messages that wait at the broker: 0, consumers: 3" in causes(exp)
    assert "its own message is being taken just now, or was lost" in exp.why()
    assert "no node may trust who sent it: `jobqueue keys trust` there" in exp.why()


def test_messages_that_were_taken_are_told_where_the_broker_knows(
    client: Client, exp: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client._connections.broker.queues, "depth", lambda _: Depth(ready=0, unacked=4))

    assert "messages that wait at the broker: 0, taken or put off: 4" in causes(exp)
    assert "was lost" not in exp.why()


def test_a_queue_that_is_gone_is_told_with_the_fix(client: Client, exp: Experiment) -> None:
    queue = f"{client.settings.project}_cpu"
    client._connections.broker.queues.delete(queue)

    assert f"the broker has no queue '{queue}' any more (`jobqueue queues create {queue}` makes it)" in causes(exp)


def test_a_broker_that_is_away_hides_nothing_else(
    client: Client, exp: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> Depth:
        raise BrokerUnavailable("the broker does not answer")

    monkeypatch.setattr(client._connections.broker.queues, "depth", away)

    assert "the broker does not answer (`jobqueue doctor` looks further)" in causes(exp)
    assert "experiments that wait in the queue: 1, and 0 were submitted before it" in causes(exp)


def test_a_registry_that_is_away_is_an_error(client: Client, exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: object) -> None:
        raise RegistryUnavailable("away")

    monkeypatch.setattr(client._connections.registry.experiments, "get", away)
    with pytest.raises(RegistryUnavailable):
        exp.why()


def test_one_that_runs_tells_whether_its_worker_is_heard_of(
    client: Client, exp: Experiment, worker: HandWorker
) -> None:
    worker.run()
    workers = client._connections.registry.workers
    record = WorkerRecord(
        worker_id=WorkerId("cpu@host"),
        node_id=NodeId("host"),
        queues=(),
        offer=Offer(cpus=1, memory_bytes=1, disk_bytes=1),
        runtime="docker",
    )
    try:
        workers.leave(record.worker_id)
        _, silent, nobody = causes(exp)
        assert silent == "its worker cpu@host is silent: another one may take over once its lease is over"
        assert nobody.startswith(f"no worker serves the queue '{client.settings.project}_cpu' now")
        workers.announce(record, ttl=TTL)
        assert causes(exp) == ["RUNNING attempt 1 on cpu@host"]
    finally:
        workers.leave(record.worker_id)


def test_a_silent_worker_is_told_of_though_others_are_there(
    exp: Experiment, worker: HandWorker, announce: Announce
) -> None:
    worker.run()
    announce()

    _, *others = causes(exp)

    assert others == ["its worker cpu@host is silent: another one may take over once its lease is over"]


def test_a_worker_is_busy_with_what_the_registry_has_forgotten(exp: Experiment, announce: Announce) -> None:
    forgotten = make_experiment_id()
    announce(runs=(forgotten,))

    assert f"runs {forgotten}" in exp.why()


def test_who_is_fast_is_told_how_many_fast_ones_are_before_it(client: Client, exp: Experiment) -> None:
    with pytest.warns(JobqueueWarning):
        fast = client.submit(**SPEC, priority="fast", timeout="5m")

    assert "experiments that wait in the queue: 2, and 0 were submitted before it as fast ones like it" in causes(fast)
    assert "experiments that wait in the queue: 2, and 0 were submitted before it, 1 later ones are fast" in exp.why()


def test_one_that_is_over_asks_nobody_further(
    client: Client, exp: Experiment, worker: HandWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.run()
    worker.finish(exit_code=0)
    monkeypatch.setattr(client._connections.registry.workers, "present", lambda: pytest.fail("asked"))

    assert causes(exp) == [
        "SUCCEEDED: the container exited with code 0 and its outputs are stored [EXITED_ZERO]",
    ]
