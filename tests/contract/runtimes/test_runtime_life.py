"""Every container runtime tells how a container ended, and ends it when it is told to."""

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from services.runtimes import (
    AT_ONCE,
    EXITS,
    LONG,
    POLITE,
    SLEEP,
    STUBBORN,
    Reader,
    StartContainer,
    beat,
    is_still,
    real,
    run,
)
from services.waiting import wait_until

from workers.attempt.runtimes.base import Exit


@pytest.mark.parametrize(("command", "expected"), EXITS.items())
def test_the_exit_code_is_the_commands(start: StartContainer, command: tuple[str, ...], expected: Exit) -> None:
    how, _ = run(start(*command))
    assert (how.code, how.is_out_of_memory, how.error) == (expected.code, False, "")


def test_a_wait_without_an_end_returns_none_in_time(start: StartContainer) -> None:
    container = start(*SLEEP)
    began = time.monotonic()
    assert container.wait(timedelta(seconds=0.2)) is None
    assert container.wait(AT_ONCE) is None
    assert time.monotonic() - began < 30


def test_an_end_is_told_at_once_to_all_who_wait(start: StartContainer) -> None:
    container = start(*SLEEP)
    told: list[float | None] = []
    waiting = [threading.Thread(target=lambda: told.append(container.wait(LONG) and time.monotonic())) for _ in "abc"]
    for thread in waiting:
        thread.start()
    assert container.wait(timedelta(seconds=0.2)) is None
    container.stop(AT_ONCE)
    ended = time.monotonic()
    for thread in waiting:
        thread.join(LONG.total_seconds())
    assert len(told) == 3
    assert max(told) < ended + LONG.total_seconds() / 2


def test_an_end_is_told_as_often_as_one_asks(start: StartContainer) -> None:
    container = start("sh", "-c", "exit 3")
    assert [getattr(container.wait(LONG), "code", None) for _ in range(3)] == [3, 3, 3]


def test_stop_lets_it_end_by_itself(start: StartContainer) -> None:
    container = start(*POLITE)
    reader = Reader(container)
    wait_until(lambda: "ready" in reader.text(), what="the trap is set")
    container.stop(LONG)
    how = container.wait(AT_ONCE)
    assert how is not None
    assert how.code == 5
    assert reader.join().text() == "ready\nbye\n"


def test_stop_kills_what_ignores_the_request_after_the_grace(start: StartContainer) -> None:
    container = start(*STUBBORN)
    reader = Reader(container)
    wait_until(lambda: "ready" in reader.text(), what="the trap is set")
    container.stop(timedelta(seconds=1))
    how = container.wait(AT_ONCE)
    assert how is not None
    assert (how.code, how.is_out_of_memory) == (137, False)
    reader.join()


def test_stop_thaws_what_is_frozen(start: StartContainer) -> None:
    container = start(*POLITE)
    reader = Reader(container)
    wait_until(lambda: "ready" in reader.text(), what="the trap is set")
    container.pause()
    container.stop(LONG)
    assert getattr(container.wait(AT_ONCE), "code", None) == 5
    reader.join()


def test_stop_without_any_grace_kills_what_runs_and_asks_nobody(start: StartContainer) -> None:
    container = start(*POLITE)
    reader = Reader(container)
    wait_until(lambda: "ready" in reader.text(), what="the trap is set")
    container.stop(AT_ONCE)
    assert getattr(container.wait(AT_ONCE), "code", None) == 137
    assert reader.join().text() == "ready\n"


@real
def test_stop_without_any_grace_kills_what_is_frozen_as_it_is(start: StartContainer, workspace: Path) -> None:
    container = start("sh", "-c", f"trap 'echo bye >> beat' TERM; (setsid sh -c '{beat()}') & {beat()}")
    wait_until((workspace / "beat").exists, what="a beat")
    container.pause()
    # Longer than the pause of a beat, so that the shortest thaw would be seen.
    assert is_still(workspace / "beat")
    before = (workspace / "beat").read_bytes()
    container.stop(AT_ONCE)
    assert getattr(container.wait(AT_ONCE), "code", None) == 137
    assert (workspace / "beat").read_bytes() == before, "it went on"
    assert is_still(workspace / "beat")


@real
def test_what_is_frozen_while_it_is_told_to_end_is_killed_after_its_grace(
    start: StartContainer, workspace: Path
) -> None:
    container = start("sh", "-c", f"trap 'echo x >> asked' TERM; {beat()}")
    wait_until((workspace / "beat").exists, what="a beat")
    stopping = threading.Thread(target=container.stop, args=(timedelta(seconds=2),))
    stopping.start()
    wait_until((workspace / "asked").exists, what="SIGTERM")
    container.pause()
    stopping.join(LONG.total_seconds())
    assert getattr(container.wait(AT_ONCE), "code", None) == 137
    assert is_still(workspace / "beat")


def test_pause_resume_stop_and_remove_may_be_repeated(start: StartContainer) -> None:
    container = start(*SLEEP)
    for act in (container.pause, container.resume, lambda: container.stop(AT_ONCE), container.remove):
        act()
        act()


def test_what_has_ended_may_still_be_frozen_thawed_and_stopped(start: StartContainer) -> None:
    container = start("true")
    assert container.wait(LONG) is not None
    container.pause()
    container.resume()
    container.stop(LONG)
    assert getattr(container.wait(AT_ONCE), "code", None) == 0


def test_remove_ends_what_runs_and_what_is_frozen(start: StartContainer) -> None:
    container = start(*SLEEP)
    reader = Reader(container)
    container.pause()
    container.remove()
    reader.join()


@real
def test_the_end_takes_all_descendants_along(start: StartContainer, workspace: Path) -> None:
    container = start("sh", "-c", f"(trap '' TERM; {beat()}) & (setsid sh -c '{beat()}') & sleep 0.5; exit 4")
    assert getattr(container.wait(LONG), "code", None) == 4
    assert is_still(workspace / "beat")


@real
def test_stop_takes_all_descendants_along(start: StartContainer, workspace: Path) -> None:
    container = start("sh", "-c", f"trap '' TERM; (setsid sh -c '{beat()}') & while :; do sleep 0.1; done")
    wait_until((workspace / "beat").exists, what="a beat")
    container.stop(timedelta(seconds=0.5))
    assert is_still(workspace / "beat")


@real
def test_a_frozen_container_computes_nothing_until_it_is_thawed(start: StartContainer, workspace: Path) -> None:
    container = start("sh", "-c", f"(setsid sh -c '{beat()}') & {beat()}")
    wait_until((workspace / "beat").exists, what="a beat")
    container.pause()
    assert is_still(workspace / "beat")
    assert container.wait(AT_ONCE) is None
    container.resume()
    size = (workspace / "beat").stat().st_size
    wait_until(lambda: (workspace / "beat").stat().st_size > size, what="a beat after the thaw")
