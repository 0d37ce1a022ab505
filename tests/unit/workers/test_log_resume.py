"""A log that another worker of the same attempt goes on with: every byte once."""

import pytest
from services.node import FakeNode

from jobqueue.artifacts import log_key
from jobqueue.ids import make_experiment_id
from jobqueue.registry.base import Lease
from workers.attempt.log_resume import GAP, Skip, StoredLog, find_stored
from workers.attempt.logs import STREAMS, LogWriter

PREFIX = "experiments/exp-1/attempts/1-1"


def stored(node: FakeNode, stream: str) -> bytes:
    return b"".join(data for key, data in sorted(node.stored(PREFIX).items()) if f"/{stream}/" in key)


def make_writer(node: FakeNode, *, secrets: tuple[bytes, ...] = (), limit_bytes: int = 10_000) -> LogWriter:
    lease = Lease(experiment_id=make_experiment_id(), token=1, attempt=1)
    return LogWriter(
        lease,
        store=node.site.store,
        prefix=PREFIX,
        live=node.registry.live_logs,
        limit_bytes=limit_bytes,
        secrets=secrets,
        on_progress=lambda _: None,
        stored=find_stored(node.site.store, PREFIX, STREAMS),
    )


def test_what_is_stored_is_skipped_wherever_its_pieces_ended(node: FakeNode) -> None:
    text = b"".join(b"line %d with a secret in it\n" % number for number in range(100))
    first = make_writer(node, secrets=(b"secret",))
    first.write("stdout", text[:1234])
    first.write("stderr", b"oops\n")
    first.close()
    second = make_writer(node, secrets=(b"secret",))
    second.write("stderr", b"oops\nagain\n")
    for start in range(0, len(text), 77):
        second.write("stdout", text[start : start + 77])
    second.close()
    assert stored(node, "stdout") == text.replace(b"secret", b"[secret]")
    assert stored(node, "stderr") == b"oops\nagain\n"
    assert second.last_lines[-1] == "line 99 with a [secret] in it"


def test_the_limit_counts_what_the_earlier_worker_took(node: FakeNode) -> None:
    first = make_writer(node, limit_bytes=100)
    first.write("stdout", b"x" * 80)
    first.close()
    second = make_writer(node, limit_bytes=100)
    second.write("stdout", b"x" * 150)
    second.close()
    assert second.is_over_limit
    assert stored(node, "stdout").startswith(b"x" * 100 + b"\n[log cut here")


def test_output_that_begins_later_than_the_log_is_marked_and_kept(node: FakeNode) -> None:
    node.site.store.put(log_key(PREFIX, "stdout", 0), b"the beginning\n")
    writer = make_writer(node)
    writer.write("stdout", b"much later\n")
    writer.close()
    assert stored(node, "stdout") == b"the beginning\n" + GAP + b"much later\n"


@pytest.mark.parametrize("pieces", [[b"abcdef"], [b"a", b"bcd", b"ef"], [b"abc", b"def"], [b"abcd", b"", b"ef"]])
def test_as_many_bytes_are_skipped_as_are_stored(pieces: list[bytes]) -> None:
    skip = Skip(StoredLog(size_bytes=3, beginning=b"abc"))
    assert b"".join(map(skip.feed, pieces)) == b"def"
