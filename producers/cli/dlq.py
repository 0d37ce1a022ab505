"""`jobqueue dlq`: what was set aside, why, and what becomes of it."""

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from jobqueue.errors import JobqueueError, NoSuchQueue, NotFound
from jobqueue.ids import ExperimentId
from jobqueue.printable import plain
from jobqueue.quantities import describe_size
from jobqueue.routing import DEAD, dead_letter_queue, first_queue, request_queues
from producers.cli.arguments import Duration, open_records, read_settings
from producers.cli.group import EXIT_ERROR, Group
from producers.cli.output import UNKNOWN, Format, format_option, write_fields, write_instant, write_json, write_rows

if TYPE_CHECKING:
    from jobqueue.brokers.base import Broker
    from jobqueue.config import Settings
    from jobqueue.registry.base import Experiments, Record, Submission
    from producers.cli.dead_letters import DeadLetter

_MOST: Final = 1000
_LONGEST_HEADER: Final = 200

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_queues_option: Final[_Decorator] = click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    metavar="QUEUE",
    help="Look only here; else in the project's queues and all that `jobqueue queues ls --all` shows.",
)
_limit_option: Final[_Decorator] = click.option(
    "--limit", type=click.IntRange(min=1), default=_MOST, show_default=True, help="Look at so many of each queue."
)
_all_option: Final[_Decorator] = click.option("--all", "is_all", is_flag=True, help="Every one.")


@click.group(cls=Group)
def dlq() -> None:
    """Dead letters: messages that were set aside, because they can never be processed or were tried too often.

    A MESSAGE is named by its number in `ls`, or by the id of its experiment. While a command looks at dead letters,
    another one does not see them; they are back when it is over.
    """


@dlq.command()
@click.argument("queues", nargs=-1, metavar="[QUEUE]...")
@_limit_option
@format_option
def ls(*, queues: tuple[str, ...], limit: int, form: str) -> None:
    """List what was set aside, oldest first."""
    from producers.cli.dead_letters import open_pile

    with closing(_open(read_settings())) as broker, open_pile(broker, _find(broker, queues), limit=limit) as pile:
        rows = [_row(letter) for letter in pile.letters]
        objects = [_as_json(letter) for letter in pile.letters]
        is_cut = pile.is_cut
    write_rows(form, rows=rows, objects=objects, name="MESSAGE")
    if is_cut:
        click.echo(f"there are more: give a --limit above {limit}", err=True)
    if not rows and form == Format.TABLE:
        click.echo("nothing was set aside", err=True)


@dlq.command()
@click.argument("message")
@_queues_option
@_limit_option
@format_option
def show(*, message: str, queues: tuple[str, ...], limit: int, form: str) -> None:
    """Show what is known of MESSAGE: all but its body, which is sealed."""
    from producers.cli.dead_letters import open_pile

    with closing(_open(read_settings())) as broker, open_pile(broker, _find(broker, queues), limit=limit) as pile:
        letters = pile.choose([message])
    found = [(letter, _state(letter)) for letter in letters]
    if form == Format.JSON:
        write_json([{**_as_json(letter), "state": state, "headers": letter.mail.headers} for letter, state in found])
        return
    for letter, state in found:
        write_fields(_fields(letter, state) if form == Format.TABLE else {"MESSAGE": letter.number})


@dlq.command()
@click.argument("messages", nargs=-1)
@_all_option
@_queues_option
@_limit_option
@click.pass_context
def replay(
    ctx: click.Context, /, *, messages: tuple[str, ...], is_all: bool, queues: tuple[str, ...], limit: int
) -> None:
    """Put MESSAGES back into their request queues, once what kept them from running is mended.

    What is final in the registry would not run again, whatever is done with its message: such an experiment is to be
    submitted again. What is no envelope at all can never run.
    """
    from jobqueue.application import make_app
    from jobqueue.publishing import Publisher
    from producers.cli.dead_letters import open_pile

    _require_choice(messages, is_all)
    settings = read_settings()
    with (
        closing(_open(settings)) as broker,
        closing(make_app(settings)) as app,
        closing(Publisher(broker=lambda: broker, app=lambda: app)) as publisher,
        open_records() as experiments,
        open_pile(broker, _find(broker, queues), limit=limit) as pile,
    ):
        refused = 0
        for letter in tuple(pile.letters) if is_all else pile.choose(messages):
            record = _find_record(letter, experiments)
            why = _why_not(letter, broker, record)
            if why:
                refused += 1
                click.echo(plain(f"{letter.number} stays: {why}"), err=True)
            else:
                publisher.publish([_as_sent(letter, broker, is_fast=bool(record and record.submission.is_fast))])
                pile.remove(letter)
                click.echo(plain(f"{letter.number} {letter.experiment_id}"))
    if refused:
        ctx.exit(EXIT_ERROR)


@dlq.command()
@click.argument("messages", nargs=-1)
@_all_option
@click.option("--older-than", type=Duration(), help="Only what was set aside longer ago, as in 14d.")
@click.option("--reason", help="Only what was set aside for this reason.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_queues_option
@_limit_option
def purge(
    *,
    messages: tuple[str, ...],
    is_all: bool,
    older_than: timedelta | None,
    reason: str | None,
    yes: bool,
    queues: tuple[str, ...],
    limit: int,
) -> None:
    """Remove MESSAGES for good."""
    from producers.cli.dead_letters import open_pile

    _require_choice(messages, is_all or older_than is not None or reason is not None)
    with closing(_open(read_settings())) as broker, open_pile(broker, _find(broker, queues), limit=limit) as pile:
        chosen = pile.choose(messages) if messages else pile.letters
        chosen = [each for each in chosen if reason in (None, each.reason) and _is_older(each, older_than)]
        if chosen and not yes:
            click.confirm(f"remove {len(chosen)} of {len(pile.letters)} for good?", abort=True, err=True)
        for letter in chosen:
            pile.remove(letter)
            click.echo(letter.number)


def _open(settings: "Settings") -> "Broker":
    from jobqueue.brokers import open_broker

    return open_broker(settings.broker, lease=settings.lease)


def _find(broker: "Broker", given: Sequence[str]) -> list[str]:
    """Return the request queues to look at: those that are given, or all that are known."""
    named = [name.removesuffix(DEAD) for name in given]
    for name in named:
        if not broker.queues.exists(dead_letter_queue(name)):
            raise NoSuchQueue(f"no such queue: {dead_letter_queue(name)}")
    if named:
        return named
    known = {*request_queues(read_settings().project), *(record.queue for record in broker.queues.listed())}
    return [name for name in sorted(known) if broker.queues.exists(dead_letter_queue(name))]


def _require_choice(messages: tuple[str, ...], is_enough: bool) -> None:  # noqa: FBT001 - a fact, not an option
    if not messages and not is_enough:
        raise click.UsageError("name the messages, or give --all")


def _find_record(letter: "DeadLetter", experiments: "Experiments") -> "Record | None":
    try:
        return experiments.get(ExperimentId(letter.experiment_id)) if letter.header else None
    except NotFound:
        return None


def _why_not(letter: "DeadLetter", broker: "Broker", record: "Record | None") -> str:
    """Return why it cannot run again; empty when it can."""
    if letter.header is None:
        return "it is no envelope of this version, so nothing here can run it; `jobqueue dlq purge` removes it"
    if letter.header.queue != letter.queue:
        return f"it was sent to the queue {letter.header.queue}, and no worker takes it from here"
    if not broker.queues.exists(letter.queue):
        return f"there is no queue {letter.queue} any more; `jobqueue queues create` makes it"
    if record is None or not record.state.is_final:
        return ""
    reason = f" ({record.reason.name})" if record.reason else ""
    return f"{letter.experiment_id} is {record.state}{reason}, which never changes: submit the experiment again"


def _as_sent(letter: "DeadLetter", broker: "Broker", *, is_fast: bool) -> "Submission":
    """Return it as its producer published it, for the queue in which it is to lie."""
    from jobqueue.registry.base import Submission

    header = letter.header
    if header is None:
        raise TypeError("what is no envelope cannot be published")
    first = first_queue(header.queue)
    return Submission(
        id=header.experiment_id,
        queue=first if is_fast and broker.queues.exists(first) else header.queue,
        project=header.project,
        resources=header.resources,
        submitted_at=header.submitted_at,
        expires_at=header.expires_at,
        message=letter.mail.body,
    )


def _is_older(letter: "DeadLetter", age: timedelta | None) -> bool:
    if age is None:
        return True
    return letter.set_aside_at is not None and datetime.now(UTC) - letter.set_aside_at > age


def _state(letter: "DeadLetter") -> str:
    """Return where its experiment is, as the registry knows it."""
    if not letter.experiment_id:
        return ""
    try:
        with open_records() as experiments:
            record = experiments.get(ExperimentId(letter.experiment_id))
    except NotFound:
        return "unknown to the registry"
    except JobqueueError as error:
        return f"not known now: {error.message}"
    return f"{record.state} {record.reason.name if record.reason else ''}".strip()


def _row(letter: "DeadLetter") -> dict[str, str]:
    return {
        "MESSAGE": letter.number,
        "QUEUE": letter.queue,
        "EXPERIMENT": letter.experiment_id or UNKNOWN,
        "REASON": letter.reason or UNKNOWN,
        "SET ASIDE": write_instant(letter.set_aside_at) or UNKNOWN,
        "SIZE": describe_size(letter.size_bytes),
        "DETAIL": letter.detail or UNKNOWN,
    }


def _fields(letter: "DeadLetter", state: str) -> dict[str, str]:
    headers = [f"{name}: {value[:_LONGEST_HEADER]}" for name, value in sorted(letter.mail.headers.items())]
    return {
        **_row(letter),
        "STATE": state,
        "CONTENT TYPE": letter.mail.content_type,
        "SUBMITTED": write_instant(letter.header.submitted_at if letter.header else None),
        "EXPIRES": write_instant(letter.header.expires_at if letter.header else None),
        "HEADERS": "\n".join(headers),
    }


def _as_json(letter: "DeadLetter") -> dict[str, Any]:
    return {
        "message": letter.number,
        "queue": letter.queue,
        "experiment_id": letter.experiment_id or None,
        "reason": letter.reason or None,
        "detail": letter.detail,
        "set_aside_at": write_instant(letter.set_aside_at) or None,
        "size_bytes": letter.size_bytes,
        "content_type": letter.mail.content_type,
    }
