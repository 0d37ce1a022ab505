"""How each kind of fault is done, and undone: a context for each, whose block lasts as long as the fault."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import psutil

from faults.nodes import Node
from faults.ticks import Watcher, Witness
from faults.world import World, wait_for_registry

SKEW_KEY: Final = "jobqueue:skew_ms"
_STEPS_MS: Final = (3_600_000, -1_800_000, 20_000)


class Missed(Exception):
    """A fault found nothing to hit; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a fault is done to.

    Attributes:
        node: of a fault that is of one node; else any.
        chance: a number that the seed decides.
        duplicate: publishes some messages again that were published before.
    """

    world: World
    watcher: Watcher
    node: Node
    chance: int
    duplicate: Callable[[int], None]

    @property
    def live(self) -> list[Witness]:
        """The containers of the node that live now."""
        return self.watcher.live(node=self.node.name)


Injection = Callable[[Scene], AbstractContextManager[None]]


@contextmanager
def _kill_worker(scene: Scene) -> Iterator[None]:
    scene.node.kill()
    yield
    scene.node.start()


@contextmanager
def _kill_node(scene: Scene) -> Iterator[None]:
    """Lose the whole machine, its containers too; it comes back with its folders."""
    live = scene.live
    scene.node.kill_all()
    for witness in live:
        _kill_container(scene.world, witness)
    yield
    scene.node.start()


@contextmanager
def _kill_guard(scene: Scene) -> Iterator[None]:
    guards = scene.node.guards()
    if not guards:
        raise Missed("there is no guard")
    for guard in guards:
        with suppress(psutil.NoSuchProcess):
            guard.kill()
    yield


@contextmanager
def _kill_one_container(scene: Scene) -> Iterator[None]:
    live = scene.live
    if not live:
        raise Missed("no container lives")
    _kill_container(scene.world, live[scene.chance % len(live)])
    yield


@contextmanager
def _stop_worker(scene: Scene) -> Iterator[None]:
    pid = scene.node.worker.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def _drain_worker(scene: Scene) -> Iterator[None]:
    code = scene.node.drain()
    scene.world.history.add("drained", node=scene.node.name, code=code)
    yield
    scene.node.start()


def _cut(*ways: str) -> Injection:
    @contextmanager
    def inject(scene: Scene) -> Iterator[None]:
        if ways == ("store",) and scene.node.store is None:
            raise Missed("the store is no server")
        scene.node.cut(*ways)
        try:
            yield
        finally:
            scene.node.restore()

    return inject


@contextmanager
def _reset(scene: Scene) -> Iterator[None]:
    scene.node.reset()
    yield


@contextmanager
def _slow(scene: Scene) -> Iterator[None]:
    scene.node.slow()
    try:
        yield
    finally:
        scene.node.restore()


def _store(mode: str) -> Injection:
    @contextmanager
    def inject(scene: Scene) -> Iterator[None]:
        if scene.node.store is None:
            raise Missed("the store is no server")
        scene.node.store.break_down(mode)
        try:
            yield
        finally:
            scene.node.store.restore()

    return inject


@contextmanager
def _fill_disk(scene: Scene) -> Iterator[None]:
    disk = scene.world.full_disk
    if disk is None:
        raise Missed("no small disk can be mounted here")
    filler = disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M"], capture_output=True, check=False)
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def _restart_engine(scene: Scene) -> Iterator[None]:
    scene.world.engine.process.kill()
    scene.world.engine.process.start()
    yield


@contextmanager
def _restart_broker(scene: Scene) -> Iterator[None]:
    scene.world.broker.process.restart()
    yield


@contextmanager
def _kill_broker(scene: Scene) -> Iterator[None]:
    process = scene.world.broker.process
    process.kill()
    process.start()
    yield


@contextmanager
def _wipe_broker(scene: Scene) -> Iterator[None]:
    scene.world.broker.wipe()
    scene.world.make_queues()
    yield


@contextmanager
def _delete_queue(scene: Scene) -> Iterator[None]:
    scene.world.delete_queue()
    yield
    scene.world.make_queues()


@contextmanager
def _restart_registry(scene: Scene) -> Iterator[None]:
    scene.world.registry.process.restart()
    yield


@contextmanager
def _wipe_registry(scene: Scene) -> Iterator[None]:
    with scene.world.redis() as client:
        client.flushall()
    yield


@contextmanager
def _stop_registry(scene: Scene) -> Iterator[None]:
    scene.world.registry.process.stop()
    try:
        yield
    finally:
        scene.world.registry.process.start()
        wait_for_registry(scene.world)


@contextmanager
def _step_clock(scene: Scene) -> Iterator[None]:
    with scene.world.redis() as client:
        client.incrby(SKEW_KEY, _STEPS_MS[scene.chance % len(_STEPS_MS)])
    yield


@contextmanager
def _publish_malformed(scene: Scene) -> Iterator[None]:
    scene.world.history.add("malformed", messages=scene.world.publish_malformed())
    yield


@contextmanager
def _duplicate(scene: Scene) -> Iterator[None]:
    scene.duplicate(5)
    yield


INJECTIONS: Final[Mapping[str, Injection]] = {
    "worker.kill": _kill_worker,
    "worker.kill_and_stay_away": _kill_worker,
    "node.kill": _kill_node,
    "guard.kill": _kill_guard,
    "container.kill": _kill_one_container,
    "worker.stop": _stop_worker,
    "worker.drain": _drain_worker,
    "cut.registry": _cut("registry"),
    "cut.broker": _cut("broker"),
    "cut.store": _cut("store"),
    "cut.all": _cut("broker", "registry", "store"),
    "reset.all": _reset,
    "slow.all": _slow,
    "store.errors": _store("errors"),
    "store.hangs": _store("hangs"),
    "store.truncates": _store("truncates"),
    "store.loses_answers": _store("loses_answers"),
    "disk.full": _fill_disk,
    "engine.restart": _restart_engine,
    "broker.restart": _restart_broker,
    "broker.kill": _kill_broker,
    "broker.wipe": _wipe_broker,
    "queue.delete": _delete_queue,
    "registry.restart": _restart_registry,
    "registry.wipe": _wipe_registry,
    "registry.away": _stop_registry,
    "registry.clock": _step_clock,
    "messages.malformed": _publish_malformed,
    "duplicates.burst": _duplicate,
}


def _kill_container(world: World, witness: Witness) -> None:
    # It may have ended a moment ago.
    with suppress(Exception):
        world.engine.client.api.kill(witness.container)


def poison(scene: Scene, witness: Witness) -> None:
    """Do what a poison experiment does: take its worker and itself down."""
    scene.node.kill()
    _kill_container(scene.world, witness)
    scene.node.start()
