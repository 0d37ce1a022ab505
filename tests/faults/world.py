"""A whole site to break: one broker, one registry, one store, one engine, three nodes, each with ways of its own."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import kombu
import redis
from services.engine import Engine, open_engine
from services.moto import open_moto
from services.process import Process
from services.redis import RedisServer, open_redis
from services.waiting import wait_until

from faults.history import History
from faults.nodes import Node, make_worker
from faults.plan import NODES
from faults.proxy import Proxy, Wires
from faults.servers import BrokerServer, open_broker_server
from faults.store_proxy import StoreProxy
from faults.ticks import NODE_PREFIX
from jobqueue.brokers import open_broker
from jobqueue.config import Settings
from jobqueue.errors import BrokerUnavailable
from jobqueue.keys import ensure_laptop_keys
from jobqueue.registry import open_registry
from jobqueue.routing import reporting_queue
from jobqueue.storage import open_store
from jobqueue.storage.base import Store

UNSAFE: Final = "JOBQUEUE_UNSAFE_FOR_TESTS"
# Lets `registry.clock` turn the registry's clock, for everybody who asks it.
_ALWAYS_OFF: Final = "skew"
PROJECT: Final = "faults"
# The first two end a stock worker, and then the next one; the others it drops.
MALFORMED: Final = (b'{"task": "unknown"}', b'{"task": []}', b'{"foo": 1}', b"null", b"", b"[1, 2]")
_BUCKET: Final = "faults"
# What has to be named where a protection is off.
_NAMED: Final = ("broker_url", "registry_url", "storage_url", "storage_endpoint")
_DISK: Final = "128m"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a site is made.

    Attributes:
        broker: one of `BROKERS`; store: `s3` or `file`.
        slots: how many containers a node runs at once.
        unsafe: protections that are switched off, by name.
        app: what `celery -A` runs.
        node_count: how many nodes there are.
        is_idle: whether no worker is started at first.
    """

    broker: str
    store: str = "s3"
    lease_seconds: float = 6.0
    slots: int = 3
    unsafe: tuple[str, ...] = ()
    app: str = "jobqueue"
    node_count: int = NODES
    is_idle: bool = False


@dataclass(frozen=True, kw_only=True)
class World:
    """A running site.

    Attributes:
        settings: of whoever submits, with the shortest ways.
        nodes: which break apart.
        full_disk: the folder of the node whose disk is small enough to be filled; None where that cannot be had.
        made: what the broker had in it before the first worker came.
    """

    shape: Shape
    folder: Path
    history: History
    settings: Settings
    broker: BrokerServer
    registry: RedisServer
    engine: Engine
    store: Store
    nodes: tuple[Node, ...]
    full_disk: Path | None
    made: frozenset[str] = frozenset()

    @property
    def queue(self) -> str:
        """Where the experiments go."""
        return f"{PROJECT}_cpu"

    def make_queues(self) -> None:
        """Do what an operator does first, and after a broker has lost its queues."""

        def make() -> bool:
            with (
                suppress(BrokerUnavailable),
                closing(open_broker(self.settings.broker, lease=self.settings.lease)) as it,
            ):
                it.queues.create(self.queue)
                it.queues.create_plain(reporting_queue(self.queue))
                return True
            return False

        wait_until(make, what="the queues")

    def delete_queue(self) -> None:
        """Delete the request queue with everything in it."""
        with closing(open_broker(self.settings.broker, lease=self.settings.lease)) as broker:
            broker.queues.delete(self.queue)

    def publish_malformed(self) -> int:
        """Publish what a worker must set aside, and return how many messages that were."""
        settings = open_broker(self.settings.broker, lease=self.settings.lease).celery_settings()
        options = settings["broker_transport_options"]
        with kombu.Connection(settings["broker_url"], transport_options=options, heartbeat=0) as connection:
            for body in MALFORMED:
                connection.Producer().publish(
                    body, routing_key=self.queue, exchange="", content_type="application/json", content_encoding="utf-8"
                )
        return len(MALFORMED)

    def redis(self) -> "closing[redis.Redis]":
        """Open the registry's own server, for `with`."""
        return closing(redis.Redis(port=self.registry.port))


@contextmanager
def open_world(shape: Shape, folder: Path, history: History) -> Iterator[World]:
    """Start a site in a folder; everything has ended when the block has."""
    with ExitStack() as stack:
        # Before the engine, whose mounts are a copy of this machine's.
        full_disk = _mount_small_disk(folder, stack)
        engine = stack.enter_context(open_engine())
        broker = stack.enter_context(open_broker_server(shape.broker, folder / "broker"))
        registry = stack.enter_context(open_redis(folder / "registry"))
        storage = _open_storage(shape, folder, stack)
        wires = Wires()
        stack.callback(wires.close)
        shared = _shared_settings(shape, folder, storage)
        shown = {**shared, "broker_url": broker.url, "registry_url": registry.url}
        settings = Settings(**shown)
        _set_variables(_as_variables({name: shown[name] for name in _NAMED}, shape), stack)
        ensure_laptop_keys(settings.keys_dir)
        nodes = []
        for number in range(1, shape.node_count + 1):
            home = folder / f"{NODE_PREFIX}{number}"
            home.mkdir(exist_ok=True)
            ways = _make_ways(home.name, wires, broker=broker, registry=registry, storage=storage, history=history)
            worker = _make_node_worker(home, shared, ways, shape=shape, broker=broker, engine=engine)
            node = Node(name=home.name, folder=home, worker=worker, history=history, **vars(ways))
            stack.callback(node.close)
            nodes.append(node)
        world = World(
            shape=shape, folder=folder, history=history, settings=settings, broker=broker, registry=registry,
            engine=engine, store=open_store(settings.storage, endpoint=settings.storage_endpoint),
            nodes=tuple(nodes), full_disk=full_disk,
        )  # fmt: skip
        world.make_queues()
        world = replace(world, made=frozenset(broker.names()))
        for node in () if shape.is_idle else nodes:
            node.start()
        for node in () if shape.is_idle else nodes:
            node.wait_ready()
        yield world


def _open_storage(shape: Shape, folder: Path, stack: ExitStack) -> dict[str, Any]:
    if shape.store == "file":
        return {"url": (folder / "store").as_uri(), "endpoint": ""}
    moto = stack.enter_context(open_moto(folder / "s3"))
    # Each node has a way of its own.
    _set_variables({name: value for name, value in moto.environment.items() if name != "AWS_ENDPOINT_URL"}, stack)
    return {"url": moto.make_bucket(_BUCKET), "endpoint": moto.url, "port": moto.port}


def _set_variables(values: Mapping[str, str], stack: ExitStack) -> None:
    """Set variables of this process until the stack is closed."""
    for name, value in values.items():
        before = os.environ.get(name)
        stack.callback(os.environ.pop, name, None) if before is None else stack.callback(
            os.environ.__setitem__, name, before
        )
        os.environ[name] = value


def _as_variables(settings: Mapping[str, str], shape: Shape) -> dict[str, str]:
    variables = {f"JOBQUEUE_{name.upper()}": value for name, value in settings.items()}
    return {**variables, UNSAFE: ",".join((*shape.unsafe, _ALWAYS_OFF))}


def _shared_settings(shape: Shape, folder: Path, storage: Mapping[str, Any]) -> dict[str, str]:
    return {
        "project": PROJECT,
        "keys": str(folder / "keys"),
        "state_dir": str(folder / "producer"),
        "cache_dir": str(folder / "producer-cache"),
        "storage_url": storage["url"],
        "storage_endpoint": storage["endpoint"],
        "runtime": "docker",
        "images": "jobqueue-test/*",
        "lease": f"{shape.lease_seconds:g}s",
        "grace": "2s",
        # Less than the small disk has when it is empty.
        "disk_floor": "16MiB",
    }


@dataclass(frozen=True, kw_only=True)
class _Ways:
    """One node's ways to the servers."""

    broker: Proxy
    registry: Proxy
    store: StoreProxy | None


def _make_ways(
    name: str,
    wires: Wires,
    *,
    broker: BrokerServer,
    registry: RedisServer,
    storage: Mapping[str, Any],
    history: History,
) -> _Ways:
    def on_marker(path: str, status: int) -> None:
        history.add("marker_put", experiment=path.split("/")[-2], node=name, status=status)

    return _Ways(
        broker=Proxy(wires, broker.port),
        registry=Proxy(wires, registry.port),
        store=StoreProxy(storage["port"], on_marker=on_marker) if "port" in storage else None,
    )


def _make_node_worker(
    home: Path, shared: Mapping[str, str], ways: _Ways, *, shape: Shape, broker: BrokerServer, engine: Engine
) -> Process:
    values = {
        **shared,
        "broker_url": broker.url_through(ways.broker.port),
        "registry_url": f"redis://127.0.0.1:{ways.registry.port}/0",
        "state_dir": str(home / "state"),
        "cache_dir": str(home / "cache"),
        **({"storage_endpoint": ways.store.url} if ways.store else {}),
    }
    environment = {**_as_variables(values, shape), "DOCKER_HOST": engine.url}
    return make_worker(home, name=home.name, slots=shape.slots, environment=environment, app=shape.app)


def _mount_small_disk(folder: Path, stack: ExitStack) -> Path | None:
    """Give the last node a disk that can be filled."""
    disk = folder / f"{NODE_PREFIX}{NODES}" / "cache"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(disk)], check=False).returncode:
        return None
    stack.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=False)
    return disk


def open_registry_of(world: World) -> Any:
    """Open the registry, for `with`."""
    return closing(open_registry(world.settings.registry))


def wait_for_registry(world: World) -> None:
    """Wait until the registry's server answers."""

    def answers() -> bool:
        try:
            with world.redis() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    wait_until(answers, what="the registry")
