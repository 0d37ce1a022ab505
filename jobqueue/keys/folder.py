"""The folder of keys: what is in it, and putting keys into it and out of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from jobqueue.errors import InvalidSetting, KeyRefused, NotFound
from jobqueue.ids import KeyId
from jobqueue.keys.files import PRIVATE_SUFFIX, PUBLIC_SUFFIX, check_folder, key_files, read_key, write_key
from jobqueue.keys.locking import unlock
from jobqueue.keys.parsing import Key, PublicKey, parse_key, parse_lines, parse_public
from jobqueue.keys.sealing import Reader, SealingKey
from jobqueue.keys.signing import Signer, SigningKey, SigningPublicKey

NODE: Final = "node"
SENDER: Final = "sender"
TRUSTED: Final = "trusted"
REPORTING: Final = "reporting"
CLERK: Final = "clerk"
OPERATOR: Final = "operator"
ROLES: Final = (NODE, SENDER, TRUSTED, REPORTING, CLERK, OPERATOR)

_T = TypeVar("_T")

OWN: Final[dict[Signer | Reader, str]] = {
    Reader.NODE: NODE,
    Reader.REPORTING: REPORTING,
    Signer.NODE: NODE,
    Signer.SENDER: SENDER,
    Signer.CLERK: CLERK,
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
        return _public_of(self.key)

    @property
    def key_id(self) -> KeyId:
        """The fingerprint of the public half."""
        return self.public.key_id


def trust(folder: Path, line: str, *, queue_prefix: str = "") -> KeyId:
    """Install a public key: accept this sender's messages, this node's reports, this clerk's grants, or seal to it.

    Args:
        folder: of all keys.
        line: the key's text form.
        queue_prefix: of the queues that it is for; empty: all that no longer prefix is given for.

    Raises:
        KeyRefused: the line is not a public key, or a weak one.
        InvalidSetting: the prefix is not the beginning of a queue's name.
    """
    check_prefix(queue_prefix)
    return _install(folder, parse_public(line), queue_prefix)


def trust_lines(folder: Path, text: str, *, queue_prefix: str = "") -> list[KeyId]:
    """Install each of several public keys, as `trust` does; none of them when one is refused."""
    check_prefix(queue_prefix)
    return [_install(folder, key, queue_prefix) for key in parse_lines(text)]


def revoke(folder: Path, key_id: str, *, passphrase: str = "") -> None:
    """Take a key out of use: its messages are refused, nothing is sealed to it or signed with it.

    Every file goes that is named after it or holds it, whatever else is in disorder, and whether or not it can be read;
    but a private key that opens is kept, because of what was sealed to it before.

    Raises:
        NotFound: there is no such key.
        KeyRefused: a file of it may be left, in a folder that cannot be read, or because it cannot be removed.
    """
    is_found, refused = False, list[KeyRefused]()
    for role in ROLES:
        try:
            paths = key_files(folder / role)
        except KeyRefused as error:
            refused.append(error)
            continue
        for path in paths:
            try:
                is_found = _take_out(path, key_id, passphrase) or is_found
            except KeyRefused as error:
                refused.append(error)
    for why in refused:
        told = f"the key {key_id} is out of use elsewhere, but {why.message}" if is_found else why.message
        raise KeyRefused(told, hint=why.hint)
    if not is_found:
        raise NotFound(f"no key {key_id} in {folder}", hint="`jobqueue keys show` lists them")


def _take_out(path: Path, key_id: str, passphrase: str) -> bool:
    """Remove a file if it is one of a key that is revoked; tells whether it was.

    Raises:
        KeyRefused: it cannot be removed, or may be a private key that opens and cannot be read.
    """
    is_named = path.stem.rpartition(".")[2] == key_id
    try:
        key = _read_key(path, passphrase)
    except FileNotFoundError:
        key = None  # a link to nothing, as yet
    except KeyRefused:
        if is_named and path.suffix == PRIVATE_SUFFIX and path.parent.name in (NODE, REPORTING):
            raise
        key = None
    if isinstance(key, SealingKey) or not (is_named or (key and _public_of(key).key_id == key_id)):
        return False
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        told = f"{path} cannot be removed: {error.strerror}"
        raise KeyRefused(told, hint="take it away, or out of the secret that is mounted there") from None
    return True


def survey_keys(folder: Path, *, passphrase: str = "") -> tuple[list[KeyEntry], list[KeyRefused]]:
    """Return every key of the folder that may be used, by role, the oldest first; and what is wrong with the others."""
    surveys = [_survey_role(folder / role, passphrase) for role in ROLES]
    refused = {error.message: error for _, each in surveys for error in each}  # a folder's that is around all, once
    return [entry for entries, _ in surveys for entry in entries], list(refused.values())


def list_keys(folder: Path, *, passphrase: str = "") -> list[KeyEntry]:
    """Return every key of the folder, by role, the oldest first.

    Raises:
        KeyRefused: a file is not a key, or not to be used; the message names it.
    """
    entries, refused = survey_keys(folder, passphrase=passphrase)
    for error in refused:
        raise error
    return entries


def read_role(folder: Path, *, passphrase: str = "") -> list[KeyEntry]:
    """Return every key of one role's folder, the oldest first.

    Raises:
        KeyRefused: a file is not a key, or not to be used; the message names it.
    """
    entries, refused = _survey_role(folder, passphrase)
    for error in refused:
        raise error
    return entries


def _survey_role(folder: Path, passphrase: str) -> tuple[list[KeyEntry], list[KeyRefused]]:
    entries, refused = list[KeyEntry](), list[KeyRefused]()
    try:
        for each in (folder.parent, folder):  # who may write to the first can put another folder in the second's place
            check_folder(each)
        paths = key_files(folder)
    except KeyRefused as error:
        return [], [error]
    for path in paths:
        try:
            entries.append(_read_entry(path, passphrase))
        except FileNotFoundError:
            continue  # it has just gone
        except KeyRefused as error:
            refused.append(error)
    return sorted(entries, key=lambda entry: (entry.key.created_at, entry.path.name)), refused


def _read_entry(path: Path, passphrase: str) -> KeyEntry:
    key = _read_key(path, passphrase)
    entry = KeyEntry(role=path.parent.name, queue_prefix=_queue_prefix(path), key=key, path=path)
    if path.name != file_name(entry.key_id, entry.queue_prefix, private=entry.key is not entry.public):
        raise KeyRefused(f"{path} is not named after its key", hint="install it with `jobqueue keys trust`")
    return entry


def _read_key(path: Path, passphrase: str) -> Key:
    """Return the key that a file holds.

    Raises:
        KeyRefused: it is none, or not to be used; the message names it.
        FileNotFoundError: it has gone.
    """
    try:
        return parse_key(unlock(read_key(path), passphrase=passphrase))
    except KeyRefused as error:
        if str(path) in error.message:
            raise
        raise KeyRefused(f"{path}: {error.message}", hint=error.hint) from None


def _public_of(key: Key) -> PublicKey:
    return key.public if isinstance(key, SealingKey | SigningKey) else key


def check_prefix(queue_prefix: str) -> None:
    """Return when queues can begin so.

    Raises:
        InvalidSetting: they cannot.
    """
    from jobqueue.spec import is_name  # whose checks take longer to load than all of this

    if queue_prefix and not is_name(queue_prefix):
        raise InvalidSetting(f"not a queue prefix: {queue_prefix!r}", hint="use letters, digits, - and _")


def most_specific(keys: Iterable[tuple[str, _T]], queue: str) -> list[_T]:
    """Return what has the longest prefix that the queue's name begins with."""
    matching = [(prefix, key) for prefix, key in keys if queue.startswith(prefix)]
    longest = max((len(prefix) for prefix, _ in matching), default=0)
    return [key for prefix, key in matching if len(prefix) == longest]


def _install(folder: Path, key: PublicKey, queue_prefix: str) -> KeyId:
    owner = key.signer if isinstance(key, SigningPublicKey) else key.reader
    role = TRUSTED if owner is Signer.SENDER else OWN[owner]
    write_key(folder / role / file_name(key.key_id, queue_prefix), key.line)
    return key.key_id


def file_name(key_id: KeyId, queue_prefix: str, *, private: bool = False) -> str:
    """Return the name of a key's file."""
    suffix = PRIVATE_SUFFIX if private else PUBLIC_SUFFIX
    return f"{queue_prefix}.{key_id}{suffix}" if queue_prefix else f"{key_id}{suffix}"


def _queue_prefix(path: Path) -> str:
    return path.stem.rpartition(".")[0]
