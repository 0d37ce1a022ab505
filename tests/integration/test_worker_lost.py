"""A worker that is killed or stopped: its container goes on with the next worker of its name, or is frozen in time."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from services.place import LONG, Place, open_place, sleepers
from services.waiting import wait_until

from jobqueue.lifecycle import State
from jobqueue.registry.base import Record
from producers.handle import Experiment

BOTH = [("rabbitmq", "docker"), ("redis", "process")]
on_both = pytest.mark.parametrize("place", BOTH, indirect=True, ids="-".join)


@pytest.fixture
def settings() -> dict[str, str]:
    """Further settings of the place; a test replaces them by parametrization."""
    return {}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, settings: dict[str, str]) -> Iterator[Place]:
    broker, runtime = request.param
    registry = request.getfixturevalue("redis_server")
    server = request.getfixturevalue(f"{broker}_server")
    engine = request.getfixturevalue("engine") if runtime == "docker" else None
    with open_place(tmp_path, broker=server.url, registry=registry.url, engine=engine, **settings) as opened:
        with opened.open_broker() as queues:
            queues.queues.create(opened.site.queue)
        yield opened
        wait_until(lambda: not guards(opened), what="the guard's own end", within=LONG)


def with_settings(**settings: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings", [settings], ids=[""])


def number() -> str:
    """Return a time to sleep for that no other process of this machine sleeps for."""
    return f"{1000 + secrets.randbelow(9000)}.{secrets.randbelow(10**9):09d}"


def wait_for_sleep(seconds: str) -> int:
    return wait_until(lambda: sleepers(seconds), what="it sleeping", within=LONG)[0]


def record_of(place: Place, experiment: Experiment) -> Record:
    return place.client._connections.registry.experiments.get(experiment.id)


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
        worker.kill()
        assert sleepers(seconds) == [pid]
        worker.start()
        wait_until(lambda: "attempt.adopted" in worker.log.read_text(), what="the adoption", within=LONG)
        assert sleepers(seconds) == [pid], "it was started anew"
        assert not is_frozen(pid)
        os.kill(pid, signal.SIGTERM)
        assert experiment.result(timeout=60) == {"exit_code": 0}
        wait_until(lambda: place.depth() == 0, what="the message acknowledged", within=LONG)
    record = record_of(place, experiment)
    assert (record.state, record.attempt, record.history, record.platform_failures) == (State.SUCCEEDED, 1, (), 0)
    assert list(experiment.logs()) == [f"line {i}" for i in range(1, 61)]
    assert left_files(place) == []
