"""The keys that a running program uses: looked up by what they are for, re-read when a file changes."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jobqueue.errors import NotFound
from jobqueue.ids import KeyId
from jobqueue.keys.files import stamp
from jobqueue.keys.folder import NODE, SENDER, TRUSTED, KeyEntry, read_role
from jobqueue.keys.nodes import NodeKey, NodePublicKey
from jobqueue.keys.senders import SenderKey, SenderPublicKey

_LOOK_AGAIN_SECONDS = 1.0


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

    def recipient(self, queue: str) -> NodePublicKey:
        """Return what to seal to for a queue: the newest node key with the longest matching prefix."""
        keys = [entry.key for entry in _most_specific(self._node.entries(), queue)]
        public = [key for key in keys if isinstance(key, NodePublicKey)]
        if not public:
            raise NotFound(
                f"no node's key to seal to for the queue {queue}, in {self.folder / NODE}",
                hint="`jobqueue keys new node` on the node, then `jobqueue keys trust LINE` here",
            )
        return public[-1]

    def sender(self) -> SenderKey:
        """Return what to sign with: the newest sender key."""
        keys = [entry.key for entry in self._sender.entries() if isinstance(entry.key, SenderKey)]
        if not keys:
            raise NotFound(
                f"no key to sign with, in {self.folder / SENDER}",
                hint="`jobqueue keys new sender`, then `jobqueue keys trust LINE` on the nodes",
            )
        return keys[-1]

    def node_key(self, key_id: KeyId) -> NodeKey:
        """Return the private node key with this id."""
        for entry in self._node.entries():
            if isinstance(entry.key, NodeKey) and entry.key_id == key_id:
                return entry.key
        raise NotFound(f"no node key {key_id}, in {self.folder / NODE}", hint="`jobqueue keys new node` makes one")

    def trusted(self, key_id: KeyId, *, queue: str) -> SenderPublicKey:
        """Return the sender's key with this id, if it is one of those with the longest prefix of the queue's name."""
        for entry in _most_specific(self._trusted.entries(), queue):
            if isinstance(entry.key, SenderPublicKey) and entry.key_id == key_id:
                return entry.key
        raise NotFound(
            f"the sender {key_id:.40} is not trusted for the queue {queue}", hint="`jobqueue keys trust LINE`"
        )

    def check_node(self, queues: Iterable[str]) -> None:
        """Return when a node can open messages, and trusts somebody for each of the request queues that it serves.

        Raises:
            NotFound: a key is missing; the hint says how to make or trust one.
        """
        if not any(isinstance(entry.key, NodeKey) for entry in self._node.entries()):
            raise NotFound(f"no key to open messages with, in {self.folder / NODE}", hint="`jobqueue keys new node`")
        for queue in queues:
            if not self.trusts_any(queue):
                raise NotFound(
                    f"nobody is trusted to send to the queue {queue}, in {self.folder / TRUSTED}",
                    hint="`jobqueue keys trust LINE` with the line that `jobqueue keys new sender` printed",
                )

    def trusts_any(self, queue: str) -> bool:
        """Tell whether any sender is trusted for a queue."""
        return any(isinstance(entry.key, SenderPublicKey) for entry in _most_specific(self._trusted.entries(), queue))


def _most_specific(entries: Sequence[KeyEntry], queue: str) -> list[KeyEntry]:
    """Return the public keys with the longest prefix that the queue's name begins with."""
    matching = [entry for entry in entries if entry.key is entry.public and queue.startswith(entry.queue_prefix)]
    longest = max((len(entry.queue_prefix) for entry in matching), default=0)
    return [entry for entry in matching if len(entry.queue_prefix) == longest]


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
