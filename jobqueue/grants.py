"""What a node without credentials asks a clerk of the store, and what the clerk answers.

Both travel through the registry, whose password others have too. So a node signs what it asks, and a clerk seals what
it answers to the nodes of that queue and signs it: nobody else can use the URLs, ask in a node's name, or lead a node
to another store.
"""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from jobqueue.errors import BadEnvelope, NotFound, Refused, Untrusted
from jobqueue.ids import ExperimentId, KeyId, parse_experiment_id
from jobqueue.keys import KeyRing
from jobqueue.permit import Permit

MAX_REQUEST_BYTES: Final = 1 << 20
MAX_CONTENT_BYTES: Final = 256 * 1024
_ASKED: Final = b"jobqueue/v1/grants/asked"
_ANSWERED: Final = b"jobqueue/v1/grants/answered"
_END_OF_HEAD: Final = b"\n"


class Wish(StrEnum):
    """What is asked for."""

    READ = "read"
    WRITE = "write"
    SIZE = "size"
    LIST = "list"
    WRITE_ONCE = "write_once"


class Verdict(StrEnum):
    """What came of it: STALE is for an attempt that has lost its lease; after AWAY and BUSY it may be asked again."""

    GRANTED = "granted"
    REFUSED = "refused"
    STALE = "stale"
    AWAY = "away"
    BUSY = "busy"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One wish of one node.

    Attributes:
        uri: `store:key`, or another address that the permit names; a prefix for LIST.
        queue: the request queue that the experiment came through.
        attempt, token: of the lease that it is asked for under; 0 without one.
        envelope: the experiment's, as its sender has signed it for its queue, while there is no permit.
        after: the last key that was listed before.
        content: for WRITE_ONCE.
    """

    wish: Wish
    uri: str
    queue: str
    experiment_id: ExperimentId | None = None
    attempt: int = 0
    token: int = 0
    permit: Permit | None = None
    envelope: bytes = field(default=b"", repr=False)
    after: str = ""
    content: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A clerk's answer.

    Attributes:
        clerk: its name, for people.
        text: why not, for people.
        url: for READ and WRITE; it gives that one right to whoever has it.
        size_bytes: for SIZE; None when there is no such object.
        objects: for LIST: keys and sizes, sorted; is_more: others follow.
        is_written: for WRITE_ONCE.
    """

    verdict: Verdict
    clerk: str = ""
    text: str = ""
    url: str = field(default="", repr=False)
    size_bytes: int | None = None
    objects: tuple[tuple[str, int], ...] = ()
    is_more: bool = False
    is_written: bool = False


def sign_request(request: Request, *, keys: KeyRing) -> bytes:
    """Return a request as it is sent, signed by this node.

    Raises:
        NotFound, KeyRefused: there is no key to sign with.
    """
    signer, permit = keys.node_signer(), request.permit
    fields = {
        "nonce": os.urandom(16).hex(),
        "wish": request.wish,
        "uri": request.uri,
        "queue": request.queue,
        "experiment_id": request.experiment_id,
        "attempt": request.attempt,
        "token": request.token,
        "permit": permit and [permit.sender_key_id, permit.signature.hex(), *permit.uris],
        "envelope": base64.b64encode(request.envelope).decode(),
        "after": request.after,
        "content": base64.b64encode(request.content).decode(),
    }
    body = json.dumps(fields).encode()
    head = {"key": signer.public.key_id, "signature": signer.sign(_joined(_ASKED, body)).hex()}
    return json.dumps(head).encode() + _END_OF_HEAD + body


def read_request(message: bytes, *, keys: KeyRing) -> Request:
    """Return what a node asks that is trusted for the queue that it names.

    Raises:
        BadEnvelope: it is no request, or too large.
        Untrusted: the node is not trusted for the queue, or has signed something else.
    """
    if len(message) > MAX_REQUEST_BYTES:
        raise BadEnvelope(f"{len(message)} bytes long, {MAX_REQUEST_BYTES} are allowed")
    try:
        head, _, body = message.partition(_END_OF_HEAD)
        signed, fields = json.loads(head), json.loads(body)
        json.dumps(fields, ensure_ascii=False).encode()  # refuses what UTF-8 cannot hold
        request = _request(fields)
        key_id, signature = KeyId(str(signed["key"])), bytes.fromhex(signed["signature"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise BadEnvelope("no request for a grant") from None
    try:
        node = keys.trusted_node(key_id, queue=request.queue)
    except NotFound:
        told = f"the node {key_id:.40} is not known here for the queue {request.queue:.80}"
        raise Untrusted(told, hint="`jobqueue keys trust LINES` with the node's lines, where the clerk runs") from None
    if not node.has_signed(_joined(_ASKED, body), signature):
        raise Untrusted("the signature of the request does not hold")
    return request


def seal_reply(reply: Reply, *, message: bytes, queue: str, keys: KeyRing) -> bytes:
    """Return a reply to `message` as it is sent: for the nodes of a queue alone, signed by this clerk.

    Raises:
        NotFound, KeyRefused: a key is missing, or not to be used.
    """
    recipient, signer = keys.recipient(queue), keys.clerk()
    asked = hashlib.sha256(message).digest()
    box = recipient.seal(json.dumps(vars(reply)).encode(), info=_joined(_ANSWERED, asked))
    head = {
        "recipient": recipient.key_id,
        "key": signer.public.key_id,
        "signature": signer.sign(_joined(_ANSWERED, asked, recipient.key_id.encode(), box)).hex(),
    }
    return json.dumps(head).encode() + _END_OF_HEAD + box


def write_trouble(text: str) -> bytes:
    """Return a reply of a clerk that cannot seal one, or does not know who asks: it says why, and nothing else."""
    return json.dumps({"trouble": text}).encode() + _END_OF_HEAD


def read_reply(answer: bytes, *, message: bytes, queue: str, keys: KeyRing) -> Reply:
    """Return what a clerk has replied to `message` whom this node trusts for a queue.

    Raises:
        Refused: it is no reply to that, not for this node, or of nobody who is trusted; or a clerk says that it
            cannot reply, which anybody can say.
    """
    try:
        head, _, box = answer.partition(_END_OF_HEAD)
        signed: Mapping[str, Any] = json.loads(head)
        if trouble := signed.get("trouble"):
            raise Refused(f"the clerk says: {trouble!s:.300}")
        recipient, key_id = KeyId(str(signed["recipient"])), KeyId(str(signed["key"]))
        signature = bytes.fromhex(signed["signature"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadEnvelope("what came is no reply of a clerk") from None
    asked = hashlib.sha256(message).digest()
    try:
        clerk, key = keys.trusted_clerk(key_id, queue=queue), keys.node_key(recipient)
    except NotFound as error:
        raise Untrusted(f"the clerk's reply cannot be used: {error.message}", hint=error.hint) from None
    if not clerk.has_signed(_joined(_ANSWERED, asked, recipient.encode(), box), signature):
        raise Untrusted("the signature of the clerk does not hold")
    return _reply(key.open(box, info=_joined(_ANSWERED, asked)))


def _reply(content: bytes) -> Reply:
    try:
        fields = json.loads(content)
        objects = tuple((str(name), int(size)) for name, size in fields.pop("objects", ()))
        return Reply(**{**fields, "verdict": Verdict(fields["verdict"]), "objects": objects})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise BadEnvelope("the clerk's reply is of another version", hint="update the clerk and this node") from None


def _request(fields: Mapping[str, Any]) -> Request:
    """Return the request of some fields; a wrong one raises what a wrong value raises."""
    experiment_id = parse_experiment_id(fields["experiment_id"]) if fields["experiment_id"] else None
    queue, permit = str(fields["queue"]), None
    if experiment_id and fields["permit"]:
        sender, signature, *uris = (str(part) for part in fields["permit"])
        permit = Permit(
            experiment_id=experiment_id,
            queue=queue,
            uris=tuple(uris),
            sender_key_id=KeyId(sender),
            signature=bytes.fromhex(signature),
        )
    content = base64.b64decode(fields["content"], validate=True)
    if len(content) > MAX_CONTENT_BYTES:
        raise ValueError("too much content")
    return Request(
        wish=Wish(fields["wish"]),
        uri=str(fields["uri"]),
        queue=queue,
        experiment_id=experiment_id,
        attempt=int(fields["attempt"]),
        token=int(fields["token"]),
        permit=permit,
        envelope=base64.b64decode(fields["envelope"], validate=True),
        after=str(fields["after"]),
        content=content,
    )


def _joined(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4) + part for part in parts)
