"""The words that start a process container: what it sees, and what nobody else does."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.memory import MemoryUse, read_memory_use
from workers.attempt.runtimes.sandbox import make_bare_start, make_confined_start


def make_plan(folder: Path, **changes: Any) -> Plan:
    asked = Resources(cpus=1, memory_bytes=2**30, disk_bytes=2**30, shm_bytes=2**20)
    plan: dict[str, Any] = {
        "labels": Labels(experiment_id="exp-0", attempt=1, token=1, node_id="node"),
        "image": "image",
        "command": ("python", "train.py"),
        "env": {"SEED": "1", "JOBQUEUE_OUTPUTS": "/workspace/outputs", "TOKEN": "secret"},
        "workspace": folder / "workspace",
        "inputs": {"data": folder / "data"},
        "resources": asked,
    }
    return Plan(**plan | changes)


def find(words: tuple[str, ...], *wanted: str) -> bool:
    size = len(wanted)
    return any(words[start : start + size] == wanted for start in range(len(words)))


def test_the_sandbox_shows_the_containers_folders_and_nothing_of_the_home(tmp_path: Path) -> None:
    options = make_confined_start(make_plan(tmp_path)).options
    assert find(options, "--bind", str(tmp_path / "workspace"), "/workspace")
    assert find(options, "--ro-bind", str(tmp_path / "data"), "/inputs/data")
    assert find(options, "--size", str(2**29), "--tmpfs", "/tmp")
    assert find(options, "--remount-ro", "/")
    assert find(options, "--ro-bind", sys.prefix, sys.prefix)
    shown = {options[at + 1] for at, word in enumerate(options) if word in ("--bind", "--ro-bind", "--ro-bind-try")}
    assert shown.isdisjoint({"/", "/etc", "/root", "/home", "/var", "/run", str(Path.home())})


def test_secrets_in_folders_of_the_system_are_covered_and_what_is_not_there_is_no_matter(tmp_path: Path) -> None:
    hidden = (Path("/etc/passwd"), Path("/opt/not/there"), tmp_path, Path("/usr/bin/sh/below/a/file"))
    options = make_confined_start(make_plan(tmp_path), hidden=hidden).options
    assert find(options, "--ro-bind", "/dev/null", "/etc/passwd")
    assert {"/opt/not/there", "/usr/bin/sh/below/a/file"}.isdisjoint(options)


def test_the_environment_stands_in_no_argument(tmp_path: Path) -> None:
    start = make_confined_start(make_plan(tmp_path))
    assert "secret" not in repr(start)
    assert "secret" not in " ".join((*start.argv, *start.env.values()))
    assert find(start.options, "--setenv", "TOKEN", "secret")


def test_the_network_is_closed_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert "--unshare-net" in make_confined_start(make_plan(tmp_path)).options
    assert "--unshare-net" not in make_confined_start(make_plan(tmp_path, network="bridge")).options


def test_root_gives_its_privileges_up_and_lets_nothing_be_loaded_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    start = make_confined_start(make_plan(tmp_path, env={"LD_PRELOAD": "/workspace/x.so", "A": "b"}))
    assert find(start.argv, "--reuid", "65534")
    assert "LD_PRELOAD" not in start.options
    assert "--unshare-user" not in start.options


def test_another_user_takes_a_user_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    start = make_confined_start(make_plan(tmp_path))
    assert "--unshare-user" in start.options
    assert "setpriv" not in start.argv


def test_python_is_the_workers_own(tmp_path: Path) -> None:
    start = make_bare_start(make_plan(tmp_path, env={"PATH": "/opt/bin"}), tmp_path)
    assert start.env["PATH"] == f"{Path(sys.executable).parent}:/opt/bin"


def test_without_a_sandbox_the_variables_name_the_real_folders(tmp_path: Path) -> None:
    env = {"JOBQUEUE_OUTPUTS": "/workspace/outputs", "JOBQUEUE_INPUT": "/inputs/data/x", "OTHER": "/workspace/x"}
    start = make_bare_start(make_plan(tmp_path, env=env), tmp_path / "tmp")
    assert start.env["JOBQUEUE_OUTPUTS"] == str(tmp_path / "workspace" / "outputs")
    assert start.env["JOBQUEUE_INPUT"] == str(tmp_path / "data" / "x")
    assert start.env["OTHER"] == "/workspace/x"
    assert start.env["TMPDIR"] == start.env["HOME"] == str(tmp_path / "tmp")
    assert start.folder == str(tmp_path / "workspace")


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("4:memory:/docker/abc\n", {"memory.max_usage_in_bytes": "123\n", "memory.oom_control": "oom_kill 2\n"}),
        ("0::/docker/abc\n", {"memory.peak": "123\n", "memory.events": "low 0\noom_kill 2\n"}),
    ],
)
def test_memory_is_read_from_either_kind_of_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, files: dict[str, str]
) -> None:
    monkeypatch.setattr("workers.attempt.runtimes.memory._GROUPS", tmp_path)
    group = tmp_path / ("memory" if "memory" in lines else "") / "docker" / "abc"
    group.mkdir(parents=True)
    for name, content in files.items():
        (group / name).write_text(content)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(lines)
    assert read_memory_use(7, identity="abc", processes=tmp_path) == MemoryUse(peak_bytes=123, kills=2)
    assert read_memory_use(7, identity="other", processes=tmp_path) is None
    assert read_memory_use(8, identity="abc", processes=tmp_path) is None
