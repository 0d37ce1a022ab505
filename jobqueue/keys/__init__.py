"""Keys as files, one folder for each role: read, made, trusted, revoked, re-read when they change.

    node/     <key id>.key             what specs sealed to this node are opened with
              [<prefix>.]<key id>.pub  what a sender seals to, for queues that begin with the prefix
    sender/   <key id>.key             what this sender signs with
              <key id>.pub             what it mails to the nodes that are to trust it
    trusted/  [<prefix>.]<key id>.pub  whose messages a node accepts, for queues that begin with the prefix

The longest prefix wins alone, in both folders: who is trusted for every queue is not trusted for one that has keys of
its own. Two keys of one prefix are valid side by side, which is how keys are rotated. A key id is the fingerprint of
the public key.
"""

from jobqueue.keys.folder import (
    KeyEntry,
    ensure_laptop_keys,
    list_keys,
    make_node_keys,
    make_sender_keys,
    revoke,
    trust,
)
from jobqueue.keys.nodes import NodeKey, NodePublicKey, Suite
from jobqueue.keys.ring import KeyRing
from jobqueue.keys.senders import SenderKey, SenderPublicKey

__all__ = [
    "KeyEntry",
    "KeyRing",
    "NodeKey",
    "NodePublicKey",
    "SenderKey",
    "SenderPublicKey",
    "Suite",
    "ensure_laptop_keys",
    "list_keys",
    "make_node_keys",
    "make_sender_keys",
    "revoke",
    "trust",
]
