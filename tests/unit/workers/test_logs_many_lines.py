"""Much output in large pieces: only what counts is looked at, and nothing that counts is missed."""

import json

from hypothesis import given
from hypothesis import strategies as st

from jobqueue.ids import make_experiment_id
from jobqueue.registry.base import Lease, LogPiece
from jobqueue.storage import open_store
from workers.attempt.logs import LAST_LINES, LogWriter

ORDINARY = st.sampled_from([b"", b"\r", b"::job", b"queue"]) | st.integers(0, 9999).map(b"step %d".__mod__)
TELLING = st.sampled_from([b"::jobqueue progress=0.5::", b"RuntimeError: CUDA out of memory"])
LINES = st.lists(ORDINARY, min_size=LAST_LINES // 2, max_size=3 * LAST_LINES)


class NoLive:
    """A live log that takes everything and keeps nothing."""

    def append(self, lease: Lease, stream: str, data: bytes, *, offset: int) -> None:
        """Take it."""

    def read(self, experiment_id: str, stream: str, *, after: str = "") -> list[LogPiece]:
        return []


def take(pieces: list[bytes]) -> tuple[tuple[str, ...], list[str], bool]:
    """Return the last lines, the progress, and whether the GPU's memory ran out."""
    progress: list[str] = []
    writer = LogWriter(
        Lease(experiment_id=make_experiment_id(), token=1, attempt=1),
        store=open_store(f"memory://{make_experiment_id()}"),
        prefix="p",
        live=NoLive(),
        limit_bytes=10**6,
        on_progress=progress.append,
    )
    for piece in pieces:
        writer.write("stdout", piece)
    writer.close()
    return writer.last_lines, progress, writer.is_gpu_out_of_memory


@given(before=LINES, telling=st.lists(TELLING, max_size=2), after=LINES, cut=st.integers(0, 400))
def test_large_pieces_tell_the_same_as_single_lines(
    before: list[bytes], telling: list[bytes], after: list[bytes], cut: int
) -> None:
    lines = [line + b"\n" for line in (*before, *telling, *after)]
    whole = b"".join(lines)
    assert take([whole[:cut], whole[cut:]]) == take(lines)


def test_a_progress_line_between_thousands_of_others_is_found() -> None:
    output = b"step\n" * 5000 + b"::jobqueue progress=0.25::\n" + b"step\n" * 5000
    _, progress, _ = take([output])
    assert [json.loads(found) for found in progress] == [{"progress": 0.25}]
