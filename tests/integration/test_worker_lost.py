"""A worker that is killed or stopped: its container goes on with the next worker of its name, or is frozen in time."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from services.place import LONG, OpenAt, Place, number, sleepers, wait_for_sleep, with_settings
from services.process import ServerFailedError
from services.waiting import wait_until

from jobqueue.lifecycle import Reason, State
from jobqueue.storage import open_store

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

BOTH = [("rabbitmq", "docker"), ("redis", "process")]
on_both = pytest.mark.parametrize("place", BOTH, indirect=True, ids="-".join)


@pytest.fixture
def place(request: pytest.FixtureRequest, open_at: OpenAt, settings: dict[str, str]) -> Iterator[Place]:
    with open_at(*request.param, **settings) as opened:
        yield opened
        wait_until(lambda: not guards(opened), what="the guard's own end", within=LONG)


def guards(place: Place) -> list[psutil.Process]:
    """Return the guards of a place's node."""
    state_dir = str(place.site.settings.state_dir)
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if {"workers.node.guard", state_dir} <= set(each.info["cmdline"] or ())]


def is_frozen(pid: int) -> bool:
    """Tell whether a process makes no step: stopped by a signal, or in a frozen control group."""
    process = psutil.Process(pid)
    if process.status() == psutil.STATUS_STOPPED:
        return True
    groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    states = [
        Path("/sys/fs/cgroup/freezer", line.split(":freezer:")[1].lstrip("/"), "freezer.state")
        for line in groups
        if ":freezer:" in line
    ]
    return any(state.exists() and state.read_text().strip() == "FROZEN" for state in states)


def left_files(place: Place) -> list[Path]:
    """Return what lies on the node for attempts: folders, lease files, process containers."""
    settings = place.site.settings
    folders = [settings.cache_dir / "attempts", settings.state_dir / "process"]
    folders += (settings.state_dir / "nodes").glob("*/leases")
    return [each for folder in folders if folder.exists() for each in folder.iterdir()]


def count_to(end: int, *, seconds: str, step: str = "0.05") -> str:
    """Return a command that counts, and sleeps for `seconds` in the middle, until its sleep is told to end."""
    half = end // 2
    return (
        f"i=0; while [ $i -lt {end} ]; do i=$((i+1)); echo line $i; "
        f"[ $i = {half} ] && sleep {seconds}; sleep {step}; done; cat /proc/uptime | cut -d' ' -f1 > outputs/end; true"
    )


@on_both
@with_settings(lease="60s")
def test_a_worker_that_comes_back_goes_on_with_what_it_ran(place: Place) -> None:
    seconds = number()
    with place.make_worker() as worker:
        experiment = place.submit(count_to(60, seconds=seconds))
        pid = wait_for_sleep(seconds)
        store = open_store(place.site.settings.storage)
        wait_until(lambda: any("/logs/" in each.key for each in store.list("")), what="a stored log", within=LONG)
        worker.kill()
        assert sleepers(seconds) == [pid]
        worker.start()
        wait_until(lambda: "attempt.adopted" in worker.log.read_text(), what="the adoption", within=LONG)
        assert sleepers(seconds) == [pid], "it was started anew"
        assert not is_frozen(pid)
        os.kill(pid, signal.SIGTERM)
        assert experiment.result(timeout=60) == {"exit_code": 0}
        wait_until(lambda: place.depth() == 0, what="the message acknowledged", within=LONG)
        worker.stop()  # not before it has tidied up
    record = place.record_of(experiment)
    assert (record.state, record.attempt, record.history, record.platform_failures) == (State.SUCCEEDED, 1, (), 0)
    assert list(experiment.logs()) == [f"line {i}" for i in range(1, 61)]
    assert left_files(place) == []


def elsewhere(place: Place) -> dict[str, str]:
    """Return what makes a worker one of another node: a state folder and a cache of its own."""
    settings = place.site.settings
    return {
        "JOBQUEUE_STATE_DIR": str(place.site.folder / "elsewhere"),
        "JOBQUEUE_CACHE_DIR": str(place.site.folder / "elsewhere" / "cache"),
        "JOBQUEUE_KEYS": str(settings.keys_dir),
        "JOBQUEUE_STORAGE_URL": settings.storage,
    }


def twice(first: str, second: str) -> str:
    """Return a command that sleeps for `first` at its first attempt, and for `second` later."""
    return f"if [ $JOBQUEUE_ATTEMPT = 1 ]; then sleep {first}; else sleep {second}; fi; echo end of $JOBQUEUE_ATTEMPT"


# RabbitMQ gives a stopped worker's message to another one only when heartbeats have been missing for long.
@pytest.mark.parametrize("place", [("redis", "docker"), ("redis", "process")], indirect=True, ids="-".join)
@with_settings(lease="6s")
def test_a_stopped_workers_container_is_frozen_before_another_node_starts_the_next_attempt(place: Place) -> None:
    first, second = number(), number()
    one, two = place.make_worker("one"), place.make_worker("two", environment=elsewhere(place))
    with one:
        experiment = place.submit(twice(first, second))
        pid = wait_for_sleep(first)
        one.pause()
        with two:
            next_pid = wait_for_sleep(second)
            assert is_frozen(pid), "two attempts computed at once"
            one.resume()
            wait_until(lambda: not sleepers(first), what="the end of what was superseded", within=LONG)
            wait_until(lambda: left_files(place) == [], what="nothing left on the first node", within=LONG)
            os.kill(next_pid, signal.SIGTERM)
            assert experiment.wait(90)
    record = place.record_of(experiment)
    assert (record.attempt, [past.reason for past in record.history]) == (2, [Reason.WORKER_LOST])
    assert list(experiment.logs()) == ["end of 2"]


@on_both
@with_settings(lease="6s")
@pytest.mark.parametrize(("leave", "return_"), [("kill", "start"), ("pause", "resume")])
def test_what_the_guard_froze_goes_on_when_its_worker_is_back_and_nobody_was_granted_the_lease(
    place: Place, leave: str, return_: str
) -> None:
    seconds = number()
    with place.make_worker() as worker:
        experiment = place.submit(f"echo begin; sleep {seconds}; echo end")
        pid = wait_for_sleep(seconds)
        getattr(worker, leave)()
        wait_until(lambda: is_frozen(pid), what="the guard", within=LONG)
        getattr(worker, return_)()
        wait_until(lambda: not is_frozen(pid), what="its thaw", within=LONG)
        os.kill(pid, signal.SIGTERM)
        assert experiment.wait(90)
    assert place.record_of(experiment).attempt == 1
    assert list(experiment.logs()) == ["begin", "end"]


@on_both
@with_settings(lease="6s")
def test_a_worker_that_comes_back_too_late_removes_what_was_superseded(place: Place) -> None:
    first, second = number(), number()
    one, two = place.make_worker("one"), place.make_worker("two", environment=elsewhere(place))
    with one:
        experiment = place.submit(twice(first, second))
        wait_for_sleep(first)
        one.kill()
        with two:
            next_pid = wait_for_sleep(second)
            assert sleepers(first), "nobody but its own worker removes it"
            one.start()
            wait_until(lambda: not sleepers(first), what="no orphan", within=LONG)
            wait_until(lambda: left_files(place) == [], what="nothing left on the first node", within=LONG)
            os.kill(next_pid, signal.SIGTERM)
            assert experiment.wait(90)
    assert place.record_of(experiment).attempt == 2


@on_both
@with_settings(lease="60s")
def test_two_workers_of_one_node_share_the_guard_and_not_their_containers(place: Place) -> None:
    seconds = number()
    with place.make_worker("one") as one:
        experiment = place.submit(f"sleep {seconds}; echo end")
        pid = wait_for_sleep(seconds)
        one.kill()
        with place.make_worker("two"):
            assert sleepers(seconds) == [pid]
            # Of several that were started, one gets the lock.
            wait_until(lambda: len(guards(place)) == 1, what="one guard", within=LONG)
            one.start()
            os.kill(pid, signal.SIGTERM)
            assert experiment.wait(90)
    assert place.record_of(experiment).attempt == 1


@pytest.mark.parametrize("place", BOTH[1:], indirect=True, ids="-".join)
def test_two_live_workers_of_one_node_cannot_have_one_name(place: Place) -> None:
    with place.make_worker() as worker:
        second = place.make_worker()
        with suppress(ServerFailedError):
            second.start()
        wait_until(lambda: not second.running, what="the end of the second one", within=LONG)
        second.kill()
        assert "on this node already" in worker.log.read_text()
        assert worker.running


@on_both
@with_settings(lease="6s")
def test_a_guard_that_is_killed_or_stopped_changes_nothing(place: Place) -> None:
    seconds = number()
    with place.make_worker():
        experiment = place.submit(f"sleep {seconds}; echo end")
        pid = wait_for_sleep(seconds)
        (killed,) = wait_until(lambda: guards(place), what="a guard", within=LONG)
        killed.kill()

        def others() -> list[psutil.Process]:
            return [each for each in guards(place) if each.pid != killed.pid]

        wait_until(lambda: len(others()) == 1, what="another guard", within=LONG)
        assert not is_frozen(pid)
        (guard,) = others()
        guard.suspend()
        os.kill(pid, signal.SIGTERM)
        assert experiment.wait(90)
        guard.resume()
    assert place.record_of(experiment).attempt == 1
