"""`jobqueue queues`: what waits in the project's request queues, and making and deleting them."""

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import click

from jobqueue.errors import InvalidSpec, NoSuchQueue, Problem
from jobqueue.routing import COMPANIONS, is_request_queue, reporting_queue, request_queues
from producers.cli.arguments import read_settings
from producers.cli.output import format_option, write_rows

if TYPE_CHECKING:
    from jobqueue.brokers.base import Broker, Depth
    from jobqueue.config import Settings

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,69}")
_RULE: Final = f"use letters, digits, - and _, at most 70, not ending in {', '.join(COMPANIONS)}"
_UNKNOWN: Final = "-"


@click.group()
def queues() -> None:
    """Request queues. Workers never make one: here is where that is done."""


@queues.command()
@click.argument("names", nargs=-1)
@format_option
def ls(*, names: tuple[str, ...], form: str) -> None:
    """Show how much waits in NAMES and in their companions; the project's own queues when none are given."""
    settings = read_settings()
    with closing(_open(settings)) as broker:
        found = {
            name: _depth(broker, name) for queue in names or request_queues(settings.project) for name in _all(queue)
        }
    there = {name: depth for name, depth in found.items() if depth}
    if missing := [name for name in names if name not in there]:
        raise NoSuchQueue(f"no such queue: {', '.join(missing)}")
    if not there:
        click.echo("none of the project's queues is there; `jobqueue queues create` makes them", err=True)
    rows = [
        {
            "QUEUE": name,
            "READY": str(depth.ready),
            "UNACKED": _count(depth.unacked),
            "CONSUMERS": _count(depth.consumers),
        }
        for name, depth in there.items()
    ]
    objects: list[dict[str, Any]] = [
        {"queue": name, "ready": depth.ready, "unacked": depth.unacked, "consumers": depth.consumers}
        for name, depth in there.items()
    ]
    write_rows(form, rows=rows, objects=objects, name="QUEUE")


@queues.command()
@click.argument("names", nargs=-1)
@click.option("--reporting", is_flag=True, help="Make the reporting queue of each as well: workers report only then.")
def create(*, names: tuple[str, ...], reporting: bool) -> None:
    """Make the request queues NAMES with their companions; the project's own pair when none are given."""
    settings = read_settings()
    with closing(_open(settings)) as broker:
        for name in _checked(names) or request_queues(settings.project):
            broker.queues.create(name)
            click.echo(name)
            if reporting:
                broker.queues.create_plain(reporting_queue(name))
                click.echo(reporting_queue(name))


@queues.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(*, names: tuple[str, ...], yes: bool) -> None:
    """Delete the request queues NAMES, their companions, and all that waits in them."""
    with closing(_open(read_settings())) as broker:
        for name in _checked(names):
            if not broker.queues.exists(name):
                raise NoSuchQueue(f"no such queue: {name}", hint="`jobqueue queues ls` shows the project's")
            waiting = broker.queues.depth(name).ready
            if not yes:
                click.confirm(f"delete {name} and the {waiting} messages in it?", abort=True, err=True)
            broker.queues.delete(name)
            if broker.queues.exists(reporting_queue(name)):
                broker.queues.delete(reporting_queue(name))
            click.echo(name)


def _open(settings: "Settings") -> "Broker":
    from jobqueue.brokers import open_broker

    return open_broker(settings.broker, lease=settings.lease)


def _all(queue: str) -> tuple[str, ...]:
    return (queue, *(queue + suffix for suffix in COMPANIONS)) if is_request_queue(queue) else (queue,)


def _depth(broker: "Broker", name: str) -> "Depth | None":
    try:
        return broker.queues.depth(name)
    except NoSuchQueue:
        return None


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else str(number)


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names if each can be that of a request queue on every broker."""
    wrong = [name for name in names if not _NAME.fullmatch(name) or not is_request_queue(name)]
    if wrong:
        raise InvalidSpec([Problem(path=name, message=f"not the name of a request queue ({_RULE})") for name in wrong])
    return names
