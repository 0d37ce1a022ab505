"""Keys of nodes that an operator publishes through a registry, as one signed list.

The registry is not believed: a list counts by its signature, until the time in it, and never after a newer one. The
newest that was seen is kept beside the operator's key, so that a registry that hides it, or shows an older one, changes
nothing; and who has seen none yet believes an old one no longer than it was signed for.

What cannot be used still says that its queues have keys of their own: nothing of them is sealed to a less specific one.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeGuard

from jobqueue.errors import KeyRefused, NotFound
from jobqueue.ids import KeyId
from jobqueue.keys.files import read_kept, write_kept
from jobqueue.keys.folder import most_specific
from jobqueue.keys.parsing import Key, is_known, parse_key
from jobqueue.keys.sealing import Reader, SealingPublicKey
from jobqueue.keys.signing import SigningKey, SigningPublicKey

_log = logging.getLogger(__name__)

MAX_LIST_BYTES: Final = 256 * 1024
_SIGNED: Final = b"jobqueue/v1/published"
_SUFFIX: Final = ".published"
_ASK_AGAIN_SECONDS: Final = 10.0
# Of a list's life: who signs it anew in good time never meets the warning.
_LAST_PART: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Published:
    """What one operator publishes.

    Attributes:
        at: when it was signed, aware; a later one takes its place.
        until: when it ends, aware.
        keys: each with the prefix of the queues that it is for.
        unknown: prefixes of keys that are of a kind which this version does not know.
        document: as it was signed.
    """

    operator: KeyId
    at: datetime
    until: datetime
    keys: tuple[tuple[str, SealingPublicKey], ...]
    unknown: tuple[str, ...] = ()
    document: bytes = field(repr=False)

    def entries(self, now: datetime) -> list[tuple[str, SealingPublicKey | NotFound]]:
        """Return the keys, each with its prefix; in the place of those that cannot be used now, why."""
        told = f"the operator {self.operator} publishes node keys"
        if self.until <= now:
            ended = NotFound(
                f"{told} until {self.until:%Y-%m-%d %H:%M} UTC, and no newer list was seen here",
                hint="have the operator run `jobqueue keys publish`, which signs the list anew",
            )
            return [(prefix, ended) for prefix in (*(prefix for prefix, _ in self.keys), *self.unknown)]
        newer = NotFound(f"{told} of a kind that this version does not know", hint="update jobqueue here")
        return [*self.keys, *((prefix, newer) for prefix in self.unknown)]


class PublishedKeys:
    """What trusted operators publish, asked for again every ten seconds at most.

    Args:
        folder: of the operators' keys.
        shown: returns what a registry says, by operator.
        clock: seconds that only grow.
        now: aware.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shown: Callable[[], Mapping[str, bytes]],
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._folder, self._shown, self._clock, self._now = folder, shown, clock, now
        self._asked_at, self._lists = float("-inf"), list[Published]()
        self._warned = set[tuple[str, bytes]]()

    def lists(self, operators: Sequence[SigningPublicKey]) -> list[Published]:
        """Return of each operator the newest list that was ever seen here, even if it has ended."""
        if operators and self._clock() - self._asked_at >= _ASK_AGAIN_SECONDS:
            shown = self._shown()
            seen = {each.operator: each for each in self._lists}
            found = [newest_list(self._folder, shown, operator=each, seen=seen.get(each.key_id)) for each in operators]
            self._lists = [each for each in found if each]
            self._asked_at = self._clock()
            self._warn()
        return [each for each in self._lists if each.operator in {operator.key_id for operator in operators}]

    def keys(self, operators: Sequence[tuple[str, SigningPublicKey]], queue: str) -> list[SealingPublicKey]:
        """Return what the operators of a queue publish for it, the oldest first.

        Raises:
            NotFound: they publish something for it, of which nothing can be used; the hint says what to do.
        """
        named, now = {each.key_id for each in most_specific(operators, queue)}, self._now()
        lists = [found for found in self.lists([key for _, key in operators]) if found.operator in named]
        found = most_specific([entry for each in lists for entry in each.entries(now)], queue)
        usable = [each for each in found if isinstance(each, SealingPublicKey)]
        for why in found:
            if isinstance(why, NotFound) and not usable:
                raise why
        return sorted(usable, key=lambda key: key.created_at)

    def _warn(self) -> None:
        """Log what is to be mended, once of each list."""
        for found in self._lists:
            is_late = self._now() >= found.until - (found.until - found.at) * _LAST_PART
            for event, is_so in (("keys.list_ends", is_late), ("keys.unknown_kind", bool(found.unknown))):
                if is_so and (event, found.document) not in self._warned:
                    self._warned.add((event, found.document))
                    _log.warning("%s operator=%s until=%s", event, found.operator, found.until.isoformat())


def sign_list(
    keys: Iterable[tuple[str, SealingPublicKey]], *, at: datetime, until: datetime, operator: SigningKey
) -> bytes:
    """Return the document that publishes these keys, and no others, from one time to another.

    Raises:
        KeyRefused: they are so many that nobody would read it.
    """
    listed = [{"queue": prefix, "line": key.line} for prefix, key in keys]
    body = json.dumps({"at": at.isoformat(), "until": until.isoformat(), "keys": listed})
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
        return _read_body(body, operator=operator.key_id, document=document)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise KeyRefused(f"what the operator {operator.key_id} has signed is no list of published keys") from None


def newest_list(
    folder: Path, shown: Mapping[str, bytes], *, operator: SigningPublicKey, seen: Published | None = None
) -> Published | None:
    """Return the newest list of an operator that was ever seen here, if any.

    Args:
        folder: of the operators' keys, which keeps it.
        shown: what a registry says, by operator.
        operator: whose.
        seen: what this process has seen before, which the folder may have no room for.
    """
    kept_in = folder / f"{operator.key_id}{_SUFFIX}"
    kept = _read(read_kept(kept_in), operator)
    found = _read(shown.get(operator.key_id), operator)
    newest = max((each for each in (kept, seen, found) if each), key=lambda each: each.at, default=None)
    if newest and (kept is None or newest.at > kept.at):
        write_kept(kept_in, newest.document)
    if newest and found and found.at < newest.at:
        _log.warning("keys.older_list operator=%s", operator.key_id)
    return newest


def _read(document: bytes | None, operator: SigningPublicKey) -> Published | None:
    try:
        return read_list(document, operator=operator) if document else None
    except KeyRefused as error:
        _log.warning("keys.list_refused operator=%s error=%s", operator.key_id, error)
        return None


def _read_body(body: bytes, *, operator: KeyId, document: bytes) -> Published:
    """Return what a list says; what is none raises what a wrong value raises."""
    inside = json.loads(body)
    at, until = (datetime.fromisoformat(inside[name]) for name in ("at", "until"))
    if at.tzinfo is None or until.tzinfo is None:
        raise ValueError(inside)
    lines = [(entry["queue"], entry["line"]) for entry in inside["keys"]]
    if not all(isinstance(prefix, str) for prefix, _ in lines):
        raise TypeError(lines)
    pairs = [(prefix, parse_key(line)) for prefix, line in lines if is_known(line)]
    return Published(
        operator=operator,
        at=at,
        until=until.astimezone(UTC),
        keys=tuple((prefix, key) for prefix, key in pairs if _is_of_node(key)),
        unknown=tuple(prefix for prefix, line in lines if not is_known(line)),
        document=document,
    )


def _is_of_node(key: Key) -> TypeGuard[SealingPublicKey]:
    return isinstance(key, SealingPublicKey) and key.reader is Reader.NODE
