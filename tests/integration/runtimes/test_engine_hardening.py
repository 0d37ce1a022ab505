"""What an engine made of what it was asked for, and what code inside can do with it."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from services.engine import Engine
from services.runtimes import MIB, NODE, StartContainer, run

from jobqueue.errors import RuntimeFailure
from workers.attempt.runtimes.docker import DockerRuntime
from workers.attempt.runtimes.hardening import run_as

GOLDEN: Mapping[str, Any] = {
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges"],
    "ReadonlyRootfs": True,
    "Tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={128 * MIB},nr_inodes=1m,mode=1777"},
    "Memory": 256 * MIB,
    "MemorySwap": 256 * MIB,
    "NanoCpus": 1_000_000_000,
    "PidsLimit": 512,
    "ShmSize": 64 * MIB,
    "Ulimits": [
        {"Name": "core", "Hard": 0, "Soft": 0},
        {"Name": "nofile", "Hard": 4096, "Soft": 4096},
        {"Name": "fsize", "Hard": 1024 * MIB, "Soft": 1024 * MIB},
    ],
    "OomScoreAdj": 500,
    "IpcMode": "private",
    "NetworkMode": "none",
    "Init": True,
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "16m", "max-file": "2"}},
    # What the engine adds by itself.
    "CgroupnsMode": "host",
    "Runtime": "runc",
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "MaskedPaths": [
        *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
        *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    ],
    "ReadonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
}

PROBES = """
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)
def system_call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "syscall")
def write(path, text="1"):
    with open(path, "w") as file:
        file.write(text)
def connect(address, port):
    with socket.socket() as it:
        it.settimeout(2)
        it.connect((address, port))
probes = {
    "write root": lambda: write("/x"),
    "write etc": lambda: write("/etc/x"),
    "write input root": lambda: write("/inputs/x"),
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "remount": lambda: call("mount", b"", b"/", b"", 32, None),
    "unshare user": lambda: call("unshare", 0x10000000),
    "unshare net": lambda: call("unshare", 0x40000000),
    "device": lambda: os.mknod("/tmp/device", 0o20666, os.makedev(1, 1)),
    "kernel setting": lambda: write("/proc/sys/kernel/core_pattern"),
    "sysrq": lambda: write("/proc/sysrq-trigger"),
    "kernel memory": lambda: open("/proc/kcore", "rb").read(1),
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "become root": lambda: os.setuid(0),
    "give away": lambda: (write("/workspace/mine"), os.chown("/workspace/mine", 0, 0)),
    "kill init's parent": lambda: os.kill(0x3FFFFF, 9),
    "keyring": lambda: system_call(250, 0, -3, 0),
    "kernel log": lambda: system_call(103, 3, ctypes.create_string_buffer(10), 10),
    "bpf": lambda: system_call(321, 0, 0, 0),
    "module": lambda: system_call(175, 0, 0, 0),
    "clock": lambda: call("clock_settime", 0, ctypes.create_string_buffer(16)),
    "reboot": lambda: call("reboot", 0),
    "host name": lambda: socket.sethostname("x"),
    "negative nice": lambda: os.nice(-5),
    "outlive the node": lambda: write("/proc/self/oom_score_adj", "-1"),
    "metadata address": lambda: connect("169.254.169.254", 80),
    "loopback of the host": lambda: connect("127.0.0.1", 22),
    "engine's socket": lambda: open("/var/run/docker.sock"),
    "control group": lambda: write("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
}
answers = {}
for name, probe in probes.items():
    try:
        probe()
        answers[name] = "done"
    except OSError as error:
        answers[name] = errno.errorcode.get(error.errno, "none")
print(json.dumps(answers))
"""

REFUSALS = {"EPERM", "EACCES", "EROFS", "ENOSYS"}
ABSENCES = {"ESRCH", "ENOENT", "ENETUNREACH", "ECONNREFUSED"}


@pytest.mark.security_case("the baseline of a container, whole")
def test_the_engine_has_added_nothing_to_what_was_asked_for(engine: Engine, start: StartContainer) -> None:
    """The engine adds an option of its own or of its operator's to a container, or leaves one of the baseline out.

    Refused: a container has the reviewed baseline and not one option more.
    Evidence: the engine's own description of a container, compared whole with the golden one: any further key fails.
    """
    start("sleep", "1000")
    (listed,) = engine.client.api.containers(filters={"label": f"jobqueue.node={NODE}"})
    seen = engine.client.api.inspect_container(listed["Id"])
    config = {key: value for key, value in seen["HostConfig"].items() if value and key not in ("Mounts", "ConsoleSize")}
    assert config == GOLDEN
    assert {mount["Destination"]: (mount["RW"], mount["Type"]) for mount in seen["Mounts"]} == {
        "/workspace": (True, "bind")
    }
    assert seen["Config"]["User"] == "{}:{}".format(*run_as())
    assert seen["Config"]["Entrypoint"] == ["sleep", "1000"]
    assert seen["Config"]["StopSignal"] == "SIGTERM"


@pytest.mark.security_case("container escape by known configuration mistakes, one container alone")
def test_code_inside_is_refused_everything(start: StartContainer) -> None:
    """Code in a container mounts, makes devices, changes the kernel's settings, takes namespaces, or calls the node.

    Refused: each by the kernel, with an error of its own.
    Evidence: what thirty tries were answered inside.
    """
    how, reader = run(start("python", "-c", PROBES))
    assert how.code == 0, reader.text("stderr")
    answers = json.loads(reader.text())
    assert len(answers) > 20
    surprising = {name: answer for name, answer in answers.items() if answer not in REFUSALS | ABSENCES}
    assert surprising == {}


@pytest.mark.security_case("label injection, and env, USER, VOLUME, ENTRYPOINT, HEALTHCHECK of an image")
def test_what_an_image_brings_is_out_of_the_way(engine: Engine, runtime: DockerRuntime, start: StartContainer) -> None:
    """An image brings labels of the node's own kind, variables for the loader, a user, a volume, an entry point.

    Refused: each is overridden by the node, and the image's health check does not run.
    Evidence: a hostile image, built and started on a real engine; its labels as the node reads them back.
    """
    hostile = """
    FROM jobqueue-test/python:3
    ENV NVIDIA_VISIBLE_DEVICES=all LD_PRELOAD=/evil.so KEPT=yes
    USER root
    VOLUME /data
    ENTRYPOINT ["echo", "the image's own"]
    CMD ["and its command"]
    HEALTHCHECK --interval=1s CMD ["touch", "/workspace/health"]
    STOPSIGNAL SIGUSR1
    LABEL jobqueue.node=somebody-else jobqueue.token=99999
    WORKDIR /root
    """
    _build(engine, hostile, "jobqueue-test/hostile:1")
    show = "id -u; pwd; env | grep -cE 'LD_PRELOAD|=all'; echo $KEPT; grep -c ' /data tmpfs' /proc/mounts"
    container = start("sh", "-c", f"echo x > /data/x && {show}", image=runtime.resolve("jobqueue-test/hostile:1"))
    _, reader = run(container)
    assert reader.text().split() == [str(run_as()[0]), "/workspace", "0", "yes", "1"]
    assert container.labels.node_id == NODE
    assert [each.labels for each in runtime.find(NODE)] == [container.labels]
    assert engine.client.api.volumes()["Volumes"] in (None, [])


def test_what_is_compiled_at_run_time_is_loaded_from_the_home_folder(start: StartContainer) -> None:
    code = """
import mmap, os, subprocess
from pathlib import Path
home = Path.home()
with (home / "library").open("w+b") as file:
    file.truncate(4096)
    mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)
program = home / "program"
program.write_text("#!/bin/sh\\necho ran")
program.chmod(0o755)
print(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
"""
    _, reader = run(start("python", "-c", code, env={"HOME": "/tmp"}))
    assert reader.text().strip() == "ran", reader.text("stderr")


def _build(engine: Engine, recipe: str, name: str) -> None:
    import io

    for step in engine.client.api.build(fileobj=io.BytesIO(recipe.encode()), tag=name, decode=True, rm=True):
        assert "error" not in step, step


def test_a_container_that_cannot_start_leaves_nothing(engine: Engine, start: StartContainer) -> None:
    with pytest.raises(RuntimeFailure, match="CPUs"):
        start("true", cpus=10_000)
    assert engine.client.api.containers(all=True, filters={"label": f"jobqueue.node={NODE}"}) == []
    with pytest.raises(RuntimeFailure, match="start"):
        start("true", gpus=("GPU-that-is-not-there",))
    assert engine.client.api.containers(all=True, filters={"label": f"jobqueue.node={NODE}"}) == []
