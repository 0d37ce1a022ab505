"""Where a container's output goes."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.artifacts import log_prefix
from jobqueue.ids import make_experiment_id
from jobqueue.registry.base import Lease, LogPiece
from jobqueue.storage import open_store
from jobqueue.storage.base import Store
from workers.attempt.logs import CHUNK_BYTES, LAST_LINES, LogWriter
from workers.attempt.redaction import Redactor

PREFIX = "experiments/e/attempts/1-1"


class Live:
    """A live log that keeps what it is given."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, int, bytes]] = []

    def append(self, lease: Lease, stream: str, data: bytes, *, offset: int) -> None:
        self.pieces.append((stream, offset, data))

    def read(self, experiment_id: str, stream: str, *, after: str = "") -> list[LogPiece]:
        raise NotImplementedError


def lease() -> Lease:
    return Lease(experiment_id=make_experiment_id(), token=1, attempt=1)


def stored(store: Store, stream: str) -> bytes:
    parts = [(found.key, b"".join(store.get(found.key))) for found in store.list(log_prefix(PREFIX, stream))]
    offset = 0
    for key, data in parts:
        assert int(key.rpartition("/")[2]) == offset, "a chunk is named by the offset of its first byte"
        offset += len(data)
    return b"".join(data for _, data in parts)


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{make_experiment_id()}")


@pytest.fixture
def make_writer(store: Store) -> Callable[..., LogWriter]:
    def make(**options: object) -> LogWriter:
        defaults: dict[str, object] = {"limit_bytes": 10**9, "on_progress": lambda _: None, "live": Live()}
        return LogWriter(lease(), store=store, prefix=PREFIX, **{**defaults, **options})

    return make


def test_both_streams_are_stored_whole_and_apart(make_writer: Callable[..., LogWriter], store: Store) -> None:
    writer = make_writer()
    for number in range(1000):
        writer.write("stdout", b"out %d\n" % number)
        writer.write("stderr", b"err %d\n" % number)
    writer.close()
    assert stored(store, "stdout") == b"".join(b"out %d\n" % number for number in range(1000))
    assert stored(store, "stderr") == b"".join(b"err %d\n" % number for number in range(1000))


def test_a_chunk_is_stored_as_soon_as_it_is_full(make_writer: Callable[..., LogWriter], store: Store) -> None:
    writer = make_writer()
    for _ in range(3 * CHUNK_BYTES // 65536):
        writer.write("stdout", b"x" * 65536)
    assert len(stored(store, "stdout")) == 3 * CHUNK_BYTES
    writer.close()


def test_live_pieces_carry_the_offset_of_the_stored_stream(make_writer: Callable[..., LogWriter], store: Store) -> None:
    live = Live()
    writer = make_writer(live=live)
    writer.write("stdout", b"one\n")
    writer.write("stdout", b"two\n")
    writer.close()
    whole = stored(store, "stdout")
    assert b"".join(data for _, _, data in live.pieces) == whole
    assert all(whole[offset:].startswith(data) for _, offset, data in live.pieces)


def test_a_flood_drops_live_pieces_but_no_stored_byte(make_writer: Callable[..., LogWriter], store: Store) -> None:
    live = Live()
    writer = make_writer(live=live)
    flood = b"".join(b"%d\n" % number for number in range(200_000))
    writer.write("stdout", flood)
    writer.close()
    assert stored(store, "stdout") == flood
    assert all(flood[offset:].startswith(data) for _, offset, data in live.pieces)
    assert sum(len(data) for _, _, data in live.pieces) < len(flood)
    assert live.pieces[-1][2].endswith(b"199999\n")


def test_output_past_the_limit_is_cut_with_a_mark(make_writer: Callable[..., LogWriter], store: Store) -> None:
    writer = make_writer(limit_bytes=100)
    writer.write("stdout", b"a" * 90)
    assert not writer.is_over_limit
    writer.write("stderr", b"b" * 90)
    writer.write("stdout", b"c" * 90)
    assert writer.is_over_limit
    writer.close()
    assert stored(store, "stdout") == b"a" * 90
    assert stored(store, "stderr") == b"b" * 10 + b"\n[log cut here: over its limit of 100 bytes]\n"


def test_the_last_lines_are_kept_bounded(make_writer: Callable[..., LogWriter]) -> None:
    writer = make_writer()
    for number in range(100):
        writer.write("stdout", b"line %d\n" % number)
    writer.write("stdout", b"y" * 50_000_000)
    writer.close()
    assert len(writer.last_lines) == LAST_LINES
    assert writer.last_lines[-2] == "line 99"
    assert len(writer.last_lines[-1]) == 500


def test_progress_lines_are_passed_on(make_writer: Callable[..., LogWriter]) -> None:
    found: list[str] = []
    writer = make_writer(on_progress=found.append)
    writer.write("stdout", b"epoch 1\n::jobqueue progress=0.5 ")
    writer.write("stdout", b"loss=0.25::\nepoch 2\n")
    writer.close()
    assert found == ['{"progress": 0.5, "loss": 0.25}']


@given(
    secret=st.binary(min_size=4, max_size=12).filter(lambda value: b"\n" not in value and b"[secret]" not in value),
    before=st.binary(max_size=20),
    after=st.binary(max_size=20),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_no_secret_passes_wherever_the_pieces_are_cut(
    secret: bytes, before: bytes, after: bytes, cuts: list[int]
) -> None:
    store = open_store(f"memory://{make_experiment_id()}")
    writer = LogWriter(
        lease(),
        store=store,
        prefix=PREFIX,
        live=Live(),
        limit_bytes=10**6,
        secrets=(secret,),
        on_progress=lambda _: None,
    )
    text = before + secret + after
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    for first, last in itertools.pairwise(borders):
        writer.write("stdout", text[first:last])
    writer.close()
    whole = Redactor((secret,))
    assert stored(store, "stdout") == whole.feed(text) + whole.flush()
