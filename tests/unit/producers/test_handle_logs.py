"""A log is whole: no line is lost or doubled where the live pieces end and the store's chunks begin."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from services.hand_worker import HandWorker
from services.waiting import wait_until

from jobqueue.errors import InvalidSpec, RegistryUnavailable
from jobqueue.lifecycle import Reason
from jobqueue.registry.base import LogPiece
from producers import handle, logs
from producers.client import Client
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")


def lines(first: int, last: int) -> bytes:
    return b"".join(b"line %04d\n" % number for number in range(first, last))


def texts(first: int, last: int) -> list[str]:
    return [f"line {number:04d}" for number in range(first, last)]


class Follower:
    """Follows a log on a thread of its own."""

    def __init__(self, followed: Iterator[str]) -> None:
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(followed,))
        self._thread.start()

    def _read(self, followed: Iterator[str]) -> None:
        for line in followed:
            self.lines.append(line)

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.lines) >= count, what=f"{count} lines")

    def end(self) -> list[str]:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.lines


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[[Experiment], Follower]:
    from datetime import timedelta

    monkeypatch.setattr(logs, "_STORE_EVERY", timedelta(seconds=0.05))
    monkeypatch.setattr(logs, "_LONGEST", timedelta(seconds=0.1))
    return lambda exp: Follower(exp.logs(follow=True))


def test_what_is_over_is_read_from_the_store_alone(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.send_log(0, b"live\n")
    worker.store_log(0, b"stored\nwith")
    worker.store_log(11, b"out an end")
    worker.store_log(0, b"apart\n", stream="stderr")
    worker.finish(exit_code=0)

    assert list(exp.logs()) == ["stored", "without an end"]
    assert list(exp.logs(follow=True)) == ["stored", "without an end"]
    assert list(exp.logs(stream="stderr")) == ["apart"]


def test_what_is_no_chunk_beside_the_chunks_is_passed_over(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.store_log(0, b"stored\n")
    for name in ("zzz", "-5", "1e3", "0x1"):
        worker.store.put(f"{worker.prefix}/logs/stdout/{name}", b"rubbish")
    worker.finish(exit_code=0)

    assert list(exp.logs()) == ["stored"]


def test_before_the_first_attempt_there_are_no_lines(exp: Experiment) -> None:
    assert list(exp.logs()) == []


def test_a_running_log_goes_on_live_where_the_store_ends(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    data = lines(0, 30)
    worker.store_log(0, data[:100])
    worker.send_log(50, data[50:200])
    worker.send_log(200, data[200:])

    assert list(exp.logs()) == texts(0, 30)


def test_a_running_log_stops_where_neither_has_the_next_byte(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    data = lines(0, 30)
    worker.store_log(0, data[:100])
    worker.send_log(200, data[200:])

    assert list(exp.logs()) == texts(0, 10)


def test_following_crosses_from_live_to_store_without_loss(
    exp: Experiment, worker: HandWorker, follow: Callable[[Experiment], Follower]
) -> None:
    data = lines(0, 300)
    follower = follow(exp)
    worker.run()
    worker.send_log(0, data[:500])
    follower.wait_for(50)
    worker.store_log(0, data[:1000])
    worker.send_log(500, data[500:1505])
    follower.wait_for(150)
    worker.store_log(1000, data[1000:])
    worker.finish(exit_code=0)

    assert follower.end() == texts(0, 300)


def test_following_waits_for_the_store_where_live_pieces_were_dropped(
    exp: Experiment, worker: HandWorker, follow: Callable[[Experiment], Follower]
) -> None:
    data = lines(0, 300)
    follower = follow(exp)
    worker.run()
    worker.send_log(0, data[:500])
    follower.wait_for(50)
    worker.send_log(2000, data[2000:2500])
    worker.store_log(0, data[:2200])
    follower.wait_for(250)
    worker.store_log(2200, data[2200:])
    worker.finish(exit_code=0)

    assert follower.end() == texts(0, 300)


def test_following_goes_on_with_the_next_attempt(
    exp: Experiment,
    worker: HandWorker,
    take: Callable[[Experiment], HandWorker],
    follow: Callable[[Experiment], Follower],
) -> None:
    follower = follow(exp)
    worker.run()
    worker.send_log(0, b"first, live\n")
    follower.wait_for(1)
    worker.store_log(0, b"first, live\nfirst, stored")
    worker.give_back(Reason.DRAINED)
    second = take(exp)
    second.run()
    second.store_log(0, b"second\n")
    second.finish(exit_code=0)

    assert follower.end() == ["first, live", "first, stored", "second"]


def test_what_counts_in_the_end_is_the_attempt_that_committed(
    exp: Experiment, worker: HandWorker, take: Callable[[Experiment], HandWorker]
) -> None:
    worker.run()
    worker.store_log(0, b"the first one\n")
    worker.give_back(Reason.DRAINED)
    second = take(exp)
    second.run()
    second.store_log(0, b"the second one\n")
    from jobqueue.lifecycle import Outcome, State

    worker.mark(Outcome(reason=Reason.EXITED_ZERO), State.SUCCEEDED)
    second.finish(exit_code=0)

    assert list(exp.logs()) == ["the first one"]


def test_letters_that_are_cut_in_two_are_put_together(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    text = "Grüße\r\n".encode()
    worker.store_log(0, text[:3])
    worker.store_log(3, text[3:])
    worker.finish(exit_code=0)

    assert list(exp.logs()) == ["Grüße"]


def test_a_line_without_an_end_does_not_fill_the_memory(
    exp: Experiment, worker: HandWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MAX_LINE_CHARACTERS", 10)
    worker.run()
    worker.store_log(0, b"x" * 15)
    worker.store_log(15, b"y" * 5)
    worker.finish(exit_code=0)

    assert "".join(exp.logs()) == "x" * 15 + "y" * 5
    assert len(list(exp.logs())) == 2


def test_following_outlives_a_short_outage(
    client: Client,
    exp: Experiment,
    worker: HandWorker,
    follow: Callable[[Experiment], Follower],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker.run()
    worker.store_log(0, b"one\n")
    experiments = client._connections.registry.experiments
    live = client._connections.registry.live_logs
    get, failed = experiments.get, threading.Event()

    def fail_once(experiment_id: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise RegistryUnavailable("away")
        return get(experiment_id)

    def fail(*_: Any, **__: Any) -> list[LogPiece]:
        raise RegistryUnavailable("away")

    monkeypatch.setattr(handle, "_CHECK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(experiments, "get", fail_once)
    monkeypatch.setattr(live, "read", fail)
    follower = follow(exp)
    follower.wait_for(1)
    worker.finish(exit_code=0)

    assert follower.end() == ["one"]


def test_a_stream_that_does_not_exist_is_refused_with_those_that_do(exp: Experiment) -> None:
    with pytest.raises(InvalidSpec, match="stdout, stderr"):
        exp.logs(stream="stdlog")
