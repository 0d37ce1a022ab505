"""A clerk of the store: grants nodes without credentials what their leases and their senders allow, and nothing else.

Who asks is a node that is trusted for the queue. That an experiment is of that queue, and what it may read, its sender
has signed: the registry, which others can write to, says only who holds the lease. What a node may write is below the
prefix of the attempt that holds it at that moment. The result marker is written by the clerk, once, if it says what it
may. A URL that is out cannot be called back, but leads below its own prefix only, and the marker says which prefix
counts and what its manifest was.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, Literal

from jobqueue.artifacts import attempt_prefix, manifest_key, result_key
from jobqueue.codec import decode_envelope
from jobqueue.envelope import verify
from jobqueue.errors import ArtifactRefused, JobqueueError, KeyRefused, NotFound, RegistryUnavailable, Untrusted
from jobqueue.grants import Reply, Request, Verdict, Wish, read_request, seal_reply, write_trouble
from jobqueue.ids import ExperimentId
from jobqueue.keys import KeyRing
from jobqueue.lifecycle import Reason, State
from jobqueue.marker import Marker, marker_from_json
from jobqueue.printable import plain
from jobqueue.registry.base import Record, Registry
from jobqueue.storage.base import PROBE, Store
from producers.pace import Pace

log = logging.getLogger(__name__)

URL_LIFE: Final = timedelta(minutes=15)
LISTED_AT_ONCE: Final = 1000
_STORE: Final = "store:"
# Told instead of errors about the clerk's own keys, which name its files.
_KEYS: Final = "a key is missing or refused where the clerk runs: its log says which, and what to do there"

# Finds the store that an address names, and the key there.
Locate = Callable[[str], tuple[Store, str]]


class _Stale(Exception):
    """The attempt does not hold the lease any more."""


class Clerk:
    """Answers requests, from any thread.

    Args:
        store: the project's own, which can sign URLs.
        locate: finds other objects that senders may name.
        keys: the nodes and senders that are trusted, and what replies are signed with.
        name: told to nodes, for people.
        pace: how often one experiment may ask.
    """

    def __init__(
        self, store: Store, *, locate: Locate, registry: Registry, keys: KeyRing, name: str, pace: Pace | None = None
    ) -> None:
        self._store, self._locate, self._registry, self._keys = store, locate, registry, keys
        self._name = name
        self._pace = pace or Pace()
        self._log_pace = Pace(per_second=1, at_once=20)

    def answer(self, message: bytes) -> bytes:
        """Return the reply to a request, whatever came."""
        try:
            request = read_request(message, keys=self._keys)
        except JobqueueError as error:
            self._log("grant.not_read", str(error))
            return write_trouble(_KEYS if isinstance(error, KeyRefused) else str(error))
        reply = self._reply(request)
        try:
            return seal_reply(reply, message=message, queue=request.queue, keys=self._keys)
        except JobqueueError as error:
            self._log("grant.not_sealed", str(error))
            return write_trouble(_KEYS)

    def _reply(self, request: Request) -> Reply:
        if not self._pace.allows(f"{request.queue} {request.experiment_id}"):
            return Reply(verdict=Verdict.BUSY, clerk=self._name, text="asked too often")
        try:
            return self._grant(request)
        except _Stale:
            return self._refusal(Verdict.STALE, request, "another attempt holds the lease, or the experiment is over")
        except (ArtifactRefused, Untrusted) as error:
            return self._refusal(Verdict.REFUSED, request, error.message)
        except KeyRefused as error:
            self._log("grant.away", str(error), request.experiment_id or "")
            return Reply(verdict=Verdict.AWAY, clerk=self._name, text=_KEYS)
        except JobqueueError as error:
            # Also of a sender that is trusted by the node and not here: that is the operator's to mend, not the user's.
            return self._refusal(Verdict.AWAY, request, error.message)

    def _refusal(self, verdict: Verdict, request: Request, text: str) -> Reply:
        self._log(f"grant.{verdict}", f"{text} ({request.wish})", request.experiment_id or "")
        return Reply(verdict=verdict, clerk=self._name, text=text)

    def _log(self, event: str, why: str, experiment_id: str = "") -> None:
        if self._log_pace.allows(event):
            log.warning("%s experiment=%s why=%s", event, experiment_id, plain(why))

    def _grant(self, request: Request) -> Reply:
        key = request.uri.removeprefix(_STORE) if request.uri.startswith(_STORE) else ""
        if request.experiment_id is None:
            return self._probe(request, key)
        record = self._look_up(request, request.experiment_id)
        self._require_word(request, request.experiment_id)
        if key == result_key(request.experiment_id):
            return self._about_result(request, record, key)
        _require_lease(record, request.attempt, request.token)
        if request.permit is None:
            raise ArtifactRefused("no permit of the sender came with it (submit it with a current client)")
        prefix = attempt_prefix(request.experiment_id, request.attempt, request.token)
        if key.startswith(f"{prefix}/"):
            return self._do(request, self._store, key)
        if request.uri not in request.permit.uris:
            raise ArtifactRefused("the sender's permit does not name it")
        if request.wish not in (Wish.READ, Wish.SIZE):
            raise ArtifactRefused("it may only be read")
        return self._do(request, *self._locate(request.uri))

    def _probe(self, request: Request, key: str) -> Reply:
        """Let a node see that somebody answers, and that the store writes once."""
        if request.wish is not Wish.WRITE_ONCE or key != PROBE or request.content:
            raise ArtifactRefused("of no experiment")
        return self._written(self._store.put_if_absent(key, b""))

    def _about_result(self, request: Request, record: Record, key: str) -> Reply:
        """Let the nodes of its queue read how an experiment has ended, and its holder say so."""
        if request.wish in (Wish.READ, Wish.SIZE):
            return self._do(request, self._store, key)
        if request.wish is not Wish.WRITE_ONCE:
            raise ArtifactRefused("a result is written once")
        marker = marker_from_json(request.content)
        if marker.experiment_id != request.experiment_id:
            raise ArtifactRefused("the result of another experiment")
        if not _is_cancelled_as(record, marker):
            _require_lease(record, marker.attempt, marker.token)
            self._require_right(request, record, marker)
        return self._written(self._store.put_if_absent(key, request.content))

    def _require_right(self, request: Request, record: Record, marker: Marker) -> None:
        """Raise unless a holder may say this: without a permit it has not opened the spec, so it ran nothing."""
        prefix = attempt_prefix(marker.experiment_id, marker.attempt, marker.token)
        if marker.manifest not in ("", manifest_key(prefix)):
            raise ArtifactRefused("it names the outputs of another attempt")
        if request.permit:
            return
        if marker.state is State.SUCCEEDED or marker.manifest or marker.exit_code is not None:
            raise ArtifactRefused("what ran has a permit of its sender")
        if marker.reason is Reason.CANCELLED_BY_USER and not record.is_cancelled:
            raise ArtifactRefused("nobody has cancelled it")
        if marker.reason is Reason.EXPIRED and record.submission.expires_at > self._registry.ping():
            raise ArtifactRefused("it has not expired")

    def _do(self, request: Request, store: Store, key: str) -> Reply:
        """Do, or hand out a URL for, what was found to be allowed."""
        match request.wish:
            case Wish.SIZE:
                return Reply(verdict=Verdict.GRANTED, clerk=self._name, size_bytes=store.size(key))
            case Wish.LIST:
                return self._list(key, request.after)
            case Wish.WRITE_ONCE:
                return self._written(store.put_if_absent(key, request.content))
        method: Literal["GET", "PUT"] = "GET" if request.wish is Wish.READ else "PUT"
        url = store.presign(key, method=method, expires=URL_LIFE)
        return Reply(verdict=Verdict.GRANTED, clerk=self._name, url=url)

    def _list(self, prefix: str, after: str) -> Reply:
        listed = self._store.list(prefix, after=after)
        found = [(each.key, each.size_bytes) for each in islice(listed, LISTED_AT_ONCE + 1)]
        page, is_more = tuple(found[:LISTED_AT_ONCE]), len(found) > LISTED_AT_ONCE
        return Reply(verdict=Verdict.GRANTED, clerk=self._name, objects=page, is_more=is_more)

    def _written(self, is_written: bool) -> Reply:  # noqa: FBT001 - the only thing that it says
        return Reply(verdict=Verdict.GRANTED, clerk=self._name, is_written=is_written)

    def _look_up(self, request: Request, experiment_id: ExperimentId) -> Record:
        try:
            record = self._registry.experiments.get(experiment_id)
        except NotFound as error:
            raise RegistryUnavailable(error.message) from None
        if record.submission.queue != request.queue:
            raise ArtifactRefused(f"it is not of the queue {request.queue:.80}")
        return record

    def _require_word(self, request: Request, experiment_id: ExperimentId) -> None:
        """Raise unless a sender that is trusted for the queue has signed that the experiment is of it."""
        if request.permit:
            request.permit.check(keys=self._keys)
            return
        if not request.envelope:
            raise ArtifactRefused("neither the sender's permit nor its envelope came with it (update this node)")
        # First, since whom it does not trust it may come to trust: that is not held against the experiment.
        self._keys.trusted(decode_envelope(request.envelope).sender_key_id, queue=request.queue)
        signed = verify(request.envelope, keys=self._keys, queue=request.queue, now=datetime.now(UTC))
        if signed.header.experiment_id != experiment_id:
            raise ArtifactRefused("it came with the envelope of another experiment")


def _require_lease(record: Record, attempt: int, token: int) -> None:
    """Return for the holder of the newest lease.

    Raises:
        RegistryUnavailable: the registry may have forgotten this lease, and its holder will bring it back.
        _Stale: it is not the holder any more.
    """
    if not record.state.is_final and record.token < token:
        raise RegistryUnavailable("the registry does not know this lease yet")
    is_holder = (record.attempt, record.token) == (attempt, token) and record.worker_id is not None
    if not is_holder or record.state.is_final:
        raise _Stale


def _is_cancelled_as(record: Record, marker: Marker) -> bool:
    """Tell whether the registry says the same: cancelled while nobody held it. Who meets its message then writes it."""
    said = (marker.state, marker.reason, marker.attempt, marker.token)
    known = (State.CANCELLED, record.reason or Reason.CANCELLED_BY_USER, record.attempt, record.token)
    return record.state is State.CANCELLED and said == known and not marker.manifest and marker.exit_code is None
