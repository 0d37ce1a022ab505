"""What is around a report: a signature at its end, a sealed form."""

from dataclasses import dataclass, field
from typing import Final

from jobqueue.codec.messages import has_unknown_fields, parse, serialise
from jobqueue.errors import BadEnvelope
from jobqueue.ids import KeyId
from jobqueue.wire.v1 import report_pb2

_SIGNATURE_BYTES: Final = 64
# What stands before the bytes of a signature: the field's number and its length.
_BEFORE: Final = report_pb2.Report(signature=bytes(_SIGNATURE_BYTES)).SerializeToString()[:-_SIGNATURE_BYTES]


@dataclass(frozen=True, kw_only=True)
class SignedReport:
    """An encoded report and its signature, kept apart as they came: nothing is encoded again to be verified.

    Attributes:
        content: what is signed: a report that ends with the id of its signer's key.
        signature: empty where nobody has signed.
    """

    content: bytes = field(repr=False)
    node_key_id: KeyId
    signature: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class SealedReport:
    """The parts of a sealed report; `jobqueue.sealed_report` gives them their meaning."""

    version: int
    suite: int
    reporting_key_id: KeyId
    ciphertext: bytes = field(default=b"", repr=False)


def name_signer(report: bytes, node_key_id: KeyId) -> bytes:
    """Return an encoded report that names its signer: what is to be signed."""
    return report + serialise(report_pb2.Report(node_key_id=node_key_id))


def encode_signed_report(signed: SignedReport) -> bytes:
    """Return a report with its signature; a reader that knows nothing of signatures reads it as well."""
    return signed.content + _BEFORE + signed.signature


def decode_signed_report(content: bytes) -> SignedReport:
    """Return a report and its signature, if it has one.

    Raises:
        BadEnvelope: the bytes are no report, or there is something after the signature.
    """
    message = parse(report_pb2.Report(), content)
    if not message.signature:
        return SignedReport(content=content, node_key_id=KeyId(""), signature=b"")
    signed = SignedReport(
        content=content[: -len(_BEFORE) - _SIGNATURE_BYTES],
        node_key_id=KeyId(message.node_key_id),
        signature=message.signature,
    )
    if encode_signed_report(signed) != content:
        raise BadEnvelope("the report does not end with its signature")
    return signed


def encode_sealed_report(sealed: SealedReport) -> bytes:
    """Return the bytes of a sealed report."""
    message = report_pb2.SealedReport(
        version=sealed.version,
        suite=sealed.suite,
        reporting_key_id=sealed.reporting_key_id,
        ciphertext=sealed.ciphertext,
    )
    return serialise(message)


def decode_sealed_report(content: bytes) -> SealedReport:
    """Return the parts of a sealed report.

    Raises:
        BadEnvelope: the bytes are none.
    """
    message = parse(report_pb2.SealedReport(), content)
    if has_unknown_fields(message):
        raise BadEnvelope("the sealed report has fields that this version does not know", hint="update jobqueue here")
    return SealedReport(
        version=message.version,
        suite=message.suite,
        reporting_key_id=KeyId(message.reporting_key_id),
        ciphertext=message.ciphertext,
    )
