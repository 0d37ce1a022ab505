"""`jobqueue keys`: the keys that messages are signed with, sealed to and trusted by."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobqueue.errors import NotFound
from producers.cli.arguments import read_settings
from producers.cli.output import format_option, write_instant, write_rows

if TYPE_CHECKING:
    from jobqueue.keys import KeyEntry, SealingPublicKey, SigningPublicKey

_NEXT = {
    "node": "where experiments are submitted and reports read:  jobqueue keys trust '<these lines>' [--queue PREFIX]",
    "sender": "on each node:  jobqueue keys trust '<this line>' [--queue PREFIX]",
    "reporting": "experiments submitted from here name it; for others, on each node:  "
    "jobqueue keys trust '<this line>' --queue PREFIX",
}


@click.group()
def keys() -> None:
    """Keys: a sender signs with its own, seals to a node's; a node trusts senders, each for some queues or for all."""


@keys.command()
@click.argument("role", type=click.Choice(["node", "sender", "reporting", "laptop"]))
def new(*, role: str) -> None:
    """Make the keys of a ROLE, the newest from now on, and write their public lines.

    Older ones stay valid until they are revoked: a new pair is the first half of a rotation. A `node` opens specs and
    signs reports, a `sender` signs specs, with `reporting` reports are opened. `laptop` makes what a machine needs that
    submits to itself, unless it is there: all of them, and trust in that sender.
    """
    from jobqueue.keys import ensure_laptop_keys

    folder = read_settings().keys_dir
    if role == "laptop":
        ensure_laptop_keys(folder)
        click.echo(f"a node's and a sender's keys that know each other are in {folder}", err=True)
        return
    for made in _make(role, folder):
        click.echo(made.line)
        click.echo(f"made {role} key {made.key_id} in {folder / role}", err=True)
    click.echo(_NEXT[role], err=True)


def _make(role: str, folder: Path) -> "Sequence[SealingPublicKey | SigningPublicKey]":
    from jobqueue.keys import make_node_keys, make_node_signer, make_reporting_keys, make_sender_keys

    if role == "node":
        return [make_node_keys(folder), make_node_signer(folder)]
    return [make_sender_keys(folder) if role == "sender" else make_reporting_keys(folder)]


@keys.command()
@click.argument("key_id", required=False)
@format_option
def show(*, key_id: str | None, form: str) -> None:
    """List the keys; with a KEY_ID, write the public line of that one."""
    from jobqueue.keys import list_keys

    folder = read_settings().keys_dir
    entries = list_keys(folder)
    if key_id:
        entries = [entry for entry in entries if entry.key_id == key_id]
        if not entries:
            raise NotFound(f"no key {key_id} in {folder}", hint="`jobqueue keys show` lists them")
        click.echo(entries[0].public.line)
        return
    if not entries:
        click.echo(f"no keys in {folder}; `jobqueue keys new sender` makes one", err=True)
    objects = [_as_json(entry) for entry in entries]
    write_rows(form, rows=[_as_row(entry) for entry in entries], objects=objects, name="KEY")


@keys.command()
@click.argument("key")
@click.option(
    "--queue", "prefix", default="", metavar="PREFIX", help="Only for queues that begin so; all when not given."
)
def trust(*, key: str, prefix: str) -> None:
    """Trust a public KEY: its line, a file that holds it, or - to read it from stdin; several at once, too.

    On a node: accept this sender's experiments, seal reports to this key. Elsewhere: seal to this node, and accept its
    reports.
    """
    from jobqueue.keys import trust_lines

    for key_id in trust_lines(read_settings().keys_dir, _read(key), queue_prefix=prefix):
        click.echo(key_id)


@keys.command()
@click.argument("key_id")
def revoke(*, key_id: str) -> None:
    """Take the key KEY_ID out of use; a node still opens what was sealed to it before."""
    from jobqueue.keys import revoke as take_out

    take_out(read_settings().keys_dir, key_id)
    click.echo(key_id)


def _read(key: str) -> str:
    if key == "-":
        return sys.stdin.read()
    if " " in key:
        return key
    try:
        return Path(key).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise NotFound(f"neither a key's line nor a file that can be read: {key} ({error.strerror})") from None


def _as_row(entry: "KeyEntry") -> dict[str, str]:
    return {
        "ROLE": entry.role,
        "KEY": entry.key_id,
        "HALF": "public" if entry.key is entry.public else "private",
        "QUEUES": f"{entry.queue_prefix}*",
        "MADE": write_instant(entry.key.created_at),
        "FILE": str(entry.path),
    }


def _as_json(entry: "KeyEntry") -> dict[str, Any]:
    return {
        "role": entry.role,
        "key_id": entry.key_id,
        "half": "public" if entry.key is entry.public else "private",
        "queue_prefix": entry.queue_prefix,
        "created_at": write_instant(entry.key.created_at),
        "file": str(entry.path),
        "line": entry.public.line,
    }
