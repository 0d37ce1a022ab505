"""How fast a container's output goes to the store."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from services.images import BUSYBOX

from bench.raw_engine import make_body, make_plan
from bench.results import Result, compare
from bench.sampling import interleave, seconds
from bench.servers import Servers
from jobqueue.registry import open_registry
from jobqueue.registry.base import Lease, Registry
from jobqueue.storage import open_store
from workers.attempt.logs import LogWriter
from workers.attempt.runtimes import open_runtime
from workers.attempt.runtimes.base import ContainerRuntime

_ROUNDS = 4
_BYTES = 64 * 2**20
_LINE = "step=1000 loss=0.123456 accuracy=0.987654 seconds=12.345 learning_rate=0.0001"


def measure_log_throughput(servers: Servers) -> list[Result]:
    """Measure from a container's start to its last byte in the store, against docker-py's stream, thrown away."""
    size = _BYTES // 8 if servers.is_quick else _BYTES
    command = ("sh", "-c", f"yes '{_LINE}' | head -c {size}")
    workspace = servers.folder / "output"
    workspace.mkdir()
    runtime = open_runtime("docker", state_dir=servers.folder, engine_url=servers.engine.url)
    registry = open_registry(servers.redis.url)
    try:
        samples = interleave(
            servers.rounds(_ROUNDS),
            {
                "ours": lambda: size / 1e6 / seconds(lambda: _store(servers, runtime, registry, command, size)),
                "docker-py": lambda: (
                    size / 1e6 / seconds(lambda: _discard(servers.engine.client.api, command, workspace, size))
                ),
            },
        )
    finally:
        runtime.close()
        registry.close()
    note = "docker-py's attach(stream), thrown away"
    return [compare("log_throughput", samples["ours"], samples["docker-py"], unit="MB/s", note=note)]


def _store(
    servers: Servers, runtime: ContainerRuntime, registry: Registry, command: tuple[str, ...], size: int
) -> None:
    folder, store = servers.folder / "output", open_store((servers.folder / "store").as_uri(), endpoint="")
    plan = make_plan(runtime.resolve(BUSYBOX), command, folder)
    lease = Lease(experiment_id=plan.labels.experiment_id, token=1, attempt=1)  # type: ignore[arg-type]
    logs = LogWriter(
        lease,
        store=store,
        prefix=plan.labels.experiment_id,
        live=registry.live_logs,
        limit_bytes=2 * 2**30,
        on_progress=lambda _: None,
    )
    container = runtime.start(plan)
    container.follow(logs.write)
    container.wait(timedelta(seconds=60))
    logs.close()
    container.remove()
    stored = sum(found.size_bytes for found in store.list(plan.labels.experiment_id))
    if stored != size:
        raise RuntimeError(f"the store has {stored} of {size} bytes")


def _discard(client: Any, command: tuple[str, ...], folder: Path, size: int) -> None:
    """Read by `attach`: the library's `logs` loses output each time that the engine's bounded log is rotated."""
    identity = client.create_container_from_config(make_body(BUSYBOX, command, folder))["Id"]
    pieces = client.attach(identity, stdout=True, stderr=True, stream=True)
    client.start(identity)
    received = sum(len(piece) for piece in pieces)
    client.wait(identity)
    client.remove_container(identity, v=True)
    if received != size:
        raise RuntimeError(f"the stream has {received} of {size} bytes")
