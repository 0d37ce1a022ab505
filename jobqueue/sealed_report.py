"""Sign and seal a report; open it and check which node says so.

A report is signed first and sealed then: whoever carries it learns nothing, not even which node speaks, and nobody but
its listener can show the signature around. The queue's name is signed and bound into the sealing, so that no report of
one queue can be shown in another.
"""

import hashlib
from dataclasses import replace
from typing import Final

from jobqueue.codec import (
    SealedReport,
    SignedReport,
    decode_report,
    decode_sealed_report,
    decode_signed_report,
    encode_sealed_report,
    encode_signed_report,
    name_signer,
)
from jobqueue.errors import BadEnvelope, NotFound, Undecryptable, Untrusted
from jobqueue.ids import KeyId
from jobqueue.keys import KeyRing, SealingPublicKey
from jobqueue.report import Report

CONTENT_TYPE: Final = "application/vnd.jobqueue.report"
SEALED_CONTENT_TYPE: Final = "application/vnd.jobqueue.sealed-report"
VERSION: Final = 1
MAX_REPORT_BYTES: Final = 256 * 1024

_SIGNED: Final = b"jobqueue/v1/report\0"
_SEALED: Final = b"jobqueue/v1/sealed-report\0"


def close_report(
    report: bytes, *, queue: str, keys: KeyRing, reporting_key: SealingPublicKey | None = None
) -> tuple[str, bytes]:
    """Return an encoded report as it travels: its content type, and its bytes.

    Signed where this node has a key to sign with, sealed where there is one to seal to.

    Args:
        report: encoded.
        queue: the request queue that it is about.
        keys: of this node.
        reporting_key: what to seal to; None: what the node's keys name for the queue, if anything.

    Raises:
        KeyRefused: a key file of this node is not to be used.
    """
    signed = _sign(report, keys)
    recipient = reporting_key or keys.reporting(queue)
    if recipient is None:
        return CONTENT_TYPE, signed
    sealed = SealedReport(version=VERSION, suite=recipient.suite, reporting_key_id=recipient.key_id)
    ciphertext = recipient.seal(signed, info=_sealing_context(sealed, queue))
    return SEALED_CONTENT_TYPE, encode_sealed_report(replace(sealed, ciphertext=ciphertext))


def open_report(content: bytes, *, content_type: str, queue: str, keys: KeyRing) -> Report:
    """Return what a node says, with whose key it is signed.

    Where no node is trusted to report on the queue, nobody can be refused: the report is as it came, signed by nobody.

    Args:
        content: the body, as it came.
        content_type: of the message; decides only whether it is sealed.
        queue: the request queue whose reports it was found among.
        keys: of this listener.

    Raises:
        BadEnvelope: too large, no report, or of an unknown version.
        Undecryptable: it is not sealed to a key that is here.
        Untrusted: unsigned, altered, signed by a node that is not trusted for the queue, or of another queue.
        KeyRefused: a key file of this listener is not to be used; the report is not at fault.
    """
    if len(content) > MAX_REPORT_BYTES:
        raise BadEnvelope(f"{len(content)} bytes long, {MAX_REPORT_BYTES} are allowed")
    if content_type == SEALED_CONTENT_TYPE:
        content = _open(decode_sealed_report(content), queue=queue, keys=keys)
    signed_by = _verify(decode_signed_report(content), queue=queue, keys=keys)
    report = decode_report(content)
    if report.queue != queue and (report.queue or signed_by):
        raise Untrusted(f"about the queue {report.queue:.80}, found among the reports of {queue}")
    return replace(report, signed_by=signed_by)


def _sign(report: bytes, keys: KeyRing) -> bytes:
    try:
        signer = keys.node_signer()
    except NotFound:
        return report
    named = name_signer(report, signer.public.key_id)
    signature = signer.sign(_SIGNED + named)
    return encode_signed_report(SignedReport(content=named, node_key_id=signer.public.key_id, signature=signature))


def _open(sealed: SealedReport, *, queue: str, keys: KeyRing) -> bytes:
    if sealed.version != VERSION:
        raise BadEnvelope(f"of version {sealed.version}, this listener reads {VERSION}", hint="update jobqueue here")
    try:
        key = keys.reporting_key(sealed.reporting_key_id)
    except NotFound:
        raise Undecryptable(
            f"sealed to the key {sealed.reporting_key_id:.40}, which is not here", hint="listen where that key is"
        ) from None
    if key.suite != sealed.suite:
        raise Undecryptable(f"sealed with the suite {sealed.suite} to a key of the suite {key.suite}")
    return key.open(sealed.ciphertext, info=_sealing_context(sealed, queue))


def _verify(signed: SignedReport, *, queue: str, keys: KeyRing) -> KeyId | None:
    """Return the key whose signature holds; None where nobody is trusted, and so nothing can be told."""
    if not keys.trusts_nodes(queue):
        return None
    if not signed.signature:
        hint = "update jobqueue on the node, and run `jobqueue keys new node` there"
        raise Untrusted("not signed by any node", hint=hint)
    try:
        node = keys.trusted_node(signed.node_key_id, queue=queue)
    except NotFound as error:
        raise Untrusted(error.message, hint=error.hint) from None
    if not node.has_signed(_SIGNED + signed.content, signed.signature):
        raise Untrusted("the signature does not hold")
    return signed.node_key_id


def _sealing_context(sealed: SealedReport, queue: str) -> bytes:
    """Return HPKE's `info`: what the ciphertext only opens with."""
    parts = (sealed.version.to_bytes(4), sealed.suite.to_bytes(4), sealed.reporting_key_id.encode(), queue.encode())
    return _SEALED + hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).digest()
