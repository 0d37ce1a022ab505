"""One run: a site is started, users submit, faults come as planned, and it is waited until everything is over."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from services.waiting import wait_until

from faults.evidence import collect, describe_backlog, sample
from faults.flavours import Order, make_orders
from faults.history import History, clock_seconds
from faults.injections import INJECTIONS, Missed, Scene, poison
from faults.load import Copies, Reader, Users
from faults.nodes import Node
from faults.plan import Fault, make_plan
from faults.residue import find_remains, find_residue
from faults.ticks import Watcher, Witness
from faults.world import Shape, World, open_registry_of, open_world
from jobqueue.errors import JobqueueError
from jobqueue.storage.markers import read_marker

PLATFORM_BUDGET: Final = 5
# The waits between attempts, 5 s doubling, four of them before the budget is spent.
_BACK_OFFS_SECONDS: Final = 75.0
# The sweep finds a lost message after so many leases, and looks once per lease.
_SWEEP_LEASES: Final = 7
_START_SECONDS: Final = 60.0
# Nothing may live while a broker starts, which takes a busy machine a minute.
_TARGET: Final = timedelta(seconds=120)
_QUIET: Final = timedelta(seconds=120)
# A guard that has nothing left to guard ends, and a broker forgets the queues of who has gone.
_GONE: Final = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run is.

    Attributes:
        count: experiments.
        fault_count: faults, besides duplicates.
        kinds: of faults; empty: all.
        duplicate_seconds: between two duplicates.
        is_at_once: all are submitted at the beginning; else over the time of the faults.
    """

    shape: Shape
    seed: int
    count: int
    fault_count: int
    kinds: tuple[str, ...] = ()
    is_gentle: bool = False
    duplicate_seconds: float = 1.0
    is_at_once: bool = False


def run(wanted: Wanted, folder: Path) -> Path:
    """Run once and return the history."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = wanted.shape
    orders = make_orders(wanted.count, seed=wanted.seed)
    faults = make_plan(
        wanted.fault_count, seed=wanted.seed, broker=shape.broker, lease_seconds=shape.lease_seconds,
        kinds=wanted.kinds, is_gentle=wanted.is_gentle,
    )  # fmt: skip
    history = History(folder / "history.jsonl")
    spread = 0.0 if wanted.is_at_once else _spread_seconds(orders, faults, shape)
    allowed = _allowed_seconds(orders, faults, shape, spread)
    try:
        with open_world(shape, folder, history) as world:
            history.add(
                "run",
                seed=wanted.seed,
                broker=shape.broker,
                store=shape.store,
                cores=os.cpu_count() or 1,
                nodes=[node.name for node in world.nodes],
                unsafe=shape.unsafe,
                lease_seconds=shape.lease_seconds,
                platform_budget=PLATFORM_BUDGET,
                recovery_limit_seconds=_recovery_limit(faults, shape, spread),
                faults=[{**asdict(fault), "kind": fault.kind.name} for fault in faults],
            )
            _Run(world, wanted, orders=orders, faults=faults).go(spread_seconds=spread, allowed_seconds=allowed)
    finally:
        history.close()
    return history.path


def _work_seconds(orders: Sequence[Order], shape: Shape) -> float:
    return sum(order.seconds + 1.5 for order in orders) / (3 * shape.slots)


def _spread_seconds(orders: Sequence[Order], faults: Sequence[Fault], shape: Shape) -> float:
    """Return how long it is submitted: until the last fault has something to hit."""
    return max(_work_seconds(orders, shape), faults[-1].at_seconds + shape.lease_seconds if faults else 0.0)


def _allowed_seconds(orders: Sequence[Order], faults: Sequence[Fault], shape: Shape, spread: float) -> float:
    """Return by when everything has to be final."""
    broken = sum(fault.lasts_seconds + _START_SECONDS / 3 for fault in faults) / 2
    patience = _BACK_OFFS_SECONDS + _SWEEP_LEASES * shape.lease_seconds
    return spread + _work_seconds(orders, shape) + broken + patience + 2 * _START_SECONDS


def _recovery_limit(faults: Sequence[Fault], shape: Shape, spread: float) -> float:
    """Return how long an experiment may be silent: the longest faults, a back-off, the sweep, and its queue."""
    longest = sum(sorted((fault.lasts_seconds for fault in faults), reverse=True)[:3])
    return longest + 40 + _SWEEP_LEASES * shape.lease_seconds + 2 * _START_SECONDS + spread / 3


class _Run:
    """What happens at once during a run."""

    def __init__(self, world: World, wanted: Wanted, *, orders: Sequence[Order], faults: Sequence[Fault]) -> None:
        self._world, self._wanted, self._orders, self._faults = world, wanted, orders, faults
        self._shared = threading.Lock()
        self._closed = threading.Event()
        self._users = Users(world)
        self._watcher = Watcher(world.engine.folder / "data" / "containers", on_begin=self._poison)
        self._copies = Copies(world, self._users, self._watcher, seed=wanted.seed)
        self._reader = Reader(world, world.history)
        self._pool = ThreadPoolExecutor(max_workers=12, thread_name_prefix="fault")

    def go(self, *, spread_seconds: float, allowed_seconds: float) -> None:
        """Submit, break, wait, and write down what there is at the end."""
        began = clock_seconds()
        with ExitStack() as stack:
            stack.callback(self._pool.shutdown)
            stack.callback(self._users.close)
            stack.callback(self._watcher.close)
            stack.callback(self._reader.close)
            stack.callback(self._copies.close)
            keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
            keeper.start()
            stack.callback(keeper.join)
            stack.callback(self._closed.set)
            sample(self._world, self._world.history, is_idle=True)
            self._copies.start(every_seconds=self._wanted.duplicate_seconds)
            injected = self._pool.submit(self._inject_all, began)
            self._users.submit_all(self._orders, over_seconds=spread_seconds)
            unfinished = self._wait_final(began + allowed_seconds, injected)
            self._copies.close()
            self._settle()
            sample(self._world, self._world.history, is_idle=True)
            self._world.history.add(
                "end", is_converged=not unfinished, unfinished=unfinished, allowed_seconds=allowed_seconds
            )
            self._reader.close()
            collect(self._world, list(self._users.flavours), self._watcher)
            self._end_workers()

    def _wait_final(self, deadline: float, injected: Future[None]) -> list[str]:
        """Wait until all is final and every fault is over; return what is not."""
        unfinished = list(self._users.flavours)
        while clock_seconds() < deadline:
            unfinished = self._unfinished(unfinished)
            if not unfinished and injected.done():
                break
            time.sleep(1)
        injected.result(timeout=120)
        return self._unfinished(unfinished)

    def _unfinished(self, names: Sequence[str]) -> list[str]:
        with suppress(JobqueueError), open_registry_of(self._world) as registry:
            states = registry.experiments.states(names)
            # The registry may have been emptied after they ended; what was cancelled in its queue has no marker either.
            known = {name for name in names if name in states}
            ended = {name for name in known if states[name].is_final} | (self._reader.ended - known)
            names = [name for name in names if name not in ended]
        return [name for name in names if not self._has_marker(name)]

    def _has_marker(self, name: str) -> bool:
        with suppress(JobqueueError):
            return read_marker(self._world.store, name) is not None  # type: ignore[arg-type]
        return False

    def _settle(self) -> None:
        """Wait until nothing moves any more; what is left then is judged."""

        def is_quiet() -> bool:
            if not all(node.worker.running for node in self._world.nodes):
                return False
            return not find_residue(self._world) and not describe_backlog(self._world).keys() - {
                f"{self._world.queue}_dead"
            }

        with suppress(TimeoutError):
            wait_until(is_quiet, what="quiet", within=_QUIET)

    def _end_workers(self) -> None:
        """Tell every worker to end; what is there then, a while later, was forgotten."""

        def end(node: Node) -> None:
            with node.lock:
                self._world.history.add("drained", node=node.name, code=node.drain(), is_last=True)

        list(self._pool.map(end, self._world.nodes))
        with suppress(TimeoutError):
            wait_until(lambda: not find_remains(self._world), what="nothing left", within=_GONE)
        for remains in find_remains(self._world):
            self._world.history.add("residue", **remains)

    # Faults

    def _inject_all(self, began: float) -> None:
        pending = []
        for fault in self._faults:
            self._closed.wait(max(0.0, began + fault.at_seconds - clock_seconds()))
            pending.append(self._pool.submit(self._inject, fault))
        for each in pending:
            each.result()

    def _inject(self, fault: Fault) -> None:
        try:
            if fault.kind.is_of_node:
                self._inject_into_node(fault)
            else:
                with self._shared:
                    wait_until(self._watcher.live, what="a live container", within=_TARGET)
                    self._do(fault, self._scene(self._world.nodes[fault.node], fault.index))
        except (Missed, TimeoutError) as missed:
            self._note(fault, "missed", why=str(missed))
        except Exception as error:  # noqa: BLE001 - a fault that cannot be done makes the run void, not the rest
            self._note(fault, "missed", why=f"{type(error).__name__}: {error}")

    def _inject_into_node(self, fault: Fault) -> None:
        """Do it to the planned node, or to another one where nothing lives on that one."""
        nodes = self._world.nodes
        planned = nodes[-1] if fault.kind.name == "disk.full" else nodes[fault.node]
        candidates = [planned] if fault.kind.name == "disk.full" else [planned, *nodes]

        def find() -> Node | None:
            for node in candidates:
                if self._watcher.live(node=node.name) and node.lock.acquire(blocking=False):
                    return node
            return None

        # The one small disk is waited for; of the others, one is as good as another.
        within = _TARGET if len(candidates) > 1 else 3 * _TARGET
        node = wait_until(find, what="a node where something lives", within=within)
        assert node is not None
        try:
            self._do(fault, self._scene(node, fault.index))
        finally:
            node.lock.release()

    def _scene(self, node: Node, chance: int) -> Scene:
        return Scene(world=self._world, watcher=self._watcher, node=node, chance=chance, duplicate=self._copies.publish)

    def _do(self, fault: Fault, scene: Scene) -> None:
        node = scene.node.name if fault.kind.is_of_node else ""
        live = sorted({each.experiment for each in self._watcher.live(node=node)})
        began = clock_seconds()
        with INJECTIONS[fault.kind.name](scene):
            self._note(fault, "hit", node=node, began=began, experiments=live)
            self._closed.wait(fault.lasts_seconds)
        self._note(fault, "over", node=node)

    def _note(self, fault: Fault, phase: str, **fields: object) -> None:
        self._world.history.add("fault", index=fault.index, fault=fault.kind.name, phase=phase, **fields)

    def _poison(self, witness: Witness) -> None:
        if self._users.flavours.get(witness.experiment) == "poison":
            self._pool.submit(self._poison_now, witness)

    def _poison_now(self, witness: Witness) -> None:
        (node,) = (each for each in self._world.nodes if each.name == witness.node)
        with node.lock:
            if witness.is_live:
                self._world.history.add("poisoned", experiment=witness.experiment, node=node.name)
                poison(self._scene(node, 0), witness)

    def _keep(self) -> None:
        """Start workers that ended again, as a service manager does, and look at what they hold."""
        number = 0
        while not self._closed.wait(0.5):
            for node in self._world.nodes:
                node.check()
            if number % 20 == 0:
                sample(self._world, self._world.history)
            number += 1
