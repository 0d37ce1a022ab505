"""Values to bytes on the wire and back: the only reader and writer of the generated messages.

Encoding is deterministic: one value has one encoding. Decoding is strict where something is to be obeyed (a spec, a
header, an envelope), lenient where it is only to be shown (a report).
"""

from jobqueue.codec.envelopes import (
    SealedEnvelope,
    SealedSpec,
    decode_envelope,
    decode_sealed_spec,
    encode_envelope,
    encode_sealed_spec,
)
from jobqueue.codec.headers import decode_header, encode_header
from jobqueue.codec.reports import decode_report, encode_report
from jobqueue.codec.sealed_reports import (
    SealedReport,
    SignedReport,
    decode_sealed_report,
    decode_signed_report,
    encode_sealed_report,
    encode_signed_report,
    name_signer,
)
from jobqueue.codec.specs import decode_spec, encode_spec

__all__ = [
    "SealedEnvelope",
    "SealedReport",
    "SealedSpec",
    "SignedReport",
    "decode_envelope",
    "decode_header",
    "decode_report",
    "decode_sealed_report",
    "decode_sealed_spec",
    "decode_signed_report",
    "decode_spec",
    "encode_envelope",
    "encode_header",
    "encode_report",
    "encode_sealed_report",
    "encode_sealed_spec",
    "encode_signed_report",
    "encode_spec",
    "name_signer",
]
