"""A confined process sees programs of the machine, and no folder or secret of its node, wherever those lie."""

import os
import stat
import sys
from pathlib import Path

import pytest
from services.runtimes import NODE, run

from jobqueue.errors import InvalidSetting, RuntimeFailure
from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.process import ProcessRuntime

LOOK = "cat {state}/keys/k {cache}/other; ls -A {state} {cache}; touch {state}/x; cat {opt}/program"


def look(script: str, folder: Path, runtime: ProcessRuntime, *, gpus: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return what a confined experiment prints on both streams."""
    workspace = folder / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    labels = Labels(experiment_id="exp-folders", attempt=1, token=1, node_id=NODE)
    asked = Resources(cpus=1, memory_bytes=2**28, disk_bytes=2**20, shm_bytes=0)
    plan = Plan(
        labels=labels,
        image="",
        command=("sh", "-c", script),
        env={},
        workspace=workspace,
        inputs={},
        resources=asked,
        gpus=gpus,
    )
    container = runtime.start(plan)
    try:
        _, reader = run(container)
    finally:
        container.remove()
    return reader.text(), reader.text("stderr")


@pytest.mark.security_case("reading another experiment's workspace, and keys, of a node whose home is shown")
@pytest.mark.parametrize("is_python_inside", [False, True])
def test_a_folder_of_the_node_below_what_is_shown_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_python_inside: bool
) -> None:
    """A node's user has its home below `/opt`, which experiments see: keys and workspaces of others lie there.

    Refused: over the node's own folders lies an empty one, read-only; programs beside and in them are there.
    Evidence: what a confined process reads, lists and writes there.
    Red before: where a worker is not root it could read its node's private keys, and command its supervisors.
    """
    opt = tmp_path / "opt"
    state, cache = opt / "home" / "state", opt / "home" / "cache"
    python = state / "venv" if is_python_inside else opt
    workspace = tmp_path / "workspace"
    for folder in (state / "keys", cache, python, workspace):
        folder.mkdir(parents=True, exist_ok=True)
    for file, text in ((state / "keys" / "k", "private"), (cache / "other", "theirs"), (python / "program", "code")):
        file.write_text(text)
    # What is shown besides the system: where the interpreter lies.
    monkeypatch.setattr(sys, "exec_prefix", str(python))
    monkeypatch.setattr(sys, "prefix", str(opt))
    runtime = ProcessRuntime(state, hidden=(cache, state / "keys"), is_confined=True)
    printed, errors = look(LOOK.format(state=state, cache=cache, opt=python), tmp_path, runtime)
    listed = ["venv"] if is_python_inside else []
    assert sorted(printed.split()) == sorted([f"{state}:", *listed, f"{cache}:", "code"]), errors
    assert "Read-only" in errors


@pytest.mark.security_case("reading keys, and files of passwords, that lie within the worker's Python")
@pytest.mark.parametrize("through", ["folder", "link"])
def test_what_is_hidden_lies_anywhere_within_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    """The node's folders and files of secrets lie in its environment of Python, and that in its home, by a link too.

    Refused: keys are not there, a file of a password cannot be read, by any name of the environment; its programs can.
    Evidence: what a confined process reads there by the name that the worker uses, and by the folder's own.
    Red before: what was shown again within a hidden folder showed all that lies in it; files were not hidden at all.
    """
    home = tmp_path / "srv"
    environment = home / "venv"
    for folder in (environment / "keys", environment / "state", home / "state"):
        folder.mkdir(parents=True)
    password = environment / "etc" / "password"
    for file in (environment / "keys" / "k", password, home / "state" / "s", home / "state" / "program"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("private")
    (environment / "program").write_text("code")
    name = environment
    if through == "link":
        (tmp_path / "by").symlink_to(home)
        name = tmp_path / "by" / "venv"
    monkeypatch.setattr(sys, "exec_prefix", str(name))
    hidden = (home, environment / "keys", password)
    runtime = ProcessRuntime(environment / "state", hidden=hidden, is_confined=True)
    files = ("keys/k", "etc/password", "../state/s", "program")
    words = [str(place / file) for place in (name, environment) for file in files]
    printed, errors = look(f"cat {' '.join(words)}; ls {environment}/state", tmp_path, runtime)
    assert printed == "codecode", errors
    assert errors.count("Permission denied") == 2


def test_a_node_whose_state_is_its_python_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ProcessRuntime(tmp_path / "state", is_confined=True).vet()
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    ProcessRuntime(tmp_path / "state", is_confined=True).vet()
    with pytest.raises(InvalidSetting, match="JOBQUEUE_STATE_DIR"):
        ProcessRuntime(tmp_path, is_confined=True).vet()


@pytest.mark.security_case("a confined process opens the GPU of another one")
def test_a_confined_process_has_the_files_of_its_own_devices_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment without a GPU, or with one, opens the files of others that run on the same machine.

    Refused: only the files of the devices that it was given are there, beside those that all programs share.
    Evidence: what a confined process finds in its /dev, and that it can open that.
    Red before: whoever had one GPU could open every one of the machine.
    """
    devices = tmp_path / "dev"
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-caps/nvidia-cap7", "nvidia-caps/nvidia-cap8"):
        (devices / name).parent.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.mknod(devices / name, stat.S_IFCHR, os.makedev(1, 3))
        (devices / name).touch()
        (devices / name).chmod(0o666)
    monkeypatch.setattr("workers.attempt.runtimes.sandbox._DEVICES", devices)
    nodes = ("nvidiactl", "nvidia-uvm", "nvidia1", "nvidia-caps/nvidia-cap7")
    runtime = ProcessRuntime(tmp_path / "state", nodes_of=lambda uuids: nodes if uuids == ("GPU-b",) else ())
    script = "for each in $(find /dev -name 'nvidia*' ! -type d); do echo x > $each && echo $each; done"
    printed, errors = look(script, tmp_path, runtime, gpus=("GPU-b",))
    assert sorted(printed.split()) == ["/dev/nvidia-caps/nvidia-cap7", "/dev/nvidia1", "/dev/nvidiactl"], errors
    assert look(script, tmp_path, runtime) == ("", "")


def test_a_driver_that_does_not_tell_a_devices_files_is_in_the_way_of_a_confined_process_alone(tmp_path: Path) -> None:
    def nodes_of(uuids: tuple[str, ...]) -> tuple[str, ...]:
        raise RuntimeFailure(f"not known which file of /dev is the device {uuids[0]}")

    confined, bare = (
        ProcessRuntime(tmp_path / "state", nodes_of=nodes_of, is_confined=is_confined) for is_confined in (True, False)
    )
    with pytest.raises(RuntimeFailure, match="the device GPU-b"):
        look("echo ran", tmp_path, confined, gpus=("GPU-b",))
    assert look("echo ran", tmp_path, bare, gpus=("GPU-b",)) == ("ran\n", "")
