"""Staging in that is not to go on: it ends within a piece, and nothing of it is left."""

import io
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import zstandard
from services.node import FakeNode
from services.waiting import wait_until

from jobqueue.artifacts import Artifact
from jobqueue.lifecycle import Reason, State
from jobqueue.storage import open_store
from workers.attempt.archive import unpack
from workers.attempt.supervise import Ended, PutOff

MEBIBYTE = 1 << 20


class NotToGoOnError(Exception):
    """What a test ends a step with."""


def pack(target: Path, *, files: int, size_bytes: int) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for number in range(files):
            header = tarfile.TarInfo(f"file-{number:06d}")
            header.size = size_bytes
            archive.addfile(header, io.BytesIO(bytes(size_bytes)))
    target.write_bytes(zstandard.compress(plain.getvalue()))
    return target


@pytest.mark.parametrize(("files", "size_bytes"), [(100, 10), (1, 8 * MEBIBYTE)])
def test_unpacking_is_checked_between_files_and_within_a_large_one(tmp_path: Path, files: int, size_bytes: int) -> None:
    archive, target, asked = pack(tmp_path / "a.tar.zst", files=files, size_bytes=size_bytes), tmp_path / "to", []
    target.mkdir()

    def check() -> None:
        asked.append(sum(path.stat().st_size for path in target.iterdir()))
        if asked[-1] >= files * size_bytes / 2:
            raise NotToGoOnError

    with pytest.raises(NotToGoOnError):
        unpack(archive, target, max_bytes=16 * MEBIBYTE, declared_bytes=files * size_bytes, check=check)
    assert asked[-1] <= files * size_bytes / 2 + MEBIBYTE


@pytest.mark.parametrize("reason", [Reason.DRAINED, Reason.CANCELLED_BY_USER, None])
def test_an_end_that_is_asked_for_while_inputs_arrive_does_not_wait_for_the_rest(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, reason: Reason | None
) -> None:
    pieces: list[int] = []

    def trickle(key: str) -> Iterator[bytes]:
        assert key == "inputs/data"
        while len(pieces) < 1000:
            pieces.append(len(pieces))
            time.sleep(0.02)
            yield b"x"

    store = open_store(f"memory://{uuid4()}")
    monkeypatch.setattr(store, "get", trickle)
    monkeypatch.setattr(node.store, "_store", store)
    message = node.message(inputs={"data": Artifact(uri="store:inputs/data")})
    running = node.start(message)
    wait_until(lambda: len(pieces) > 2, what="the first pieces")
    if reason:
        running.attempt.ask(reason)
    else:
        node.registry.experiments.cancel(message.header.experiment_id)
    result = running.join()
    assert len(pieces) < 100
    if reason is Reason.DRAINED:
        assert isinstance(result, PutOff)
    else:
        assert isinstance(result, Ended)
        assert result.state is State.CANCELLED
    assert (node.runtime.containers, list((node.site.folder / "incoming").iterdir())) == ([], [])
