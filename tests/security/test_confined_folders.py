"""A confined process sees programs of the machine, and no folder of its node, wherever that lies."""

import sys
from pathlib import Path

import pytest
from services.runtimes import NODE, run

from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.process import ProcessRuntime

LOOK = "cat {state}/keys/k {cache}/other; ls -A {state} {cache}; touch {state}/x; cat {opt}/program"


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
    labels = Labels(experiment_id="exp-folders", attempt=1, token=1, node_id=NODE)
    asked = Resources(cpus=1, memory_bytes=2**28, disk_bytes=2**20, shm_bytes=0)
    command = ("sh", "-c", LOOK.format(state=state, cache=cache, opt=python))
    plan = Plan(labels=labels, image="", command=command, env={}, workspace=workspace, inputs={}, resources=asked)
    runtime = ProcessRuntime(state, hidden=(cache, state / "keys"), is_confined=True)
    container = runtime.start(plan)
    try:
        _, reader = run(container)
    finally:
        container.remove()
    listed = ["venv"] if is_python_inside else []
    assert sorted(reader.text().split()) == sorted([f"{state}:", *listed, f"{cache}:", "code"]), reader.text("stderr")
    assert "Read-only" in reader.text("stderr")
