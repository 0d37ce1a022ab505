"""A container runtime on a real engine."""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services.engine import Engine
from services.images import PYTHON
from services.runtimes import MIB, NODE, StartContainer

from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Container, Labels, Plan
from workers.attempt.runtimes.docker import DockerRuntime
from workers.attempt.runtimes.hardening import run_as


@pytest.fixture
def runtime(engine: Engine) -> Iterator[DockerRuntime]:
    runtime = DockerRuntime(engine.url)
    yield runtime
    runtime.close()


@pytest.fixture
def start(runtime: DockerRuntime, tmp_path: Path) -> Iterator[StartContainer]:
    started: list[Container] = []
    tokens = itertools.count(time.time_ns() // 1000)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    os.chown(workspace, *run_as())

    def start(*command: str, cpus: float = 1, **changes: Any) -> Container:
        labels = Labels(experiment_id="exp-integration", attempt=1, token=next(tokens), node_id=NODE)
        asked = Resources(cpus=cpus, memory_bytes=256 * MIB, disk_bytes=1024 * MIB, shm_bytes=0)
        given = {"env": {}, "inputs": {}, "workspace": workspace} | changes
        image = given.pop("image", None) or runtime.resolve(PYTHON)
        started.append(runtime.start(Plan(labels=labels, image=image, command=command, resources=asked, **given)))
        return started[-1]

    yield start
    for container in started:
        container.remove()
