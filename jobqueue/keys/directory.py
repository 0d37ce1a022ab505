"""Keys of nodes that an operator publishes through a registry, as one signed list.

The registry is not believed: a list counts by its signature, and never after a newer one. The newest that was seen is
kept beside the operator's key, so that a registry that hides it, or shows an older one, changes nothing.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, TypeGuard

from jobqueue.errors import KeyRefused
from jobqueue.ids import KeyId
from jobqueue.keys.files import read_kept, write_kept
from jobqueue.keys.parsing import Key, parse_key
from jobqueue.keys.sealing import Reader, SealingPublicKey
from jobqueue.keys.signing import SigningKey, SigningPublicKey

_log = logging.getLogger(__name__)

MAX_LIST_BYTES: Final = 256 * 1024
_SIGNED: Final = b"jobqueue/v1/published"
_SUFFIX: Final = ".published"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What one operator publishes.

    Attributes:
        at: when it was signed, aware; a later one takes its place.
        keys: each with the prefix of the queues that it is for.
        document: as it was signed.
    """

    operator: KeyId
    at: datetime
    keys: tuple[tuple[str, SealingPublicKey], ...]
    document: bytes = field(repr=False)


def sign_list(keys: Iterable[tuple[str, SealingPublicKey]], *, at: datetime, operator: SigningKey) -> bytes:
    """Return the document that publishes these keys, and no others.

    Raises:
        KeyRefused: they are so many that nobody would read it.
    """
    listed = [{"queue": prefix, "line": key.line} for prefix, key in keys]
    body = json.dumps({"at": at.isoformat(), "keys": listed})
    document = json.dumps({"body": body, "signature": operator.sign(_SIGNED + body.encode()).hex()}).encode()
    if len(document) > MAX_LIST_BYTES:
        told = f"a list of {len(listed)} keys has {len(document)} bytes, {MAX_LIST_BYTES} are read"
        raise KeyRefused(told, hint="`jobqueue keys unpublish KEY` what is no longer used")
    return document


def read_list(document: bytes, *, operator: SigningPublicKey) -> Published:
    """Return what an operator publishes.

    Raises:
        KeyRefused: the operator has not signed it, or it is none.
    """
    try:
        outside = json.loads(document if len(document) <= MAX_LIST_BYTES else b"")
        body, signature = outside["body"].encode(), bytes.fromhex(outside["signature"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeyRefused("the registry holds what is no list of published keys") from None
    if not operator.has_signed(_SIGNED + body, signature):
        raise KeyRefused(f"the operator {operator.key_id} has not signed the list that the registry holds")
    try:
        at, keys = _read_body(body)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise KeyRefused(f"what the operator {operator.key_id} has signed is no list of published keys") from None
    return Published(operator=operator.key_id, at=at, keys=keys, document=document)


def newest_list(folder: Path, shown: Mapping[str, bytes], *, operator: SigningPublicKey) -> Published | None:
    """Return the newest list of an operator that was ever seen here, if any.

    Args:
        folder: of the operators' keys, which keeps it.
        shown: what a registry says, by operator.
        operator: whose.
    """
    kept_in = folder / f"{operator.key_id}{_SUFFIX}"
    kept = _read(read_kept(kept_in), operator)
    found = _read(shown.get(operator.key_id), operator)
    if found and (kept is None or found.at > kept.at):
        write_kept(kept_in, found.document)
        return found
    if kept and found and found.at < kept.at:
        _log.warning("keys.older_list operator=%s", operator.key_id)
    return kept


def _read(document: bytes | None, operator: SigningPublicKey) -> Published | None:
    try:
        return read_list(document, operator=operator) if document else None
    except KeyRefused as error:
        _log.warning("keys.list_refused operator=%s error=%s", operator.key_id, error.message)
        return None


def _read_body(body: bytes) -> tuple[datetime, tuple[tuple[str, SealingPublicKey], ...]]:
    """Return what a list says; what is none raises what a wrong value raises."""
    inside = json.loads(body)
    at = datetime.fromisoformat(inside["at"])
    if at.tzinfo is None:
        raise ValueError(at)
    pairs = [(entry["queue"], parse_key(entry["line"])) for entry in inside["keys"]]
    if not all(isinstance(prefix, str) for prefix, _ in pairs):
        raise TypeError(pairs)
    return at, tuple((prefix, key) for prefix, key in pairs if _is_of_node(key))


def _is_of_node(key: Key) -> TypeGuard[SealingPublicKey]:
    return isinstance(key, SealingPublicKey) and key.reader is Reader.NODE
