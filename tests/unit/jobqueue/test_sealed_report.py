"""A report that is signed and sealed: what it costs, what a stranger reads of it, what opens it."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from strategies import reports

from jobqueue.codec import (
    SealedReport,
    SignedReport,
    decode_report,
    decode_sealed_report,
    decode_signed_report,
    encode_report,
    encode_sealed_report,
    encode_signed_report,
    name_signer,
)
from jobqueue.errors import BadEnvelope, KeyRefused, Undecryptable, Untrusted
from jobqueue.ids import ExperimentId, KeyId, WorkerId
from jobqueue.keys import KeyRing, Reader, Signer, make_pair
from jobqueue.report import Report
from jobqueue.sealed_report import (
    CONTENT_TYPE,
    MAX_REPORT_BYTES,
    SEALED_CONTENT_TYPE,
    close_report,
    open_report,
)
from jobqueue.wire.v1 import report_pb2

QUEUE = "team_cpu"


def make_report(text: str = "") -> Report:
    return Report(
        at=datetime(2026, 1, 1, tzinfo=UTC),
        experiment_id=ExperimentId("exp-01k0000000000000000000000a"),
        worker_id=WorkerId("cpu@host"),
        sequence=3,
        attempt=1,
        token=7,
        payload=text,
        queue=QUEUE,
    )


@pytest.fixture
def keys(tmp_path: Path) -> KeyRing:
    """Of a node that listens to itself."""
    make_pair(tmp_path, Signer.NODE)
    return KeyRing(tmp_path)


def close(keys: KeyRing, text: str = "") -> bytes:
    content_type, content = close_report(encode_report(make_report(text)), queue=QUEUE, keys=keys)
    assert content_type == CONTENT_TYPE
    return content


def hear(keys: KeyRing, content: bytes, content_type: str = CONTENT_TYPE, *, queue: str = QUEUE) -> Report:
    return open_report(content, content_type=content_type, queue=queue, keys=keys)


def test_a_signed_report_is_read_by_who_knows_nothing_of_signatures(keys: KeyRing) -> None:
    content = close(keys, "hello")
    assert decode_report(content) == make_report("hello")
    message = report_pb2.Report.FromString(content)
    assert message.text.value == "hello"
    assert content.endswith(message.signature)
    assert message.node_key_id == keys.node_signer().public.key_id


def test_a_node_without_a_signing_key_sends_the_report_as_it_is(tmp_path: Path) -> None:
    keys = KeyRing(tmp_path)
    assert close(keys) == encode_report(make_report())
    assert hear(keys, close(keys)).signed_by is None


@given(reports)
def test_a_signature_is_taken_off_as_it_was_put_on(report: Report) -> None:
    named = name_signer(encode_report(report), KeyId("k" * 32))
    signed = SignedReport(content=named, node_key_id=KeyId("k" * 32), signature=b"s" * 64)
    assert decode_signed_report(encode_signed_report(signed)) == signed
    assert decode_report(encode_signed_report(signed)) == report


@pytest.mark.parametrize(("node", "hint"), [("unknown", "keys trust"), ("old", "keys new node")])
def test_a_node_that_is_not_trusted_yet_is_refused_with_what_to_run(
    keys: KeyRing, tmp_path: Path, node: str, hint: str
) -> None:
    other = KeyRing(tmp_path / "other")
    if node == "unknown":
        make_pair(other.folder, Signer.NODE)
    content_type, body = close_report(encode_report(make_report()), queue=QUEUE, keys=other)
    with pytest.raises(Untrusted) as raised:
        open_report(body, content_type=content_type, queue=QUEUE, keys=keys)
    assert hint in raised.value.hint


def test_nothing_may_stand_behind_a_signature(keys: KeyRing) -> None:
    content = close(keys)
    for spoilt in (content + encode_report(make_report("more")), content + b"\x08\x00", content + content[-67:]):
        with pytest.raises((BadEnvelope, Untrusted)):
            hear(keys, spoilt)
    with pytest.raises(BadEnvelope, match="does not end with its signature"):
        decode_signed_report(content + encode_report(make_report("more")))


def test_the_largest_report_is_read_and_a_larger_one_is_not_even_parsed(keys: KeyRing) -> None:
    around = len(close(keys, "x" * 200_000)) - 200_000
    assert hear(keys, close(keys, "x" * (MAX_REPORT_BYTES - around))).signed_by
    with pytest.raises(BadEnvelope, match="bytes long"):
        hear(keys, close(keys, "x" * (MAX_REPORT_BYTES - around + 1)))


def test_a_sealed_report_opens_for_its_queue_its_key_and_its_suite_alone(keys: KeyRing) -> None:
    make_pair(keys.folder, Reader.REPORTING)
    keys = KeyRing(keys.folder)
    content_type, content = close_report(encode_report(make_report()), queue=QUEUE, keys=keys)
    assert content_type == SEALED_CONTENT_TYPE
    assert hear(keys, content, content_type) == replace(make_report(), signed_by=keys.node_signer().public.key_id)
    with pytest.raises(Undecryptable):
        hear(keys, content, content_type, queue="team_gpu")
    sealed = decode_sealed_report(content)
    changed = (replace(sealed, suite=1), replace(sealed, reporting_key_id=KeyId("x")), replace(sealed, ciphertext=b""))
    for each in changed:
        with pytest.raises(Undecryptable):
            hear(keys, encode_sealed_report(each), content_type)
    with pytest.raises(BadEnvelope, match="version 2"):
        hear(keys, encode_sealed_report(replace(sealed, version=2)), content_type)
    with pytest.raises(BadEnvelope, match="fields that this version does not know"):
        hear(keys, content + b"\xfa\x3e\x01x", content_type)


def test_what_is_said_to_be_sealed_is_never_read_as_a_plain_one(keys: KeyRing) -> None:
    with pytest.raises((BadEnvelope, Undecryptable)):
        hear(keys, close(keys), SEALED_CONTENT_TYPE)
    sealed = encode_sealed_report(SealedReport(version=1, suite=2, reporting_key_id=KeyId("k"), ciphertext=b"c"))
    with pytest.raises((BadEnvelope, Untrusted)):
        hear(keys, sealed, CONTENT_TYPE)


def test_a_key_file_that_must_not_be_used_lets_nothing_leave(keys: KeyRing) -> None:
    next(keys.folder.glob("node/*.key")).chmod(0o644)
    with pytest.raises(KeyRefused, match="others can read"):
        close(KeyRing(keys.folder))
