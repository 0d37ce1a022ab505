"""A sealed envelope, and what is inside its ciphertext, to bytes and back."""

from dataclasses import dataclass, field

from jobqueue.codec.messages import has_unknown_fields, parse, serialise
from jobqueue.errors import BadEnvelope
from jobqueue.ids import KeyId
from jobqueue.wire.v1 import envelope_pb2


@dataclass(frozen=True, kw_only=True)
class SealedEnvelope:
    """The parts of a message; `jobqueue.envelope` gives them their meaning.

    Attributes:
        suite: number of the suite that the ciphertext is sealed with.
        header: an encoded `Header`, as signed.
        signature: empty before it is signed.
    """

    version: int
    suite: int
    sender_key_id: KeyId
    node_key_id: KeyId
    nonce: bytes
    header: bytes
    ciphertext: bytes = field(repr=False)
    signature: bytes = field(default=b"", repr=False)


def encode_envelope(envelope: SealedEnvelope) -> bytes:
    """Return the envelope's bytes: the body of a message."""
    message = envelope_pb2.SealedEnvelope(
        version=envelope.version,
        suite=envelope.suite,
        sender_key_id=envelope.sender_key_id,
        node_key_id=envelope.node_key_id,
        nonce=envelope.nonce,
        header=envelope.header,
        ciphertext=envelope.ciphertext,
        signature=envelope.signature,
    )
    return serialise(message)


def decode_envelope(content: bytes) -> SealedEnvelope:
    """Return the envelope that `encode_envelope` wrote, in its one encoding: a replay has the digest of its original.

    Raises:
        BadEnvelope: the bytes are no envelope, or another encoding of one.
    """
    message = parse(envelope_pb2.SealedEnvelope(), content)
    envelope = SealedEnvelope(
        version=message.version,
        suite=message.suite,
        sender_key_id=KeyId(message.sender_key_id),
        node_key_id=KeyId(message.node_key_id),
        nonce=message.nonce,
        header=message.header,
        ciphertext=message.ciphertext,
        signature=message.signature,
    )
    if encode_envelope(envelope) != content:
        raise BadEnvelope("the bytes are an envelope in another encoding than its canonical one")
    return envelope


@dataclass(frozen=True, kw_only=True)
class SealedSpec:
    """What is inside the ciphertext.

    Attributes:
        sender_key_id: the same as outside.
        spec: an encoded spec.
        reporting_key: the line of the public key that reports are to be sealed to; empty: the sender has none.
        permit: the signature of what the experiment may read of stores; empty: of an older sender.
    """

    sender_key_id: KeyId
    spec: bytes = field(repr=False)
    reporting_key: str = ""
    permit: bytes = field(default=b"", repr=False)


def encode_sealed_spec(sealed: SealedSpec) -> bytes:
    """Return what is to be encrypted."""
    message = envelope_pb2.SealedSpec(
        sender_key_id=sealed.sender_key_id,
        spec=sealed.spec,
        reporting_key=sealed.reporting_key,
        permit=sealed.permit,
    )
    return serialise(message)


def decode_sealed_spec(content: bytes) -> SealedSpec:
    """Return what was encrypted.

    Raises:
        BadEnvelope: the bytes are not what `encode_sealed_spec` wrote.
    """
    message = parse(envelope_pb2.SealedSpec(), content)
    if has_unknown_fields(message):
        raise BadEnvelope("the sealed part has fields that this version does not know", hint="update this node")
    return SealedSpec(
        sender_key_id=KeyId(message.sender_key_id),
        spec=message.spec,
        reporting_key=message.reporting_key,
        permit=message.permit,
    )
