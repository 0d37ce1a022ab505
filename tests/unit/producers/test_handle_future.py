"""A handle is a future: it waits, tells, is cancelled, and outlives what happens around it."""

import asyncio
import concurrent.futures
import gc
import html
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from services.hand_worker import HandWorker
from services.waiting import wait_until

from jobqueue.artifacts import result_key
from jobqueue.errors import (
    ArtifactRefused,
    ExperimentCancelled,
    ExperimentFailed,
    ExperimentTimeout,
    JobqueueError,
    NotFound,
    RegistryUnavailable,
)
from jobqueue.ids import ExperimentId, make_experiment_id
from jobqueue.lifecycle import Outcome, Reason, State
from producers import watching
from producers.client import Client
from producers.ending import read_marker
from producers.handle import Experiment
from producers.outputs import LARGEST_RESULT_BYTES

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
SPEC = {"image": "python:3.12-slim", "command": "true"}
SOON = 10


def test_the_result_is_what_the_experiment_wrote(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.put_outputs({"outputs/result.json": b'{"accuracy": 0.9}', "model.pt": b"weights"})
    worker.finish(exit_code=0)

    assert exp.result(timeout=SOON) == {"accuracy": 0.9}
    assert exp.exception() is None
    assert (exp.state, exp.reason, exp.attempt) == (State.SUCCEEDED, Reason.EXITED_ZERO, 1)
    assert exp.done()
    assert not exp.running()
    assert not exp.cancelled()


def test_without_a_result_file_the_result_is_the_exit_code(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.finish(exit_code=0)

    assert exp.result(timeout=SOON) == {"exit_code": 0}
    assert list(exp.outputs) == []


@pytest.mark.parametrize("content", [b"nan?", b"\xff\xfe", b"[" * 100_000], ids=["words", "no text", "too deep"])
def test_a_result_file_that_is_not_json_is_said_to_be_so(exp: Experiment, worker: HandWorker, content: bytes) -> None:
    worker.run()
    worker.put_outputs({"outputs/result.json": content})
    worker.finish(exit_code=0)

    with pytest.raises(ArtifactRefused, match="not JSON"):
        exp.result(timeout=SOON)


def test_a_result_file_that_is_too_large_is_not_parsed(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.put_outputs({"outputs/result.json": b"[" + b" " * LARGEST_RESULT_BYTES + b"]"})
    worker.finish(exit_code=0)

    with pytest.raises(ArtifactRefused, match=r"16 MiB at most \(exp.outputs.read_bytes\('outputs/result.json'\) "):
        exp.result(timeout=SOON)


def test_a_failure_carries_its_reason_hint_code_and_last_lines(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.finish(Reason.OUT_OF_MEMORY, detail="the limit is 2 GiB", exit_code=137, last_lines=("Killed",))

    with pytest.raises(ExperimentFailed) as caught:
        exp.result(timeout=SOON)

    error = caught.value
    assert (error.reason, error.exit_code, error.last_lines) == ("OUT_OF_MEMORY", 137, ("Killed",))
    assert "memory=" in error.hint
    assert "the limit is 2 GiB" in str(error)
    assert "  | Killed" in str(error)
    assert exp.exception() is not error, (
        "each caller gets an error of its own, or their tracebacks grow into each other"
    )


def test_waiting_ends_in_time_and_the_experiment_goes_on(exp: Experiment) -> None:
    assert exp.wait(0) is False
    with pytest.raises(ExperimentTimeout, match=exp.id) as caught:
        exp.result(timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert exp.state is State.QUEUED


def test_one_that_nobody_holds_is_cancelled_at_once_with_a_marker(client: Client, exp: Experiment) -> None:
    assert exp.cancel()

    assert exp.cancelled()
    with pytest.raises(ExperimentCancelled):
        exp.result(timeout=SOON)
    marker = read_marker(client._connections.store, exp.id)
    assert marker is not None
    assert (marker.state, marker.reason) == (State.CANCELLED, Reason.CANCELLED_BY_USER)
    assert exp.cancel(), "as for any future: it is cancelled"


@pytest.mark.parametrize("url", ["nonsense://x", "file:///dev/null/store", "s3://bucket"])
def test_cancelling_needs_no_store(client: Client, exp: Experiment, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client._connections, "settings", client.settings.model_copy(update={"storage_url": url}))
    client._connections.forget("store")
    found = client.get(exp.id)

    assert found.cancel()

    assert found.cancelled()
    with pytest.raises(ExperimentCancelled):
        found.result(timeout=SOON)
    assert "CANCELLED" in found._repr_html_()


def test_cancelling_is_done_although_the_registry_goes_away_after_it(
    client: Client, exp: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: ExperimentId) -> None:
        raise RegistryUnavailable("away")

    with monkeypatch.context() as broken:
        broken.setattr(client._connections.registry.experiments, "get", away)
        assert exp.cancel()
    wait_until(exp.cancelled, what="the watcher's look")


def test_a_running_one_is_cancelled_by_its_worker(exp: Experiment, worker: HandWorker) -> None:
    worker.run()

    assert exp.cancel()

    assert not exp.done()
    assert "being cancelled" in exp.why()
    worker.finish(Reason.CANCELLED_BY_USER)
    assert isinstance(exp.exception(timeout=SOON), ExperimentCancelled)


def test_what_is_over_cannot_be_cancelled(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.finish(exit_code=0)

    assert exp.cancel() is False
    assert exp.state is State.SUCCEEDED


def test_the_functions_for_futures_take_handles(client: Client, take: Callable[[Experiment], HandWorker]) -> None:
    handles = client.submit_many([SPEC] * 4)
    for exp in handles:
        worker = take(exp)
        worker.run()
        worker.finish(Reason.EXITED_ZERO if exp is not handles[2] else Reason.EXITED_NONZERO, exit_code=0)

    assert set(concurrent.futures.as_completed(handles, timeout=SOON)) == set(handles)
    done, waiting = concurrent.futures.wait(handles, timeout=SOON, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert done == set(handles)
    assert not waiting


def test_the_first_failure_ends_a_wait_for_it(client: Client, take: Callable[[Experiment], HandWorker]) -> None:
    handles = client.submit_many([SPEC] * 2)
    worker = take(handles[1])
    worker.run()
    timer = threading.Timer(0.05, lambda: worker.finish(Reason.EXITED_NONZERO, exit_code=1))
    timer.start()

    done, waiting = concurrent.futures.wait(handles, timeout=SOON, return_when=concurrent.futures.FIRST_EXCEPTION)

    timer.join()
    assert (done, waiting) == ({handles[1]}, {handles[0]})


def test_a_callback_is_called_even_when_nobody_holds_the_handle(
    client: Client, take: Callable[[Experiment], HandWorker]
) -> None:
    told: list[Any] = []
    exp = client.submit(**SPEC)
    experiment_id = exp.id
    exp.add_done_callback(lambda future: told.append(future.result()))
    client._last = None
    del exp
    gc.collect()

    worker = take(client.get(experiment_id))
    worker.run()
    worker.finish(exit_code=0)

    wait_until(lambda: told == [{"exit_code": 0}], what="the callback")


def test_a_handle_that_nobody_holds_is_not_watched(client: Client) -> None:
    client.submit(**SPEC)
    client._last = None
    gc.collect()

    wait_until(lambda: client._watcher._thread is None, what="the watcher's end")
    assert not client._watcher._entries


def test_awaiting_gives_the_result(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    timer = threading.Timer(0.05, lambda: worker.finish(exit_code=0))

    async def main() -> tuple[Any, list[Any]]:
        timer.start()
        return await exp, await asyncio.gather(exp, exp)

    assert asyncio.run(main()) == ({"exit_code": 0}, [{"exit_code": 0}] * 2)
    timer.join()


def test_who_gives_up_awaiting_does_not_cancel(exp: Experiment) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(exp, 0.05)  # type: ignore[arg-type]

    asyncio.run(main())

    assert exp.state is State.QUEUED
    assert not exp.look().is_cancelled


def test_awaiting_a_cancelled_one_is_not_taken_for_a_cancelled_task(exp: Experiment) -> None:
    exp.cancel()

    async def main() -> Any:
        return await asyncio.gather(exp, return_exceptions=True)

    (error,) = asyncio.run(main())
    assert isinstance(error, ExperimentCancelled)


def test_a_short_outage_is_waited_out(
    client: Client, exp: Experiment, worker: HandWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, asked = client._watcher._states, threading.Event()

    def fail(ids: list[ExperimentId]) -> dict[ExperimentId, State]:
        if not asked.is_set():
            asked.set()
            raise RegistryUnavailable("away")
        return states(ids)

    worker.run()
    monkeypatch.setattr(client._watcher, "_states", fail)
    wait_until(asked.is_set, what="the first question")
    worker.finish(exit_code=0)

    assert exp.result(timeout=SOON) == {"exit_code": 0}


def test_a_long_outage_is_told_to_who_waits(client: Client, exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[ExperimentId]) -> dict[ExperimentId, State]:
        raise RegistryUnavailable("away")

    monkeypatch.setattr(watching, "OUTAGE", timedelta(seconds=0.05))
    monkeypatch.setattr(client._watcher, "_states", fail)

    with pytest.raises(RegistryUnavailable, match="away"):
        exp.wait(SOON)


def test_a_forgetful_registry_is_made_up_for_by_the_marker(client: Client, exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.put_outputs({"outputs/result.json": b"[1]"})
    worker.mark(Outcome(reason=Reason.EXITED_ZERO, exit_code=0), State.SUCCEEDED)
    client._connections.registry.experiments._table.entries.clear()  # type: ignore[attr-defined]

    assert exp.result(timeout=SOON) == [1]


def test_a_marker_that_is_none_ends_the_waiting_of_a_forgetful_registry(
    client: Client, exp: Experiment, worker: HandWorker
) -> None:
    worker.run()
    client._connections.store.put(result_key(exp.id), b"no marker")
    client._connections.registry.experiments._table.entries.clear()  # type: ignore[attr-defined]

    with pytest.raises(ArtifactRefused, match="not a result marker"):
        exp.result(timeout=SOON)


def test_an_end_that_the_store_does_not_know_ends_the_waiting_of_every_loop(
    exp: Experiment, worker: HandWorker
) -> None:
    worker.run()
    worker.registry.leases.advance(worker.lease, State.FINALIZING)
    worker.registry.leases.finish(worker.lease, Outcome(reason=Reason.EXITED_ZERO, exit_code=0), state=State.SUCCEEDED)

    async def wait() -> None:
        await asyncio.wait_for(asyncio.wrap_future(exp), SOON)

    with pytest.raises(ArtifactRefused, match="has no result of it"):
        asyncio.run(wait())
    done, _ = concurrent.futures.wait([exp], timeout=SOON, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert done == {exp}


def test_an_id_that_was_never_given_is_an_error_and_not_a_wait(client: Client) -> None:
    with pytest.raises(NotFound):
        client.handle(make_experiment_id()).result(timeout=SOON)


def test_an_id_that_was_never_given_ends_every_other_kind_of_waiting_too(client: Client) -> None:
    unknown = client.handle(make_experiment_id())

    assert list(concurrent.futures.as_completed([unknown], timeout=SOON)) == [unknown]
    with pytest.raises(NotFound):
        asyncio.run(_await(unknown))
    assert unknown.id not in client._watcher._entries


def test_a_closed_client_ends_the_waiting_for_its_handles(client: Client, exp: Experiment) -> None:
    timer = threading.Timer(0.05, client.close)
    timer.start()

    with pytest.raises(JobqueueError, match="closed"):
        exp.result(timeout=SOON)
    timer.join()
    assert list(concurrent.futures.as_completed([exp], timeout=SOON)) == [exp]
    with pytest.raises(JobqueueError, match="closed"):
        asyncio.run(_await(exp))


async def _await(exp: Experiment) -> Any:
    return await asyncio.wait_for(asyncio.ensure_future(exp), SOON)  # type: ignore[arg-type]


def test_a_callback_may_wait_for_another_experiment(client: Client, take: Callable[[Experiment], HandWorker]) -> None:
    first, second = client.submit_many([SPEC] * 2)
    workers = [take(first), take(second)]
    entered, results = threading.Event(), []

    def chain(_: object) -> None:
        entered.set()
        results.append(second.result(timeout=SOON))

    first.add_done_callback(chain)
    for worker in workers:
        worker.run()
    workers[0].finish(exit_code=0)
    assert entered.wait(SOON)
    workers[1].finish(exit_code=0)

    wait_until(lambda: results == [{"exit_code": 0}], what="the callback's end")


def test_the_short_text_asks_nobody(client: Client, exp: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exp, "look", lambda: pytest.fail("asked"))

    assert repr(exp) == f"<Experiment {exp.id} 'mine'>"


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
def test_the_table_is_static_and_escaped(client: Client) -> None:
    """The name of an experiment is HTML that runs a script.

    Refused: the handle's table shows it as text, and holds no script.
    Evidence: the HTML of the handle.
    """
    exp = client.submit(**SPEC, name="<script>alert(1)</script>")

    text = exp._repr_html_()

    assert html.escape("<script>alert(1)</script>") in text
    assert "<script" not in text
    assert exp.id in text
    assert "QUEUED" in text


def test_the_table_of_an_unknown_experiment_is_a_sentence(client: Client) -> None:
    assert "does not know" in client.handle(make_experiment_id())._repr_html_()


def test_watching_prints_lines_and_where_it_is(
    exp: Experiment, worker: HandWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.run()
    worker.store_log(0, b"one\ntwo\n")
    worker.finish(exit_code=0)

    exp.watch()

    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["one", "two"]
    assert printed[2].startswith("[SUCCEEDED: ")
