"""Output while the store is away: none of it is lost, memory stays bounded, and waiting is no silence."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from services.node import FakeNode
from services.waiting import wait_until

from jobqueue.artifacts import log_prefix
from jobqueue.errors import ArtifactRefused, StoreUnavailable
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Reason, State
from jobqueue.registry.base import Lease, LogPiece
from jobqueue.storage import open_store
from jobqueue.storage.base import Store
from workers.attempt import logs
from workers.attempt.logs import CHUNK_BYTES, LogWriter
from workers.attempt.runtimes.fake import Script
from workers.attempt.supervise import Ended

PREFIX = "experiments/e/attempts/1-1"
PIECE = bytes(range(256)) * 256
MANY = 200


class NoLive:
    """A live log that takes everything and keeps nothing."""

    def append(self, lease: Lease, stream: str, data: bytes, *, offset: int) -> None:
        """Take it."""

    def read(self, experiment_id: str, stream: str, *, after: str = "") -> list[LogPiece]:
        return []


class Away:
    """A store that takes nothing while it is away."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.is_away = True
        self.error: Exception = StoreUnavailable("503")
        self.tries = 0

    def put(self, key: str, source: bytes | Path) -> None:
        self.tries += 1
        if self.is_away:
            raise self.error
        self.store.put(key, source)


@pytest.fixture
def away() -> Away:
    return Away(open_store(f"memory://{make_experiment_id()}"))


@pytest.fixture
def writer(away: Away) -> Iterator[LogWriter]:
    opened = LogWriter(
        Lease(experiment_id=make_experiment_id(), token=1, attempt=1),
        store=away,  # type: ignore[arg-type]
        prefix=PREFIX,
        live=NoLive(),
        limit_bytes=10**9,
        on_progress=lambda _: None,
    )
    yield opened
    away.is_away = False
    opened.close()


def stored(away: Away) -> bytes:
    return b"".join(b"".join(away.store.get(found.key)) for found in away.store.list(log_prefix(PREFIX, "stdout")))


def start_flood(writer: LogWriter) -> threading.Thread:
    """Write much on a thread, until it waits for the store."""

    def flood() -> None:
        for _ in range(MANY):
            writer.write("stdout", PIECE)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    wait_until(lambda: writer.is_behind, what="a writer that waits")
    return thread


def test_a_close_that_the_store_did_not_take_can_be_repeated(writer: LogWriter, away: Away) -> None:
    writer.write("stdout", b"one\n")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            writer.close()
    away.is_away = False
    writer.close()
    assert stored(away) == b"one\n"
    assert writer.last_lines == ("one",)


def test_a_flood_waits_for_a_store_that_is_away_and_loses_nothing(writer: LogWriter, away: Away) -> None:
    pieces = 4 * CHUNK_BYTES // len(PIECE)
    taken: list[int] = []

    def flood() -> None:
        for number in range(pieces):
            writer.write("stdout", PIECE)
            taken.append(number)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    wait_until(lambda: writer.is_behind, what="a writer that waits")
    assert len(taken) * len(PIECE) <= 2 * CHUNK_BYTES
    tries = away.tries
    wait_until(lambda: away.tries > tries + 1, what="further tries of its own")
    away.is_away = False
    thread.join(10)
    writer.close()
    assert stored(away) == PIECE * pieces
    assert not writer.is_behind


def test_who_writes_waits_no_more_for_a_store_that_refuses_the_output(writer: LogWriter, away: Away) -> None:
    flood = start_flood(writer)
    away.error = ArtifactRefused("its sender is trusted no more")
    flood.join(20)
    assert not flood.is_alive()
    assert writer.refusal == "its sender is trusted no more"


def test_waiting_for_the_store_is_not_the_experiments_silence(writer: LogWriter, away: Away) -> None:
    flood = start_flood(writer)
    since = time.monotonic()
    wait_until(lambda: time.monotonic() - since > 0.3, what="some time")
    assert writer.silence_seconds < 0.1
    away.is_away = False
    flood.join(10)
    wait_until(lambda: writer.silence_seconds > 0.1, what="silence")


def test_a_writer_that_waits_for_the_store_is_let_go_when_the_output_is_closed(writer: LogWriter, away: Away) -> None:
    flood = start_flood(writer)
    with pytest.raises(StoreUnavailable):
        writer.close()
    flood.join(10)
    assert not flood.is_alive()
    away.is_away = False
    writer.close()
    assert stored(away) != PIECE * MANY
    assert (PIECE * MANY).startswith(stored(away))


def test_a_finished_run_is_not_repeated_because_the_store_was_away_when_it_ended(node: FakeNode) -> None:
    message = node.message()
    failures: list[str] = []

    def fault(method: str, key: str) -> None:
        if method == "put" and "/logs/" in key and len(failures) < 3:
            failures.append(key)
            raise StoreUnavailable("503")

    node.store.fault = fault
    node.runtime.script = Script(output=[("stdout", b"hello\n")])
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, len(node.runtime.containers), node.output(message)) == (State.SUCCEEDED, 1, b"hello\n")
    assert len(failures) == 3


def test_a_store_that_is_behind_makes_nobody_stall(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.attempt.logs.CHUNK_BYTES", 10)
    message, until = node.message(stall_timeout="300ms"), time.monotonic() + 1.2

    def fault(method: str, key: str) -> None:
        if method == "put" and "/logs/" in key and time.monotonic() < until:
            raise StoreUnavailable("503")

    node.store.fault = fault
    node.runtime.script = Script(is_held=True, output=[("stdout", b"0123456789\n")] * 10)
    running = node.start(message)
    container = node.container()
    wait_until(lambda: len(node.output(message)) > 100, what="all of the output", within=timedelta(seconds=10))
    container.finish()
    result = running.join()
    assert isinstance(result, Ended)
    assert result.outcome.reason is Reason.EXITED_ZERO


def test_output_that_waits_for_the_store_when_the_container_ends_is_still_taken(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.attempt.logs.CHUNK_BYTES", 10)
    monkeypatch.setattr("workers.attempt.watch.DRAIN_OUTPUT", timedelta(milliseconds=200))
    message, until = node.message(), time.monotonic() + 1.5

    def fault(method: str, key: str) -> None:
        if method == "put" and "/logs/" in key and time.monotonic() < until:
            raise StoreUnavailable("503")

    node.store.fault = fault
    node.runtime.script = Script(output=[("stdout", b"0123456789\n")] * 10)
    result = node.run(message)
    assert isinstance(result, Ended)
    assert (result.state, node.output(message)) == (State.SUCCEEDED, b"0123456789\n" * 10)


def test_an_error_that_nobody_has_thought_of_keeps_no_output_from_the_store_for_good(
    away: Away, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "CHUNK_EVERY", timedelta(milliseconds=1))
    away.error = ValueError("odd")
    writer.write("stdout", b"said")
    wait_until(lambda: away.tries > 1, what="another try after one that failed")
    away.is_away = False
    wait_until(lambda: stored(away) == b"said", what="the output in the store")
