"""The folder of keys: what is in it, and putting keys into it and out of it."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from jobqueue.errors import InvalidSetting, KeyRefused, NotFound
from jobqueue.ids import KeyId
from jobqueue.keys.files import PRIVATE_SUFFIX, PUBLIC_SUFFIX, check_folder, key_files, make_folder, read_key, write_key
from jobqueue.keys.lines import split_lines
from jobqueue.keys.parsing import Key, PrivateKey, PublicKey, parse_key, parse_public
from jobqueue.keys.sealing import Reader, SealingKey, SealingPublicKey, Suite, make_sealing_key
from jobqueue.keys.signing import Signer, SigningKey, SigningPublicKey, make_signing_key
from jobqueue.spec import is_name

NODE: Final = "node"
SENDER: Final = "sender"
TRUSTED: Final = "trusted"
REPORTING: Final = "reporting"
OPERATOR: Final = "operator"
ROLES: Final = (NODE, SENDER, TRUSTED, REPORTING, OPERATOR)

_OWN: Final[dict[Signer | Reader, str]] = {
    Reader.NODE: NODE,
    Reader.REPORTING: REPORTING,
    Signer.NODE: NODE,
    Signer.SENDER: SENDER,
    Signer.OPERATOR: OPERATOR,
}


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
    def public(self) -> PublicKey:
        """The key itself, or its public half."""
        return self.key.public if isinstance(self.key, SealingKey | SigningKey) else self.key

    @property
    def key_id(self) -> KeyId:
        """The fingerprint of the public half."""
        return self.public.key_id


def make_node_keys(folder: Path, *, suite: Suite = Suite.MLKEM768_X25519) -> SealingPublicKey:
    """Make a sealing pair, the newest from now on; older ones still open what was sealed to them.

    Returns:
        The public half; its `line` is what senders `trust`.
    """
    return _make_sealing(folder, Reader.NODE, suite)


def make_reporting_keys(folder: Path, *, suite: Suite = Suite.MLKEM768_X25519) -> SealingPublicKey:
    """Make a sealing pair for reports; whoever submits from here names it in each spec, older ones still open.

    Returns:
        The public half; its `line` is what nodes `trust` for the reports of queues whose specs name none.
    """
    return _make_sealing(folder, Reader.REPORTING, suite)


def make_node_signer(folder: Path) -> SigningPublicKey:
    """Make the pair that a node signs reports with, the newest from now on.

    Returns:
        The public half; its `line` is what those who read reports `trust`.
    """
    return _make_signing(folder, Signer.NODE)


def make_sender_keys(folder: Path) -> SigningPublicKey:
    """Make a signing pair, the newest from now on.

    Returns:
        The public half; its `line` is what nodes `trust`.
    """
    return _make_signing(folder, Signer.SENDER)


def trust(folder: Path, line: str, *, queue_prefix: str = "") -> KeyId:
    """Install a public key: accept this sender's messages, this node's reports, seal to this node, seal reports to it.

    Args:
        folder: of all keys.
        line: the key's text form.
        queue_prefix: of the queues that it is for; empty: all that no longer prefix is given for.

    Raises:
        KeyRefused: the line is not a public key, or a weak one.
        InvalidSetting: the prefix is not the beginning of a queue's name.
    """
    _check_prefix(queue_prefix)
    return _install(folder, parse_public(line), queue_prefix)


def trust_lines(folder: Path, text: str, *, queue_prefix: str = "") -> list[KeyId]:
    """Install each of several public keys, as `trust` does; none of them when one is refused."""
    _check_prefix(queue_prefix)
    keys = [parse_public(line) for line in split_lines(text)]
    return [_install(folder, key, queue_prefix) for key in keys]


def revoke(folder: Path, key_id: str) -> None:
    """Take a key out of use: its messages are refused, nothing is sealed to it or signed with it.

    A private key that opens is kept, because of what was sealed to it before.

    Raises:
        NotFound: there is no such key.
    """
    found = [entry for entry in list_keys(folder) if entry.key_id == key_id and not isinstance(entry.key, SealingKey)]
    if not found:
        raise NotFound(f"no key {key_id} in {folder}", hint="`jobqueue keys show` lists them")
    for entry in found:
        entry.path.unlink(missing_ok=True)


def ensure_laptop_keys(folder: Path) -> None:
    """Make, once, what a machine needs that submits to itself: its pairs, trust in its sender. Safe in processes.

    None to seal reports to: who submits from here to a queue of others would keep them from those who listen there.
    """
    make_folder(folder)
    with _locked(folder):
        entries = list_keys(folder)
        if not _has_whole_pair(entries, Reader.NODE):
            make_node_keys(folder)
        if not _signing(entries, Signer.NODE):
            make_node_signer(folder)
        signing = _signing(entries, Signer.SENDER)
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


def _make_sealing(folder: Path, reader: Reader, suite: Suite) -> SealingPublicKey:
    key = make_sealing_key(reader, suite, datetime.now(UTC))
    _write_pair(folder / _OWN[reader], key)
    return key.public


def _make_signing(folder: Path, signer: Signer) -> SigningPublicKey:
    key = make_signing_key(signer, datetime.now(UTC))
    _write_pair(folder / _OWN[signer], key)
    return key.public


def _has_whole_pair(entries: Sequence[KeyEntry], reader: Reader) -> bool:
    of_reader = [
        entry for entry in entries if isinstance(entry.public, SealingPublicKey) and entry.public.reader is reader
    ]
    private = {entry.key_id for entry in of_reader if isinstance(entry.key, SealingKey)}
    return any(entry.key is entry.public and entry.key_id in private for entry in of_reader)


def _signing(entries: Sequence[KeyEntry], signer: Signer) -> list[SigningKey]:
    keys = [entry.key for entry in entries if isinstance(entry.key, SigningKey)]
    return [key for key in keys if key.signer is signer]


def _check_prefix(queue_prefix: str) -> None:
    if queue_prefix and not is_name(queue_prefix):
        raise InvalidSetting(f"not a queue prefix: {queue_prefix!r}", hint="use letters, digits, - and _")


def _install(folder: Path, key: PublicKey, queue_prefix: str) -> KeyId:
    owner = key.signer if isinstance(key, SigningPublicKey) else key.reader
    role = TRUSTED if owner is Signer.SENDER else _OWN[owner]
    write_key(folder / role / _file_name(key.key_id, queue_prefix), key.line)
    return key.key_id


def _write_pair(folder: Path, key: PrivateKey) -> None:
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
