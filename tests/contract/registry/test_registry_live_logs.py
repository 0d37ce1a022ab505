"""Every registry keeps the newest part of a log."""

import pytest
from services.registries import AT_ONCE, DRAINED, granted, registered

from jobqueue.ids import make_experiment_id
from jobqueue.registry.base import (
    Registry,
)


def test_live_logs_are_read_on_from_a_cursor(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    assert registry.live_logs.read(submission.id, "stdout") == []
    registry.live_logs.append(lease, "stdout", b"one\n", offset=0)
    registry.live_logs.append(lease, "stderr", b"apart\n", offset=0)
    (first,) = registry.live_logs.read(submission.id, "stdout")
    assert (first.attempt, first.offset, first.data) == (1, 0, b"one\n")
    assert registry.live_logs.read(submission.id, "stdout", after=first.cursor) == []
    registry.live_logs.append(lease, "stdout", b"\xff\x00two", offset=4)
    (second,) = registry.live_logs.read(submission.id, "stdout", after=first.cursor)
    assert (second.offset, second.data) == (4, b"\xff\x00two")
    assert [piece.data for piece in registry.live_logs.read(submission.id, "stderr")] == [b"apart\n"]


def test_bytes_that_are_sent_again_are_kept_once(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    registry.live_logs.append(lease, "stdout", b"012345", offset=0)
    registry.live_logs.append(lease, "stdout", b"345678", offset=3)
    registry.live_logs.append(lease, "stdout", b"0", offset=0)
    registry.live_logs.append(lease, "stdout", b"", offset=9)
    pieces = registry.live_logs.read(submission.id, "stdout")
    assert [(piece.offset, piece.data) for piece in pieces] == [(0, b"012345"), (6, b"678")]


def test_the_next_attempt_begins_its_log_anew(registry: Registry) -> None:
    submission = registered(registry)
    first = granted(registry, submission).lease
    registry.live_logs.append(first, "stdout", b"first", offset=0)
    registry.leases.release(first, DRAINED, delay=AT_ONCE)
    second = granted(registry, submission).lease
    registry.live_logs.append(second, "stdout", b"second", offset=0)
    pieces = registry.live_logs.read(submission.id, "stdout")
    assert [(piece.attempt, piece.offset, piece.data) for piece in pieces] == [(1, 0, b"first"), (2, 0, b"second")]


def test_live_logs_keep_about_the_newest_megabyte_in_pieces(registry: Registry) -> None:
    submission = registered(registry)
    lease = granted(registry, submission).lease
    data = bytes(index % 251 for index in range(300_000))
    for turn in range(6):
        registry.live_logs.append(lease, "stdout", data, offset=turn * len(data))
    pieces = registry.live_logs.read(submission.id, "stdout")
    kept = b"".join(piece.data for piece in pieces)
    assert 2**20 <= len(kept) <= 2**20 + 2**16
    assert kept == (data * 6)[-len(kept) :]
    assert pieces[0].offset == 6 * len(data) - len(kept)
    assert max(len(piece.data) for piece in pieces) <= 2**16


def test_a_strange_cursor_is_a_mistake(registry: Registry) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        registry.live_logs.read(make_experiment_id(), "stdout", after="$; DROP")
