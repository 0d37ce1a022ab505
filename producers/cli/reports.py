"""`jobqueue reports`: what workers tell, as lines or as JSON."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import click

from jobqueue.errors import BadEnvelope, NoSuchQueue
from jobqueue.report import LogEntry, Progress, Report
from jobqueue.routing import reporting_queue, request_queues
from producers.cli.arguments import Duration, read_settings
from producers.cli.group import EXIT_INTERRUPTED
from producers.cli.output import Format, colour, format_option, plain, write_instant

if TYPE_CHECKING:
    from jobqueue.brokers.base import Broker, Mail

_SHORTEST_WAIT: Final = timedelta(milliseconds=200)


@click.group()
def reports() -> None:
    """Reports: what workers tell about each attempt, in a queue beside the request queue."""


@reports.command()
@click.option(
    "--queue", "queues", multiple=True, metavar="NAME", help="Request queue; the project's own when not given."
)
@click.option("--create", is_flag=True, help="Make the reporting queues first, if they are not there.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="Stop after so many reports.")
@click.option("--timeout", type=Duration(), help="Stop after so long, as in 10m.")
@format_option
@click.pass_context
def listen(
    ctx: click.Context,
    /,
    *,
    queues: tuple[str, ...],
    create: bool,
    count: int | None,
    timeout: timedelta | None,
    form: str,
) -> None:
    """Write each report as it comes, and take it from the queue, until Ctrl-C. JSON is one object to a line."""
    from jobqueue.brokers import open_broker

    settings = read_settings()
    names = [reporting_queue(queue) for queue in queues or request_queues(settings.project)]
    with closing(open_broker(settings.broker, lease=settings.lease)) as broker:
        listened = _existing(broker, names, create=create)
        click.echo(f"listening to {', '.join(listened)}", err=True)
        try:
            for mail in islice(_receive(broker, listened, timeout=timeout), count):
                _write_mail(mail, form)
                broker.post.acknowledge(mail)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


def _existing(broker: "Broker", names: Sequence[str], *, create: bool) -> list[str]:
    if create:
        for name in names:
            broker.queues.create_plain(name)
    found = [name for name in names if broker.queues.exists(name)]
    if not found:
        raise NoSuchQueue(
            f"nobody has made {' or '.join(names)}, so workers report nothing",
            hint="add --create, or `jobqueue queues create --reporting`",
        )
    return found


def _receive(broker: "Broker", queues: Sequence[str], *, timeout: timedelta | None) -> Iterator["Mail"]:
    """Yield messages from several queues in turn, unacknowledged."""
    until = None if timeout is None else time.monotonic() + timeout.total_seconds()
    while until is None or time.monotonic() < until:
        for queue in queues:
            mail = broker.post.receive(queue, timeout=_SHORTEST_WAIT)
            if mail is not None:
                yield mail


def _write_mail(mail: "Mail", form: str) -> None:
    from jobqueue.codec import decode_report

    try:
        report = decode_report(mail.body)
    except BadEnvelope as error:
        click.echo(f"left out what is not a report: {error.message}", err=True)
        return
    _write(report, form)


def _write(report: Report, form: str) -> None:
    if form == Format.JSON:
        click.echo(json.dumps(as_json(report), ensure_ascii=False))
    elif form == Format.NAME:
        click.echo(plain(report.experiment_id))
    else:
        at, who = write_instant(report.at), f"{report.experiment_id or '-'} #{report.attempt}.{report.sequence}"
        click.echo(f"{at}  {plain(who)}  {colour(plain(describe(report)))}")


def describe(report: Report) -> str:
    """Return what a report says, in one line."""
    payload = report.payload
    match payload:
        case Progress():
            code = f" (exit code {payload.error_code})" if payload.error_code else ""
            error = f" {payload.error}{code}" if payload.error else ""
            state = f" {report.state}" if report.state else ""
            reason = f" {report.reason.name}" if report.reason else ""
            shown = f" {payload.json}" if payload.json else ""
            return f"{payload.task_state.name.capitalize()}{state}{reason}{shown}{error}"
        case LogEntry():
            return f"{payload.severity.name.capitalize()}: {payload.message}"
        case _:
            return payload


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON values."""
    return {
        "time": report.at.isoformat(),
        "experiment_id": report.experiment_id,
        "unique_id": report.attempt_id,
        "executor_id": report.worker_id,
        "sequence": report.sequence,
        "attempt": report.attempt,
        "fencing_token": report.token,
        "state": report.state,
        "reason": report.reason.name if report.reason else None,
        "fault": report.fault,
        "exit_code": report.exit_code,
        "manifest": report.manifest or None,
        **_payload_as_json(report.payload),
    }


def _payload_as_json(payload: Progress | LogEntry | str) -> dict[str, Any]:
    match payload:
        case Progress():
            error = {"msg": payload.error, "code": payload.error_code} if payload.error or payload.error_code else None
            return {"progress": {"state": payload.task_state.name.capitalize(), "json": payload.json, "error": error}}
        case LogEntry():
            severity = payload.severity.name.capitalize()
            return {"logging": {"severity": severity, "message": payload.message, "fields": payload.fields}}
        case _:
            return {"text": payload}
