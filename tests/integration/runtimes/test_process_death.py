"""Process containers end with their worker, however it ends, and keep to themselves."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from services.waiting import wait_until

from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Container, Labels, Plan
from workers.attempt.runtimes.hardening import run_as
from workers.attempt.runtimes.process import ProcessRuntime

PACKAGES = Path(__file__).parents[3]
LONG = timedelta(seconds=30)
WITHIN = timedelta(seconds=2)
# Descendants in sessions of their own, with no regard for signals.
FAMILY = (
    "trap '' TERM HUP; (setsid sleep 7131) & (setsid sh -c 'sleep 7131 & sleep 7131') & "
    "sleep 0.5; echo ready; sleep 7131"
)

WORKER = """
import sys, time
from pathlib import Path
from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.process import ProcessRuntime
folder, confined, paused = Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3] == "True"
runtime = ProcessRuntime(folder / "state", is_confined=confined)
labels = Labels(experiment_id="exp-0", attempt=1, token=1, node_id="node")
asked = Resources(cpus=1, memory_bytes=2**28, disk_bytes=2**30, shm_bytes=0)
plan = Plan(labels=labels, image="image", command=("sh", "-c", sys.argv[4]), env={}, workspace=folder, inputs={},
            resources=asked)
container = runtime.start(plan)
def tell(stream, piece):
    if paused:
        container.pause()
    print(piece.decode(), flush=True)
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
    return [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "7131"]]


@pytest.mark.parametrize("is_confined", [True, False], ids=["confined", "bare"])
@pytest.mark.parametrize("is_paused", [False, True], ids=["running", "frozen"])
def test_a_killed_worker_leaves_no_process(workspace: Path, *, is_confined: bool, is_paused: bool) -> None:
    script = textwrap.dedent(WORKER)
    words = [sys.executable, "-c", script, str(workspace), str(is_confined), str(is_paused), FAMILY]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=PACKAGES, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        wait_until(sleepers, what="its descendants run")
        worker.kill()
        wait_until(lambda: not sleepers(), what="no process is left", within=WITHIN)


@pytest.mark.parametrize("is_confined", [True, False], ids=["confined", "bare"])
def test_a_killed_supervisor_is_told_and_takes_the_first_process_along(
    tmp_path: Path, workspace: Path, *, is_confined: bool
) -> None:
    runtime = ProcessRuntime(tmp_path / "state", is_confined=is_confined)
    container = start(runtime, workspace, "sleep", "7131")
    wait_until(sleepers, what="it runs")
    supervisor = next(each for each in psutil.Process().children() if "shim" in " ".join(each.cmdline()))
    supervisor.send_signal(signal.SIGKILL)
    with pytest.raises(Exception, match="supervisor"):
        container.wait(LONG)
    wait_until(lambda: not sleepers(), what="no process is left", within=WITHIN)
    container.remove()


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
