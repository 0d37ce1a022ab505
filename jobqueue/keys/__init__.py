"""Keys as files, one folder for each role: read, made, trusted, revoked, re-read when they change.

    node/      <key id>.key             what specs sealed to this node are opened with, and what it signs reports with
               [<prefix>.]<key id>.pub  what a sender seals to, and checks reports with, for queues of that prefix
    sender/    <key id>.key             what this sender signs with
               <key id>.pub             what it mails to the nodes that are to trust it
    trusted/   [<prefix>.]<key id>.pub  whose messages a node accepts, for queues that begin with the prefix
    reporting/ <key id>.key             what the reports of what was submitted here are opened with
               [<prefix>.]<key id>.pub  what a node seals reports to, for queues of that prefix whose specs name none
    clerk/     <key id>.key             what a clerk of the store signs its grants with
               [<prefix>.]<key id>.pub  whose grants a node takes, for queues of that prefix
    operator/  <key id>.key             what an operator signs the keys with that it publishes through the registry
               [<prefix>.]<key id>.pub  whose published keys a sender seals to, for queues of that prefix
               <key id>.published       the newest list of that operator that was seen here

The longest prefix wins alone, in every folder: who is trusted for every queue is not trusted for one that has keys of
its own. Two keys of one prefix are valid side by side, which is how keys are rotated. A key id is the fingerprint of
the public key. Of what is signed with or sealed to, the newest is used; one whose time is still to come is not yet.
"""

from jobqueue.keys.directory import Published, sign_list
from jobqueue.keys.folder import KeyEntry, check_prefix, list_keys, read_role, revoke, survey_keys, trust, trust_lines
from jobqueue.keys.making import (
    ensure_laptop_keys,
    make_pair,
)
from jobqueue.keys.parsing import parse_key, parse_lines, parse_reporting
from jobqueue.keys.ring import KeyRing
from jobqueue.keys.sealing import Reader, SealingKey, SealingPublicKey, Suite
from jobqueue.keys.signing import Signer, SigningKey, SigningPublicKey

__all__ = [
    "KeyEntry",
    "KeyRing",
    "Published",
    "Reader",
    "SealingKey",
    "SealingPublicKey",
    "Signer",
    "SigningKey",
    "SigningPublicKey",
    "Suite",
    "check_prefix",
    "ensure_laptop_keys",
    "list_keys",
    "make_pair",
    "parse_key",
    "parse_lines",
    "parse_reporting",
    "read_role",
    "revoke",
    "sign_list",
    "survey_keys",
    "trust",
    "trust_lines",
]
