"""`jobqueue ls`, `show` and `why`: what is known of experiments."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from jobqueue.errors import ArtifactRefused, NotFound, StoreUnavailable
from jobqueue.printable import plain
from producers.cli.arguments import experiment_argument, open_client, open_records
from producers.cli.output import Format, format_option, write_fields, write_json, write_rows
from producers.cli.records import as_fields, as_json, as_row

if TYPE_CHECKING:
    from jobqueue.registry.base import Record
    from producers.handle import Experiment

_FURTHER: Final = 4


@click.command()
@click.option("-n", "--limit", default=50, show_default=True, type=click.IntRange(min=1), help="How many at most.")
@click.option("--name", default="", help="Only those of this name.")
@click.option("--project", default="", help="Only those of this project.")
@click.option("--active", is_flag=True, help="Only those that are not over.")
@format_option
def ls(*, limit: int, name: str, project: str, active: bool, form: str) -> None:
    """List experiments, newest first."""
    with open_records() as experiments:
        find = partial(experiments.find, name=name, project=project)
        records = _find_active(find, limit=limit) if active else find(limit=limit)
    if not records and form == Format.TABLE:
        click.echo("no experiments", err=True)
    write_rows(
        form, rows=[as_row(record) for record in records], objects=[as_json(record) for record in records], name="ID"
    )


@click.command()
@experiment_argument
@format_option
@click.pass_context
def show(ctx: click.Context, /, *, experiment: str, form: str) -> None:
    """Show all that is known of EXPERIMENT: an id, the beginning of one, a name, or `last`."""
    found = open_client(ctx).get(experiment)
    record = found.look()
    if form == Format.NAME:
        click.echo(record.submission.id)
        return
    sizes, left_out = _outputs(found) if record.state.is_final else ({}, ())
    if form == Format.JSON:
        outputs = [{"path": path, "size_bytes": size} for path, size in sizes.items()]
        write_json({**as_json(record), "outputs": outputs, "left_out": list(left_out)})
    else:
        write_fields({**as_fields(record, outputs=sizes), "left out": "\n".join(left_out)})


@click.command()
@experiment_argument
@click.pass_context
def why(ctx: click.Context, /, *, experiment: str) -> None:
    """Say where EXPERIMENT is, and what keeps it from going on: one cause to a line."""
    for line in open_client(ctx).get(experiment).why().splitlines():
        click.echo(plain(line))


def _find_active(find: Callable[..., list["Record"]], *, limit: int) -> list["Record"]:
    """Return the newest records that are not over, however many newer ones are."""
    asked = limit
    while True:
        found = find(limit=asked)
        active = [record for record in found if not record.state.is_final]
        if len(active) >= limit or len(found) < asked:
            return active[:limit]
        asked *= _FURTHER


def _outputs(experiment: "Experiment") -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the size in bytes of each output by path, and what was left out; nothing when the store cannot say."""
    outputs = experiment.outputs
    try:
        return {file.path: file.size_bytes for file in outputs.files}, outputs.left_out
    except (ArtifactRefused, NotFound, StoreUnavailable) as error:
        click.echo(f"no outputs: {plain(error.message)}", err=True)
        return {}, ()
