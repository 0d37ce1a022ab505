"""Seal and sign a spec; check whose it is; open it.

Opening takes two steps, because a worker that holds no lease yet needs to know who sent a message, not what it says.
Each step stops at the first failure, the cheap checks first. The signature covers every field, so that a byte that was
changed anywhere is noticed before a private key is touched; the sealing is bound to the same fields, so that nobody can
sign a stranger's ciphertext as their own.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from jobqueue.codec import (
    SealedEnvelope,
    SealedSpec,
    decode_envelope,
    decode_header,
    decode_sealed_spec,
    decode_spec,
    encode_envelope,
    encode_header,
    encode_sealed_spec,
    encode_spec,
)
from jobqueue.errors import (
    BadEnvelope,
    Early,
    InvalidSpec,
    KeyRefused,
    NotFound,
    Problem,
    Refused,
    Undecryptable,
    Untrusted,
)
from jobqueue.header import Header
from jobqueue.keys import KeyRing, SealingPublicKey, SigningPublicKey, Suite, parse_reporting
from jobqueue.permit import Permit, make_permit, uris_of
from jobqueue.spec import MAX_EXPIRES, ExperimentSpec

CONTENT_TYPE: Final = "application/vnd.jobqueue.envelope"
VERSION: Final = 1
MAX_ENVELOPE_BYTES: Final = 256 * 1024
CLOCK_TOLERANCE: Final = timedelta(seconds=60)

_NONCE_BYTES = 16
_SIGNED = b"jobqueue/v1/signed"
_SEALED = b"jobqueue/v1/sealed"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A message whose sender is trusted for its queue, not opened yet.

    Attributes:
        digest: sha256 of the whole message, in hex: a redelivery has the same, another message never.
        message: the body, as it came.
    """

    header: Header
    envelope: SealedEnvelope
    digest: str
    message: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a message says.

    Attributes:
        reporting_key: what reports on it are to be sealed to, if its sender has named something.
        permit: what it may read of stores, by its sender's word, for a clerk of the store; None of an older sender.
    """

    spec: ExperimentSpec
    reporting_key: SealingPublicKey | None = None
    permit: Permit | None = None


def seal(spec: ExperimentSpec, header: Header, *, keys: KeyRing) -> bytes:
    """Return the message that carries a spec, sealed to the newest node key for its queue, signed with the newest key.

    Raises:
        NotFound: one of the two keys is missing; the hint says how to make it.
        KeyRefused: a key file is not to be used.
        InvalidSpec: the message is larger than a queue takes.
    """
    recipient, sender = keys.recipient(header.queue), keys.sender()
    unsealed = SealedEnvelope(
        version=VERSION,
        suite=recipient.suite,
        sender_key_id=sender.public.key_id,
        node_key_id=recipient.key_id,
        nonce=os.urandom(_NONCE_BYTES),
        header=encode_header(header),
        ciphertext=b"",
    )
    reporting = keys.own_reporting()
    inside = SealedSpec(
        sender_key_id=sender.public.key_id,
        spec=encode_spec(spec),
        reporting_key=reporting.line if reporting else "",
        permit=make_permit(spec, experiment_id=header.experiment_id, queue=header.queue, sender=sender).signature,
    )
    plaintext = encode_sealed_spec(inside)
    sealed = replace(unsealed, ciphertext=recipient.seal(plaintext, info=_sealing_context(unsealed)))
    message = encode_envelope(replace(sealed, signature=sender.sign(_signed_bytes(sealed))))
    if len(message) > MAX_ENVELOPE_BYTES:
        size = f"{len(message)} bytes as a message, {MAX_ENVELOPE_BYTES} are allowed"
        raise InvalidSpec([Problem(path="", message=f"{size} (put what is long into files of the workspace)")])
    return message


def verify(message: bytes, *, keys: KeyRing, queue: str, now: datetime) -> Verified:
    """Return the message as one of a trusted sender.

    Args:
        message: the body, as it came.
        keys: of this node.
        queue: the request queue that it came through; a companion's messages came through the queue that it belongs to.
        now: aware time of this node.

    Raises:
        BadEnvelope: too large, no envelope, of an unknown version, or signed and still malformed.
        Early: sound, and from the future.
        Untrusted: the sender is not trusted for the queue, the signature is wrong, or it was sent to another queue.
        KeyRefused: a key file of this node is not to be used; the message is not at fault.
    """
    if len(message) > MAX_ENVELOPE_BYTES:
        raise BadEnvelope(f"{len(message)} bytes long, {MAX_ENVELOPE_BYTES} are allowed")
    envelope = decode_envelope(message)
    _check_version(envelope, weakest=keys.weakest)
    sender = _find_sender(envelope, keys=keys, queue=queue)
    if not sender.has_signed(_signed_bytes(envelope), envelope.signature):
        raise Untrusted("the signature does not hold")
    header = _read_header(envelope)
    if header.queue != queue:
        raise Untrusted(f"sent to the queue {header.queue}, found in {queue}")
    if header.expires_at - header.submitted_at > MAX_EXPIRES:
        told = f"expires {header.expires_at - header.submitted_at} after it was submitted, {MAX_EXPIRES} is allowed"
        raise BadEnvelope(told, experiment_id=header.experiment_id)
    early = header.submitted_at - now
    if early > CLOCK_TOLERANCE:
        told = f"submitted at {header.submitted_at:%Y-%m-%dT%H:%M:%SZ}, which is still to come"
        raise Early(told, remaining=early - CLOCK_TOLERANCE, experiment_id=header.experiment_id)
    return Verified(header=header, envelope=envelope, digest=hashlib.sha256(message).hexdigest(), message=message)


def open_sealed(verified: Verified, *, keys: KeyRing) -> Opened:
    """Return what a message says.

    Raises:
        Undecryptable: it is not sealed to a key of this node.
        Untrusted: it was sealed by somebody else than its signer.
        BadEnvelope: it opens, and is no spec.
        InvalidSpec: the spec is wrong, or not what the header says of it.
        KeyRefused: a key file of this node is not to be used; the message is not at fault.
    """
    try:
        opened = _open(verified, keys=keys)
    except Refused as error:
        error.experiment_id = verified.header.experiment_id
        raise
    if problems := _contradictions(opened.spec, verified.header):
        raise InvalidSpec(problems)
    return opened


def _check_version(envelope: SealedEnvelope, *, weakest: Suite) -> None:
    if envelope.version != VERSION:
        raise BadEnvelope(f"of version {envelope.version}, this node reads {VERSION}", hint="update this node")
    if envelope.suite not in {suite for suite in Suite if suite >= weakest}:
        told = f"sealed with the suite {envelope.suite}, which is not accepted"
        raise BadEnvelope(told, hint=f"the sender needs a node's key of the suite {weakest.word}")
    if len(envelope.nonce) != _NONCE_BYTES:
        raise BadEnvelope(f"has a nonce of {len(envelope.nonce)} bytes, {_NONCE_BYTES} are asked for")


def _read_header(envelope: SealedEnvelope) -> Header:
    try:
        return decode_header(envelope.header)
    except BadEnvelope as error:
        error.sender_key_id = envelope.sender_key_id
        raise


def _find_sender(envelope: SealedEnvelope, *, keys: KeyRing, queue: str) -> SigningPublicKey:
    try:
        return keys.trusted(envelope.sender_key_id, queue=queue)
    except NotFound as error:
        raise Untrusted(error.message, hint=error.hint) from None


def _open(verified: Verified, *, keys: KeyRing) -> Opened:
    envelope = verified.envelope
    try:
        key = keys.node_key(envelope.node_key_id)
    except NotFound:
        raise Undecryptable(f"sealed to the key {envelope.node_key_id:.40}") from None
    if key.suite != envelope.suite:
        raise Undecryptable(f"sealed with the suite {envelope.suite} to a key of the suite {key.suite}")
    inside = decode_sealed_spec(key.open(envelope.ciphertext, info=_sealing_context(envelope)))
    if inside.sender_key_id != envelope.sender_key_id:
        raise Untrusted("sealed by another sender than the one who signed")
    spec = decode_spec(inside.spec)
    reporting_key = _reporting_key(inside.reporting_key, weakest=keys.weakest)
    return Opened(spec=spec, reporting_key=reporting_key, permit=_permit(inside, spec, verified.header))


def _permit(inside: SealedSpec, spec: ExperimentSpec, header: Header) -> Permit | None:
    if not inside.permit:
        return None
    return Permit(
        experiment_id=header.experiment_id,
        queue=header.queue,
        uris=uris_of(spec),
        sender_key_id=inside.sender_key_id,
        signature=inside.permit,
    )


def _reporting_key(line: str, *, weakest: Suite) -> SealingPublicKey | None:
    if not line:
        return None
    try:
        key = parse_reporting(line)
    except KeyRefused as error:
        raise BadEnvelope(f"names a key for its reports that cannot be used: {error.message}") from None
    if key.suite < weakest:
        raise BadEnvelope(f"names a key for its reports of the suite {key.suite.word}, {weakest.word} is asked for")
    return key


def _contradictions(spec: ExperimentSpec, header: Header) -> list[Problem]:
    """Return what the spec says otherwise than the header, by which the experiment was admitted."""
    pairs = {"resources": (spec.resources, header.resources), "project": (spec.project, header.project)}
    return [
        Problem(path=name, message="not the same in the header and in the spec (submit it with a current client)")
        for name, (inside, outside) in pairs.items()
        if inside != outside
    ]


def _sealing_context(envelope: SealedEnvelope) -> bytes:
    """Return HPKE's `info`: what the ciphertext only opens with."""
    return _SEALED + hashlib.sha256(_joined(_clear_parts(envelope))).digest()


def _signed_bytes(envelope: SealedEnvelope) -> bytes:
    return _joined([_SIGNED, *_clear_parts(envelope), envelope.ciphertext])


def _clear_parts(envelope: SealedEnvelope) -> list[bytes]:
    return [
        envelope.version.to_bytes(4),
        envelope.suite.to_bytes(4),
        envelope.sender_key_id.encode(),
        envelope.node_key_id.encode(),
        envelope.nonce,
        envelope.header,
    ]


def _joined(parts: Iterable[bytes]) -> bytes:
    """Return the parts, each after its length, so that no two lists of parts give the same bytes."""
    return b"".join(len(part).to_bytes(4) + part for part in parts)
