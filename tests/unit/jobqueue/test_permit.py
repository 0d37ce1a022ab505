"""A permit says what one experiment may read, by the word of a sender that is trusted for its queue."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobqueue.artifacts import Artifact
from jobqueue.envelope import open_sealed, seal, verify
from jobqueue.errors import NotFound, Untrusted
from jobqueue.header import Header
from jobqueue.ids import KeyId, make_experiment_id
from jobqueue.keys import KeyRing, Signer, SigningKey, ensure_laptop_keys, make_pair, trust
from jobqueue.permit import Permit
from jobqueue.spec import parse_spec

QUEUE = "lab_cpu"
NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def keys(tmp_path: Path) -> KeyRing:
    ensure_laptop_keys(tmp_path / "keys")
    return KeyRing(tmp_path / "keys")


@pytest.fixture
def permit(keys: KeyRing) -> Permit:
    found = submit(keys)
    assert found is not None
    return found


def submit(keys: KeyRing) -> Permit | None:
    """Return the permit that comes with a spec."""
    inputs = {
        "b": Artifact(uri="store:inputs/b"),
        "a": Artifact(uri="s3://bucket/a"),
        "again": Artifact(uri="store:inputs/b"),
        "web": Artifact(uri="https://host/path?signature=secret"),
    }
    spec = parse_spec(
        {"image": "any:1", "command": ["true"], "inputs": inputs, "workspace": Artifact(uri="store:workspaces/w")}
    )
    header = Header(
        experiment_id=make_experiment_id(),
        queue=QUEUE,
        project=spec.project,
        resources=spec.resources,
        submitted_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )
    return open_sealed(verify(seal(spec, header, keys=keys), keys=keys, queue=QUEUE, now=NOW), keys=keys).permit


def test_what_a_sender_before_permits_has_sealed_has_none(keys: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SigningKey, "sign", sign_no_permit(SigningKey.sign))
    assert submit(keys) is None


def sign_no_permit(sign: Callable[[SigningKey, bytes], bytes]) -> Callable[[SigningKey, bytes], bytes]:
    return lambda key, message: b"" if b"/permit" in message[:30] else sign(key, message)


def test_a_permit_comes_with_the_spec_and_names_what_lies_in_stores(keys: KeyRing, permit: Permit) -> None:
    assert permit.uris == ("s3://bucket/a", "store:inputs/b", "store:workspaces/w")
    assert permit.queue == QUEUE
    permit.check(keys=keys)


@pytest.mark.parametrize(
    "change",
    [
        {"experiment_id": make_experiment_id()},
        {"queue": "lab_gpu"},
        {"uris": ("s3://bucket/a", "store:inputs/b", "store:inputs/c", "store:workspaces/w")},
        {"uris": ("store:inputs/b",)},
        {"signature": b""},
        {"signature": bytes(64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_permit_that_was_changed_does_not_hold(keys: KeyRing, permit: Permit, change: dict[str, Any]) -> None:
    with pytest.raises(Untrusted, match="does not hold"):
        replace(permit, **change).check(keys=keys)


def test_a_permit_of_somebody_who_is_not_trusted_for_the_queue_does_not_hold(
    keys: KeyRing, permit: Permit, tmp_path: Path
) -> None:
    other = KeyRing(tmp_path / "other")
    trust(other.folder, make_pair(other.folder, Signer.SENDER).line)
    with pytest.raises(NotFound, match="not trusted"):
        permit.check(keys=other)


def test_a_permit_shows_no_address() -> None:
    permit = Permit(
        experiment_id=make_experiment_id(),
        queue=QUEUE,
        uris=("store:secret-name",),
        sender_key_id=KeyId("sender"),
        signature=b"secret-signature",
    )
    assert "secret" not in repr(permit)
