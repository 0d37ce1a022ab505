"""Process containers outlive their worker, not their supervisor and not its patience, and keep to themselves."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from services.runtimes import run
from services.waiting import wait_until

from jobqueue.errors import RuntimeFailure
from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Container, Labels, Plan
from workers.attempt.runtimes.hardening import run_as
from workers.attempt.runtimes.process import ProcessRuntime

PACKAGES = Path(__file__).parents[3]
LONG = timedelta(seconds=30)
WITHIN = timedelta(seconds=20)
# That no other process of this machine sleeps for.
SECONDS = f"7131.{secrets.randbelow(10**9):09d}"
# Descendants in sessions of their own, with no regard for signals; it is ready when all three of them sleep.
FAMILY = (
    f"trap '' TERM HUP; (setsid sleep {SECONDS}) & (setsid sh -c 'sleep {SECONDS} & sleep {SECONDS}') & "
    "until [ $(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | "
    f"grep -cx {SECONDS}) -ge 3 ]; do sleep 0.05; done; echo ready; sleep {SECONDS}"
)

WORKER = """
import sys, time
from pathlib import Path
from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.process import ProcessRuntime
folder, confined, paused = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3] == "True"
runtime = ProcessRuntime(folder / "state", is_confined=confined, patience_seconds=float(sys.argv[5]))
labels = Labels(experiment_id="exp-0", attempt=1, token=1, node_id="node")
asked = Resources(cpus=1, memory_bytes=2**28, disk_bytes=2**30, shm_bytes=0)
plan = Plan(labels=labels, image="image", command=("sh", "-c", sys.argv[4]), env={}, workspace=folder, inputs={},
            resources=asked)
container = runtime.start(plan)
def tell(stream, piece):
    if paused:
        container.pause()
    print(piece.decode().splitlines()[0], flush=True)
container.follow(tell)
"""


def start(runtime: ProcessRuntime, workspace: Path, *command: str) -> Container:
    labels = Labels(experiment_id="exp-0", attempt=1, token=time.time_ns(), node_id="node")
    asked = Resources(cpus=1, memory_bytes=2**28, disk_bytes=2**30, shm_bytes=0)
    return runtime.start(
        Plan(labels=labels, image="image", command=command, env={}, workspace=workspace, inputs={}, resources=asked)
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    os.chown(folder, *run_as())
    return folder


def sleepers() -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", SECONDS]]


@contextmanager
def killed_worker(
    folder: Path, command: str, *, is_confined: bool, is_paused: bool = False, patience: int = 60
) -> Iterator[None]:
    """Let a worker start a container in `folder`, and kill it when that prints `ready`."""
    words = [sys.executable, "-c", WORKER, str(folder), str(is_confined), str(is_paused), command, str(patience)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=PACKAGES, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        worker.kill()
        worker.wait()
        yield


BACKGROUND = """
import os, signal
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
os.umask(0o077)
"""
# Signals 32 and 33: what the C library starts may ignore them, and no program can say otherwise.
OF_THE_LIBRARY = 0b11 << 31
both = pytest.mark.parametrize("is_confined", [True, False], ids=["confined", "bare"])


@both
def test_it_begins_as_in_a_container_however_its_worker_was_started(workspace: Path, *, is_confined: bool) -> None:
    command = "echo $(grep -E '^Sig(Blk|Ign)|^Umask' /proc/self/status)"
    words = [sys.executable, "-c", BACKGROUND + WORKER, str(workspace), str(is_confined), "False", command, "60"]
    done = subprocess.run(words, stdout=subprocess.PIPE, cwd=PACKAGES, text=True, timeout=200, check=True)
    (container,) = ProcessRuntime(workspace / "state").find("node")
    container.remove()
    *told, ignored = done.stdout.split()
    assert told == ["Umask:", "0022", "SigBlk:", f"{0:016x}", "SigIgn:"]
    assert int(ignored, 16) & ~OF_THE_LIBRARY == 0


@both
@pytest.mark.parametrize("is_paused", [False, True], ids=["running", "frozen"])
def test_what_a_killed_worker_left_is_found_and_removed_whole(
    workspace: Path, *, is_confined: bool, is_paused: bool
) -> None:
    with killed_worker(workspace, FAMILY, is_confined=is_confined, is_paused=is_paused):
        assert len(sleepers()) >= 3
        (found,) = ProcessRuntime(workspace / "state").find("node")
        assert found.wait(timedelta(seconds=0.5)) is None
        found.remove()
        assert sleepers() == []
        assert list((workspace / "state" / "process").iterdir()) == []


@both
def test_the_next_worker_reads_every_line_and_the_exit_code(workspace: Path, *, is_confined: bool) -> None:
    count = (
        "echo ready; i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.005; done; echo end >&2; exit 7"
    )
    with killed_worker(workspace, count, is_confined=is_confined):
        (found,) = ProcessRuntime(workspace / "state").find("node")
        how, reader = run(found)
        assert how.code == 7
        assert reader.text().splitlines() == ["ready", *(f"line {number}" for number in range(1, 301))]
        assert reader.text("stderr") == "end\n"
        found.remove()


def test_an_end_without_a_worker_is_told_to_the_next_one(workspace: Path) -> None:
    with killed_worker(
        workspace, "echo ready; sleep 0.5; head -c 300000 /dev/zero; touch over; exit 7", is_confined=False
    ):
        wait_until((workspace / "over").exists, what="its end")
        (found,) = ProcessRuntime(workspace / "state").find("node")
        how, reader = run(found)
        assert (how.code, len(reader.printed["stdout"])) == (7, len("ready\n") + 300_000)
        found.remove()


def test_what_no_worker_comes_for_ends_by_itself(workspace: Path) -> None:
    with killed_worker(workspace, FAMILY, is_confined=False, patience=1):
        wait_until(lambda: not sleepers(), what="no process is left")
        runtime = ProcessRuntime(workspace / "state")
        (found,) = runtime.find("node")
        with pytest.raises(RuntimeFailure, match="supervisor"):
            found.wait(LONG)
        found.remove()
        assert runtime.find("node") == []


@both
def test_a_killed_supervisor_is_told_and_takes_the_first_process_along(
    tmp_path: Path, workspace: Path, *, is_confined: bool
) -> None:
    runtime = ProcessRuntime(tmp_path / "state", is_confined=is_confined)
    container = start(runtime, workspace, "sleep", SECONDS)
    wait_until(sleepers, what="it runs")
    supervisor = next(each for each in psutil.Process().children() if "shim" in " ".join(each.cmdline()))
    supervisor.send_signal(signal.SIGKILL)
    with pytest.raises(Exception, match="supervisor"):
        container.wait(LONG)
    wait_until(lambda: not sleepers(), what="no process is left", within=WITHIN)
    container.remove()


def test_what_nobody_can_find_any_more_ends_by_itself(workspace: Path) -> None:
    with killed_worker(workspace, FAMILY, is_confined=False):
        shutil.rmtree(workspace / "state")
        wait_until(lambda: not sleepers(), what="no process is left")


def test_nothing_is_left_in_the_state_folder(tmp_path: Path, workspace: Path) -> None:
    runtime = ProcessRuntime(tmp_path / "state")
    container = start(runtime, workspace, "sh", "-c", "mkdir -p /tmp/a/b; echo x > /tmp/a/b/c")
    container.wait(LONG)
    container.remove()
    assert list((tmp_path / "state" / "process").iterdir()) == []
    runtime.close()


def test_confined_it_sees_no_process_and_no_file_of_the_machine(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "key").write_text("secret")
    runtime = ProcessRuntime(tmp_path / "state", is_confined=True)
    command = f"cat {tmp_path}/key; ls /root/.ssh /home /var /run; ls -d /proc/[0-9]* | wc -l; kill -9 {os.getpid()}"
    container = start(runtime, workspace, "sh", "-c", command)
    printed: dict[str, bytes] = {"stdout": b"", "stderr": b""}

    def keep(stream: str, piece: bytes) -> None:
        printed[stream] += piece

    container.follow(keep)
    container.remove()
    assert b"secret" not in printed["stdout"]
    assert int(printed["stdout"]) < 10
    assert printed["stderr"].count(b"No such file") >= 4
    assert b"No such process" in printed["stderr"]


def test_bare_it_says_what_it_does_not_keep(tmp_path: Path, workspace: Path) -> None:
    runtime = ProcessRuntime(tmp_path / "state", is_confined=False)
    assert "nothing keeps them" in runtime.notice
    container = start(runtime, workspace, "sh", "-c", "echo made > made; exit 3")
    assert getattr(container.wait(LONG), "code", None) == 3
    assert (workspace / "made").read_text() == "made\n"
    container.remove()
