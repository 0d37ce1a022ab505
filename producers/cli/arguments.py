"""What several commands take: the client they work with, the experiment they are about, a duration."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from jobqueue.errors import JobqueueError
from jobqueue.quantities import parse_duration

if TYPE_CHECKING:
    from jobqueue.config import Settings
    from jobqueue.registry.base import Experiments
    from producers.client import Client

_OFFERED: Final = 50


def read_settings() -> "Settings":
    """Return the settings of this process; they are loaded here, because `--help` does not need them."""
    from jobqueue.config import Settings

    return Settings()


def open_client(ctx: click.Context) -> "Client":
    """Return the client of this command line, which is closed when the command is over."""
    root = ctx.find_root()
    if root.obj is None:
        from producers.client import Client

        client = Client(read_settings())
        root.call_on_close(client.close)
        root.obj = client
    found: Client = root.obj
    return found


@contextmanager
def open_records() -> Iterator["Experiments"]:
    """Give what the registry knows of all experiments, without a client's other connections."""
    from jobqueue.registry import open_registry

    with closing(open_registry(read_settings().registry)) as registry:
        yield registry.experiments


def _complete_experiment(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer ids of recent experiments; nothing when the registry cannot say."""
    del ctx, param
    try:
        with open_records() as experiments:
            records = experiments.find(prefix=incomplete, limit=_OFFERED)
    except JobqueueError:
        return []
    found = [CompletionItem(record.submission.id, help=_describe(record)) for record in records]
    return [*found, *([CompletionItem("last")] if "last".startswith(incomplete) else [])]


def _describe(record: Any) -> str:
    return f"{record.state} {record.submission.name}".strip()


class Duration(click.ParamType[timedelta]):
    """A duration as people write it: `90s`, `1h30m`, `2d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration; a wrong one is a usage error."""
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _ExperimentText(click.ParamType[str]):
    """What may mean an experiment; an empty text, of a variable that is not set, would mean any."""

    name = "experiment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text; an empty one is a usage error."""
        text = str(value)
        return text if text.strip() else self.fail(f"{text!r} means no experiment", param, ctx)


_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

experiment_argument: Final[_Decorator] = click.argument(
    "experiment", default="last", type=_ExperimentText(), shell_complete=_complete_experiment
)
experiments_argument: Final[_Decorator] = click.argument(
    "experiments", nargs=-1, required=True, type=_ExperimentText(), shell_complete=_complete_experiment
)
