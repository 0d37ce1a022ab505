"""The keys that a running program uses: looked up by what they are for, re-read when a file changes."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from jobqueue.errors import NotFound
from jobqueue.ids import KeyId
from jobqueue.keys.files import stamp
from jobqueue.keys.folder import NODE, REPORTING, SENDER, TRUSTED, KeyEntry, read_role
from jobqueue.keys.sealing import Reader, SealingKey, SealingPublicKey
from jobqueue.keys.signing import Signer, SigningKey, SigningPublicKey

_LOOK_AGAIN_SECONDS = 1.0
_Public = TypeVar("_Public", SealingPublicKey, SigningPublicKey)


class KeyRing:
    """The keys of one folder. Safe in threads.

    Every look-up raises `NotFound` where there is no such key, and `KeyRefused` where any file of that role is not to
    be used: a folder that is only half understood would trust too much or too little.

    Args:
        folder: with a sub-folder for each role; it need not exist.
        clock: seconds that only grow; files are looked at once a second at most.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._node = _Watched(folder / NODE, clock=clock)
        self._sender = _Watched(folder / SENDER, clock=clock)
        self._trusted = _Watched(folder / TRUSTED, clock=clock)
        self._reporting = _Watched(folder / REPORTING, clock=clock)

    def recipient(self, queue: str) -> SealingPublicKey:
        """Return what to seal to for a queue: the newest node key with the longest matching prefix."""
        found = _most_specific(_sealing(self._node.entries(), Reader.NODE), queue)
        if not found:
            raise NotFound(
                f"no node's key to seal to for the queue {queue}, in {self.folder / NODE}",
                hint="`jobqueue keys new node` on the node, then `jobqueue keys trust LINE` here",
            )
        return found[-1]

    def sender(self) -> SigningKey:
        """Return what to sign with: the newest sender key."""
        keys = _private_signing(self._sender.entries(), Signer.SENDER)
        if not keys:
            raise NotFound(
                f"no key to sign with, in {self.folder / SENDER}",
                hint="`jobqueue keys new sender`, then `jobqueue keys trust LINE` on the nodes",
            )
        return keys[-1]

    def node_signer(self) -> SigningKey:
        """Return what this node signs reports with: the newest one."""
        keys = _private_signing(self._node.entries(), Signer.NODE)
        if not keys:
            raise NotFound(
                f"no key to sign reports with, in {self.folder / NODE}",
                hint="`jobqueue keys new node`, then `jobqueue keys trust LINES` where reports are read",
            )
        return keys[-1]

    def node_key(self, key_id: KeyId) -> SealingKey:
        """Return the private node key with this id."""
        found = _private_sealing(self._node.entries(), Reader.NODE, key_id)
        if found is None:
            told = f"no node key {key_id:.40}, in {self.folder / NODE}"
            raise NotFound(told, hint="`jobqueue keys new node` makes one")
        return found

    def trusted(self, key_id: KeyId, *, queue: str) -> SigningPublicKey:
        """Return the sender's key with this id, if it is one of those with the longest prefix of the queue's name."""
        for key in _most_specific(_signing(self._trusted.entries(), Signer.SENDER), queue):
            if key.key_id == key_id:
                return key
        raise NotFound(
            f"the sender {key_id:.40} is not trusted for the queue {queue}", hint="`jobqueue keys trust LINE`"
        )

    def trusted_node(self, key_id: KeyId, *, queue: str) -> SigningPublicKey:
        """Return the key with this id that a node signs reports with, if it is trusted for the request queue."""
        for key in _most_specific(_signing(self._node.entries(), Signer.NODE), queue):
            if key.key_id == key_id:
                return key
        raise NotFound(
            f"the node {key_id:.40} is not trusted to report on the queue {queue}", hint="`jobqueue keys trust LINE`"
        )

    def reporting(self, queue: str) -> SealingPublicKey | None:
        """Return what to seal a queue's reports to where a spec names nothing, if anything."""
        found = _most_specific(_sealing(self._reporting.entries(), Reader.REPORTING), queue)
        return found[-1] if found else None

    def own_reporting(self) -> SealingPublicKey | None:
        """Return what the specs of this sender name for their reports: the newest one that can be opened here."""
        entries = self._reporting.entries()
        own = {entry.key_id for entry in entries if isinstance(entry.key, SealingKey)}
        found = [key for _, key in _sealing(entries, Reader.REPORTING) if key.key_id in own]
        return found[-1] if found else None

    def reporting_key(self, key_id: KeyId) -> SealingKey:
        """Return the private key for reports with this id."""
        found = _private_sealing(self._reporting.entries(), Reader.REPORTING, key_id)
        if found is None:
            told = f"no key {key_id:.40} for reports, in {self.folder / REPORTING}"
            raise NotFound(told, hint="`jobqueue keys new reporting` makes one, for what is submitted from then on")
        return found

    def check_node(self, queues: Iterable[str]) -> None:
        """Return when a node can open messages and sign reports, and trusts somebody for each queue that it serves.

        Raises:
            NotFound: a key is missing; the hint says how to make or trust one.
        """
        if not any(isinstance(entry.key, SealingKey) for entry in self._node.entries()):
            raise NotFound(f"no key to open messages with, in {self.folder / NODE}", hint="`jobqueue keys new node`")
        self.node_signer()
        for queue in queues:
            if not self.trusts_any(queue):
                raise NotFound(
                    f"nobody is trusted to send to the queue {queue}, in {self.folder / TRUSTED}",
                    hint="`jobqueue keys trust LINE` with the line that `jobqueue keys new sender` printed",
                )

    def trusts_any(self, queue: str) -> bool:
        """Tell whether any sender is trusted for a queue."""
        return bool(_most_specific(_signing(self._trusted.entries(), Signer.SENDER), queue))

    def trusts_nodes(self, queue: str) -> bool:
        """Tell whether any node is trusted to report on a queue."""
        return bool(_most_specific(_signing(self._node.entries(), Signer.NODE), queue))


def _most_specific(keys: Sequence[tuple[str, _Public]], queue: str) -> list[_Public]:
    """Return the keys with the longest prefix that the queue's name begins with."""
    matching = [(prefix, key) for prefix, key in keys if queue.startswith(prefix)]
    longest = max((len(prefix) for prefix, _ in matching), default=0)
    return [key for prefix, key in matching if len(prefix) == longest]


def _sealing(entries: Iterable[KeyEntry], reader: Reader) -> list[tuple[str, SealingPublicKey]]:
    keys = [(entry.queue_prefix, entry.key) for entry in entries]
    return [(prefix, key) for prefix, key in keys if isinstance(key, SealingPublicKey) and key.reader is reader]


def _signing(entries: Iterable[KeyEntry], signer: Signer) -> list[tuple[str, SigningPublicKey]]:
    keys = [(entry.queue_prefix, entry.key) for entry in entries]
    return [(prefix, key) for prefix, key in keys if isinstance(key, SigningPublicKey) and key.signer is signer]


def _private_signing(entries: Iterable[KeyEntry], signer: Signer) -> list[SigningKey]:
    keys = [entry.key for entry in entries]
    return [key for key in keys if isinstance(key, SigningKey) and key.signer is signer]


def _private_sealing(entries: Iterable[KeyEntry], reader: Reader, key_id: KeyId) -> SealingKey | None:
    for entry in entries:
        if isinstance(entry.key, SealingKey) and entry.key.reader is reader and entry.key_id == key_id:
            return entry.key
    return None


class _Watched:
    """One role's folder, read again when its files have changed."""

    def __init__(self, folder: Path, *, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._stamp: object = None
        self._entries: list[KeyEntry] = []

    def entries(self) -> list[KeyEntry]:
        """Return the keys, the oldest first."""
        with self._lock:
            now = self._clock()
            if now - self._looked_at >= _LOOK_AGAIN_SECONDS:
                self._look()
                self._looked_at = now  # not after a refusal: the next caller is told as well
            return self._entries

    def _look(self) -> None:
        found = stamp(self._folder)
        if found != self._stamp:
            self._entries = read_role(self._folder)
            self._stamp = found
