"""The command group: it loads a command when it is used, and turns errors into messages and exit codes."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import click

from jobqueue.errors import (
    BrokerUnavailable,
    ExperimentCancelled,
    ExperimentFailed,
    ExperimentTimeout,
    IdempotencyMismatch,
    InvalidSetting,
    InvalidSpec,
    JobqueueError,
    NoSuchQueue,
    NotFound,
    RegistryUnavailable,
    Unavailable,
)
from jobqueue.printable import plain

EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 69
EXIT_FAILED: Final = 100
EXIT_NOT_FINISHED: Final = 101
EXIT_NOT_FOUND: Final = 102
EXIT_CANCELLED: Final = 103
EXIT_INTERRUPTED: Final = 130
_SENTENCE: Final = 300

_EXIT_CODES: Final[Mapping[type[JobqueueError] | tuple[type[JobqueueError], ...], int]] = {
    (InvalidSpec, InvalidSetting, IdempotencyMismatch): EXIT_USAGE,
    Unavailable: EXIT_UNAVAILABLE,
    ExperimentFailed: EXIT_FAILED,
    ExperimentTimeout: EXIT_NOT_FINISHED,
    (NotFound, NoSuchQueue): EXIT_NOT_FOUND,
    ExperimentCancelled: EXIT_CANCELLED,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A command that is not loaded yet: `module:attribute`, and its line in the help."""

    target: str
    summary: str


class Group(click.Group):
    """A group whose help says of each command a whole sentence, on as many lines as that takes."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(_SENTENCE)) for name, found in commands if found])


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, so that `--help` stays quick."""

    def __init__(self, *args: Any, entries: Mapping[str, Entry], **options: Any) -> None:
        super().__init__(*args, **options)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        del ctx
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.entries:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.entries[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for a name that is none, say which one is close."""
        if args and self.get_command(ctx, args[0]) is None:
            close = difflib.get_close_matches(args[0], self.entries, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise click.UsageError(f"no such command: {args[0]!r}{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.entries.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours becomes `error:` and `hint:` on stderr, and an exit code."""
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            ctx.color = False
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except JobqueueError as error:
            show_error(error)
            ctx.exit(exit_code(error))
        except KeyboardInterrupt as error:
            click.echo(" ".join(["interrupted", *getattr(error, "__notes__", ())]), err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except (
            OSError
        ) as error:  # of the user's own disk: a folder that is a file, a full one, one that is not writable
            name = f": {error.filename2 or error.filename}" if error.filename else ""
            _show(f"{error.strerror or error}{name}")
            click.echo("hint: name another path, or mend this one; `jobqueue --debug ...` shows who needs it", err=True)
            ctx.exit(EXIT_ERROR)
        except Exception as error:  # noqa: BLE001 - the outer edge: a traceback helps nobody who only typed a command
            _show(f"{type(error).__name__}: {error}")
            click.echo("hint: this is a fault of jobqueue; `jobqueue --debug ...` shows where", err=True)
            ctx.exit(EXIT_ERROR)


def exit_code(error: JobqueueError) -> int:
    """Return the exit code of an error."""
    return next((code for kinds, code in _EXIT_CODES.items() if isinstance(error, kinds)), EXIT_ERROR)


def show_error(error: JobqueueError) -> None:
    """Write what happened and what to do, on stderr."""
    _show(error.message)
    for line in error.last_lines if isinstance(error, ExperimentFailed) else ():
        click.echo(f"  | {plain(line.expandtabs())}", err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"note: {plain(note)}", err=True)
    if hint := find_hint(error):
        click.echo(f"hint: {plain(hint)}", err=True)


def _show(message: str) -> None:
    lines = "\n".join(map(plain, message.splitlines()))
    click.echo(f"{click.style('error:', fg='red')} {lines}", err=True)


def find_hint(error: JobqueueError) -> str:
    """Return what to do; where nothing is set up yet, that is to start everything here."""
    if isinstance(error, BrokerUnavailable | RegistryUnavailable):
        from jobqueue.config import Settings

        settings = Settings()
        url = settings.broker if isinstance(error, BrokerUnavailable) else settings.registry
        if url.startswith("redis+socket"):
            return "start everything on this machine with `jobqueue dev`, or set JOBQUEUE_BROKER_URL to a server"
    return error.hint
