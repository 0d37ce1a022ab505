"""What is done again and again goes on, whatever happens in one round."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, current_thread

import pytest
from services.waiting import wait_until

from jobqueue.errors import RegistryUnavailable
from workers import rounds as module
from workers.rounds import Rounds

SOON = timedelta(milliseconds=1)


@contextmanager
def started(rounds: Rounds) -> Iterator[None]:
    rounds.start()
    yield
    rounds.close()


def test_a_round_that_fails_is_told_and_the_next_ones_come(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def step() -> None:
        done.append(current_thread().name)
        if len(done) == 1:
            raise KeyError("odd")

    with started(Rounds("look", step, every=lambda: SOON)):
        wait_until(lambda: len(done) > 2, what="rounds after the one that failed")
    (record,) = caplog.records
    assert (record.getMessage(), vars(record)["round"], set(done)) == ("round.failed", "look", {"look"})
    assert "KeyError: 'odd'" in caplog.text


def test_what_fails_for_an_hour_is_told_at_once_then_each_minute_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    now_seconds, is_away = 1000.0, True
    monkeypatch.setattr(module.time, "monotonic", lambda: now_seconds)

    def step() -> None:
        if is_away:
            raise RegistryUnavailable("the registry is away")

    rounds = Rounds("sweep", step, every=lambda: SOON)
    for _ in range(360):
        rounds.take()
        now_seconds += 10
    is_away = False
    for _ in range(3):
        rounds.take()
    *told, last = [vars(record) for record in caplog.records]
    assert {(each["message"], each["error"]) for each in told} == {("round.failed", "the registry is away")}
    assert [each["count"] for each in told] == [1, *[6] * 59]
    assert (last["message"], last["round"]) == ("round.succeeded", "sweep")
    assert "Traceback" not in caplog.text, "what it means stands in its error"


def test_no_round_comes_after_the_end_that_a_step_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []

    def step() -> None:
        done.append(1)
        rounds.close()

    rounds = Rounds("once", step, every=lambda: SOON)
    with started(rounds):
        wait_until(lambda: done, what="the only round")
    assert (done, caplog.messages) == ([1], []), "a step that waits for its own end fails"


def test_who_closes_waits_for_a_round_that_is_on_its_way_but_not_for_ever() -> None:
    begun, go_on, over = Event(), Event(), Event()

    def step() -> None:
        begun.set()
        go_on.wait()
        over.set()

    rounds = Rounds("slow", step, every=lambda: SOON)
    rounds.start()
    assert begun.wait(20)
    rounds.close(within=timedelta(0))
    assert not over.is_set()
    go_on.set()
    rounds.close()
    assert over.is_set()


def test_the_first_round_may_come_at_once() -> None:
    done = Event()
    with started(Rounds("late", done.set, every=lambda: timedelta(hours=1), is_first_due=True)):
        assert done.wait(20)


def test_rounds_that_never_began_are_closed_at_once() -> None:
    Rounds("never", lambda: None, every=lambda: SOON).close()
