"""`jobqueue reports`: what workers tell, as lines or as JSON."""

import math
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import click

from jobqueue.printable import plain
from jobqueue.report import LogEntry, Progress, Report
from jobqueue.routing import reporting_queue, request_queues
from producers.cli.arguments import Duration, read_settings
from producers.cli.group import EXIT_INTERRUPTED, Group
from producers.cli.output import Format, colour, format_option, to_json, write_instant

_UNVERIFIED = (
    "anybody can have written these reports: no node is trusted to report on {} "
    "(`jobqueue keys trust LINE` with the line of the node's signing key)"
)


@click.group(cls=Group)
def reports() -> None:
    """Reports: what workers tell about each attempt, in a queue beside the request queue."""


@reports.command()
@click.option(
    "--queue", "queues", multiple=True, metavar="NAME", help="Request queue; the project's own when not given."
)
@click.option("-n", "--count", type=click.IntRange(min=1), help="Stop after so many reports.")
@click.option("--timeout", type=Duration(), help="Stop after so long, as in 10m.")
@format_option
@click.pass_context
def listen(
    ctx: click.Context, /, *, queues: tuple[str, ...], count: int | None, timeout: timedelta | None, form: str
) -> None:
    """Write each report as it comes, and take it from the queue, until Ctrl-C. JSON is one object to a line.

    Makes the reporting queues that are not there yet: workers report only where somebody listens. Where the keys here
    trust a node to report on a queue, what no such node has signed is refused, counted and told on stderr.
    """
    from jobqueue.brokers import open_broker
    from jobqueue.keys import KeyRing
    from producers import listener

    settings = read_settings()
    requests = queues or request_queues(settings.project)
    names, keys = [reporting_queue(queue) for queue in requests], KeyRing.of(settings)
    stop = threading.Event()
    left = count or math.inf

    def write(report: Report) -> None:
        nonlocal left
        _write(report, form)
        left -= 1
        if left <= 0:
            stop.set()

    with closing(open_broker(settings.broker, lease=settings.lease)) as broker, _stopping(stop, after=timeout):
        for name in names:
            broker.queues.create_plain(name)
        click.echo(f"listening to {', '.join(names)}", err=True)
        if unverified := [queue for queue in requests if not keys.trusts_nodes(queue)]:
            click.echo(_UNVERIFIED.format(", ".join(unverified)), err=True)
        try:
            listener.listen(broker, names, write, keys=keys, stop=stop, tell=_warn)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@contextmanager
def _stopping(stop: threading.Event, *, after: timedelta | None) -> Iterator[None]:
    """Set `stop` when the time is over."""
    timer = threading.Timer(after.total_seconds(), stop.set) if after else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer:
            timer.cancel()
            timer.join()


def _warn(sentence: str) -> None:
    click.echo(f"{click.style('warning:', fg='yellow')} {plain(sentence)}", err=True)


def _write(report: Report, form: str) -> None:
    if form == Format.JSON:
        click.echo(to_json(as_json(report)))
    elif form == Format.NAME:
        click.echo(plain(report.experiment_id))
    else:
        at, who = write_instant(report.at), f"{report.experiment_id or '-'} #{report.attempt}.{report.sequence}"
        label = "" if report.signed_by else " [not verified]"
        click.echo(f"{at}  {plain(who)}{label}  {colour(plain(describe(report)))}")


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
        "queue": report.queue or None,
        "signed_by": report.signed_by,
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
