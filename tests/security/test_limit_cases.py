"""Limits that are really kept: each hog ends for its own reason, and who runs beside it notices nothing.

A worker and its neighbour share a node. The neighbour ticks all the while, on its first attempt, and is never frozen.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from services.images import PYTHON
from services.place import Place, open_place
from services.process import Process
from services.redis import RedisServer
from services.waiting import wait_until

from jobqueue.errors import ExperimentFailed
from jobqueue.lifecycle import State
from producers.handle import Experiment

MIB = 2**20
LOG_LIMIT = "1MiB"
# Of a worker with all its libraries, whatever its experiments print.
MOST_RESIDENT = 400 * MIB

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

TICK = """
import time
while True:
    print("tick", flush=True)
    time.sleep(0.5)
"""
FORK = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
MEMORY = "x = []\nwhile True: x.append(b'x' * 10_000_000)"
SHARED_MEMORY = """
with open("/dev/shm/x", "wb") as file:
    for _ in range(60):
        file.write(b"x" * 2**20)
x = [b"x" * 2**20 for _ in range(120)]
"""
TEMPORARY = """
import os, sys
try:
    for number in range(1000):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(bytes(2**20))
except OSError as error:
    os._exit(error.errno)
"""
DISK = """
import itertools
for number in itertools.count():
    with open(f"/workspace/{number}", "wb") as file:
        file.write(bytes(2**20))
"""
DELETED = """
import os, time
kept = []
for number in range(64):
    kept.append(open(f"/workspace/{number}", "wb", buffering=0))
    os.unlink(f"/workspace/{number}")
    kept[-1].write(bytes(2**20))
time.sleep(1000)
"""
LARGE_FILE = """
import os
try:
    with open("/workspace/x", "wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))
except OSError as error:
    os._exit(error.errno)
"""
ROOT = """
import os
try:
    open("/usr/x", "w")
except OSError as error:
    os._exit(error.errno)
"""
FILES = """
import os
kept = []
try:
    while True:
        kept.append(os.dup(0))
except OSError as error:
    os._exit(error.errno)
"""
INODES = """
import itertools, os
os.mkdir("/workspace/a")
for number in itertools.count():
    if number % 10000 == 0:
        os.mkdir(f"/workspace/a/{number}")
    os.close(os.open(f"/workspace/a/{number // 10000 * 10000}/{number}", os.O_CREAT))
"""
CLOCK = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    pass
"""
CORES = """
import os, sys, time
began, used = time.monotonic(), os.times()
for _ in range(3):
    if os.fork() == 0:
        break
while time.monotonic() - began < {seconds}:
    pass
# In one piece: four of them write at the same moment.
os.write(1, b"%f\\n" % (sum(os.times()[:2]) - sum(used[:2])))
"""
FLOOD = "import os\nwhile True: os.write(1, b'x' * 100 + b'\\n' * 100)"
LINE = "import os, time\nfor _ in range({mebibytes}): os.write(1, b'x' * 2**20)\ntime.sleep(600)"


@dataclass(frozen=True, kw_only=True)
class Hog:
    """One way to take more than was asked for.

    Attributes:
        code: what Python runs.
        reason: how it has to end.
        told: words of the error.
        code_of_exit: where it ends by itself.
    """

    code: str
    reason: str
    told: str = ""
    code_of_exit: int | None = None
    fields: dict[str, Any] | None = None


HOGS = {
    "fork bomb": Hog(code=FORK, reason="TIMED_OUT", fields={"timeout": "3s", "memory": "1GiB"}),
    "memory hog": Hog(code=MEMORY, reason="OUT_OF_MEMORY", told="the limit is 128 MiB"),
    "memory hog in /dev/shm": Hog(code=SHARED_MEMORY, reason="OUT_OF_MEMORY", fields={"shm_size": "64MiB"}),
    "memory hog in /tmp": Hog(code=TEMPORARY, reason="EXITED_NONZERO", code_of_exit=28),
    "disk filler": Hog(code=DISK, reason="LIMIT_EXCEEDED", told="20 MiB in its workspace", fields={"disk": "20MiB"}),
    "disk filler, deleted files": Hog(
        code=DELETED, reason="LIMIT_EXCEEDED", told="20 MiB in its workspace", fields={"disk": "20MiB"}
    ),
    "inode filler": Hog(code=INODES, reason="LIMIT_EXCEEDED", told="20 MiB in its workspace", fields={"disk": "20MiB"}),
    "disk filler, one file": Hog(code=LARGE_FILE, reason="EXITED_NONZERO", code_of_exit=27, fields={"disk": "20MiB"}),
    "disk filler of the writable layer": Hog(code=ROOT, reason="EXITED_NONZERO", code_of_exit=30),
    "fd hog": Hog(code=FILES, reason="EXITED_NONZERO", code_of_exit=24),
    "clock burner": Hog(code=CLOCK, reason="TIMED_OUT", told="its timeout is 2s", fields={"timeout": "2s"}),
    "log flood": Hog(code=FLOOD, reason="LIMIT_EXCEEDED", told="more than 1 MiB of output"),
    "log flood, one line": Hog(
        code=LINE.format(mebibytes=16), reason="LIMIT_EXCEEDED", told="more than 1 MiB of output"
    ),
}
FULL = {
    "log flood, one line of 200 MB": Hog(
        code=LINE.format(mebibytes=200),
        reason="LIMIT_EXCEEDED",
        told="more than 1 MiB of output",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Node(Place):
    """Two workers of one node; the second one runs a neighbour that ticks."""

    workers: tuple[Process, Process]
    neighbour: Experiment

    def count_ticks(self) -> int:
        """Return how often the neighbour has ticked, as its log tells."""
        return sum(1 for _ in self.neighbour.logs())


@pytest.fixture(scope="module", params=["docker", pytest.param("process", marks=pytest.mark.full)])
def node(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    engine = request.getfixturevalue("engine") if request.param == "docker" else None
    folder = tmp_path_factory.mktemp(request.param)
    with (
        open_place(
            folder, broker=redis_server.url, registry=redis_server.url, engine=engine, log_limit=LOG_LIMIT
        ) as place,
        place.make_worker("one") as one,
    ):
        neighbour = place.submit("python", "-c", TICK, image=PYTHON)
        wait_until(lambda: neighbour.state == State.RUNNING, what="the neighbour running")
        with place.make_worker("two") as two:
            yield Node(site=place.site, engine=place.engine, workers=(one, two), neighbour=neighbour)
        neighbour.cancel()
        neighbour.wait(30)


def end(node: Node, hog: Hog) -> ExperimentFailed:
    fields = {"image": PYTHON, "memory": "128MiB", "disk": "100MiB", "timeout": "240s", **(hog.fields or {})}
    with pytest.raises(ExperimentFailed) as caught:
        node.submit("python", "-c", textwrap.dedent(hog.code), **fields).result(timeout=330)
    return caught.value


def check(node: Node, hog: Hog) -> None:
    before = node.count_ticks()
    error = end(node, hog)
    assert (error.reason, hog.told in str(error)) == (hog.reason, True), str(error)
    if hog.code_of_exit is not None:
        assert error.exit_code == hog.code_of_exit
    wait_until(lambda: node.count_ticks() > before, what="the neighbour's next tick")
    assert (node.neighbour.state, node.neighbour.attempt) == (State.RUNNING, 1)
    for worker in node.workers:
        assert worker.running
        assert "container.frozen" not in worker.log.read_text(errors="replace")
        assert psutil.Process(worker.pid).memory_info().rss < MOST_RESIDENT


@pytest.mark.security_case(
    "fork bomb, memory hog, disk filler, inode filler, fd hog, log flood, clock burner, beside a neighbour that goes on"
)
@pytest.mark.parametrize("name", HOGS)
def test_a_hog_ends_for_its_own_reason_and_its_neighbour_goes_on(node: Node, name: str) -> None:
    """An experiment takes processes, memory, disk, files, descriptors, output or time without end.

    Refused: each limit is kept, with a reason of its own; the experiment beside it goes on, on its first attempt.
    Evidence: reason and detail of each end, ticks and attempt of the neighbour, and the workers' memory, in real
        containers and in real confined processes.

    Red before: a workspace could fill the node's disk, and the files in /dev/shm of a process were no memory.
    """
    check(node, HOGS[name])


@pytest.mark.full
@pytest.mark.security_case("log flood of one line of 200 MB")
@pytest.mark.parametrize("name", FULL)
def test_a_large_hog_ends_for_its_own_reason_and_its_neighbour_goes_on(node: Node, name: str) -> None:
    """An experiment prints one line of 200 MB.

    Refused: it is killed over its limit of output, which is cut there.
    Evidence: reason and detail of the end, ticks and attempt of the neighbour, and the workers' memory.
    """
    check(node, FULL[name])


@pytest.mark.security_case("CPU spin next to a neighbour")
def test_cores_that_were_not_asked_for_are_not_had(node: Node) -> None:
    """An experiment spins in more processes than it has cores.

    Refused: all of them together get the cores that it asked for.
    Evidence: the time that its processes have used, beside a neighbour that goes on.
    """
    before = node.count_ticks()
    seconds = 3
    experiment = node.submit("python", "-c", CORES.format(seconds=seconds), image=PYTHON, cpus=1, timeout="240s")
    experiment.result(timeout=240)
    used = sum(map(float, experiment.logs()))
    assert used <= 1.5 * seconds
    wait_until(lambda: node.count_ticks() > before, what="the neighbour's next tick")
    assert node.neighbour.attempt == 1
