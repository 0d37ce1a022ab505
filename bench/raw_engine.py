"""The least that a container costs: the engine through docker-py, with the options of our own adapter."""

from pathlib import Path
from typing import Any

from jobqueue.ids import make_experiment_id
from jobqueue.resources import Resources
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.runtimes.hardening import make_create_body

# As a spec has it that asks for nothing else.
RESOURCES = Resources(cpus=1.0, memory_bytes=2 * 2**30, disk_bytes=10 * 2**30, shm_bytes=64 * 2**20)


def make_plan(image: str, command: tuple[str, ...], folder: Path) -> Plan:
    """Return a plan such as a worker makes; `folder` is its workspace."""
    labels = Labels(experiment_id=make_experiment_id(), attempt=1, token=1, node_id="bench")
    return Plan(labels=labels, image=image, command=command, env={}, workspace=folder, inputs={}, resources=RESOURCES)


def make_body(image: str, command: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Return what the engine is asked for."""
    return make_create_body(make_plan(image, command, folder))


def run_container(client: Any, body: dict[str, Any]) -> bytes:
    """Create, start, wait, read the output, remove; `client` is docker-py's `APIClient`."""
    identity = client.create_container_from_config(body)["Id"]
    client.start(identity)
    client.wait(identity)
    output = client.logs(identity)
    client.remove_container(identity, v=True)
    return bytes(output)
