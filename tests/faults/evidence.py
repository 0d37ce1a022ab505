"""What is there when everything is over: markers, outputs, records, and what lies in the queues."""

import hashlib
import json
from contextlib import suppress
from typing import Any, Final

import psutil

from faults.history import Fact, History
from faults.residue import find_residue
from faults.servers import UNACKED
from faults.ticks import Watcher
from faults.world import PROJECT, World, open_registry_of
from jobqueue.artifacts import attempt_prefix, output_key
from jobqueue.errors import JobqueueError
from jobqueue.marker import Marker
from jobqueue.registry.base import Record
from jobqueue.routing import DEAD, REPORTING
from jobqueue.storage.manifests import load_manifest
from jobqueue.storage.markers import read_marker

_RESULT: Final = "outputs/result.json"


def collect(world: World, names: list[str], watcher: Watcher) -> None:
    """Write down what every witness says at the end."""
    history = world.history
    for witness in watcher.witnesses:
        fields = {name: value for name, value in vars(witness).items() if name not in ("file", "rest")}
        history.add("container", **fields)
    with open_registry_of(world) as registry:
        for name in names:
            _collect_one(world, name)
            with suppress(JobqueueError):
                history.add("record", **_describe_record(registry.experiments.get(name)))
    for queue, messages in world.broker.depths().items():
        # Whoever reads the reports has stopped, and an end may be told once more.
        if queue == UNACKED or (queue.startswith(PROJECT) and not queue.endswith(REPORTING)):
            is_dead = queue.endswith(DEAD) and not queue.endswith(REPORTING + DEAD)
            history.add("queue", queue=queue, messages=messages, is_dead_letters=is_dead)
    for residue in find_residue(world):
        history.add("residue", **residue)


def describe_backlog(world: World) -> dict[str, Any]:
    """Return what is left to do, for whoever waits."""
    try:
        depths = world.broker.depths()
    except Exception as error:  # noqa: BLE001 - a broker that is away, whatever kind it is, cannot say
        return {"unknown": type(error).__name__}
    return {name: depth for name, depth in depths.items() if depth and name.startswith((PROJECT, UNACKED))}


def sample(world: World, history: History, *, is_idle: bool = False) -> None:
    """Write down what each worker process holds; `is_idle`: it has nothing to do."""
    for node in world.nodes:
        if node.worker.running:
            with suppress(psutil.Error):
                process = psutil.Process(node.worker.pid)
                history.add(
                    "sample",
                    node=node.name,
                    pid=process.pid,
                    is_idle=is_idle,
                    files=process.num_fds(),
                    memory_bytes=process.memory_info().rss,
                    threads=process.num_threads(),
                )


def _collect_one(world: World, name: Any) -> None:
    history, store = world.history, world.store
    history.add("objects", experiment=name, keys=[found.key for found in store.list(f"experiments/{name}/")])
    marker = read_marker(store, name)
    if marker is None:
        return
    history.add(
        "marker",
        experiment=name,
        attempt=marker.attempt,
        token=marker.token,
        state=marker.state.value,
        reason=marker.reason.name,
        exit_code=marker.exit_code,
        detail=marker.detail,
    )
    if marker.manifest:
        history.add("outputs", experiment=name, **_read_outputs(world, marker))


def _read_outputs(world: World, marker: Marker) -> Fact:
    prefix = attempt_prefix(marker.experiment_id, marker.attempt, marker.token)
    problems, result = [], None
    if not marker.manifest.startswith(prefix + "/"):
        problems.append(f"the marker of {prefix} names {marker.manifest}")
    try:
        for file in load_manifest(world.store, prefix).files:
            content = b"".join(world.store.get(output_key(prefix, file.path)))
            if hashlib.sha256(content).hexdigest() != file.sha256:
                problems.append(f"{file.path} has another digest than the manifest says")
            if file.path == _RESULT:
                result = json.loads(content)
    except (JobqueueError, ValueError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    return {"problems": problems, "result": result}


def _describe_record(record: Record) -> Fact:
    return {
        "experiment": record.submission.id,
        "state": record.state.value,
        "reason": record.reason.name if record.reason else None,
        "detail": record.detail,
        "attempt": record.attempt,
        "token": record.token,
        "worker": record.worker_id,
        "exit_code": record.exit_code,
        "platform_failures": record.platform_failures,
        "history": [{"token": past.token, "reason": past.reason.name} for past in record.history],
    }
