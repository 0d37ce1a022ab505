"""A probe in a container tries what an experiment must not reach, and tells how it was refused: nothing may pass.

`workers/attempt/runtimes/checklist.py` has what is tried, and which answers are refusals. docs/nodes.md has the limits.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from services.images import PYTHON
from services.runtimes import MIB, NODE, REAL, run

from jobqueue.config import Settings
from jobqueue.errors import RuntimeFailure
from jobqueue.resources import Resources
from workers.attempt import reach
from workers.attempt.runtimes import open_runtime
from workers.attempt.runtimes.base import Container, ContainerRuntime, Labels, Plan
from workers.attempt.runtimes.checklist import PLANTED, TABLE, Known, choose_rows, make_program, read_namespaces
from workers.attempt.runtimes.fake import FakeRuntime
from workers.attempt.runtimes.hardening import run_as

LISTEN = """
import socket, sys
open_one = socket.create_server(("127.0.0.1", 0))
named = socket.socket(socket.AF_UNIX)
named.bind(chr(0) + sys.argv[1])
named.listen()
print(open_one.getsockname()[1], flush=True)
sys.stdin.read()
"""

Start = Callable[..., Container]


@pytest.fixture(params=REAL)
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContainerRuntime]:
    url = request.getfixturevalue("engine").url if request.param == "docker" else None
    runtime = open_runtime(request.param, state_dir=tmp_path / "state", engine_url=url)
    runtime.check()
    yield runtime
    runtime.close()


@pytest.fixture
def start(runtime: ContainerRuntime, tmp_path: Path) -> Iterator[Start]:
    """Start a container with an input and a workspace; `code` is what Python in it runs."""
    started: list[Container] = []
    data = tmp_path / "input"
    data.mkdir()
    (data / "file").write_text("given")
    data.chmod(0o777)
    (data / "file").chmod(0o666)

    def start(code: str, *, shm_bytes: int = 0, **changes: Any) -> Container:
        workspace = tmp_path / f"workspace-{len(started)}"
        workspace.mkdir()
        os.chown(workspace, *run_as())
        labels = Labels(experiment_id="exp-probe", attempt=1, token=time.time_ns() // 1000, node_id=NODE)
        asked = Resources(cpus=1, memory_bytes=256 * MIB, disk_bytes=32 * MIB, shm_bytes=shm_bytes)
        given = {"image": runtime.resolve(PYTHON), "env": {}, "inputs": {"data": data}} | changes
        plan = Plan(labels=labels, command=("python", "-c", code), resources=asked, workspace=workspace, **given)
        started.append(runtime.start(plan))
        return started[-1]

    yield start
    for container in started:
        container.remove()


@pytest.fixture
def listener(
    request: pytest.FixtureRequest, runtime: ContainerRuntime, tmp_path: Path
) -> Iterator["subprocess.Popen[str]"]:
    """Something of the machine that listens on a port of loopback, where the containers' own network would be."""
    enter = request.getfixturevalue("engine").enter if runtime.name == "docker" else []
    words = [*enter, sys.executable, "-c", LISTEN, tmp_path.name]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate()


@pytest.mark.security_case(
    "container escape by known configuration mistakes; reading another experiment's workspace, logs, registry key"
)
def test_nothing_that_an_experiment_must_not_reach_is_reached(
    request: pytest.FixtureRequest,
    runtime: ContainerRuntime,
    start: Start,
    listener: "subprocess.Popen[str]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code in a container tries the host's processes, devices, engine, folders, other workspaces, networks, rights.

    Refused: each try, by the kernel or because there is nothing; without a network there is no registry and no store.
    Evidence: what eighty tries were answered, in a real container and in a real confined process; on the machine
        itself the same probe is told of much.
    """
    assert listener.stdout
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    start("import time; time.sleep(1000)")
    rows = choose_rows(runtime.name)
    known = Known(
        host_pid=os.getpid(),
        engine=str(request.getfixturevalue("engine").socket) if runtime.name == "docker" else "/none",
        state=str(tmp_path / "state"),
        other=str(tmp_path / "workspace-0"),
        parent=str(tmp_path),
        port=int(listener.stdout.readline()),
        name=tmp_path.name,
        namespaces=read_namespaces(listener.pid),
    )
    how, reader = run(start(make_program(rows, known)))
    assert how.code == 0, reader.text("stderr")
    answers = json.loads(reader.text())
    assert len(answers) == len(rows) > 60
    passed = {row.what: answers[row.what] for row in rows if answers[row.what] not in row.expected}
    assert passed == {}


def test_the_probe_finds_what_is_there_to_be_found(tmp_path: Path) -> None:
    """On this machine itself, without any container, it is told of much: so its silence elsewhere means something."""
    found = (
        "share a",
        "signal a",
        "have a cap",
        "be root",
        "see more",
        "have the worker's",
        "open the node's state",
        "read keys",
    )
    rows = [row for row in TABLE if row.what.startswith(found)]
    here = str(tmp_path)
    (tmp_path / "password").write_text("secret")
    known = Known(
        host_pid=os.getpid(),
        engine="/none",
        state=here,
        other=here,
        parent=here,
        port=1,
        name="none",
        namespaces=read_namespaces(os.getpid()),
        private=(str(tmp_path / "password"),),
    )
    words = [sys.executable, "-c", make_program(rows, known)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "A": "worker-secret"})
    answers = json.loads(done.stdout)
    assert len(answers) == len(rows) == len(found)
    assert [row.what for row in rows if answers[row.what] in row.expected] == []


# The limits of docs/nodes.md, each met from inside

FILL = """
import errno
try:
    with open({path!r}, "wb", buffering=0) as file:
        for _ in range({mebibytes}):
            file.write(bytes(2**20))
    print("done")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def told(container: Container) -> str:
    how, reader = run(container)
    assert how.code == 0, reader.text("stderr")
    return reader.text().strip()


def test_shared_memory_is_as_large_as_asked_for(start: Start) -> None:
    assert told(start(FILL.format(path="/dev/shm/x", mebibytes=7), shm_bytes=8 * MIB)) == "done"
    assert told(start(FILL.format(path="/dev/shm/x", mebibytes=9), shm_bytes=8 * MIB)) == "ENOSPC"


def test_no_file_grows_beyond_the_disk_that_was_asked_for(start: Start) -> None:
    assert told(start(FILL.format(path="/workspace/x", mebibytes=31))) == "done"
    assert told(start(FILL.format(path="/workspace/x", mebibytes=33))) == "EFBIG"


@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_temporary_files_take_no_more_than_half_of_the_memory(start: Start) -> None:
    fill = "".join(FILL.format(path=f"/tmp/{number}", mebibytes=30) for number in range(5))
    assert told(start(fill)).split() == ["done"] * 4 + ["ENOSPC"]


def test_so_many_files_are_open_and_no_more(start: Start) -> None:
    code = """
import errno, os
try:
    for number in range(10000):
        os.dup(0)
except OSError as error:
    print(number < 4096, errno.errorcode[error.errno])
"""
    assert told(start(code)) == "True EMFILE"


def test_threads_count_as_processes_do(start: Start) -> None:
    code = """
import threading
end, count = threading.Event(), 0
try:
    for _ in range(500):
        threading.Thread(target=end.wait).start()
        count += 1
except RuntimeError:
    pass
print(count)
end.set()
"""
    how, reader = run(start(code, pids=40))
    # It could not have more, or was ended for it. Where the kernel counts a user's, others of his may end meanwhile.
    assert (how.code == 0 and 0 < int(reader.text()) <= 60) or "processes" in how.error


def test_nothing_is_dumped(start: Start) -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
    assert told(start(code)) == "(0, 0)"


@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_the_kernel_has_been_told_of_cores_memory_and_swap(start: Start) -> None:
    code = """
import json
def read(*paths):
    for path in paths:
        try:
            return open("/sys/fs/cgroup/" + path).read().split()
        except OSError:
            pass
print(json.dumps([
    read("cpu/cpu.cfs_quota_us", "cpu.max")[0],
    read("memory/memory.limit_in_bytes", "memory.max")[0],
    read("memory/memory.memsw.limit_in_bytes", "memory.swap.max"),
    read("pids/pids.max", "pids.max")[0],
]))
"""
    cores, memory, swap, pids = json.loads(told(start(code, pids=40)))
    assert (cores, memory, pids) == ("100000", str(256 * MIB), "40")
    # With the memory in version 1 of control groups, beside it in version 2; a kernel may count no swap.
    assert swap in (None, ["0"], [str(256 * MIB)])


@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
@pytest.mark.security_case("container escape: a setuid program of the image")
def test_a_setuid_program_of_an_image_gives_nothing(request: pytest.FixtureRequest, start: Start) -> None:
    """An image brings a program that runs as root whoever starts it.

    Refused: it runs as the experiment's own user.
    Evidence: the user that such a program sees itself as, in a real container.
    """
    client = request.getfixturevalue("engine").client
    setuid = "/usr/local/bin/setuid"
    make = f"cp -L /usr/local/bin/python {setuid} && chmod 4755 {setuid}"
    container = client.containers.create(PYTHON, ["sh", "-c", make], network_mode="none")
    container.start()
    assert container.wait()["StatusCode"] == 0
    container.commit("jobqueue-test/setuid", "1")
    container.remove()
    try:
        show = f"import os, subprocess; print(os.stat({setuid!r}).st_mode & 0o4000 > 0, flush=True); "
        show += f"subprocess.run([{setuid!r}, '-c', 'import os; print(os.geteuid())'])"
        assert told(start(show, image="jobqueue-test/setuid:1")).split() == ["True", str(run_as()[0])]
    finally:
        with suppress(docker.errors.ImageNotFound):
            client.images.remove("jobqueue-test/setuid:1", force=True)


def test_what_the_probe_looks_for_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in PLANTED:
        monkeypatch.setenv(name, "")
    runtime = FakeRuntime()
    runtime.is_down = True
    with pytest.raises(RuntimeFailure):
        reach._probe(runtime, Settings(state_dir=tmp_path, cache_dir=tmp_path))
    assert PLANTED.items() <= os.environ.items()


@pytest.mark.parametrize("runtime", REAL, indirect=True)
def test_an_operator_can_ask_what_an_experiment_could_reach(
    request: pytest.FixtureRequest, runtime: ContainerRuntime, tmp_path: Path
) -> None:
    host = {"DOCKER_HOST": request.getfixturevalue("engine").url} if runtime.name == "docker" else {}
    folders = {"JOBQUEUE_STATE_DIR": str(tmp_path / "state"), "JOBQUEUE_CACHE_DIR": str(tmp_path / "cache")}
    done = _probe({**host, **folders, "JOBQUEUE_RUNTIME": runtime.name, "JOBQUEUE_PROBE_IMAGE": PYTHON})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "write to a kernel setting: refused (E" in done.stdout
    assert f"{runtime.name}: {len(choose_rows(runtime.name))} things tried, 0 reached" in done.stdout


def test_what_lies_where_experiments_look_and_is_covered_is_not_told_as_reached() -> None:
    # Within the worker's Python, which they see.
    with tempfile.TemporaryDirectory(dir=sys.prefix) as folder:
        Path(folder).chmod(0o755)
        Path(folder, "password").write_text("secret")
        names = {"STATE_DIR": "state", "CACHE_DIR": "cache", "KEYS_PASSPHRASE_FILE": "password"}
        done = _probe(
            {f"JOBQUEUE_{name}": f"{folder}/{place}" for name, place in names.items()} | {"JOBQUEUE_RUNTIME": "process"}
        )
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("open the node's state", "read keys, passwords or settings of the node"):
        assert f"{what}: refused ([])" in done.stdout


def _probe(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-c", "from producers.cli import main; main()", "doctor", "--probe"]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **environment})
