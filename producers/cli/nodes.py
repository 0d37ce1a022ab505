"""`jobqueue nodes`: who serves queues now, on what, and stopping nodes from taking new work."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from jobqueue.errors import NotFound
from jobqueue.printable import plain
from jobqueue.quantities import describe_size
from producers.cli.arguments import read_settings
from producers.cli.group import Group
from producers.cli.output import UNKNOWN, describe_span, format_option, write_instant, write_rows

if TYPE_CHECKING:
    from jobqueue.registry.presence import Drain, Gauge, WorkerRecord, Workers

_RUNTIMES: Final = {"process": "process (trusted code)"}


@click.group(cls=Group)
def nodes() -> None:
    """Machines that run experiments: a worker serves each of their slots."""


@nodes.command()
@click.argument("names", metavar="[NODE]...", nargs=-1)
@format_option
def ls(*, names: tuple[str, ...], form: str) -> None:
    """Show each worker: its state, what it runs, its device, and what it offers; of all nodes when none are given."""
    with _open_workers() as workers:
        present, drains = workers.present(), workers.drains()
    wanted = {worker.worker_id for name in names for worker in _choose(name, present)}
    shown = [worker for worker in present if not names or worker.worker_id in wanted]
    if not present:
        click.echo("no worker is there; start one with `celery -A jobqueue worker`, or `jobqueue dev`", err=True)
    for drain in _absent(drains, present):
        target = plain(drain.target)
        click.echo(f"{target} is to drain and not there; `jobqueue nodes resume {target}`", err=True)
    rows = [row for worker in shown for row in _rows(worker)]
    write_rows(form, rows=rows, objects=[_as_json(worker) for worker in shown], name="WORKER")


@nodes.command()
@click.argument("names", metavar="NODE...", nargs=-1, required=True)
@click.option("--now", is_flag=True, help="Hand back what runs; it runs again elsewhere, and no attempt is counted.")
def drain(*, names: tuple[str, ...], now: bool) -> None:
    """Let NODE take no new work until it is resumed: a node, a host, the beginning of one, or one of its workers.

    What runs goes on to its end. The workers stay, learn of it within a quarter of their lease, 15 seconds at most,
    and keep to it when they are started anew.
    """
    from jobqueue.registry.presence import Drain

    with _open_workers() as workers:
        present = workers.present()
        for target in [target for name in names for target in _find_targets(name, present, ())]:
            workers.drain(Drain(target=target, is_hurried=now))
            click.echo(plain(target))


@nodes.command()
@click.argument("names", metavar="NODE...", nargs=-1, required=True)
def resume(*, names: tuple[str, ...]) -> None:
    """Let NODE take work again; a node takes that back for its workers too."""
    with _open_workers() as workers:
        present, drains = workers.present(), workers.drains()
        for target in [target for name in names for target in _find_targets(name, present, drains)]:
            parts = [worker.worker_id for worker in present if target == worker.node_id]
            resumed = [each for each in (target, *parts) if workers.resume(each)]
            if not resumed:
                _tell_not_drained(target, present, drains)
            click.echo(plain(target))


@contextmanager
def _open_workers() -> Iterator["Workers"]:
    from jobqueue.registry import open_registry

    with closing(open_registry(read_settings().registry)) as registry:
        yield registry.workers


def _choose(name: str, present: Sequence["WorkerRecord"]) -> list["WorkerRecord"]:
    (target, *_) = _find_targets(name, present, ())
    return [worker for worker in present if target in (worker.node_id, worker.worker_id)]


def _find_targets(name: str, present: Sequence["WorkerRecord"], drains: Sequence["Drain"]) -> list[str]:
    """Return the one node or worker that is meant; one that is to drain may be meant though it is not there.

    Raises:
        NotFound: none is called so, or more than one begins so.
    """
    for found in _readings(name, present, drains):
        if len(found) == 1:
            return list(found)
        if found:
            raise NotFound(f"{name!r} may be {_list(found)}", hint="write more of it, or all")
    known = {worker.node_id for worker in present} | {drain.target for drain in drains}
    hint = f"there are: {_list(known)}" if known else "no worker is there; `jobqueue nodes ls`"
    raise NotFound(f"there is no node or worker {name!r}", hint=hint)


def _readings(name: str, present: Sequence["WorkerRecord"], drains: Sequence["Drain"]) -> Iterator[set[str]]:
    """Yield what a name may mean, the most exact reading first: a node, a worker, a host, the beginning of one."""
    nodes_of = {(worker.node_id, worker.host): str(worker.node_id) for worker in present}
    targets = {*nodes_of.values(), *(drain.target for drain in drains)}
    workers = {str(worker.worker_id) for worker in present}
    yield {target for target in targets if target == name}
    yield {worker for worker in workers if worker == name}
    yield {node for (_, host), node in nodes_of.items() if host == name}
    if name:
        by_host = {node for (_, host), node in nodes_of.items() if host.startswith(name)}
        yield by_host | {target for target in targets if target.startswith(name)}
        yield {worker for worker in workers if worker.startswith(name)}


def _tell_not_drained(target: str, present: Sequence["WorkerRecord"], drains: Sequence["Drain"]) -> None:
    wanted = {drain.target for drain in drains}
    node = next((worker.node_id for worker in present if worker.worker_id == target), None)
    if node in wanted:
        click.echo(plain(f"{target} drains with its node; `jobqueue nodes resume {node}`"), err=True)
    else:
        click.echo(plain(f"{target} was not to drain"), err=True)


def _absent(drains: Sequence["Drain"], present: Sequence["WorkerRecord"]) -> list["Drain"]:
    there = {name for worker in present for name in (worker.node_id, worker.worker_id)}
    return [drain for drain in drains if drain.target not in there]


def _rows(worker: "WorkerRecord") -> list[dict[str, str]]:
    """Return a row for each device of a worker, or one without."""
    return [_row(worker, gauge) for gauge in worker.gauges or (None,)]


def _row(worker: "WorkerRecord", gauge: "Gauge | None") -> dict[str, str]:
    first, *further = worker.experiment_ids or (UNKNOWN,)
    return {
        "NODE": worker.node_id,
        "WORKER": worker.worker_id,
        "STATE": worker.condition,
        "EXPERIMENT": f"{first} +{len(further)}" if further else first,
        "DEVICE": (gauge.name or gauge.uuid) if gauge else UNKNOWN,
        "USE": UNKNOWN if gauge is None or gauge.utilisation_percent is None else f"{gauge.utilisation_percent}%",
        "GPU MEMORY": _describe_use(gauge.used_bytes, gauge.memory_bytes) if gauge else UNKNOWN,
        "CPUS": f"{worker.offer.cpus:g}",
        "MEMORY": describe_size(worker.offer.memory_bytes),
        "DISK": UNKNOWN if worker.free_disk_bytes is None else describe_size(worker.free_disk_bytes),
        "RUNTIME": _RUNTIMES.get(worker.runtime, worker.runtime),
        "AGE": _describe_age(worker),
    }


def _describe_use(used_bytes: int, total_bytes: int) -> str:
    return f"{describe_size(used_bytes)} of {describe_size(total_bytes)}" if total_bytes else UNKNOWN


def _describe_age(worker: "WorkerRecord") -> str:
    return describe_span(datetime.now(UTC) - worker.started_at) if worker.started_at else UNKNOWN


def _as_json(worker: "WorkerRecord") -> dict[str, Any]:
    """Return the record as JSON values; times are RFC 3339, sizes bytes."""
    offer = worker.offer
    return {
        "node": worker.node_id,
        "host": worker.host or None,
        "worker": worker.worker_id,
        "slot": worker.slot or None,
        "state": worker.condition,
        "detail": worker.detail,
        "queues": list(worker.queues),
        "experiments": list(worker.experiment_ids),
        "places": worker.places,
        "runtime": worker.runtime,
        "devices": [
            {
                "uuid": gauge.uuid,
                "name": gauge.name,
                "memory_bytes": gauge.memory_bytes,
                "used_bytes": gauge.used_bytes,
                "utilisation_percent": gauge.utilisation_percent,
            }
            for gauge in worker.gauges
        ],
        "offer": {
            "cpus": offer.cpus,
            "memory_bytes": offer.memory_bytes,
            "disk_bytes": offer.disk_bytes,
            "gpu_memory_bytes": list(offer.gpu_memory_bytes),
        },
        "free_disk_bytes": worker.free_disk_bytes,
        "version": worker.version or None,
        "started_at": write_instant(worker.started_at) or None,
    }


def _list(names: set[str] | set[Any]) -> str:
    return ", ".join(sorted(names))
