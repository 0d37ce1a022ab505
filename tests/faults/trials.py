"""A few experiments on a site that one thing at a time is done to, written down and judged like a whole run."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from services.images import BUSYBOX
from services.process import Process
from services.waiting import wait_until

from faults.evidence import collect
from faults.flavours import Flavour, Order
from faults.history import Fact, History, load_history
from faults.load import Copies, Reader, Users
from faults.residue import find_residue
from faults.ticks import Watcher, Witness
from faults.world import PROJECT, Shape, World, open_world
from jobqueue.brokers import open_broker
from jobqueue.registry import open_registry
from jobqueue.registry.base import Record

SUCCEEDED: Final = "SUCCEEDED:EXITED_ZERO"
MIDDLE: Final = "middle"
_TICK: Final = "read up rest </proc/uptime; echo tick $up; sleep 0.2"
_RESULT: Final = '{\\"token\\": $JOBQUEUE_TOKEN, \\"attempt\\": $JOBQUEUE_ATTEMPT}'
_QUIET: Final = timedelta(seconds=120)
_A_WHILE: Final = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A site, and what sees every container of it."""

    world: World
    watcher: Watcher

    @property
    def processes(self) -> tuple[Process, ...]:
        """The workers that run."""
        return tuple(node.worker for node in self.world.nodes if node.worker.running)


@contextmanager
def open_stage(shape: Shape, folder: Path) -> Iterator[Stage]:
    """Start a site in a folder."""
    with ExitStack() as stack:
        history = History(folder / "site.jsonl")
        stack.callback(history.close)
        world = stack.enter_context(open_world(shape, folder, history))
        watcher = Watcher(world.engine.folder / "data" / "containers", on_begin=lambda _: None)
        stack.callback(watcher.close)
        yield Stage(world=world, watcher=watcher)


def make_order(name: str, *, seconds: float, end: str = SUCCEEDED) -> Order:
    """Return an experiment that ticks for some seconds, writes two outputs, and ends with 7 when it is asked to end.

    Args:
        end: `STATE:REASON` that is right.
    """
    count = round(seconds / 0.2)
    words = [
        "trap 'exit 7' TERM; echo begin; i=0",
        f"while [ $i -lt {count} ]; do i=$((i+1)); {_TICK}; [ $i = {count // 2} ] && echo {MIDDLE}; done",
        f'echo more > outputs/more; echo "{_RESULT}" > outputs/result.json; echo end',
    ]
    fields = {"image": BUSYBOX, "command": ["sh", "-c", "; ".join(words)], "cpus": 0.1, "memory": "64MiB"}
    return Order(
        # It is the key against a second submission, too.
        name=f"{name}-{secrets.token_hex(4)}",
        flavour=Flavour(name=name, weight=0, ends=(end,)),
        seconds=seconds,
        fields={**fields, "disk": "8MiB", "timeout": "30m"},
    )


class Trial:
    """Experiments, and what is seen of them until `finish`.

    Args:
        path: where everything is written; a new file.
        about: what else the history says of itself.

    Attributes:
        copies: publishes messages again.
        names: the experiments that were submitted.
    """

    def __init__(self, stage: Stage, path: Path, **about: object) -> None:
        self.history = History(path)
        self.world = replace(stage.world, history=self.history)
        self.watcher = stage.watcher
        shape = self.world.shape
        self.history.add(
            "run", seed=0, broker=shape.broker, store=shape.store, cores=os.cpu_count() or 1, faults=[],
            lease_seconds=shape.lease_seconds, platform_budget=5, recovery_limit_seconds=900, **about,
        )  # fmt: skip
        with ExitStack() as stack:
            self._registry = open_registry(self.world.settings.registry)
            stack.callback(self._registry.close)
            self._broker = open_broker(self.world.settings.broker, lease=self.world.settings.lease)
            stack.callback(self._broker.close)
            self._users = Users(self.world)
            stack.callback(self._users.close)
            self.copies = Copies(self.world, self._users, self.watcher, seed=0)
            stack.callback(self.copies.close)
            self._reader = Reader(self.world, self.history)
            stack.callback(self._reader.close)
            self._opened = stack.pop_all()

    @property
    def names(self) -> list[str]:
        """The experiments that were submitted."""
        return list(self._users.flavours)

    def submit(self, *orders: Order) -> None:
        """Submit them at once."""
        self._users.submit_all(orders, over_seconds=0)

    def cancel(self) -> None:
        """Cancel every experiment."""
        for name in self.names:
            self._registry.experiments.cancel(name)  # type: ignore[arg-type]

    def record(self, name: str) -> Record:
        """Return what the registry knows of one."""
        return self._registry.experiments.get(name)  # type: ignore[arg-type]

    def live(self) -> list[Witness]:
        """Return its containers that live now."""
        return [each for each in self.watcher.live() if each.experiment in self.names]

    def containers(self) -> list[Witness]:
        """Return all of its containers, by the order in which they began."""
        ours = (each for each in self.watcher.witnesses if each.experiment in self.names)
        return sorted(ours, key=lambda each: each.began)

    def is_final(self) -> bool:
        """Tell whether all are over."""
        return all(self.record(name).state.is_final for name in self.names)

    def finish(self, *, within: timedelta) -> list[Fact]:
        """Wait until all is over and nothing moves any more, and return what was seen."""
        is_over = reaches(self.is_final, within=within)
        # A dead worker's delivery is its broker's again after about a lease.
        lease = timedelta(seconds=self.world.shape.lease_seconds)
        reaches(self._stays_quiet, within=max(_QUIET, 2 * lease))
        unfinished = [] if is_over else self.names
        self.history.add("end", is_converged=is_over, unfinished=unfinished, allowed_seconds=within.total_seconds())
        self._opened.close()
        collect(self.world, self.names, self.watcher)
        self.history.close()
        return load_history(self.history.path)

    def close(self) -> None:
        """Close what `finish` has not."""
        self._opened.close()
        self.history.close()

    def _stays_quiet(self) -> bool:
        """Tell whether it is quiet for a while: a broker's counts are late for what a worker has in its hands."""
        return self._is_quiet() and not reaches(lambda: not self._is_quiet(), within=_A_WHILE)

    def _is_quiet(self) -> bool:
        # First what costs least.
        if find_residue(self.world) or self._broker.queues.depth(self.world.queue).ready:
            return False
        left = [name for name, depth in self.world.broker.depths().items() if depth]
        return not any("unacked" in name or name.startswith(PROJECT) for name in left)


def reaches(condition: Callable[[], object], *, within: timedelta) -> bool:
    """Wait for a condition, and tell whether it became true in time."""
    with suppress(TimeoutError):
        return bool(wait_until(condition, what="", within=within))
    return False
