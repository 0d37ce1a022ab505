"""`jobqueue cancel` and `get`: end experiments, fetch what they left."""

import click

from jobqueue.lifecycle import State
from jobqueue.quantities import describe_size
from producers.cli.arguments import experiment_argument, experiments_argument, open_client
from producers.cli.group import EXIT_ERROR
from producers.cli.output import Format, format_option, write_left_out, write_rows


@click.command()
@experiments_argument
@format_option
@click.pass_context
def cancel(ctx: click.Context, /, *, experiments: tuple[str, ...], form: str) -> None:
    """Cancel EXPERIMENTS. One that runs is stopped at its worker's next renewal; one that is over stays as it is."""
    client = open_client(ctx)
    rows = []
    for experiment in [client.get(text) for text in experiments]:
        experiment.cancel()
        state = experiment.look().state
        rows.append({"ID": experiment.id, "STATE": state, "NOTE": _note(state)})
    objects = [{"id": row["ID"], "state": row["STATE"]} for row in rows]
    write_rows(form, rows=rows, objects=objects, name="ID")
    if any(row["STATE"] in (State.SUCCEEDED, State.FAILED) for row in rows):
        ctx.exit(EXIT_ERROR)


def _note(state: State) -> str:
    if state is State.CANCELLED:
        return "cancelled"
    return "over before it could be cancelled" if state.is_final else "will be stopped soon"


@click.command()
@experiment_argument
@click.argument("folder", default=None, required=False, type=click.Path())
@format_option
@click.pass_context
def get(ctx: click.Context, /, *, experiment: str, folder: str | None, form: str) -> None:
    """Download the outputs of EXPERIMENT into FOLDER (`outputs-<id>` when not given) and list them."""
    found = open_client(ctx).get(experiment)
    target = f"outputs-{found.id}" if folder is None else folder
    files = found.outputs.files
    paths = [str(path) for path in found.outputs.download(target)]
    rows = [
        {"PATH": path, "SIZE": describe_size(file.size_bytes), "SHA256": file.sha256}
        for path, file in zip(paths, files, strict=True)
    ]
    objects = [
        {"path": path, "size_bytes": file.size_bytes, "sha256": file.sha256}
        for path, file in zip(paths, files, strict=True)
    ]
    write_rows(form, rows=rows, objects=objects, name="PATH")
    write_left_out(found.outputs.left_out)
    if not files and form == Format.TABLE:
        click.echo(f"{found.id} left no outputs", err=True)
