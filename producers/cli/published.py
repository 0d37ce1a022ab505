"""`jobqueue keys publish`: what an operator lets be known of node keys, through the registry and under a signature."""

import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from jobqueue.errors import KeyRefused, NotFound
from producers.cli.arguments import read_settings
from producers.cli.output import Format, format_option, write_instant, write_rows

if TYPE_CHECKING:
    from jobqueue.config import Settings
    from jobqueue.keys import SealingPublicKey

    _Listed = list[tuple[str, SealingPublicKey]]

# Each that fails is one in which somebody else has published.
_TRIES: Final = 50

prefix_option = click.option(
    "--queue", "prefix", default="", metavar="PREFIX", help="Only for queues that begin so; all when not given."
)


def read_lines(key: str) -> str:
    """Return the text that a user means by a key: its lines, those of a file, or of stdin for `-`."""
    if key == "-":
        return sys.stdin.buffer.read().decode("ascii", "replace")
    if " " in key:
        return key
    try:
        return Path(key).read_text(encoding="ascii", errors="replace")
    except (OSError, ValueError) as error:  # a ValueError where it is no path
        told = error.strerror if isinstance(error, OSError) else "not a path"
        raise NotFound(f"neither a key's line nor a file that can be read: {key!r} ({told})") from None


def read_documents(settings: "Settings") -> dict[str, bytes]:
    """Return what the registry shows of published keys, by operator."""
    from jobqueue.registry import open_registry

    with closing(open_registry(settings.registry)) as registry:
        return registry.directory.documents()


@click.command()
@click.argument("key", required=False)
@prefix_option
def publish(*, key: str | None, prefix: str) -> None:
    """Publish node keys through the registry, signed as an operator: KEY is their lines, a file, or - for stdin.

    Whoever trusts this operator seals to them, where no key of a folder of its own is for the queue, and for
    JOBQUEUE_PUBLISHED_FOR from now on: without a KEY, what is published is signed anew.
    """
    from jobqueue.keys import Reader, SealingPublicKey, check_prefix, parse_lines

    if key is None:
        if prefix:
            raise click.UsageError("--queue is of a KEY")
        _publish(_again)
        return
    check_prefix(prefix)
    found = [each for each in parse_lines(read_lines(key)) if isinstance(each, SealingPublicKey)]
    new = [(prefix, each) for each in found if each.reader is Reader.NODE]
    if not new:
        raise KeyRefused("no node's key to seal to", hint="copy the lines that `jobqueue keys new node` has printed")
    _publish(lambda listed: [*(pair for pair in listed if pair not in new), *new])
    for _, each in new:
        click.echo(each.key_id)


def _again(listed: "_Listed") -> "_Listed":
    if not listed:
        raise NotFound("this operator publishes nothing", hint="`jobqueue keys publish LINES` with a node's lines")
    return listed


@click.command()
@click.argument("key_id")
def unpublish(*, key_id: str) -> None:
    """Take the node's key KEY_ID out of what this operator publishes."""

    def without(listed: "_Listed") -> "_Listed":
        left = [pair for pair in listed if pair[1].key_id != key_id]
        if len(left) == len(listed):
            raise NotFound(f"the key {key_id} is not published", hint="`jobqueue keys published` lists them")
        return left

    _publish(without)
    click.echo(key_id)


@click.command()
@format_option
def published(*, form: str) -> None:
    """List the node keys that trusted operators publish."""
    from jobqueue.keys import KeyRing

    settings = read_settings()
    lists = KeyRing.of(settings, shown=lambda: read_documents(settings)).published()
    rows = [
        {
            "KEY": key.key_id,
            "QUEUES": f"{prefix}*",
            "USED FROM": write_instant(key.created_at),
            "OPERATOR": found.operator,
            "SIGNED": write_instant(found.at),
            "UNTIL": write_instant(found.until),
        }
        for found in lists
        for prefix, key in found.keys
    ]
    objects = [{name.lower().replace(" ", "_"): text for name, text in row.items()} for row in rows]
    write_rows(form, rows=rows, objects=objects, name="KEY")
    if not rows and form == Format.TABLE:
        click.echo("no operator that is trusted here publishes a key", err=True)


def _publish(change: "Callable[[_Listed], _Listed]") -> None:
    """Change what is published, also where somebody else does at the same time."""
    from jobqueue.keys import KeyRing
    from jobqueue.registry import open_registry

    settings = read_settings()
    with closing(open_registry(settings.registry)) as registry:
        for _ in range(_TRIES):
            shown = registry.directory.documents()
            until, signed = _sign(change, settings, shown)
            if registry.directory.put(signed, seen=shown):
                break
        else:
            told = "somebody else publishes all the while, and nothing was changed"
            raise KeyRefused(told, hint="run it again; `jobqueue keys published` lists what there is")
    KeyRing.of(settings, shown=lambda: signed).published()  # kept here as well
    click.echo(f"signed until {write_instant(until)}; `jobqueue keys publish` signs it anew", err=True)


def _sign(
    change: "Callable[[_Listed], _Listed]", settings: "Settings", shown: dict[str, bytes]
) -> tuple[datetime, dict[str, bytes]]:
    """Return until when the changed list counts, and it as each operator whose key is here signs it."""
    from jobqueue.keys import KeyRing, sign_list

    ring = KeyRing.of(settings, shown=lambda: shown)
    operators = {each.public.key_id: each for each in ring.operators()}
    own = [found for found in ring.published() if found.operator in operators]
    newest = max(own, key=lambda found: found.at, default=None)  # of one that could not be put everywhere, too
    if newest and newest.unknown:
        told = "keys are published of a kind that this version does not know, and would be lost"
        raise KeyRefused(told, hint="update jobqueue here")
    listed = change(list(newest.keys) if newest else [])
    at = max([datetime.now(UTC), *(found.at + timedelta(microseconds=1) for found in own)])
    until = at + settings.published_for
    return until, {name: sign_list(listed, at=at, until=until, operator=each) for name, each in operators.items()}
