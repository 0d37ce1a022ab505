"""Copies of a process that has loaded what workers need: to a test each is a process like any other."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from services import leaks
from services.forking import Child, find_server
from services.waiting import wait_until

SAYS = """
import json, os, random, signal, sys
print("said", json.dumps({
    "words": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(), "session": os.getsid(0),
    "name": __name__, "path": sys.path, "number": random.random(),
    "files": [number for number in range(64) if os.path.exists(f"/proc/self/fd/{number}")],
    "stops": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    "masked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "has": sorted(name for name in ("workers.bootstrap", "jobqueue.celery") if name in sys.modules),
}))
sys.exit(7)
"""
STARTS = """
import os, signal, sys
from pathlib import Path
from services.forking import forks_allowed
from services.process import Process

with forks_allowed():
    words = [sys.executable, "-m", "said"]
    log = Path(sys.argv[2])
    Process(name="it", command=words, log=log, ready=log.read_bytes, is_copy=sys.argv[1] == "copy").start()
    os.kill(os.getpid(), signal.SIGKILL)
"""
WAITS = "import signal; print('waits', flush=True); signal.pause()"

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a copy that is one module, with some words."""

    def start_(text: str, *words: str) -> Child:
        (tmp_path / "said.py").write_text(text)
        server = find_server()
        assert server is not None
        environment = {"PYTHONPATH": str(tmp_path), "ONLY": "this"}
        return server.start(["said", *words], environment=environment, log=tmp_path / "log")

    return start_


def said(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line[5:]) for line in (folder / "log").read_text().splitlines() if line.startswith("said ")]


def test_a_copy_is_what_it_was_told_to_be(start: Start, tmp_path: Path) -> None:
    one, two = start(SAYS, "-x", "two words"), start(SAYS)
    assert (one.wait(60), two.wait(60)) == (7, 7)
    first, second = sorted(said(tmp_path), key=lambda each: each["words"] == [])
    assert (first["words"], second["words"]) == (["-x", "two words"], [])
    assert (first["session"], second["session"]) == (one.pid, two.pid)
    assert first["number"] != second["number"]
    assert first["environment"] == {"PYTHONPATH": str(tmp_path), "ONLY": "this"}
    path = first["path"]
    assert isinstance(path, list)
    assert path[:2] == [first["folder"], str(tmp_path)]
    assert str(Path(__file__).parents[1]) not in path
    assert (first["name"], first["folder"]) == ("__main__", str(Path.cwd()))
    assert (first["files"], first["stops"], first["masked"]) == ([0, 1, 2], True, 0)
    # What reads its settings when it is loaded is left to each.
    assert first["has"] == ["workers.bootstrap"]


def test_what_copies_are_made_of_runs_no_thread(start: Start) -> None:
    """A lock that another thread holds stays locked in a copy for ever; in a copy there is always one thread."""
    start("").wait(60)
    server = find_server()
    assert server
    assert len(psutil.Process(server.pid).threads()) == 1


def test_a_copy_is_waited_for_and_ended_like_a_child(start: Start, tmp_path: Path) -> None:
    copy = start(WAITS)
    wait_until(lambda: "waits" in (tmp_path / "log").read_text(), what="its start")
    assert copy.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        copy.wait(0.01)
    os.kill(copy.pid, signal.SIGKILL)
    assert (copy.wait(60), copy.poll(), copy.returncode) == (-9, -9, -9)
    assert not psutil.pid_exists(copy.pid)


def test_a_copy_that_is_left_behind_is_found(start: Start, tmp_path: Path) -> None:
    assert find_server()
    find = leaks.watch(mark="", known=set, engine=None)
    assert not find()
    copy = start(WAITS)
    assert [each.pid for each in find().processes] == [copy.pid]
    leaks.remove(find(), None)
    assert copy.wait(60) == -9
    assert not find()


@pytest.mark.parametrize("kind", ["copy", "child"])
def test_a_process_ends_with_whoever_started_it_even_if_that_was_killed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "said.py").write_text(f"import os; print(os.getpid(), flush=True); {WAITS}")
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", STARTS, kind, str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
        check=False,
    )
    assert done.returncode == -9
    pid = int((tmp_path / "log").read_text().split()[0])
    wait_until(lambda: not _lives(pid), what="its end")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
