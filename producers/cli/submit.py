"""`jobqueue submit` and `jobqueue run`: an experiment from options and a spec file to the queue, and to its end."""

import json
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from jobqueue.errors import ExperimentFailed, InvalidSpec, JobqueueError, Problem, StoreUnavailable, Unavailable
from jobqueue.lifecycle import Reason
from producers.cli.arguments import open_client
from producers.cli.follow import copy_output
from producers.cli.group import EXIT_INTERRUPTED, exit_code, show_error
from producers.cli.output import Format, format_option, write_json, write_left_out

if TYPE_CHECKING:
    from producers.client import Client
    from producers.handle import Experiment

_Command = Callable[..., Any]

# Texts go to the spec as they are, so that all that is wrong with them is said at once.
_PLAIN: Final = {
    "--image": "Container image, such as python:3.12-slim.",
    "--workspace": "Folder to work in, packed and uploaded once per content.",
    "--cpus": "Cores, fractions allowed.",
    "--memory": "As in 16GiB.",
    "--disk": "As in 50GiB.",
    "--shm-size": "Shared memory, as in 8GiB.",
    "--gpus": "Whole GPUs.",
    "--gpu-memory": "What each GPU has at least, as in 24GiB.",
    "--timeout": "How long it may run, as in 6h.",
    "--stall-timeout": "How long it may say nothing, as in 30m.",
    "--expires": "How long it may wait for a start, as in 2d.",
    "--retries": "How often it may be tried again after a fault of its own.",
    "--network": "none, egress or bridge.",
    "--project": "Owner of the queue.",
    "--priority": "normal; or fast: ahead of the others, for small experiments.",
    "--queue": "Request queue; chosen by project and GPUs when not given.",
    "--name": "A name to find it by.",
    "--idempotency-key": "Submitting again under the same key finds the first one.",
}
_PAIRS: Final = {
    "--env": ("NAME=VALUE", "Environment variable."),
    "--input": ("NAME=PATH|URI", "Seen as /inputs/NAME, read-only."),
    "--label": ("NAME=VALUE", "Label."),
}
_LISTS: Final = {
    "--output": ("PATH", "What to keep, inside the workspace; all of outputs/ when not given."),
    "--secret": ("NAME", "Environment variable of yours that travels sealed and is redacted everywhere."),
}
_PLURALS: Final = {"input": "inputs", "label": "labels", "output": "outputs", "secret": "secrets", "env": "env"}
_MAX_SPEC_BYTES: Final = 2**20


def _spec_options(command: _Command) -> _Command:
    """Add the options that describe an experiment."""
    decorators = [click.argument("command", nargs=-1, type=click.UNPROCESSED)]
    decorators += [
        click.option(
            "-f", "--file", "file", type=click.Path(path_type=Path), help="Spec as TOML or JSON; options win."
        ),
        *(click.option(name, help=text) for name, text in _PLAIN.items()),
        *(click.option(name, multiple=True, metavar=form, help=text) for name, (form, text) in _PAIRS.items()),
        *(click.option(name, multiple=True, metavar=form, help=text) for name, (form, text) in _LISTS.items()),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


@click.command(context_settings={"allow_interspersed_args": False})
@_spec_options
@format_option
@click.pass_context
def submit(ctx: click.Context, /, *, form: str, **given: Any) -> None:
    """Submit an experiment and print its id.

    \b
    jobqueue submit --image python:3.12-slim --workspace . --output model.pt -- python train.py
    jobqueue submit -f spec.toml --name second-try
    """  # noqa: D301 - \b keeps click from joining the lines
    experiment = _submit(open_client(ctx), given)
    if form == Format.JSON:
        write_json({"id": experiment.id, "state": experiment.state})
    else:
        click.echo(experiment.id)


@click.command(context_settings={"allow_interspersed_args": False})
@_spec_options
@click.option("-q", "--quiet", is_flag=True, help="Write nothing but the experiment's own output.")
@click.pass_context
def run(ctx: click.Context, /, *, quiet: bool, **given: Any) -> None:
    """Submit an experiment, follow its output, and exit with its exit code.

    What it writes to stdout and stderr comes out here as it does there. An end that is not the program's own gives 100
    (FAILED) or 103 (CANCELLED). Ctrl-C detaches: the experiment goes on.

    \b
    jobqueue run --image python:3.12-slim --cpus 2 --env SEED=1 --workspace . -- python train.py
    """  # noqa: D301 - \b keeps click from joining the lines
    experiment = _submit(open_client(ctx), given)
    if not quiet:
        click.echo(f"submitted {experiment.id}", err=True)
    try:
        with suppress(JobqueueError):  # what ended it is told by its result
            copy_output(experiment)
        if error := experiment.exception():  # what its result file holds is nothing to a shell
            raise error
    except KeyboardInterrupt:
        click.echo(f"\ndetached; {experiment.id} goes on", err=True)
        click.echo(f"  look again:  jobqueue logs -f {experiment.id}", err=True)
        click.echo(f"  cancel it:   jobqueue cancel {experiment.id}", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    except Unavailable as error:
        # The store is asked last, for how it has ended.
        fate = "is over" if isinstance(error, StoreUnavailable) else "goes on"
        error.add_note(f"{experiment.id} {fate}; look again: jobqueue logs -f {experiment.id}")
        raise
    except ExperimentFailed as error:
        show_error(ExperimentFailed(error.message, hint=error.hint))  # its last lines have just been seen
        is_its_own = error.reason == Reason.EXITED_NONZERO.name  # not what a signal of ours made of it
        code = error.exit_code or 0
        # The system keeps eight bits of it: what others wrote into the registry could become 0.
        ctx.exit(code if is_its_own and 0 < code < 256 else exit_code(error))  # noqa: PLR2004
    if not quiet:
        with suppress(JobqueueError):  # the end is known; the store may be away
            write_left_out(experiment.outputs.left_out)
        click.echo(f"{experiment.id} {experiment.state}", err=True)


def _submit(client: "Client", given: Mapping[str, Any]) -> "Experiment":
    try:
        with _warnings_as_messages():
            return client.submit(**make_fields(given))
    except KeyboardInterrupt as error:
        error.add_note("before it was submitted (if that came too late, `jobqueue ls` shows it)")
        raise


def make_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec from a file and the options given beside it.

    Raises:
        InvalidSpec: the file cannot be read or is neither TOML nor JSON.
        click.UsageError: a pair is not NAME=VALUE, or nothing is given at all.
    """
    from jobqueue.spec import ALIASES

    options = {name: given[name] for name in (option.strip("-").replace("-", "_") for option in _PLAIN)}
    chosen = {name: value for name, value in options.items() if value is not None}
    fields = read_spec(given["file"]) if given["file"] else {}
    fields = {name: value for name, value in fields.items() if ALIASES.get(name) not in chosen} | chosen
    for name in (option.strip("-") for option in _PAIRS):
        pairs, before = _pairs(given[name], option=name), fields.get(_PLURALS[name], {})
        if pairs and isinstance(before, Mapping):  # what is no mapping is told with all else that is wrong
            fields[_PLURALS[name]] = {**before, **pairs}
    for name in (option.strip("-") for option in _LISTS):
        if given[name]:
            fields[_PLURALS[name]] = list(given[name])
    if words := given["command"]:
        # One word is a line as for a shell: `jobqueue run ... "python train.py --lr 0.1"`.
        fields["command"] = words[0] if len(words) == 1 else list(words)
    if not fields:
        raise click.UsageError("nothing to submit: give --image and a command after --, or -f spec.toml")
    return fields


def read_spec(path: Path) -> dict[str, Any]:
    """Return the fields in a TOML or JSON file; its paths are relative to the folder of the file."""
    try:
        text = _read(path)
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InvalidSpec([Problem(path=str(path), message=f"cannot be read: {error.strerror}")]) from None
    except (ValueError, RecursionError) as error:
        raise InvalidSpec([Problem(path=str(path), message=f"not TOML or JSON: {error}")]) from None
    if not isinstance(fields, dict):
        raise InvalidSpec([Problem(path=str(path), message='not a table of fields (write image = "...")')])
    if "workspace" in fields:
        fields["workspace"] = _beside(path, fields["workspace"])
    if isinstance(fields.get("inputs"), dict):
        fields["inputs"] = {name: _beside(path, place) for name, place in fields["inputs"].items()}
    return fields


def _read(path: Path) -> str:
    with path.open("rb") as file:  # a pipe will do, and what has no end is not read to it
        content = file.read(_MAX_SPEC_BYTES + 1)
    if len(content) > _MAX_SPEC_BYTES:
        raise ValueError(f"longer than {_MAX_SPEC_BYTES} bytes")
    return content.decode()


def _beside(path: Path, place: Any) -> Any:
    is_elsewhere = not isinstance(place, str) or "://" in place or place.startswith(("store:", "~"))
    return place if is_elsewhere or not place else str(path.parent / place)


def _pairs(texts: Iterable[str], *, option: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.UsageError(f"--{option} {text}: not NAME=VALUE")
        pairs[name] = value
    return pairs


@contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Write what is warned of on stderr at once, each once, without a source line: packing may take a while."""
    told = set[str]()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in told:
            told.add(str(message))
            click.echo(f"{click.style('warning:', fg='yellow')} {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield
