"""`jobqueue queues pause` and `resume`: nothing is taken from a queue on any node, until somebody says so."""

import getpass
import socket
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from jobqueue.errors import NoSuchQueue
from jobqueue.printable import plain
from jobqueue.routing import is_request_queue
from producers.cli.arguments import read_settings

if TYPE_CHECKING:
    from jobqueue.registry.base import Registry


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--reason", default="", help="Why, in words; `queues ls`, `why` and who submits are told.")
def pause(*, names: tuple[str, ...], reason: str) -> None:
    """Have nothing taken from the request queues NAMES, on any node, until they are resumed.

    What runs goes on; what is submitted waits. Nodes learn of it with their next look at the queues
    (JOBQUEUE_QUEUE_REFRESH, 3 seconds when not set), and keep to it when they are started anew.
    """
    from jobqueue.brokers import open_broker
    from jobqueue.registry.pauses import Pause

    settings = read_settings()
    with closing(open_broker(settings.broker, lease=settings.lease)) as broker:
        missing = [name for name in names if not (is_request_queue(name) and broker.queues.exists(name))]
    if missing:
        raise NoSuchQueue(
            f"no such request queue: {', '.join(missing)}", hint="`jobqueue queues ls --all` shows what there is"
        )
    with open_whole_registry() as registry:
        now, known = registry.ping(), registry.pauses.paused()
        for name in names:
            if name in known:
                click.echo(plain(f"{name} was paused already, by {known[name].by}"), err=True)
            registry.pauses.pause(Pause(queue=name, at=now, by=_tell_who(), reason=reason))
            click.echo(name)
        if old := _find_old(registry, names):
            told = f"older workers that know no pause go on: {', '.join(old)} (update or stop them)"
            click.echo(plain(told), err=True)


@click.command()
@click.argument("names", nargs=-1, required=True)
def resume(*, names: tuple[str, ...]) -> None:
    """Have the request queues NAMES served again."""
    with open_whole_registry() as registry:
        for name in names:
            if not registry.pauses.resume(name):
                click.echo(f"{name} was not paused", err=True)
            click.echo(name)


@contextmanager
def open_whole_registry() -> "Iterator[Registry]":
    """Give all that the registry knows, without a client's other connections."""
    from jobqueue.registry import open_registry

    with closing(open_registry(read_settings().registry)) as registry:
        yield registry


def _find_old(registry: "Registry", queues: Collection[str]) -> list[str]:
    """Return who serves one of these queues and is of a version before pauses, which came with what goes ahead."""
    present = registry.workers.present()
    return [each.worker_id for each in present if not each.takes_first and not set(queues).isdisjoint(each.queues)]


def _tell_who() -> str:
    """Return whose command this is, as far as this machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
