"""The folder of keys: what is in it, and putting keys into it and out of it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from jobqueue.errors import InvalidSetting, KeyRefused, NotFound
from jobqueue.ids import KeyId
from jobqueue.keys.files import PRIVATE_SUFFIX, PUBLIC_SUFFIX, check_folder, key_files, make_folder, read_key, write_key
from jobqueue.keys.lines import read_line
from jobqueue.keys.nodes import NodeKey, NodePublicKey, Suite, make_node_key
from jobqueue.keys.senders import KIND, PRIVATE_KIND, SenderKey, SenderPublicKey, make_sender_key
from jobqueue.spec import is_name

NODE: Final = "node"
SENDER: Final = "sender"
TRUSTED: Final = "trusted"
ROLES: Final = (NODE, SENDER, TRUSTED)

Key = NodeKey | NodePublicKey | SenderKey | SenderPublicKey


@dataclass(frozen=True, kw_only=True)
class KeyEntry:
    """One file of the folder.

    Attributes:
        role: the sub-folder.
        queue_prefix: of the queues it is for; empty: all of them.
    """

    role: str
    queue_prefix: str
    key: Key
    path: Path

    @property
    def public(self) -> NodePublicKey | SenderPublicKey:
        """The key itself, or its public half."""
        return self.key.public if isinstance(self.key, NodeKey | SenderKey) else self.key

    @property
    def key_id(self) -> KeyId:
        """The fingerprint of the public half."""
        return self.public.key_id


def make_node_keys(folder: Path, *, suite: Suite = Suite.MLKEM768_X25519) -> NodePublicKey:
    """Make a sealing pair, the newest from now on; older ones still open what was sealed to them.

    Returns:
        The public half; its `line` is what senders `trust`.
    """
    key = make_node_key(suite, datetime.now(UTC))
    _write_pair(folder / NODE, key)
    return key.public


def make_sender_keys(folder: Path) -> SenderPublicKey:
    """Make a signing pair, the newest from now on.

    Returns:
        The public half; its `line` is what nodes `trust`.
    """
    key = make_sender_key(datetime.now(UTC))
    _write_pair(folder / SENDER, key)
    return key.public


def trust(folder: Path, line: str, *, queue_prefix: str = "") -> KeyId:
    """Install a public key: accept this sender's messages, or seal to this node.

    Args:
        folder: of all keys.
        line: the key's text form.
        queue_prefix: of the queues that it is for; empty: all that no longer prefix is given for.

    Raises:
        KeyRefused: the line is not a public key, or a weak one.
        InvalidSetting: the prefix is not the beginning of a queue's name.
    """
    if queue_prefix and not is_name(queue_prefix):
        raise InvalidSetting(f"not a queue prefix: {queue_prefix!r}", hint="use letters, digits, - and _")
    key = parse_key(line)
    if isinstance(key, NodeKey | SenderKey):
        raise KeyRefused("this is a private key: never send it", hint="make new keys, and copy the .pub file's line")
    role = NODE if isinstance(key, NodePublicKey) else TRUSTED
    write_key(folder / role / _file_name(key.key_id, queue_prefix), key.line)
    return key.key_id


def revoke(folder: Path, key_id: str) -> None:
    """Take a key out of use: its messages are refused, nothing is sealed to it or signed with it.

    A node's private key is kept, so that it opens what was sealed to it before.

    Raises:
        NotFound: there is no such key.
    """
    found = [entry for entry in list_keys(folder) if entry.key_id == key_id and not isinstance(entry.key, NodeKey)]
    if not found:
        raise NotFound(f"no key {key_id} in {folder}", hint="`jobqueue keys show` lists them")
    for entry in found:
        entry.path.unlink(missing_ok=True)


def ensure_laptop_keys(folder: Path) -> None:
    """Make, once, what a machine needs that submits to itself: two pairs, trust in its sender. Safe in processes."""
    make_folder(folder)
    with _locked(folder):
        entries = list_keys(folder)
        opening = {entry.key_id for entry in entries if isinstance(entry.key, NodeKey)}
        if not any(isinstance(entry.key, NodePublicKey) and entry.key_id in opening for entry in entries):
            make_node_keys(folder)
        signing = [entry.key for entry in entries if isinstance(entry.key, SenderKey)]
        sender = signing[-1].public if signing else make_sender_keys(folder)
        if not any(entry.role == TRUSTED and entry.key_id == sender.key_id for entry in entries):
            trust(folder, sender.line)


def list_keys(folder: Path) -> list[KeyEntry]:
    """Return every key of the folder, by role, the oldest first.

    Raises:
        KeyRefused: a file is not a key, or not to be used; the message names it.
    """
    return [entry for role in ROLES for entry in read_role(folder / role)]


def read_role(folder: Path) -> list[KeyEntry]:
    """Return every key of one role's folder, the oldest first.

    Raises:
        KeyRefused: a file is not a key, or not to be used; the message names it.
    """
    if folder.exists():
        check_folder(folder)
    entries = [entry for path in key_files(folder) if (entry := _read_entry(path))]
    return sorted(entries, key=lambda entry: (entry.key.created_at, entry.path.name))


def parse_key(line: str) -> Key:
    """Return the key that a line is the text form of.

    Raises:
        KeyRefused: it is of no known kind, malformed or weak.
    """
    parts = read_line(line)
    content, created_at = parts.content, parts.created_at
    if parts.kind == KIND:
        return SenderPublicKey(content=content, created_at=created_at)
    if parts.kind == PRIVATE_KIND:
        return SenderKey(content=content, created_at=created_at)
    for suite in Suite:
        if parts.kind == suite.kind:
            return NodePublicKey(suite=suite, content=content, created_at=created_at)
        if parts.kind == suite.private_kind:
            return NodeKey(suite=suite, content=content, created_at=created_at)
    raise KeyRefused("not a key: of a kind that this version does not know", hint="update jobqueue here")


def _read_entry(path: Path) -> KeyEntry | None:
    """Return the key of a file; None where it has just gone."""
    try:
        key = parse_key(read_key(path))
    except FileNotFoundError:
        return None
    except KeyRefused as error:
        if str(path) in error.message:
            raise
        raise KeyRefused(f"{path}: {error.message}", hint=error.hint) from None
    entry = KeyEntry(role=path.parent.name, queue_prefix=_queue_prefix(path), key=key, path=path)
    if path.name != _file_name(entry.key_id, entry.queue_prefix, private=entry.key is not entry.public):
        raise KeyRefused(f"{path} is not named after its key", hint="install it with `jobqueue keys trust`")
    return entry


def _write_pair(folder: Path, key: NodeKey | SenderKey) -> None:
    name = _file_name(key.public.key_id, "", private=True)
    write_key(folder / name, key.line)  # first: nobody may seal to what cannot be opened
    write_key((folder / name).with_suffix(PUBLIC_SUFFIX), key.public.line)


def _file_name(key_id: KeyId, queue_prefix: str, *, private: bool = False) -> str:
    suffix = PRIVATE_SUFFIX if private else PUBLIC_SUFFIX
    return f"{queue_prefix}.{key_id}{suffix}" if queue_prefix else f"{key_id}{suffix}"


def _queue_prefix(path: Path) -> str:
    return path.stem.rpartition(".")[0]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
