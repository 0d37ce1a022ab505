"""What has nobody any more and is still there: on nodes, in the engine, the registry, the broker."""

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any, Final

import redis

from faults.history import Fact
from faults.injections import SKEW_KEY
from faults.world import PROJECT, World, open_registry_of
from jobqueue.brokers import open_broker
from jobqueue.errors import JobqueueError
from jobqueue.routing import COMPANIONS, request_queues

# What a registry keeps for ever: its own clock, and the suite's hand on it.
_KEPT_KEYS: Final = frozenset({"jobqueue:clock", SKEW_KEY})
# Who is there is forgotten when the last worker has ended.
_PRESENCE_KEYS: Final = frozenset({"jobqueue:workers", "jobqueue:worker_ends", "jobqueue:worker_spans"})
_EXPERIMENT: Final = "jobqueue:experiment:"
# An engine's own.
_NETWORKS: Final = frozenset({"bridge", "host", "none"})
# What kombu notes of each queue, once for all; it is not removed with the last of its users.
_BINDINGS: Final = "_kombu.binding"


def find_residue(world: World) -> list[Fact]:
    """Return what no living attempt has, while the workers still run."""
    found = [*_in_engine(world), *_on_nodes(world)]
    with suppress(JobqueueError, redis.RedisError):
        found += [_fact("registry key", name) for name in _endless_keys(world) if name not in _PRESENCE_KEYS]
        found += [_fact("lease", name) for name in _leased(world)]
    return found


def find_remains(world: World) -> list[Fact]:
    """Return what is there although every worker was told to end and has had its time."""
    found = [_fact("process", f"{node.name}: {process.pid}") for node in world.nodes for process in node.processes()]
    with open_registry_of(world) as registry:
        registry.workers.present()
    found += [_fact("registry key", name) for name in _endless_keys(world)]
    with closing(open_broker(world.settings.broker, lease=world.settings.lease)) as broker:
        # A Redis forgets by that what has come back.
        broker.queues.depth(world.queue)
    return found + [_fact("queue", name) for name in _strange_queues(world)]


def _fact(what: str, item: str) -> Fact:
    return {"what": what, "item": item}


def _in_engine(world: World) -> Iterator[Fact]:
    api: Any = world.engine.client.api
    for each in api.containers(all=True, filters={"label": "jobqueue.experiment"}):
        yield _fact("container", f"{each['Names'][0]} {each['State']}")
    for each in api.networks():
        if each["Name"] not in _NETWORKS:
            yield _fact("network", each["Name"])
    for each in api.volumes()["Volumes"] or ():
        yield _fact("volume", each["Name"])


def _on_nodes(world: World) -> Iterator[Fact]:
    for node in world.nodes:
        for path in (node.folder / "cache" / "attempts").glob("*"):
            yield _fact("folder", str(path))
        for path in node.folder.glob("state/nodes/*/leases/*"):
            yield _fact("lease file", str(path))
        for path in node.folder.glob("state/reports/**/*"):
            if path.is_file():
                yield _fact("report", str(path))


def _endless_keys(world: World) -> list[str]:
    """Return the names of keys that would stay for ever: an experiment that is over has a time in each of them."""
    with world.redis() as client:
        names = [name.decode() for name in client.scan_iter("*")]
        return [name for name in names if name not in _KEPT_KEYS and client.pttl(name) == -1]


def _leased(world: World) -> list[str]:
    with world.redis() as client:
        names = [name.decode() for name in client.scan_iter(f"{_EXPERIMENT}*")]
        return [name.removeprefix(_EXPERIMENT) for name in names if client.hget(name, "worker_id")]


def _strange_queues(world: World) -> list[str]:
    # Who submits while a broker has lost its queues makes all of the project's.
    queues = request_queues(PROJECT)
    ours = {*queues, *(queue + companion for queue in queues for companion in COMPANIONS)}
    return sorted(
        name for name in world.broker.names() if name not in world.made | ours and not name.startswith(_BINDINGS)
    )
