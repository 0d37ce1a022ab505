"""`jobqueue logs` and `wait`: an experiment's output, and its end."""

import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from jobqueue.errors import JobqueueError
from jobqueue.lifecycle import State
from jobqueue.printable import plain
from producers.cli.arguments import Duration, experiment_argument, experiments_argument, open_client
from producers.cli.group import EXIT_CANCELLED, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NOT_FINISHED
from producers.cli.output import format_option, write_output, write_rows
from producers.cli.records import as_json, as_row
from producers.timeline import explain

if TYPE_CHECKING:
    from producers.handle import Experiment

_PATIENCE: Final = timedelta(seconds=5)
_PATIENCE_OF_A_PIPE: Final = timedelta(minutes=1)


@click.command()
@experiment_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the experiment is over.")
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Only this one.")
@click.pass_context
def logs(ctx: click.Context, /, *, experiment: str, follow: bool, stream: str | None) -> None:
    """Print the output of EXPERIMENT: an id, the beginning of one, a name, or `last`.

    What it wrote to stdout and stderr comes out here as it did there.
    """
    found = open_client(ctx).get(experiment)
    record = found.look()
    if not record.attempt:  # an empty page would say nothing
        click.echo(explain(record), err=True)
    try:
        if stream:
            for line in found.logs(follow=follow, stream=stream):
                write_output(line)
        elif follow:
            copy_output(found)
        else:
            _copy(found, "stdout", follow=False)
            _copy(found, "stderr", follow=False)
    except KeyboardInterrupt:
        ctx.exit(EXIT_INTERRUPTED)


def copy_output(experiment: "Experiment") -> None:
    """Write both streams of an experiment to this process's own, as they come, until it is over.

    One that waits has no output: after a while it is told on stderr where it is, in brackets.

    Raises:
        Unavailable: a server did not answer for too long.
    """
    is_over = threading.Event()
    patience = _PATIENCE if sys.stderr.isatty() else _PATIENCE_OF_A_PIPE
    pause = partial(is_over.wait, patience.total_seconds())
    threading.Thread(target=tell_where, args=(experiment, pause), daemon=True).start()
    broken: list[JobqueueError] = []
    beside = threading.Thread(target=_copy_beside, args=(experiment, "stderr", broken), daemon=True)
    beside.start()
    try:
        _copy(experiment, "stdout", follow=True)
        beside.join()
    finally:
        is_over.set()
    if broken:
        raise broken[0]


def tell_where(experiment: "Experiment", pause: Callable[[], bool]) -> None:
    """Write on stderr where an experiment is that does not run, once for each place, until `pause` returns True.

    A registry that does not answer is waited for, and told of as well: where the experiment is, nobody knows then.
    """
    told = ""
    while not pause():
        try:
            record = experiment.look()
            sentence = told if record.state is State.RUNNING or record.state.is_final else explain(record)
        except JobqueueError as error:
            sentence = plain(f"{error.message}; waiting for it")
        if sentence != told:
            click.echo(f"[{sentence}]", err=True)
        told = sentence


def _copy_beside(experiment: "Experiment", stream: str, broken: list[JobqueueError]) -> None:
    try:
        _copy(experiment, stream, follow=True)
    except JobqueueError as error:
        broken.append(error)


def _copy(experiment: "Experiment", stream: str, *, follow: bool) -> None:
    for line in experiment.logs(follow=follow, stream=stream):
        write_output(line, err=stream == "stderr")


@click.command()
@experiments_argument
@click.option("--timeout", type=Duration(), help="How long to wait, as in 30m; for ever when not given.")
@format_option
@click.pass_context
def wait(ctx: click.Context, /, *, experiments: tuple[str, ...], timeout: timedelta | None, form: str) -> None:
    """Wait until all EXPERIMENTS are over and write how they ended.

    Exits with 0 when all SUCCEEDED, 100 when one FAILED, 103 when one was CANCELLED, 101 when the time is up.
    """
    from producers.outputs import confirm_end

    client = open_client(ctx)
    waiting = [client.get(text) for text in experiments]
    deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
    for experiment in waiting:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        experiment.wait(left)
    records = [confirm_end(experiment.look(), experiment.outputs) for experiment in waiting]
    write_rows(
        form, rows=[as_row(record) for record in records], objects=[as_json(record) for record in records], name="ID"
    )
    ctx.exit(_worst({record.state for record in records}))


def _worst(states: set[State]) -> int:
    if not all(state.is_final for state in states):
        return EXIT_NOT_FINISHED
    if State.FAILED in states:
        return EXIT_FAILED
    return EXIT_CANCELLED if State.CANCELLED in states else 0
