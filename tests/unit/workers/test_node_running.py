"""What a node knows of the attempts that run in it, also when one experiment was delivered twice."""

import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from services.node import FakeNode

from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Reason
from workers.attempt.health import Trouble
from workers.bootstrap import Node


class Asked:
    """An attempt that notes what it is asked."""

    queue = "q_cpu"
    has_begun = True
    has_started = False

    def __init__(self) -> None:
        self.reasons: list[Reason] = []

    def ask(self, reason: Reason) -> None:
        self.reasons.append(reason)


@pytest.fixture
def worker(node: FakeNode) -> Node:
    """A node that opened nothing."""
    made: Any = Node.__new__(Node)
    made.site, made._running, made.presence = node.site, {}, SimpleNamespace(is_leaving=False)
    made._lock, made._keeping = threading.Lock(), threading.Lock()
    made.settings = SimpleNamespace(lease=node.site.lease)
    made.queues, made.served, made.most = (), 0, None
    return made


def test_a_duplicate_that_ends_takes_nothing_from_what_runs(worker: Node) -> None:
    experiment_id, first, second = make_experiment_id(), Asked(), Asked()
    with worker.running(experiment_id, first, {"delivery_tag": "1"}):  # type: ignore[arg-type]
        with worker.running(experiment_id, second, {"delivery_tag": "2"}):  # type: ignore[arg-type]
            pass
        assert worker.is_running(experiment_id)
        worker.drain()
    assert (first.reasons, second.reasons) == ([Reason.DRAINED], [])
    assert not worker.is_running(experiment_id)


def test_what_outlives_an_earlier_duplicate_is_asked_and_kept_alive_too(worker: Node) -> None:
    experiment_id, first, second = make_experiment_id(), Asked(), Asked()
    before = worker.running(experiment_id, first, {"delivery_tag": "1"})  # type: ignore[arg-type]
    before.__enter__()
    with worker.running(experiment_id, second, {"delivery_tag": "2"}):  # type: ignore[arg-type]
        before.__exit__(None, None, None)
        worker.redelivered(experiment_id, {"delivery_tag": "3"})
        worker.ask(experiment_id, Reason.CANCELLED_BY_USER)
        assert [running.properties for running in worker._now().values()] == [{"delivery_tag": "3"}]
    assert (first.reasons, second.reasons) == ([], [Reason.CANCELLED_BY_USER])


def test_only_what_was_adopted_takes_a_place_without_a_delivery(worker: Node) -> None:
    with (
        worker.running(make_experiment_id(), Asked(), {"delivery_tag": "1"}),  # type: ignore[arg-type]
        worker.running(make_experiment_id(), Asked(), None),  # type: ignore[arg-type]
    ):
        assert worker.adopted == 1
    assert worker.adopted == 0


def test_it_counts_what_it_has_run_and_how_much_it_still_runs(worker: Node) -> None:
    assert worker.still_runs == math.inf
    worker.most = 3
    put_off = Asked()
    put_off.has_begun = False
    for attempt in (put_off, Asked()):
        with worker.running(make_experiment_id(), attempt, None):  # type: ignore[arg-type]
            assert worker.still_runs == 3
    with worker.running(make_experiment_id(), put_off, None):  # type: ignore[arg-type]
        assert (worker.served, worker.still_runs) == (1, 2)


def test_where_starts_fail_another_one_is_taken_once_all_that_were_taken_have_started(worker: Node) -> None:
    worker.site.health.trouble = None
    assert worker.may_try(3)
    worker.site.health.trouble = Trouble.STARTS_FAIL
    starting, running, adopted = Asked(), Asked(), Asked()
    running.has_started = adopted.has_started = True
    assert worker.may_try(0)
    assert not worker.may_try(1), "it was taken, and is on its way to its thread"
    with (
        worker.running(make_experiment_id(), running, {"delivery_tag": "1"}),  # type: ignore[arg-type]
        worker.running(make_experiment_id(), adopted, None),  # type: ignore[arg-type]
    ):
        assert worker.may_try(1)
        with worker.running(make_experiment_id(), starting, {"delivery_tag": "2"}):  # type: ignore[arg-type]
            assert not worker.may_try(2)
        assert not worker.may_try(2), "its end is on its way"
        assert worker.may_try(1)
