"""`jobqueue queues`: what waits in request queues, and making, deleting and sweeping them."""

import re
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from jobqueue.errors import InvalidSetting, NoSuchQueue, RegistryUnavailable
from jobqueue.printable import plain
from jobqueue.routing import COMPANIONS, dead_letter_queue, is_request_queue, reporting_queue, request_queues
from producers.cli.arguments import Duration, open_records, read_settings
from producers.cli.group import Group
from producers.cli.output import UNKNOWN, format_option, write_instant, write_rows
from producers.cli.pausing import open_whole_registry, pause, resume
from producers.cli.standing import Standing, as_cells, as_values, read_standings

if TYPE_CHECKING:
    from jobqueue.brokers.base import Broker, QueueRecord
    from jobqueue.config import Settings
    from jobqueue.registry.base import Experiments
    from jobqueue.storage.base import Store
    from producers.cli.deletion import Deleted

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,69}")
_RULE: Final = f"use letters, digits, - and _, at most 70, not ending in {', '.join(COMPANIONS)}"
_EXPIRED: Final = "deleted"
_LETTERS_AT_ONCE: Final = 1000


@click.group(cls=Group)
def queues() -> None:
    """Request queues. Workers never make one: here is where that is done."""


queues.add_command(pause)
queues.add_command(resume)


@queues.command()
@click.argument("names", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Every project's.")
@format_option
def ls(*, names: tuple[str, ...], is_all: bool, form: str) -> None:
    """Show what waits and runs in NAMES and lies in their companions; the project's queues when none are given.

    READY and UNACKED are messages at the broker; RUNNING, OLDEST (of what waits) and WORKERS are the registry's. NEEDS
    is the least that the queue's messages were seen to ask for in the last minutes.
    """
    settings = read_settings()
    with closing(_open(settings)) as broker:
        records = {record.queue: record for record in broker.queues.listed()}
        wanted = names or (sorted(records) if is_all else request_queues(settings.project))
        asked = list(dict.fromkeys(name for queue in wanted for name in _all(queue)))
        depths = broker.survey.depths(asked)
    there = {name: depths[name] for name in asked if name in depths}
    if missing := [name for name in names if name not in there]:
        raise NoSuchQueue(f"no such queue: {', '.join(missing)}")
    if not there:
        click.echo("none of the project's queues is there; `jobqueue queues create` makes them", err=True)
    standings = _read_standings(settings, [name for name in there if is_request_queue(name)])
    rows = [
        {
            "QUEUE": name,
            "READY": str(depth.ready),
            "UNACKED": _count(depth.unacked),
            "CONSUMERS": _count(depth.consumers),
            **as_cells(standings.get(name)),
            **_noted(records.get(name)),
        }
        for name, depth in there.items()
    ]
    objects: list[dict[str, Any]] = [
        {
            "queue": name,
            "ready": depth.ready,
            "unacked": depth.unacked,
            "consumers": depth.consumers,
            **as_values(standings.get(name)),
            **{key.lower(): value for key, value in _noted(records.get(name)).items() if value != UNKNOWN},
        }
        for name, depth in there.items()
    ]
    write_rows(form, rows=rows, objects=objects, name="QUEUE")


@queues.command()
@click.argument("names", nargs=-1)
@click.option("--reporting", is_flag=True, help="Make the reporting queue of each as well: workers report only then.")
@click.option(
    "--expires", type=Duration(), help="Let the sweep delete it after so long when nothing needs it, as in 7d."
)
@click.option("--owner", default="", help="Whose it is, in words.")
@click.option("--retention", type=Duration(), help="Let the sweep remove dead letters after so long, as in 14d.")
def create(
    *,
    names: tuple[str, ...],
    reporting: bool,
    expires: timedelta | None,
    owner: str,
    retention: timedelta | None,
) -> None:
    """Make the request queues NAMES with their companions; the project's own pair when none are given.

    A queue that is there keeps what lies in it; its expiry, owner and retention become what is given now.
    """
    settings = read_settings()
    expires_at = datetime.now(UTC) + expires if expires is not None else None
    with closing(_open(settings)) as broker:
        for name in _checked(names) or request_queues(settings.project):
            broker.queues.create(name, expires_at=expires_at, owner=owner, retention=retention)
            click.echo(name)
            if reporting:
                broker.queues.create_plain(reporting_queue(name))
                click.echo(reporting_queue(name))


@queues.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(*, names: tuple[str, ...], yes: bool) -> None:
    """Delete the request queues NAMES, their companions, and all that waits in them.

    Their experiments that are not over are cancelled (QUEUE_DELETED); those that run are stopped within a minute.
    """
    from producers.cli.deletion import delete_queue

    settings = read_settings()
    with closing(_open(settings)) as broker, open_records() as experiments:
        experiments.find(limit=1)  # a registry that is away is told of before anything is deleted
        for name in _checked(names):
            if not broker.queues.exists(name):
                raise NoSuchQueue(f"no such queue: {name}", hint="`jobqueue queues ls` shows the project's")
            waiting = broker.queues.depth(name).ready
            if not yes:
                click.confirm(f"delete {name} and the {waiting} messages in it?", abort=True, err=True)
            done = delete_queue(name, broker=broker, experiments=experiments, store=_store(settings))
            _forget_pause(name)
            click.echo(name)
            _tell(name, done)


@queues.command()
@click.option("--force", is_flag=True, help="Delete expired queues although something waits or runs in them.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@format_option
def sweep(*, force: bool, dry_run: bool, form: str) -> None:
    """Delete request queues whose time is over, and dead letters that are older than their queue's retention.

    A queue in which something waits or runs is left for the next sweep. Let a timer call this once an hour.
    """
    from producers.cli.deletion import delete_queue

    settings = read_settings()
    rows = []
    with closing(_open(settings)) as broker, open_records() as experiments:
        for record in broker.queues.listed():
            verdict = _judge(record, broker, experiments, force=force)
            if verdict == _EXPIRED and not dry_run:
                done = delete_queue(record.queue, broker=broker, experiments=experiments, store=_store(settings))
                _forget_pause(record.queue)
                _tell(record.queue, done)
            elif verdict != _EXPIRED:
                removed = _remove_old_letters(record, broker, dry_run=dry_run)
                verdict = "; ".join(
                    part for part in (verdict, f"dead letters removed: {removed}" if removed else "") if part
                )
            if verdict:
                rows.append({"QUEUE": record.queue, "WHAT": verdict})
    objects = [{key.lower(): value for key, value in row.items()} for row in rows]
    write_rows(form, rows=rows, objects=objects, name="QUEUE")


def _judge(record: "QueueRecord", broker: "Broker", experiments: "Experiments", *, force: bool) -> str:
    """Return whether a queue is to be deleted, or why not although its time is over; empty while it is not over."""
    if not broker.queues.exists(record.queue):
        return _EXPIRED  # somebody deleted it by other means: its companions and experiments are still there
    if record.expires_at is None or datetime.now(UTC) < record.expires_at:
        return ""
    depth = broker.queues.depth(record.queue)
    if force or not (depth.ready or depth.unacked or experiments.find(queue=record.queue, limit=1)):
        return _EXPIRED
    return "expired, and kept: something waits or runs in it"


def _remove_old_letters(record: "QueueRecord", broker: "Broker", *, dry_run: bool) -> int:
    from producers.cli.dead_letters import open_pile

    if record.retention is None or not broker.queues.exists(dead_letter_queue(record.queue)):
        return 0
    oldest = datetime.now(UTC) - record.retention
    with open_pile(broker, [record.queue], limit=_LETTERS_AT_ONCE) as pile:
        old = [letter for letter in pile.letters if letter.set_aside_at and letter.set_aside_at < oldest]
        for letter in () if dry_run else old:
            pile.remove(letter)
    return len(old)


def _forget_pause(queue: str) -> None:
    """Let a queue of that name that is made later be served."""
    with open_whole_registry() as registry:
        registry.pauses.resume(queue)


def _tell(queue: str, done: "Deleted") -> None:
    if done.cancelled or done.stopping:
        told = f"{queue}: experiments cancelled: {done.cancelled}, being stopped: {done.stopping}"
        click.echo(told, err=True)


def _store(settings: "Settings") -> "Store":
    from jobqueue.storage import open_store

    return open_store(settings.storage, endpoint=settings.store_endpoint)


def _read_standings(settings: "Settings", queues: Sequence[str]) -> dict[str, Standing]:
    """Return how request queues stand, as far as the registry answers: what the broker knows is shown all the same."""
    from jobqueue.registry import open_registry

    try:
        with closing(open_registry(settings.registry)) as registry:
            return read_standings(registry, queues)
    except (InvalidSetting, RegistryUnavailable) as error:
        click.echo(f"warning: {plain(error.message)}", err=True)
        return {}


def _noted(record: "QueueRecord | None") -> dict[str, str]:
    return {
        "EXPIRES": (write_instant(record.expires_at) if record else "") or UNKNOWN,
        "OWNER": (record.owner if record else "") or UNKNOWN,
    }


def _open(settings: "Settings") -> "Broker":
    from jobqueue.brokers import open_broker

    return open_broker(settings.broker, lease=settings.lease)


def _all(queue: str) -> tuple[str, ...]:
    return (queue, *(queue + suffix for suffix in COMPANIONS)) if is_request_queue(queue) else (queue,)


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else str(number)


def _checked(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names if each can be that of a request queue on every broker."""
    wrong = [name for name in names if not _NAME.fullmatch(name) or not is_request_queue(name)]
    if wrong:
        raise click.UsageError(f"not the name of a request queue: {', '.join(map(repr, wrong)):.200} ({_RULE})")
    return names
