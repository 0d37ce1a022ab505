"""`jobqueue keys`: the keys that messages are signed with, sealed to and trusted by."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from jobqueue.errors import KeyRefused, NotFound
from producers.cli.arguments import Duration, read_settings
from producers.cli.group import EXIT_ERROR, Group, show_error
from producers.cli.output import format_option, write_instant, write_rows
from producers.cli.published import prefix_option, publish, published, read_lines, unpublish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobqueue.config import Settings
    from jobqueue.ids import KeyId
    from jobqueue.keys import KeyEntry

_NEXT = {
    "node": "where experiments are submitted and reports read:  jobqueue keys trust '<these lines>' [--queue PREFIX]",
    "sender": "on each node:  jobqueue keys trust '<this line>' [--queue PREFIX]",
    "reporting": "experiments submitted from here name it; for others, on each node:  "
    "jobqueue keys trust '<this line>' --queue PREFIX",
    "clerk": "on each node:  jobqueue keys trust '<this line>' [--queue PREFIX]",
    "operator": "where experiments are submitted:  jobqueue keys trust '<this line>' [--queue PREFIX]; "
    "here, for each node:  jobqueue keys publish '<its lines>' [--queue PREFIX], or without lines to sign them anew",
}
_OVERLAP = timedelta(hours=1)


@click.group(cls=Group)
def keys() -> None:
    """Keys: a sender signs with its own, seals to a node's; a node trusts senders, each for some queues or for all."""


for command in (publish, unpublish, published):
    keys.add_command(command)


@keys.command()
@click.argument("role", type=click.Choice([*_NEXT, "laptop"]))
def new(*, role: str) -> None:
    """Make the keys of a ROLE, the newest from now on, and write their public lines.

    A `node` opens specs and signs reports, a `sender` signs specs, with `reporting` reports are opened, a `clerk`
    signs what it grants of the store, an `operator` signs the keys of nodes that it publishes. `laptop` makes what a
    machine needs that submits to itself, unless it is there: a node's and a sender's keys, and trust in that sender.
    Where JOBQUEUE_KEYS_PASSPHRASE or its _FILE is set, private keys are encrypted under it.
    """
    from jobqueue.keys import ensure_laptop_keys

    settings = read_settings()
    if role == "laptop":
        ensure_laptop_keys(settings.keys_dir, passphrase=settings.keys_passphrase)
        click.echo(f"a node's and a sender's keys that know each other are in {settings.keys_dir}", err=True)
        return
    _make(role, settings)
    click.echo(_NEXT[role], err=True)


@keys.command()
@click.argument("role", type=click.Choice(list(_NEXT)))
@click.option(
    "--after",
    type=Duration(),
    default=_OVERLAP,
    show_default="1h",
    help="Use it only then, so that it can be trusted elsewhere before.",
)
def rotate(*, role: str, after: timedelta) -> None:
    """Make new keys of a ROLE beside the old ones, write their public lines, and tell what comes next.

    Nothing is lost on the way: until the time of the new keys has come the old ones are used, and they stay valid until
    they are revoked.
    """
    from jobqueue.keys import read_role
    from jobqueue.spec import MAX_EXPIRES

    settings = read_settings()
    before = read_role(settings.keys_dir / role, passphrase=settings.keys_passphrase)
    old = sorted({entry.key_id for entry in before if entry.key is not entry.public})
    if not old:
        raise NotFound(f"there is no {role} key here to rotate", hint=f"make the first one: jobqueue keys new {role}")
    used_from = datetime.now(UTC) + after
    _make(role, settings, used_from=used_from)
    click.echo(f"used from {write_instant(used_from)} on; before that, {_NEXT[role]}", err=True)
    if role != "sender":
        click.echo(
            f"first of all, where others share these keys:  copy the folder {settings.keys_dir / role}", err=True
        )
    last = write_instant(used_from + MAX_EXPIRES)
    for key_id in old:
        told = f"{key_id} stays valid; from {last} on nothing needs it, here or where it is trusted"
        click.echo(f"{told}:  jobqueue keys revoke {key_id}", err=True)


def _make(role: str, settings: "Settings", *, used_from: datetime | None = None) -> None:
    from jobqueue.keys import Reader, Signer, make_pair, read_role

    owners: dict[str, list[Reader | Signer]] = {
        "node": [Reader.NODE, Signer.NODE],
        "sender": [Signer.SENDER],
        "reporting": [Reader.REPORTING],
        "clerk": [Signer.CLERK],
        "operator": [Signer.OPERATOR],
    }
    folder, passphrase = settings.keys_dir, settings.keys_passphrase
    read_role(folder / role, passphrase=passphrase)  # where one cannot be used, a new one could not either
    for owner in owners[role]:
        made = make_pair(folder, owner, passphrase=passphrase, used_from=used_from)
        click.echo(made.line)
        click.echo(f"made {role} key {made.key_id} in {folder / role}", err=True)


@keys.command()
@click.argument("key_id", required=False)
@format_option
@click.pass_context
def show(ctx: click.Context, *, key_id: str | None, form: str) -> None:
    """List the keys; with a KEY_ID, write the public line of that one.

    Files that cannot be used are named after the others, with what to do, and the exit code is 1.
    """
    from jobqueue.keys import survey_keys

    settings = read_settings()
    folder = settings.keys_dir
    entries, refused = survey_keys(folder, passphrase=settings.keys_passphrase)
    if key_id:
        entries = [entry for entry in entries if entry.key_id == key_id]
        if entries:
            click.echo(entries[0].public.line)
            return
        if not refused:
            raise NotFound(f"no key {key_id} in {folder}", hint="`jobqueue keys show` lists them")
    else:
        _write(entries, form)
        if not entries and not refused:
            click.echo(f"no keys in {folder}; `jobqueue keys new sender` makes one", err=True)
    for error in refused:
        show_error(error)
    if refused:
        ctx.exit(EXIT_ERROR)


def _write(entries: "Sequence[KeyEntry]", form: str) -> None:
    objects = [_as_json(entry) for entry in entries]
    write_rows(form, rows=[_as_row(entry) for entry in entries], objects=objects, name="KEY")


@keys.command()
@click.argument("key")
@prefix_option
def trust(*, key: str, prefix: str) -> None:
    """Trust a public KEY: its line, a file that holds it, or - to read it from stdin; several at once, too.

    On a node: accept this sender's experiments, seal reports to this key. Elsewhere: seal to this node, and accept its
    reports.
    """
    from jobqueue.keys import trust_lines

    settings = read_settings()
    trusted = trust_lines(settings.keys_dir, read_lines(key), queue_prefix=prefix)
    for key_id in trusted:
        click.echo(key_id)
    with suppress(NotFound, KeyRefused):  # other keys may be missing or in disorder, which is told where they are used
        _warn_of_own(settings, trusted, prefix)


def _warn_of_own(settings: "Settings", trusted: "list[KeyId]", prefix: str) -> None:
    """Say so where a site's key was trusted, and what is sent there is still sealed to this machine itself."""
    from jobqueue.keys import KeyRing, Signer, SigningPublicKey, list_keys

    entries = list_keys(settings.keys_dir, passphrase=settings.keys_passphrase)
    new = [entry.key for entry in entries if entry.key_id in trusted and entry.role in ("node", "operator")]
    if all(isinstance(key, SigningPublicKey) and key.signer is Signer.NODE for key in new):
        return
    used = KeyRing.of(settings).recipient(prefix).key_id
    if used not in trusted and any(entry.key_id == used and entry.key is not entry.public for entry in entries):
        told = f"what is sent to queues {prefix}* is still sealed to {used}, this machine's own key"
        click.echo(f"warning: {told} (trust with a longer --queue, or set JOBQUEUE_KEYS to another folder)", err=True)


@keys.command()
@click.argument("key_id")
def revoke(*, key_id: str) -> None:
    """Take the key KEY_ID out of use; a node still opens what was sealed to it before."""
    from jobqueue.keys import revoke as take_out
    from jobqueue.keys import survey_keys

    settings = read_settings()
    take_out(settings.keys_dir, key_id, passphrase=settings.keys_passphrase)
    click.echo(key_id)
    _, refused = survey_keys(settings.keys_dir, passphrase=settings.keys_passphrase)
    for error in refused:
        click.echo(f"warning: of what is left not all can be used: {error}", err=True)


def _as_row(entry: "KeyEntry") -> dict[str, str]:
    return {
        "ROLE": entry.role,
        "KEY": entry.key_id,
        "HALF": "public" if entry.key is entry.public else "private",
        "QUEUES": f"{entry.queue_prefix}*",
        "USED FROM": write_instant(entry.key.created_at),
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
