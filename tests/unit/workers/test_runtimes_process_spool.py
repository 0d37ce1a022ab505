"""One stream of a process container: nothing that was taken from the pipe is lost, and the file is bounded."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from workers.attempt.runtimes import process_spool
from workers.attempt.runtimes.process_spool import Spool, pipe_path


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[int]:
    path = pipe_path(tmp_path, "stdout")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    number = os.open(path, os.O_WRONLY)
    yield number
    os.close(reader)
    os.close(number)


def take(spool: Spool) -> bytes:
    taken = b""
    while piece := spool.peek():
        spool.advance(piece)
        taken += piece
    return taken


def test_another_reader_begins_with_what_the_first_one_took(tmp_path: Path, writer: int) -> None:
    os.write(writer, b"one")
    with closing(Spool(tmp_path, "stdout")) as first:
        assert first.peek() == b"one"
    os.write(writer, b"two")
    with closing(Spool(tmp_path, "stdout")) as second:
        assert take(second) == b"onetwo"
        assert second.peek() is None
        passed = second.passed_bytes
    os.write(writer, b"three")
    with closing(Spool(tmp_path, "stdout", passed_bytes=passed)) as third:
        assert take(third) == b"three"


def test_what_is_kept_is_bounded_and_is_always_the_newest(
    tmp_path: Path, writer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_spool, "FILE_BYTES", 4)
    with closing(Spool(tmp_path, "stdout")) as spool:
        for words in (b"1234", b"567", b"8", b"9"):
            os.write(writer, words)
            assert take(spool) == words
    with closing(Spool(tmp_path, "stdout")) as later:
        assert take(later) == b"56789"
    with closing(Spool(tmp_path, "stdout", passed_bytes=0)) as same:
        assert take(same) == b"9"


def test_a_disk_that_does_not_take_it_loses_nothing(
    tmp_path: Path, writer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    os.write(writer, b"one")
    with closing(Spool(tmp_path, "stdout")) as spool:
        assert take(spool) == b"one"
        monkeypatch.setattr(os, "splice", full)
        os.write(writer, b"two")
        assert spool.peek() == spool.peek() == b"two"
        spool.advance(b"two")
        monkeypatch.undo()
        os.write(writer, b"three")
        assert take(spool) == b"three"
