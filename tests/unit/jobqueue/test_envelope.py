"""A message opens for the node it is meant for, says whose it is, and cannot be changed, moved or re-signed."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from strategies import specs

from jobqueue import envelope
from jobqueue.artifacts import Artifact
from jobqueue.codec import SealedEnvelope, SealedSpec, decode_envelope, encode_envelope, encode_sealed_spec, encode_spec
from jobqueue.envelope import MAX_ENVELOPE_BYTES, open_sealed, seal, verify
from jobqueue.errors import (
    BadEnvelope,
    Early,
    InvalidSpec,
    JobqueueError,
    KeyRefused,
    NotFound,
    Undecryptable,
    Untrusted,
)
from jobqueue.header import Header
from jobqueue.ids import KeyId, make_experiment_id
from jobqueue.keys import KeyRing, Reader, Signer, Suite, ensure_laptop_keys, make_pair, revoke, trust
from jobqueue.resources import Resources
from jobqueue.spec import ExperimentSpec, parse_spec

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
QUEUE = "default_cpu"
CANARIES = ["canary-word", "canary-env", "canary-secret", "canary-url", "canary-input", "canary/output", "canary-name"]


def spec_of(**fields: object) -> ExperimentSpec:
    return parse_spec(
        {
            "image": "canary-image:1",
            "command": ["canary-word", "x"],
            "workspace": Artifact(uri="s3://bucket/canary-url?X-Amz-Signature=1"),
            "inputs": {"canary-input": Artifact(uri="s3://bucket/x")},
            "outputs": ["canary/output"],
            "env": {"CANARY": "canary-env"},
            "secrets": {"TOKEN": "canary-secret"},
            "labels": {"canary-name": "x"},
            **fields,
        }
    )


def header_of(spec: ExperimentSpec, **fields: object) -> Header:
    values = {
        "experiment_id": make_experiment_id(),
        "queue": QUEUE,
        "project": spec.project,
        "resources": spec.resources,
        "submitted_at": NOW,
        "expires_at": NOW + timedelta(days=1),
    }
    return Header(**{**values, **fields})  # type: ignore[arg-type]


@pytest.fixture
def keys(tmp_path: Path) -> KeyRing:
    """The keys of a laptop: it seals, signs, trusts and opens."""
    ensure_laptop_keys(tmp_path / "keys")
    return KeyRing(tmp_path / "keys")


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    folder = tmp_path_factory.mktemp("keys")
    ensure_laptop_keys(folder)
    return KeyRing(folder)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs())
def test_a_spec_comes_out_as_it_went_in(laptop: KeyRing, spec: ExperimentSpec) -> None:
    header = header_of(spec)
    verified = verify(seal(spec, header, keys=laptop), keys=laptop, queue=QUEUE, now=NOW)
    assert verified.header == header
    opened = open_sealed(verified, keys=laptop)
    assert opened.spec == spec
    assert opened.reporting_key == laptop.own_reporting()


@pytest.mark.parametrize("suite", list(Suite))
def test_both_suites_are_accepted(tmp_path: Path, suite: Suite) -> None:
    make_pair(tmp_path, Reader.NODE, suite=suite)
    trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line)
    keys = KeyRing(tmp_path)
    spec = spec_of()
    verified = verify(seal(spec, header_of(spec), keys=keys), keys=keys, queue=QUEUE, now=NOW)
    assert verified.envelope.suite == suite
    assert open_sealed(verified, keys=keys).spec == spec


def test_nobody_reads_a_command_a_variable_or_an_address_in_the_queue(keys: KeyRing) -> None:
    spec = spec_of()
    message = seal(spec, header_of(spec), keys=keys)
    assert all(canary in encode_spec(spec).decode("latin-1") for canary in CANARIES)
    for canary in (*CANARIES, "canary", "CANARY", "TOKEN"):
        assert canary.encode() not in message
    assert "canary" not in repr(verify(message, keys=keys, queue=QUEUE, now=NOW))


def test_two_messages_of_one_spec_have_nothing_to_compare(keys: KeyRing) -> None:
    spec = spec_of()
    header = header_of(spec)
    first, second = (decode_envelope(seal(spec, header, keys=keys)) for _ in range(2))
    assert first.nonce != second.nonce
    assert first.ciphertext != second.ciphertext


@pytest.mark.security_case("header changed, ciphertext changed, signature changed")
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_change_of_any_byte_is_noticed_before_it_is_opened(keys: KeyRing, flip: int) -> None:
    """One byte of a message is flipped, at every position.

    Refused: dropped or set aside, unanswered, before a private key is touched.
    Evidence: verify raises at each position, and names no experiment that could be answered.
    """
    spec = spec_of()
    message = seal(spec, header_of(spec), keys=keys)
    for position in range(len(message)):
        changed = bytearray(message)
        changed[position] ^= flip
        with pytest.raises((Untrusted, BadEnvelope)) as caught:
            verify(bytes(changed), keys=keys, queue=QUEUE, now=NOW)
        assert getattr(caught.value, "experiment_id", None) == "", position


@pytest.mark.security_case("ciphertext changed")
def test_a_message_that_is_cut_or_has_something_behind_it_is_refused(keys: KeyRing) -> None:
    """A message is cut short, or bytes are put behind it.

    Refused: it is not the one encoding of an envelope, or its signature does not hold.
    Evidence: verify raises for every length and suffix that is tried.
    """
    spec = spec_of()
    message = seal(spec, header_of(spec), keys=keys)
    for changed in (*(message[:end] for end in range(0, len(message), 7)), message + b"\0", message + message[:2]):
        with pytest.raises((Untrusted, BadEnvelope)):
            verify(changed, keys=keys, queue=QUEUE, now=NOW)


@pytest.mark.security_case("header of one on body of another")
def test_every_field_is_signed(keys: KeyRing) -> None:
    """The header, body, nonce or signature of one message is put onto another of the same sender.

    Refused: the signature covers every field.
    Evidence: verify raises Untrusted for each field that was exchanged.
    """
    spec = spec_of()
    sealed = decode_envelope(seal(spec, header_of(spec), keys=keys))
    other = decode_envelope(seal(spec, header_of(spec), keys=keys))
    for field in ("header", "ciphertext", "nonce", "signature"):
        with pytest.raises(Untrusted, match="signature"):
            verify(_with(sealed, **{field: getattr(other, field)}), keys=keys, queue=QUEUE, now=NOW)
    with pytest.raises(Untrusted, match="signature"):
        verify(_with(sealed, node_key_id="other"), keys=keys, queue=QUEUE, now=NOW)
    with pytest.raises(Untrusted, match="signature"):
        verify(_with(sealed, suite=Suite.X25519), keys=keys, queue=QUEUE, now=NOW)
    with pytest.raises(Untrusted, match="signature"):
        verify(_with(sealed, signature=b""), keys=keys, queue=QUEUE, now=NOW)


@pytest.mark.security_case("wrong key")
def test_a_sender_who_is_not_trusted_is_refused(keys: KeyRing, tmp_path: Path) -> None:
    """A sender whom the node does not trust signs a sound message.

    Refused: dropped, never answered.
    Evidence: verify raises Untrusted, before the signature is looked at.
    """
    stranger = _sender(tmp_path / "stranger", node=keys)
    spec = spec_of()
    with pytest.raises(Untrusted, match="not trusted"):
        verify(seal(spec, header_of(spec), keys=stranger), keys=keys, queue=QUEUE, now=NOW)


@pytest.mark.security_case("right key, wrong queue")
def test_a_sender_who_is_trusted_for_another_queue_is_refused(keys: KeyRing, tmp_path: Path) -> None:
    """A sender who is trusted for one queue prefix sends to another one.

    Refused: the longest prefix wins alone.
    Evidence: both senders are accepted for their own queue and refused for the other's.
    """
    team = _sender(tmp_path / "team", node=keys)
    trust(keys.folder, team.sender().public.line, queue_prefix="team_")
    keys = KeyRing(keys.folder)
    spec = spec_of()
    for queue, sender, is_accepted in (
        ("team_cpu", team, True),
        ("default_cpu", team, False),
        ("team_cpu", keys, False),
        ("default_cpu", keys, True),
    ):
        message = seal(spec, header_of(spec, queue=queue), keys=sender)
        if is_accepted:
            assert verify(message, keys=keys, queue=queue, now=NOW)
        else:
            with pytest.raises(Untrusted, match="not trusted"):
                verify(message, keys=keys, queue=queue, now=NOW)


@pytest.mark.security_case("right key, wrong queue")
def test_a_message_that_was_moved_to_another_queue_is_refused(keys: KeyRing) -> None:
    """The broker's operator moves a sound message to another queue.

    Refused: the queue is in the signed header.
    Evidence: verify raises Untrusted, which names both queues.
    """
    spec = spec_of()
    message = seal(spec, header_of(spec), keys=keys)
    with pytest.raises(Untrusted, match="found in default_gpu"):
        verify(message, keys=keys, queue="default_gpu", now=NOW)


@pytest.mark.security_case("clock skewed sender")
def test_a_message_from_the_future_is_early_but_not_within_the_tolerance(keys: KeyRing) -> None:
    """A sender's clock is ahead of the node's.

    Refused: up to 60 seconds are let pass; what is later is put off until its time, not lost.
    Evidence: verify raises Early with the time that is left.
    """
    spec = spec_of()
    header = header_of(spec)
    message = seal(spec, header, keys=keys)
    assert verify(message, keys=keys, queue=QUEUE, now=NOW - timedelta(seconds=60))
    assert verify(message, keys=keys, queue=QUEUE, now=NOW + timedelta(days=400)), "expiry is decided later"
    with pytest.raises(Early, match="clocks") as caught:
        verify(message, keys=keys, queue=QUEUE, now=NOW - timedelta(seconds=61))
    assert (caught.value.experiment_id, caught.value.remaining) == (header.experiment_id, timedelta(seconds=1))


@pytest.mark.security_case("unknown suite")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "version"),
        ({"version": 0}, "version"),
        ({"suite": 0}, "suite"),
        ({"suite": 3}, "suite"),
        ({"nonce": b"short"}, "nonce"),
    ],
)
def test_what_this_version_does_not_read_is_refused_even_when_signed(
    keys: KeyRing, change: dict[str, object], match: str
) -> None:
    """A trusted sender signs an envelope of an unknown version or suite, or with a nonce that is too short.

    Refused: set aside unopened.
    Evidence: verify raises BadEnvelope.
    """
    with pytest.raises(BadEnvelope, match=match):
        verify(_signed_anew(keys, lambda sealed: replace(sealed, **change)), keys=keys, queue=QUEUE, now=NOW)  # type: ignore[arg-type]


@pytest.mark.security_case("suite below the floor")
def test_a_suite_below_the_floor_is_refused(keys: KeyRing, tmp_path: Path) -> None:
    """A trusted sender seals with a suite that is weaker than the operator's floor.

    Refused: set aside unopened; the floor is JOBQUEUE_WEAKEST_SUITE.
    Evidence: verify raises BadEnvelope under the higher floor, and takes the same bytes under the lower one.
    """
    make_pair(tmp_path, Reader.NODE, suite=Suite.X25519)
    trust(tmp_path, make_pair(tmp_path, Signer.SENDER).line)
    spec = spec_of()
    message = seal(spec, header_of(spec), keys=KeyRing(tmp_path))
    with pytest.raises(BadEnvelope, match="suite"):
        verify(message, keys=KeyRing(tmp_path, weakest=Suite.MLKEM768_X25519), queue=QUEUE, now=NOW)
    assert verify(message, keys=KeyRing(tmp_path), queue=QUEUE, now=NOW)


@pytest.mark.security_case("suite below the floor")
def test_nothing_is_sealed_below_the_senders_own_floor(tmp_path: Path) -> None:
    """A sender is given a node's key of a weaker suite than its own floor.

    Refused: nothing is sealed to it; a stronger key that is older is taken instead.
    Evidence: sealing raises KeyRefused with what to run, and no message is made.
    """
    make_pair(tmp_path, Reader.NODE, suite=Suite.X25519)
    make_pair(tmp_path, Signer.SENDER)
    strict = KeyRing(tmp_path, weakest=Suite.MLKEM768_X25519)
    spec = spec_of()
    with pytest.raises(KeyRefused, match="keys rotate node"):
        seal(spec, header_of(spec), keys=strict)
    strong = make_pair(tmp_path, Reader.NODE)
    make_pair(tmp_path, Reader.NODE, suite=Suite.X25519)
    assert KeyRing(tmp_path, weakest=Suite.MLKEM768_X25519).recipient(QUEUE) == strong


@pytest.mark.security_case("downgrade")
def test_a_message_cannot_be_taken_for_one_of_another_suite(keys: KeyRing) -> None:
    """The suite of a message is changed, by the broker's operator or by its own sender after sealing.

    Refused: the suite is under the signature, and the ciphertext only opens with it.
    Evidence: the changed message raises Untrusted; signed anew it raises Undecryptable; sealed for one suite and named
    as another it does not open even with the right key.
    """
    message = seal(spec_of(), header_of(spec_of()), keys=keys)
    with pytest.raises(Untrusted, match="signature"):
        verify(_with(decode_envelope(message), suite=Suite.X25519), keys=keys, queue=QUEUE, now=NOW)
    signed_anew = _signed_anew(keys, lambda sealed: replace(sealed, suite=Suite.X25519))
    with pytest.raises(Undecryptable):
        open_sealed(verify(signed_anew, keys=keys, queue=QUEUE, now=NOW), keys=keys)
    sealed = decode_envelope(message)
    key = keys.node_key(sealed.node_key_id)
    assert key.open(sealed.ciphertext, info=envelope._sealing_context(sealed))
    with pytest.raises(Undecryptable):
        key.open(sealed.ciphertext, info=envelope._sealing_context(replace(sealed, suite=Suite.X25519)))


@pytest.mark.security_case("suite below the floor")
def test_a_key_for_reports_below_the_floor_is_not_sealed_to(keys: KeyRing) -> None:
    """A spec names a key for its reports whose suite is weaker than the node's floor.

    Refused: the experiment ends as BAD_SPEC; nothing is sealed to the key, and nothing travels unsealed in its place.
    Evidence: opening raises BadEnvelope under the higher floor only; who looks for a key to seal to is told of it.
    """
    weak = make_pair(keys.folder, Reader.REPORTING, suite=Suite.X25519)
    sender = KeyRing(keys.folder)
    spec = spec_of()
    message = seal(spec, header_of(spec), keys=sender)
    verified = verify(message, keys=keys, queue=QUEUE, now=NOW)
    assert open_sealed(verified, keys=keys).reporting_key == weak
    strict = KeyRing(keys.folder, weakest=Suite.MLKEM768_X25519)
    with pytest.raises(BadEnvelope, match="mlkem768"):
        open_sealed(verified, keys=strict)
    for find in (strict.own_reporting, lambda: strict.reporting(QUEUE)):
        with pytest.raises(KeyRefused, match="weaker suite than mlkem768"):
            find()
    with pytest.raises(NotFound):
        strict.reporting_key(weak.key_id)


@pytest.mark.security_case("replayed after expiry")
def test_a_message_that_would_be_good_for_ever_is_refused(keys: KeyRing) -> None:
    """A trusted sender signs a message that expires later than is allowed, so that it could be replayed for ever.

    Refused: set aside; 30 days after submission is the latest.
    Evidence: verify raises BadEnvelope for one microsecond more, and takes 30 days.
    Red before: any time up to the year 9999 was taken.
    """
    spec = spec_of()
    longest = seal(spec, header_of(spec, expires_at=NOW + timedelta(days=30)), keys=keys)
    assert verify(longest, keys=keys, queue=QUEUE, now=NOW)
    longer = seal(spec, header_of(spec, expires_at=NOW + timedelta(days=30, microseconds=1)), keys=keys)
    with pytest.raises(BadEnvelope, match="30 days"):
        verify(longer, keys=keys, queue=QUEUE, now=NOW)
    with pytest.raises(InvalidSpec, match="expires"):
        spec_of(expires="31d")


@pytest.mark.security_case("revoked key")
def test_a_revoked_sender_is_refused_within_seconds(keys: KeyRing, tmp_path: Path) -> None:
    """A sender's key is revoked on the node while it goes on sending.

    Refused: within 10 seconds, without a restart; here the keys are looked at once a second.
    Evidence: the same message is taken before, and raises Untrusted once the second is over.
    """
    seconds = [0.0]
    ring = KeyRing(keys.folder, clock=lambda: seconds[0])
    other = make_pair(tmp_path / "other", Signer.SENDER)
    trust(keys.folder, other.line)
    spec = spec_of()
    message = seal(spec, header_of(spec), keys=keys)
    assert verify(message, keys=ring, queue=QUEUE, now=NOW)
    revoke(keys.folder, keys.sender().public.key_id)
    seconds[0] += 1
    with pytest.raises(Untrusted, match="not trusted"):
        verify(message, keys=ring, queue=QUEUE, now=NOW)


@pytest.mark.security_case("unsigned")
def test_a_message_without_a_signature_is_refused(keys: KeyRing) -> None:
    """A message of a trusted sender comes without its signature, or with one of zeros.

    Refused: dropped, never answered.
    Evidence: verify raises Untrusted without an experiment's id.
    """
    sealed = decode_envelope(seal(spec_of(), header_of(spec_of()), keys=keys))
    for signature in (b"", bytes(64)):
        with pytest.raises(Untrusted, match="signature") as caught:
            verify(_with(sealed, signature=signature), keys=keys, queue=QUEUE, now=NOW)
        assert caught.value.experiment_id == ""


@pytest.mark.security_case("wrong key")
def test_a_message_sealed_to_another_node_is_answered_as_undecryptable(keys: KeyRing, tmp_path: Path) -> None:
    """A trusted sender seals to a key that this node does not have.

    Refused: the experiment ends as UNDECRYPTABLE.
    Evidence: opening raises Undecryptable with the experiment's id.
    """
    other = _sender(tmp_path / "other", node=None)
    trust(keys.folder, other.sender().public.line)
    spec = spec_of()
    header = header_of(spec)
    verified = verify(seal(spec, header, keys=other), keys=KeyRing(keys.folder), queue=QUEUE, now=NOW)
    with pytest.raises(Undecryptable) as caught:
        open_sealed(verified, keys=keys)
    assert caught.value.experiment_id == header.experiment_id


@pytest.mark.security_case("re-signing by another sender")
def test_nobody_can_sign_a_strangers_ciphertext_as_their_own(keys: KeyRing, tmp_path: Path) -> None:
    """A trusted sender strips another one's signature and signs the ciphertext as its own.

    Refused: the sealing is bound to the sender's key id: it does not open.
    Evidence: opening raises Undecryptable.
    """
    thief = _sender(tmp_path / "thief", node=keys)
    trust(keys.folder, thief.sender().public.line)
    keys = KeyRing(keys.folder)
    thief_id = thief.sender().public.key_id
    message = _signed_anew(keys, lambda sealed: replace(sealed, sender_key_id=thief_id), signer=thief)
    verified = verify(message, keys=keys, queue=QUEUE, now=NOW)
    with pytest.raises(Undecryptable):
        open_sealed(verified, keys=keys)


@pytest.mark.security_case("re-signing by another sender")
def test_the_sender_inside_is_the_one_outside(keys: KeyRing) -> None:
    """A sender seals a spec in somebody else's name.

    Refused: the sender inside is not the one who signed.
    Evidence: opening raises Untrusted.
    """
    message = _signed_anew(keys, lambda sealed: _sealed_again(keys, sealed, sender_key_id=KeyId("somebody else")))
    with pytest.raises(Untrusted, match="another sender"):
        open_sealed(verify(message, keys=keys, queue=QUEUE, now=NOW), keys=keys)


@pytest.mark.security_case("header changed")
def test_a_header_that_asks_for_less_than_its_spec_is_refused(keys: KeyRing) -> None:
    """A trusted sender asks for less in the header than in the spec, to be let in where it does not fit.

    Refused: the experiment ends as BAD_SPEC.
    Evidence: opening raises InvalidSpec that names each field.
    """
    spec = spec_of(gpus=4)
    small = Resources(cpus=1, memory_bytes=1, disk_bytes=1, shm_bytes=1)
    message = seal(spec, header_of(spec, resources=small, project="other"), keys=keys)
    with pytest.raises(InvalidSpec) as caught:
        open_sealed(verify(message, keys=keys, queue=QUEUE, now=NOW), keys=keys)
    assert {problem.path for problem in caught.value.problems} == {"resources", "project"}


def test_a_signed_header_that_is_malformed_is_a_bad_envelope(keys: KeyRing) -> None:
    message = _signed_anew(keys, lambda sealed: replace(sealed, header=b""))
    with pytest.raises(BadEnvelope, match="header"):
        verify(message, keys=keys, queue=QUEUE, now=NOW)


def test_a_sealed_part_that_is_no_spec_is_answered(keys: KeyRing) -> None:
    message = _signed_anew(keys, lambda sealed: _sealed_again(keys, sealed, spec=b"\xff"))
    verified = verify(message, keys=keys, queue=QUEUE, now=NOW)
    with pytest.raises(BadEnvelope) as caught:
        open_sealed(verified, keys=keys)
    assert caught.value.experiment_id == verified.header.experiment_id


def test_a_sealed_part_that_names_no_key_for_its_reports_is_answered(keys: KeyRing) -> None:
    spec = encode_spec(spec_of())
    for line in ("nonsense", keys.recipient(QUEUE).line, keys.sender().public.line):
        message = _signed_anew(keys, lambda sealed: _sealed_again(keys, sealed, spec=spec, reporting_key=line))  # noqa: B023
        verified = verify(message, keys=keys, queue=QUEUE, now=NOW)
        with pytest.raises(BadEnvelope, match="key for its reports") as caught:
            open_sealed(verified, keys=keys)
        assert caught.value.experiment_id == verified.header.experiment_id


@pytest.mark.security_case("oversize by 1 byte")
def test_a_message_that_is_too_large_is_refused_by_both_sides(keys: KeyRing) -> None:
    """A message is one byte longer than allowed.

    Refused: refused before anything of it is parsed.
    Evidence: verify raises BadEnvelope for the size; one of exactly the size gets as far as its form.
    """
    spec = spec_of(secrets={f"S{number}": "x" * 10_000 for number in range(30)})
    with pytest.raises(InvalidSpec, match="bytes as a message"):
        seal(spec, header_of(spec), keys=keys)
    with pytest.raises(BadEnvelope, match="bytes long"):
        verify(b"\0" * (MAX_ENVELOPE_BYTES + 1), keys=keys, queue=QUEUE, now=NOW)
    with pytest.raises(BadEnvelope, match="not a SealedEnvelope"):
        verify(b"\0" * MAX_ENVELOPE_BYTES, keys=keys, queue=QUEUE, now=NOW)


def test_the_digest_tells_a_redelivery_from_another_message(keys: KeyRing) -> None:
    spec = spec_of()
    header = header_of(spec)
    message, other = (seal(spec, header, keys=keys) for _ in range(2))
    digests = [verify(each, keys=keys, queue=QUEUE, now=NOW).digest for each in (message, message, other)]
    assert digests[0] == digests[1] == hashlib.sha256(message).hexdigest() != digests[2]


def test_without_keys_nothing_is_sealed_and_the_error_says_what_to_run(tmp_path: Path) -> None:
    spec = spec_of()
    with pytest.raises(NotFound, match="jobqueue keys new"):
        seal(spec, header_of(spec), keys=KeyRing(tmp_path))


@pytest.mark.security_case("unsigned")
def test_any_bytes_are_refused_with_an_error_of_ours(keys: KeyRing) -> None:
    """Random bytes of any length come as a message.

    Refused: refused with an error of this project.
    Evidence: verify raises nothing else.
    """
    for size in range(0, 3000, 11):
        with pytest.raises(JobqueueError):
            verify(os.urandom(size), keys=keys, queue=QUEUE, now=NOW)


def _sender(folder: Path, *, node: KeyRing | None) -> KeyRing:
    """Return the keys of another sender, who seals to `node`, or to a node of its own."""
    ensure_laptop_keys(folder)
    if node:
        trust(folder, node.recipient(QUEUE).line, queue_prefix="default")
        trust(folder, node.recipient(QUEUE).line, queue_prefix="team")
    return KeyRing(folder)


def _with(sealed: SealedEnvelope, **fields: object) -> bytes:
    return encode_envelope(replace(sealed, **fields))  # type: ignore[arg-type]


def _signed_anew(
    keys: KeyRing, change: Callable[[SealedEnvelope], SealedEnvelope], *, signer: KeyRing | None = None
) -> bytes:
    spec = spec_of()
    changed = change(decode_envelope(seal(spec, header_of(spec), keys=keys)))
    signature = (signer or keys).sender().sign(envelope._signed_bytes(changed))
    return _with(changed, signature=signature)


def _sealed_again(
    keys: KeyRing,
    sealed: SealedEnvelope,
    *,
    sender_key_id: KeyId | None = None,
    spec: bytes = b"",
    reporting_key: str = "",
) -> SealedEnvelope:
    inside = SealedSpec(sender_key_id=sender_key_id or sealed.sender_key_id, spec=spec, reporting_key=reporting_key)
    content = encode_sealed_spec(inside)
    ciphertext = keys.recipient(QUEUE).seal(content, info=envelope._sealing_context(sealed))
    return replace(sealed, ciphertext=ciphertext)
