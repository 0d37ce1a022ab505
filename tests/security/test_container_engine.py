"""Engines that an operator has set up otherwise: users mapped, another OCI runtime, no TLS, no confinement at all."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services.engine import Engine, open_engine
from services.images import PYTHON
from services.process import find_program
from services.runtimes import MIB, NODE, run

from jobqueue.config import Settings
from jobqueue.errors import InvalidSetting, RuntimeFailure
from jobqueue.resources import Resources
from producers.cli.dev import _environment as node_environment
from producers.cli.reach import describe_gaps
from workers.attempt.runtimes import open_runtime
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.checklist import Known, choose_rows, make_program, read_namespaces
from workers.attempt.runtimes.docker import DockerRuntime
from workers.attempt.runtimes.gaps import EnginePolicy
from workers.attempt.runtimes.hardening import NOBODY, run_as

_FIRST = 700_000
_UNIFIED = "/sys/fs/cgroup/unified"
_SHOW = """
import os
print(os.getuid(), open("/proc/self/uid_map").read().split()[1])
print(open("/workspace/given").read(), open("/inputs/data/file").read())
with open("/workspace/made", "w") as file:
    file.write("made")
"""
# As the kernel has them, in either version of control groups.
_LIMITS = """
import pathlib
names = (
    "cpu/cpu.cfs_quota_us", "cpu.max", "memory/memory.limit_in_bytes", "memory.max", "pids/pids.max", "pids.max",
    "memory/memory.memsw.limit_in_bytes", "memory.swap.max",
)
groups = [pathlib.Path("/sys/fs/cgroup", name) for name in names]
print([group.read_text() for group in groups if group.exists()])
print(open("/proc/self/limits").read().split(), open("/proc/self/oom_score_adj").read())
print(sorted(line for line in open("/proc/mounts") if line.split()[1] in ("/tmp", "/dev/shm", "/workspace")))
""".strip()


@pytest.fixture(scope="module")
def other_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that maps users, by files of its own, and knows two further OCI runtimes, one of them crun."""
    folder = tmp_path_factory.mktemp("subids")
    mapping = folder / "map"
    mapping.write_text(f"nobody:{_FIRST}:65536\nnogroup:{_FIRST}:65536\n")
    programs = folder / "bin"
    programs.mkdir()
    # Beside the daemon alone, whose mounts are its own: nobody else's users are mapped.
    mount = programs / "dockerd"
    real = find_program("dockerd", package="docker.io")
    binds = "".join(
        f"[ -e /etc/{name} ] || touch /etc/{name}; mount --bind {mapping} /etc/{name}\n"
        for name in ("subuid", "subgid")
    )
    mount.write_text(f'#!/bin/sh\nset -e\n{binds}exec {real} "$@"\n')
    mount.chmod(0o755)
    other = {"other": shutil.which("runc"), "crun": find_program("crun", package="crun")}
    runtimes = [f"--add-runtime={name}={path}" for name, path in other.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "services.engine.find_program",
            lambda name, package: str(mount) if name == "dockerd" else find_program(name, package=package),
        )
        with open_engine(options=("--userns-remap=nobody:nogroup", *runtimes)) as engine:
            # crun refuses to run beside a second, useless tree of control groups, which an old set-up mounts.
            subprocess.run(
                [*engine.enter, "/bin/sh", "-c", f"! mountpoint -q {_UNIFIED} || umount {_UNIFIED}"], check=True
            )
            yield engine


def make_plan(folder: Path, *, code: str = "pass") -> Plan:
    workspace, data = folder / "workspace", folder / "data"
    for path in (workspace, data):
        path.mkdir()
    (data / "file").write_text("input")
    (workspace / "given").write_text("given")
    for path in (workspace, workspace / "given"):
        os.chown(path, *run_as())
    labels = Labels(experiment_id="exp-engine", attempt=1, token=os.getpid(), node_id=NODE)
    asked = Resources(cpus=1, memory_bytes=128 * MIB, disk_bytes=MIB, shm_bytes=0)
    return Plan(
        labels=labels,
        image=PYTHON,
        command=("python", "-c", code),
        env={},
        workspace=workspace,
        inputs={"data": data},
        resources=asked,
    )


@pytest.mark.security_case("user namespaces when the engine has them")
def test_where_the_engine_maps_users_nobody_inside_is_anybody_here(other_engine: Engine, tmp_path: Path) -> None:
    """Code that breaks out of its container goes on as its user on the machine.

    Refused: where the engine maps users, that user is nobody there; its workspace and inputs are its own all the same.
    Evidence: the container's map of users, the owner of what it wrote, and that it could read and write, on a real
        engine with --userns-remap.
    """
    runtime = DockerRuntime(other_engine.url)
    assert "maps no users" not in runtime.notice
    container = runtime.start(make_plan(tmp_path, code=_SHOW))
    try:
        how, reader = run(container)
        assert how.code == 0, reader.text("stderr")
        assert reader.text().split() == [str(NOBODY), str(_FIRST), "given", "input"]
        assert (tmp_path / "workspace" / "made").stat().st_uid == _FIRST + NOBODY
    finally:
        container.remove()
        runtime.close()


@pytest.mark.security_case("runtime runsc/crun selectable")
def test_the_operator_and_nobody_else_chooses_the_oci_runtime(other_engine: Engine, tmp_path: Path) -> None:
    """An experiment runs under a weaker OCI runtime than its operator wants, or the wanted one is not there.

    Refused: the node's setting alone chooses; a worker whose engine lacks it does not start, and says what there is.
    Evidence: the runtime in the engine's own description of the container; the error at the start.
    """
    runtime = DockerRuntime(other_engine.url, policy=EnginePolicy(oci_runtime="other"))
    runtime.vet()
    container = runtime.start(make_plan(tmp_path))
    try:
        (listed,) = other_engine.client.api.containers(all=True, filters={"label": f"jobqueue.node={NODE}"})
        assert other_engine.client.api.inspect_container(listed["Id"])["HostConfig"]["Runtime"] == "other"
    finally:
        container.remove()
        runtime.close()
    missing = DockerRuntime(other_engine.url, policy=EnginePolicy(oci_runtime="runsc"))
    with pytest.raises(InvalidSetting, match=r"no runtime 'runsc'.*other, runc"):
        missing.vet()
    with pytest.raises(RuntimeFailure, match="no runtime 'runsc'"):
        missing.check()
    missing.close()


@pytest.mark.security_case("runtime runsc/crun selectable")
def test_under_crun_an_experiment_has_no_more_than_under_runc(other_engine: Engine, tmp_path: Path) -> None:
    """The operator has chosen crun, which might keep less than runc of what the engine was asked for.

    Refused: nothing that an experiment must not reach is reached; its limits are the same.
    Evidence: the engine's descriptions of one container under each, compared whole; what eighty tries were answered,
        and the kernel's own limits as they are read inside; its input, its output and its exit code.
    """
    here = str(tmp_path)
    known = Known(
        host_pid=os.getpid(),
        engine=str(other_engine.socket),
        state=here,
        other=here,
        parent=here,
        port=1,
        name="none",
        namespaces=read_namespaces(other_engine.namespaces.pid),
    )
    rows = choose_rows("docker")
    code = f"{_SHOW}\n{_LIMITS}\n{make_program(rows, known)}\nsys.exit(7)"
    expected, limits, _ = _run_under("other", other_engine, folder=tmp_path / "other", code=code)
    described, seen, answers = _run_under("crun", other_engine, folder=tmp_path / "crun", code=code)
    assert described == expected | {"Runtime": "crun"}
    assert seen == limits
    assert limits[:2] == [f"{NOBODY} {_FIRST}", "given input"]
    assert str(128 * MIB) in limits[2]
    assert len(answers) == len(rows) > 60
    assert {row.what: answers[row.what] for row in rows if answers[row.what] not in row.expected} == {}


def _run_under(
    name: str, engine: Engine, *, folder: Path, code: str
) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Return what the engine says of a container under an OCI runtime, and its output: lines, then the answers."""
    folder.mkdir()
    runtime = DockerRuntime(engine.url, policy=EnginePolicy(oci_runtime=name))
    runtime.vet()
    container = runtime.start(make_plan(folder, code=code))
    try:
        how, reader = run(container)
        assert how.code == 7, reader.text("stderr")
        (listed,) = engine.client.api.containers(all=True, filters={"label": f"jobqueue.node={NODE}"})
        described = engine.client.api.inspect_container(listed["Id"])["HostConfig"]
    finally:
        container.remove()
        runtime.close()
    del described["Mounts"]
    *lines, answers = reader.text().splitlines()
    return described, lines, json.loads(answers)


@pytest.mark.security_case("an engine on bare TCP, on loopback too")
@pytest.mark.parametrize(("host", "gap"), [("192.0.2.1", "bare-tcp"), ("127.0.0.1", "open-socket")])
def test_an_engine_that_anybody_may_command_is_not_served(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, host: str, gap: str
) -> None:
    """The engine listens for everybody, or for every user of the machine, without TLS: whoever reaches it is root.

    Refused: a worker does not start on it unless its operator has accepted that by name.
    Evidence: the error of the start-up check of a real engine behind such an address.
    Red before: a port of loopback was served, though it is as open as a socket that everybody may write to.
    """
    for accepted, is_refused in (((), True), ((gap,), False)):
        runtime = DockerRuntime(engine.url, policy=EnginePolicy(accepted=accepted))
        with monkeypatch.context() as patch:
            patch.setattr("workers.attempt.runtimes.engine.Engine.address", f"http://{host}:2375")
            if is_refused:
                with pytest.raises(InvalidSetting, match=gap):
                    runtime.vet()
            else:
                runtime.vet()
        runtime.close()


@pytest.mark.security_case("process runtime: nothing confined by accident")
def test_no_experiment_runs_unconfined_because_an_engine_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is away, and bubblewrap is not there: experiments could run as the worker's own user.

    Refused: `auto` does not fall back to bare processes; only an operator who names the runtime or the gap gets them.
    Evidence: the error of the start-up check, and its absence where the operator has said so.

    Red before: `auto` took bare processes, with a warning.
    """
    monkeypatch.setattr("workers.attempt.runtimes.process.find_obstacle", lambda: "bubblewrap (bwrap) is not installed")
    nowhere = f"unix://{tmp_path}/none"
    with pytest.raises(InvalidSetting, match="JOBQUEUE_RUNTIME=process"):
        open_runtime("auto", state_dir=tmp_path, engine_url=nowhere).vet()
    policy = EnginePolicy(accepted=("unconfined",))
    open_runtime("auto", state_dir=tmp_path, engine_url=nowhere, policy=policy).vet()
    named = open_runtime("process", state_dir=tmp_path)
    named.vet()
    assert "nothing keeps them" in named.notice


def test_the_doctor_tells_what_the_engine_lacks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    monkeypatch.setenv("JOBQUEUE_RUNTIME", "docker")
    monkeypatch.setenv("JOBQUEUE_STATE_DIR", str(tmp_path))
    told = describe_gaps()
    assert told is not None
    assert "maps no users" in told.text
    assert told.fix == ""
    monkeypatch.setenv("JOBQUEUE_OCI_RUNTIME", "runsc")
    told = describe_gaps()
    assert told is not None
    assert "no runtime 'runsc'" in told.text
    assert told.fix


def test_ones_own_code_runs_on_ones_own_machine_whatever_it_lacks(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, accepted_gaps=("bare-tcp",))
    assert (
        node_environment(settings)["JOBQUEUE_ACCEPTED_GAPS"] == "bare-tcp,no-limits,no-seccomp,open-socket,unconfined"
    )
    assert "bare-tcp" not in node_environment(Settings(state_dir=tmp_path))["JOBQUEUE_ACCEPTED_GAPS"]
