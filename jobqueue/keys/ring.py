"""The keys that a running program uses: looked up by what they are for, re-read when a file changes."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from jobqueue.errors import KeyRefused, NotFound
from jobqueue.ids import KeyId
from jobqueue.keys.directory import Published, PublishedKeys
from jobqueue.keys.files import stamp
from jobqueue.keys.folder import CLERK, NODE, OPERATOR, REPORTING, SENDER, TRUSTED, KeyEntry, most_specific, read_role
from jobqueue.keys.sealing import Reader, SealingKey, SealingPublicKey, Suite
from jobqueue.keys.signing import Signer, SigningKey, SigningPublicKey

_LOOK_AGAIN_SECONDS = 1.0
_Any = TypeVar("_Any", SealingPublicKey, SigningKey)


class KeySettings(Protocol):
    """Where the keys are, and what is asked of them."""

    @property
    def keys_dir(self) -> Path:
        """The folder."""
        ...

    @property
    def keys_passphrase(self) -> str:
        """That private keys are under; empty: none is."""
        ...

    @property
    def weakest_suite(self) -> str:
        """The name of the weakest suite that is accepted."""
        ...


class KeyRing:
    """The keys of one folder. Safe in threads.

    Every look-up raises `NotFound` where there is no such key, and `KeyRefused` where any file of that role is not to
    be used: a folder that is only half understood would trust too much or too little.

    Args:
        folder: with a sub-folder for each role; it need not exist.
        passphrase: that private keys are under; empty: none is.
        weakest: nothing is sealed with a weaker suite, and nothing that was is opened.
        clock: seconds that only grow; files are looked at once a second at most.
        now: aware; a new key may be made for a later time.
        shown: returns what operators publish in the registry, by operator.
    """

    def __init__(
        self,
        folder: Path,
        *,
        passphrase: str = "",
        weakest: Suite = Suite.X25519,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        shown: Callable[[], Mapping[str, bytes]] = dict,
    ) -> None:
        self.folder, self.weakest, self._now = folder, weakest, now
        self._node, self._sender, self._trusted, self._reporting, self._clerk, self._operator = (
            _Watched(folder / role, passphrase=passphrase, clock=clock)
            for role in (NODE, SENDER, TRUSTED, REPORTING, CLERK, OPERATOR)
        )
        self._published = PublishedKeys(folder / OPERATOR, shown=shown, clock=clock, now=now)

    @classmethod
    def of(cls, settings: KeySettings, *, shown: Callable[[], Mapping[str, bytes]] = dict) -> "KeyRing":
        """Return the keys that settings name."""
        suite = Suite.of(settings.weakest_suite)
        return cls(settings.keys_dir, passphrase=settings.keys_passphrase, weakest=suite, shown=shown)

    def recipient(self, queue: str) -> SealingPublicKey:
        """Return what to seal to for a queue: the newest node key with the longest matching prefix.

        Where there is none for the queue in the folder, it is one that a trusted operator publishes.
        """
        found = most_specific(_sealing(self._node.entries(), Reader.NODE), queue)
        found = found or self._published.keys(_signing(self._operator.entries(), Signer.OPERATOR), queue)
        if not found:
            raise NotFound(
                f"no node's key to seal to for the queue {queue}, in {self.folder / NODE}",
                hint="`jobqueue keys new node` on the node, then `jobqueue keys trust LINE` here",
            )
        strong = [key for key in found if key.suite >= self.weakest]
        if not strong:
            raise KeyRefused(
                f"the node's key {found[-1].key_id} for the queue {queue} is of the suite {found[-1].suite.word}, "
                f"{self.weakest.word} is asked for",
                hint="`jobqueue keys rotate node` on the node, then `jobqueue keys trust LINE` here",
            )
        return self._current(strong)

    def published(self) -> list[Published]:
        """Return what trusted operators publish: of each the newest list that was ever seen here, even if it ended."""
        return self._published.lists([key for _, key in _signing(self._operator.entries(), Signer.OPERATOR)])

    def operators(self) -> list[SigningKey]:
        """Return what the list of published keys is signed with: by all, since some senders trust only an older one."""
        keys = _private_signing(self._operator.entries(), Signer.OPERATOR)
        if not keys:
            told = f"no key to sign published keys with, in {self.folder / OPERATOR}"
            raise NotFound(told, hint="`jobqueue keys new operator`, then `jobqueue keys trust LINE` on the senders")
        return keys

    def sender(self) -> SigningKey:
        """Return what to sign with: the newest sender key."""
        keys = _private_signing(self._sender.entries(), Signer.SENDER)
        if not keys:
            raise NotFound(
                f"no key to sign with, in {self.folder / SENDER}",
                hint="`jobqueue keys new sender`, then `jobqueue keys trust LINE` on the nodes",
            )
        return self._current(keys)

    def node_signer(self) -> SigningKey:
        """Return what this node signs reports with: the newest one."""
        keys = _private_signing(self._node.entries(), Signer.NODE)
        if not keys:
            raise NotFound(
                f"no key to sign reports with, in {self.folder / NODE}",
                hint="`jobqueue keys new node`, then `jobqueue keys trust LINES` where reports are read",
            )
        return self._current(keys)

    def node_key(self, key_id: KeyId) -> SealingKey:
        """Return the private node key with this id."""
        found = _private_sealing(self._node.entries(), Reader.NODE, key_id)
        if found is None:
            told = f"no node key {key_id:.40}, in {self.folder / NODE}"
            raise NotFound(told, hint="`jobqueue keys new node` makes one")
        return found

    def trusted(self, key_id: KeyId, *, queue: str) -> SigningPublicKey:
        """Return the sender's key with this id, if it is one of those with the longest prefix of the queue's name."""
        found = most_specific(_signing(self._trusted.entries(), Signer.SENDER), queue)
        return _named(key_id, found, told=f"the sender {key_id:.40} is not trusted for the queue {queue}")

    def trusted_node(self, key_id: KeyId, *, queue: str) -> SigningPublicKey:
        """Return the key with this id that a node signs reports with, if it is trusted for the request queue."""
        found = most_specific(_signing(self._node.entries(), Signer.NODE), queue)
        return _named(key_id, found, told=f"the node {key_id:.40} is not trusted to report on the queue {queue}")

    def clerk(self) -> SigningKey:
        """Return what this clerk signs its grants with: the newest one."""
        keys = _private_signing(self._clerk.entries(), Signer.CLERK)
        if not keys:
            raise NotFound(
                f"no key to sign grants with, in {self.folder / CLERK}",
                hint="`jobqueue keys new clerk`, then `jobqueue keys trust LINE` on the nodes",
            )
        return self._current(keys)

    def trusted_clerk(self, key_id: KeyId, *, queue: str) -> SigningPublicKey:
        """Return the key with this id that a clerk signs grants with, if it is trusted for the request queue."""
        found = most_specific(_signing(self._clerk.entries(), Signer.CLERK), queue)
        return _named(key_id, found, told=f"the clerk {key_id:.40} is not trusted for the queue {queue}")

    def reporting(self, queue: str) -> SealingPublicKey | None:
        """Return what to seal a queue's reports to where a spec names nothing, if anything."""
        found = most_specific(_sealing(self._reporting.entries(), Reader.REPORTING), queue)
        return self._strongest_current(found)

    def own_reporting(self) -> SealingPublicKey | None:
        """Return what the specs of this sender name for their reports: the newest one that can be opened here."""
        entries = self._reporting.entries()
        own = {entry.key_id for entry in entries if isinstance(entry.key, SealingKey)}
        found = [key for _, key in _sealing(entries, Reader.REPORTING) if key.key_id in own]
        return self._strongest_current(found)

    def reporting_key(self, key_id: KeyId) -> SealingKey:
        """Return the private key for reports with this id."""
        found = _private_sealing(self._reporting.entries(), Reader.REPORTING, key_id)
        if found is None or found.suite < self.weakest:
            told = f"no key {key_id:.40} for reports that may be used, in {self.folder / REPORTING}"
            raise NotFound(told, hint="`jobqueue keys new reporting` makes one, for what is submitted from then on")
        return found

    def _strongest_current(self, keys: Sequence[SealingPublicKey]) -> SealingPublicKey | None:
        strong = [key for key in keys if key.suite >= self.weakest]
        if keys and not strong:  # else what somebody wanted sealed would travel as it is
            told = f"the key {keys[-1].key_id} for reports is of a weaker suite than {self.weakest.word}"
            raise KeyRefused(told, hint="`jobqueue keys rotate reporting`, or revoke it")
        return self._current(strong) if strong else None

    def _current(self, keys: Sequence[_Any]) -> _Any:
        """Return the newest whose time has come; the oldest where clocks differ and none has."""
        now = self._now()
        return ([key for key in keys if key.created_at <= now] or keys[:1])[-1]

    def check_node(self, queues: Iterable[str]) -> None:
        """Return when a node can open messages and sign reports, and trusts somebody for each queue that it serves.

        Raises:
            NotFound: a key is missing; the hint says how to make or trust one.
        """
        keys = [entry.key for entry in self._node.entries()]
        if not any(isinstance(key, SealingKey) and key.suite >= self.weakest for key in keys):
            strong = f" of the suite {self.weakest.word} or a stronger one" if keys else ""
            told = f"no key to open messages with{strong}, in {self.folder / NODE}"
            raise NotFound(told, hint="`jobqueue keys new node`")
        self.node_signer()
        for queue in queues:
            if not self.trusts_any(queue):
                raise NotFound(
                    f"nobody is trusted to send to the queue {queue}, in {self.folder / TRUSTED}",
                    hint="`jobqueue keys trust LINE` with the line that `jobqueue keys new sender` printed",
                )

    def trusts_any(self, queue: str) -> bool:
        """Tell whether any sender is trusted for a queue."""
        return bool(most_specific(_signing(self._trusted.entries(), Signer.SENDER), queue))

    def trusts_nodes(self, queue: str) -> bool:
        """Tell whether any node is trusted to report on a queue."""
        return bool(most_specific(_signing(self._node.entries(), Signer.NODE), queue))


def _named(key_id: KeyId, keys: Iterable[SigningPublicKey], *, told: str) -> SigningPublicKey:
    for key in keys:
        if key.key_id == key_id:
            return key
    raise NotFound(told, hint="`jobqueue keys trust LINE`")


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

    def __init__(self, folder: Path, *, passphrase: str, clock: Callable[[], float]) -> None:
        self._folder, self._passphrase = folder, passphrase
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
            self._entries = read_role(self._folder, passphrase=self._passphrase)
            self._stamp = found
