"""A probe in a container tries what an experiment must not reach, and tells how it was refused: nothing may pass.

Each row of `TABLE` is one thing that is tried, and the answers that are refusals. docs/nodes.md has the limits.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from services.images import PYTHON
from services.runtimes import MIB, NODE, REAL, run

from jobqueue.resources import Resources
from workers.attempt.runtimes import open_runtime
from workers.attempt.runtimes.base import Container, ContainerRuntime, Labels, Plan
from workers.attempt.runtimes.hardening import run_as

DENIED = frozenset({"EPERM", "EACCES", "EROFS", "ENOSYS"})
ABSENT = frozenset({"ENOENT", "ENOTDIR", "ESRCH", "ENXIO", "ENODEV"})
UNREACHED = frozenset({"ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "EADDRNOTAVAIL"})
NOTHING = frozenset({"[]"})
NAMESPACES = ("pid", "mnt", "net", "ipc", "uts")

# What stands there before every try.
PREPARE = """
import ctypes, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
def write(path, text="1"):
    with open(path, "r+" if os.path.exists(path) else "w") as file:
        file.write(text)
def connect(address, port):
    with socket.socket() as it:
        it.settimeout(3)
        it.connect((address, port))
def writable(root, limit=30000):
    found = []
    for number, (folder, _, files) in enumerate(os.walk(root)):
        found += [p for p in (os.path.join(folder, f) for f in files) if os.access(p, os.W_OK) and takes(p)]
        if number > limit:
            break
    return found
def takes(path):
    try:
        with open(path) as file:
            content = file.read()
        with open(path, "w") as file:
            file.write(content)
    except (OSError, UnicodeDecodeError):
        return False
    return True
def status(name):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name + ":"))
def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that is tried.

    Attributes:
        what: in words.
        code: an expression; its value, or the name of the error that it raises, is the answer.
        expected: the answers that are refusals.
        only: of runtimes; elsewhere docs/nodes.md says that it is not kept from anybody.
    """

    what: str
    code: str
    expected: frozenset[str]
    only: tuple[str, ...] = REAL


def _rows(expected: frozenset[str], rows: Mapping[str, str], **fields: Any) -> list[Row]:
    return [Row(what=what, code=code, expected=expected, **fields) for what, code in rows.items()]


TABLE = [
    # Processes of the machine
    Row(what="share a namespace with the machine", expected=NOTHING,
        code="[name for name in NAMESPACES if os.readlink(f'/proc/self/ns/{name}') == NAMESPACES[name]]"),
    Row(what="see more than its own few processes", code="len(processes()) < 10", expected=frozenset({"True"})),
    Row(what="signal a process of the machine", code="os.kill(HOST_PID, 0)", expected=ABSENT),
    Row(what="have the worker's environment", code="'worker-secret' in repr(os.environ)",
        expected=frozenset({"False"})),
    Row(what="read the worker's environment", code="'worker-secret' in open('/proc/1/environ').read()",
        expected=frozenset({"False", *DENIED})),
    # Devices
    Row(what="see a device of the machine",
        code="sorted(set(os.listdir('/dev')) - set('null zero full random urandom tty ptmx pts shm mqueue fd stdin "
        "stdout stderr core console'.split()))", expected=NOTHING),
    *_rows(DENIED | ABSENT, {
        "make a device": "os.mknod('/tmp/device', 0o20666, os.makedev(1, 1))",
        "open memory": "open('/dev/mem', 'rb')",
        "open a disk": "open('/dev/sda', 'rb')",
        "open kvm": "open('/dev/kvm', 'rb')",
        "open the kernel's log": "open('/dev/kmsg', 'rb')",
        "read the kernel's memory": "open('/proc/kcore', 'rb').read(1)",
        "press a key of the kernel": "write('/proc/sysrq-trigger')",
    }),
    # The engine and the node
    *_rows(ABSENT | DENIED, {
        **{f"open {path}": f"open('{path}')" for path in (
            "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
            "/etc/shadow", "/root/.ssh/id_rsa", "/root/.docker/config.json", "/var/lib/docker",
        )},
        "open the engine's own socket": "open(ENGINE)",
        "open the node's state": "os.listdir(STATE)",
        "open another workspace": "os.listdir(OTHER)",
        "open another workspace through a process":
            "[os.listdir(f'/proc/{p}/root' + OTHER) for p in processes()]",
        "open the folder that its workspace lies in": "os.listdir(PARENT)",
    }),
    # Files
    *_rows(DENIED, {
        **{f"write to {path}": f"write('{path}/probe')" for path in ("", "/etc", "/usr", "/bin", "/inputs/data")},
        "write to an input": "write('/inputs/data/file')",
        "write to a kernel setting": "write('/proc/sys/kernel/core_pattern')",
        "outlive the node": "write('/proc/self/oom_score_adj', '-1')",
        "give a file to root": "(write('/workspace/mine'), os.chown('/workspace/mine', 0, 0))",
    }),
    Row(what="find anything writable in /sys", code="writable('/sys')", expected=NOTHING),
    Row(what="find anything writable in /proc/sys", code="writable('/proc/sys')", expected=NOTHING),
    # Privileges
    Row(what="have a capability", code="[n for n in ('CapEff', 'CapPrm', 'CapInh', 'CapAmb', 'CapBnd') "
        "if int(status(n), 16)]", expected=NOTHING),
    Row(what="gain one from a setuid program", code="status('NoNewPrivs')", expected=frozenset({"1"})),
    Row(what="make any system call", code="status('Seccomp')", expected=frozenset({"2"})),
    Row(what="be root", code="0 in {*os.getresuid(), *os.getresgid(), *os.getgroups()}", expected=frozenset({"False"})),
    *_rows(DENIED, {
        "become root": "os.setuid(0)",
        "become root's group": "os.setgid(0)",
        "take other groups": "os.setgroups([0])",
        "mount": "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
        "unmount": "call('umount2', b'/proc', 2)",
        "mount anew what is read-only": "call('mount', b'', b'/', b'', 32, None)",
        "change its root": "os.chroot('/tmp')",
        "leave its mounts": "call('unshare', 0x20000)",
        "leave its network": "call('unshare', 0x40000000)",
        "enter a namespace": "call('setns', os.open('/proc/self/ns/net', os.O_RDONLY), 0)",
        "set the clock": "call('clock_settime', 0, ctypes.create_string_buffer(16))",
        "set the host's name": "socket.sethostname('x')",
        "restart the machine": "call('reboot', 0)",
        "load a module": "call('syscall', 175, 0, 0, 0)",
        "read the kernel's log": "call('klogctl', 3, ctypes.create_string_buffer(10), 10)",
        "go ahead of others": "os.nice(-5)",
        "open a file by its handle":
            "call('open_by_handle_at', -100, __import__('struct').pack('Ii8s', 8, 1, b''), 0)",
    }),
    Row(what="raise its limit of open files", code="__import__('resource').setrlimit(7, (10**6, 10**6))",
        expected=frozenset({"ValueError('not allowed to raise maximum limit')"})),
    *_rows(DENIED, {
        "become root of a namespace": "call('unshare', 0x10000000)",
        "begin a process in a namespace of its own": "call('syscall', 56, 0x10000011, 0, 0, 0, 0)",
        "begin one in the newer way": "call('syscall', 435, (0x10000000).to_bytes(8, 'little') + bytes(80), 88)",
        "use a keyring": "call('syscall', 250, 0, -3, 0)",
        "ask for a key": "call('syscall', 249, b'user', b'key', 0, 0)",
        "load a program into the kernel": "call('syscall', 321, 0, ctypes.create_string_buffer(120), 120)",
        "count what the machine does": "call('syscall', 298, ctypes.create_string_buffer(120), 0, -1, -1, 0)",
        "handle the faults of memory": "call('syscall', 323, 0)",
        "take the tree of mounts": "call('syscall', 428, -100, b'/', 1)",
        "open a file system": "call('syscall', 430, b'tmpfs', 0)",
        "switch on swap": "call('syscall', 167, b'/workspace', 0)",
        "count each process": "call('syscall', 163, b'/workspace')",
    }),
    *_rows(DENIED | ABSENT, {
        "trace a process of the machine": "call('syscall', 101, 16, HOST_PID, 0, 0)",
        "read the memory of a process of the machine": "open(f'/proc/{HOST_PID}/mem', 'rb')",
        "enter the folders of a process of the machine": "os.listdir(f'/proc/{HOST_PID}/root')",
    }),
    # Network
    Row(what="see a network", code="[n for _, n in socket.if_nameindex() if n != 'lo']", expected=NOTHING),
    *_rows(DENIED | UNREACHED, {
        "open a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "open a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "reach the metadata address": "connect('169.254.169.254', 80)",
        "reach a private network": "connect('10.0.0.1', 80)",
        "reach the world": "connect('192.0.2.1', 443)",
        "reach a service of the machine": "connect('127.0.0.1', PORT)",
        "reach a socket without a file": "socket.socket(socket.AF_UNIX).connect(chr(0) + NAME)",
    }),
]  # fmt: skip

PROBE = """
import errno, json
answers = {}
for what, code in json.loads(TABLE):
    try:
        answers[what] = str(eval(code))
    except OSError as error:
        answers[what] = errno.errorcode.get(error.errno, repr(error))
    except Exception as error:
        answers[what] = repr(error)
print(json.dumps(answers))
"""

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
    monkeypatch.setenv("JOBQUEUE_PROBED", "worker-secret")
    start("import time; time.sleep(1000)")
    rows = [row for row in TABLE if runtime.name in row.only]
    known = {
        "HOST_PID": os.getpid(),
        "ENGINE": str(request.getfixturevalue("engine").socket) if runtime.name == "docker" else "/none",
        "STATE": str(tmp_path / "state"),
        "OTHER": str(tmp_path / "workspace-0"),
        "PARENT": str(tmp_path),
        "PORT": int(listener.stdout.readline()),
        "NAMESPACES": {name: str(Path(f"/proc/{listener.pid}/ns/{name}").readlink()) for name in NAMESPACES},
        "NAME": tmp_path.name,
        "TABLE": json.dumps([(row.what, row.code) for row in rows]),
    }
    code = "".join(f"{name} = {value!r}\n" for name, value in known.items())
    how, reader = run(start(code + PREPARE + PROBE))
    assert how.code == 0, reader.text("stderr")
    answers = json.loads(reader.text())
    assert len(answers) == len(rows) > 60
    passed = {row.what: answers[row.what] for row in rows if answers[row.what] not in row.expected}
    assert passed == {}


def test_the_probe_finds_what_is_there_to_be_found(tmp_path: Path) -> None:
    """On this machine itself, without any container, it is told of much: so its silence elsewhere means something."""
    found = ("share a", "signal a", "have a cap", "be root", "see more", "have the worker's", "open the node's state")
    rows = [row for row in TABLE if row.what.startswith(found)]
    known = {
        "HOST_PID": os.getpid(),
        "STATE": str(tmp_path),
        "NAMESPACES": {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in NAMESPACES},
        "TABLE": json.dumps([(row.what, row.code) for row in rows]),
    }
    code = "".join(f"{name} = {value!r}\n" for name, value in known.items())
    words = [sys.executable, "-c", code + PREPARE + PROBE]
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
