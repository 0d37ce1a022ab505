"""The result marker survives its way through the store, and nothing else passes for one."""

import json
from datetime import UTC, datetime

import pytest

from jobqueue.errors import ArtifactRefused
from jobqueue.ids import make_experiment_id
from jobqueue.lifecycle import Reason, State
from jobqueue.marker import Marker, marker_from_json, marker_to_json

MARKER = Marker(
    experiment_id=make_experiment_id(),
    attempt=2,
    token=1_790_000_000_123,
    state=State.FAILED,
    reason=Reason.EXITED_NONZERO,
    detail="exit code 3",
    exit_code=3,
    last_lines=("Traceback", "ü \udc80"),
    manifest="experiments/x/manifest.json",
    manifest_sha256="ab" * 32,
    finished_at=datetime(2026, 11, 21, 3, 4, 5, 678, tzinfo=UTC),
)


def test_a_marker_is_read_as_it_was_written() -> None:
    assert marker_from_json(marker_to_json(MARKER)) == MARKER


def test_a_marker_of_an_older_version_is_read() -> None:
    fields = json.loads(marker_to_json(MARKER))
    del fields["manifest_sha256"]
    assert marker_from_json(json.dumps(fields).encode()).manifest_sha256 == ""


def test_every_reason_is_kept() -> None:
    for reason in Reason:
        fields = json.loads(marker_to_json(MARKER)) | {"reason": reason.name}
        assert marker_from_json(json.dumps(fields).encode()).reason is reason


def test_a_writer_knows_its_own_marker() -> None:
    assert MARKER.is_of(2, 1_790_000_000_123)
    assert not MARKER.is_of(2, 1_790_000_000_124)
    assert not MARKER.is_of(1, 1_790_000_000_123)


@pytest.mark.parametrize(
    "change",
    [
        {"state": "RUNNING"},
        {"state": "DONE"},
        {"reason": "BORED"},
        {"finished_at": "2026-11-21T03:04:05"},
        {"finished_at": None},
        {"experiment_id": "exp-1"},
        {"attempt": "first"},
        {"last_lines": 3},
        {"surprise": 1},
    ],
)
def test_what_is_no_marker_is_refused(change: dict[str, object]) -> None:
    content = json.dumps(json.loads(marker_to_json(MARKER)) | change).encode()
    with pytest.raises(ArtifactRefused, match="not a result marker"):
        marker_from_json(content)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"3", b"\xff", b'{"state": {}}'])
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ArtifactRefused, match="not a result marker"):
        marker_from_json(content)
