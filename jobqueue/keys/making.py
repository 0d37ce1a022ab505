"""New pairs of keys, each in its role's folder."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import overload

from jobqueue.keys.files import PUBLIC_SUFFIX, make_folder, write_key
from jobqueue.keys.folder import OWN, TRUSTED, KeyEntry, file_name, list_keys, trust
from jobqueue.keys.locking import lock
from jobqueue.keys.parsing import PrivateKey, PublicKey
from jobqueue.keys.sealing import Reader, SealingKey, SealingPublicKey, Suite, make_sealing_key
from jobqueue.keys.signing import Signer, SigningKey, SigningPublicKey, make_signing_key


@overload
def make_pair(
    folder: Path, owner: Reader, *, passphrase: str = "", used_from: datetime | None = None, suite: Suite = ...
) -> SealingPublicKey: ...
@overload
def make_pair(
    folder: Path, owner: Signer, *, passphrase: str = "", used_from: datetime | None = None, suite: Suite = ...
) -> SigningPublicKey: ...
@overload
def make_pair(
    folder: Path, owner: Reader | Signer, *, passphrase: str = "", used_from: datetime | None = None, suite: Suite = ...
) -> PublicKey: ...
def make_pair(
    folder: Path,
    owner: Reader | Signer,
    *,
    passphrase: str = "",
    used_from: datetime | None = None,
    suite: Suite = Suite.MLKEM768_X25519,
) -> PublicKey:
    """Make a pair; older ones stay, and still open what was sealed to them.

    Args:
        folder: of all keys.
        owner: whose.
        passphrase: that the private half's file is encrypted under; empty: it is not.
        used_from: aware; what is older is used until then. Now by default.
        suite: of a pair that is sealed to.

    Returns:
        The public half; its `line` is what others `trust`.
    """
    moment = used_from or datetime.now(UTC)
    key: PrivateKey
    key = make_sealing_key(owner, suite, moment) if isinstance(owner, Reader) else make_signing_key(owner, moment)
    path = folder / OWN[owner] / file_name(key.public.key_id, "", private=True)
    write_key(
        path, lock(key.line, passphrase=passphrase, created_at=moment)
    )  # first: who could open what is sealed to it?
    write_key(path.with_suffix(PUBLIC_SUFFIX), key.public.line)
    return key.public


def ensure_laptop_keys(folder: Path, *, passphrase: str = "") -> None:
    """Make, once, what a machine needs that submits to itself: its pairs, trust in its sender. Safe in processes.

    None to seal reports to: who submits from here to a queue of others would keep them from those who listen there.
    """
    make_folder(folder)
    with _locked(folder):
        entries = list_keys(folder, passphrase=passphrase)
        if not _has_node_pair(entries):
            make_pair(folder, Reader.NODE, passphrase=passphrase)
        if not _signing(entries, Signer.NODE):
            make_pair(folder, Signer.NODE, passphrase=passphrase)
        signing = _signing(entries, Signer.SENDER)
        sender = signing[-1].public if signing else make_pair(folder, Signer.SENDER, passphrase=passphrase)
        if not any(entry.role == TRUSTED and entry.key_id == sender.key_id for entry in entries):
            trust(folder, sender.line)


def _has_node_pair(entries: Sequence[KeyEntry]) -> bool:
    private = {entry.key_id for entry in entries if isinstance(entry.key, SealingKey)}
    public = [key for entry in entries if isinstance(key := entry.key, SealingPublicKey)]
    return any(key.reader is Reader.NODE and key.key_id in private for key in public)


def _signing(entries: Sequence[KeyEntry], signer: Signer) -> list[SigningKey]:
    keys = [entry.key for entry in entries if isinstance(entry.key, SigningKey)]
    return [key for key in keys if key.signer is signer]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
