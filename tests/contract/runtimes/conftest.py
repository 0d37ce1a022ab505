"""Every container runtime there is."""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services.images import PYTHON
from services.runtimes import ALL, MIB, NODE, PRETENCE, StartContainer

from jobqueue.resources import Resources
from workers.attempt.runtimes import open_runtime
from workers.attempt.runtimes.base import Container, ContainerRuntime, Labels, Plan
from workers.attempt.runtimes.fake import FakeRuntime
from workers.attempt.runtimes.hardening import run_as


@pytest.fixture(params=ALL)
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ContainerRuntime]:
    if request.param == "fake":
        yield FakeRuntime(lambda plan: PRETENCE[plan.command])
        return
    url = request.getfixturevalue("engine").url if request.param == "docker" else None
    runtime = open_runtime(request.param, state_dir=tmp_path / "state", engine_url=url)
    runtime.check()
    yield runtime
    assert runtime.find(NODE) == [], "containers were left"
    runtime.close()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    os.chown(folder, *run_as())
    return folder


@pytest.fixture
def start(runtime: ContainerRuntime, workspace: Path) -> Iterator[StartContainer]:
    started: list[Container] = []
    tokens = itertools.count(time.time_ns() // 1000)

    def start(*command: str, memory_bytes: int = 256 * MIB, **changes: Any) -> Container:
        labels = Labels(experiment_id="exp-contract", attempt=1, token=next(tokens), node_id=NODE)
        asked = Resources(cpus=1, memory_bytes=memory_bytes, disk_bytes=1024 * MIB, shm_bytes=0)
        given = {"image": runtime.resolve(PYTHON), "env": {}, "inputs": {}, "workspace": workspace} | changes
        container = runtime.start(Plan(labels=labels, command=command, resources=asked, **given))
        started.append(container)
        return container

    yield start
    for container in started:
        container.remove()
