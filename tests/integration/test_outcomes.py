"""What each end leads to, on every broker: state, reason, attempts, message, reports, and what a user is told."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import redis
from services.place import DENIED, LONG, number, sleepers, wait_for_sleep
from services.waiting import wait_until
from services.walk import HELD, Walk, error_of, id_of

from jobqueue.artifacts import Artifact
from jobqueue.errors import IdempotencyMismatch, NotFound
from jobqueue.ids import make_experiment_id
from jobqueue.keys import ensure_laptop_keys
from jobqueue.lifecycle import Fault, Outcome, Reason, State
from jobqueue.marker import Marker
from jobqueue.registry.base import Granted, Lease, Submission
from jobqueue.resources import Resources
from jobqueue.storage.markers import write_marker
from producers.handle import Experiment

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")
Row = Callable[[Walk], None]
ROWS: dict[str, Row] = {}
HELD_ELSEWHERE = "another attempt holds the lease"
DONE = Outcome(reason=Reason.EXITED_ZERO, exit_code=0)


def row(name: str) -> Callable[[Row], Row]:
    """Walk a function as the row of this name."""

    def keep(walked: Row) -> Row:
        ROWS[name] = walked
        return walked

    return keep


def end_sleep(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def cancel_later(walk: Walk, experiment: Experiment) -> None:
    """End what was given back; its message comes back and is acknowledged at a later time."""
    experiment.cancel()
    assert experiment.wait(LONG.total_seconds())
    assert walk.record(experiment).state is State.CANCELLED


# What an experiment does


@row("exit code 0")
def _exit_code_0(walk: Walk) -> None:
    experiment = walk.submit("echo x > outputs/x")
    assert walk.ended(experiment, Reason.EXITED_ZERO).manifest
    assert (experiment.result(), walk.record(experiment).exit_code) == ({"exit_code": 0}, 0)
    assert experiment.outputs.read_bytes("outputs/x") == b"x\n"


@row("exit code 3")
def _exit_code_3(walk: Walk) -> None:
    experiment = walk.submit("for i in $(seq 30); do echo line $i; done; exit 3")
    assert walk.ended(experiment, Reason.EXITED_NONZERO).exit_code == 3
    assert walk.record(experiment).last_lines == tuple(f"line {i}" for i in range(11, 31))


@row("exit code 3, and a retry")
def _retried(walk: Walk) -> None:
    experiment = walk.submit("echo $JOBQUEUE_ATTEMPT; exit 3", retries=1)
    walk.ended(experiment, Reason.EXITED_NONZERO, after=[Reason.EXITED_NONZERO])
    assert list(experiment.logs()) == ["2"]


@row("killed by its memory limit")
def _out_of_memory(walk: Walk) -> None:
    experiment = walk.submit("head -c 300000000 /dev/zero | tail; sleep 5", memory="64MiB")
    assert "the limit is 64 MiB" in error_of(walk.ended(experiment, Reason.OUT_OF_MEMORY))


@row("longer than its timeout")
def _timed_out(walk: Walk) -> None:
    experiment = walk.submit("echo half > outputs/half; sleep 60", timeout="3s")
    assert walk.ended(experiment, Reason.TIMED_OUT).manifest
    assert experiment.outputs.read_bytes("outputs/half") == b"half\n"


@row("silent for its stall_timeout")
def _stalled(walk: Walk) -> None:
    experiment = walk.submit("echo begun; sleep 60", stall_timeout="1s")
    assert "silent for 1s" in error_of(walk.ended(experiment, Reason.STALLED))


@row("over the limit of its log")
def _limit_exceeded(walk: Walk) -> None:
    experiment = walk.submit("yes a line | head -c 5000000; sleep 60")
    assert "of output" in error_of(walk.ended(experiment, Reason.LIMIT_EXCEEDED))


@row("the memory of a GPU exhausted")
def _gpu_out_of_memory(walk: Walk) -> None:
    said = "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    final = walk.ended(walk.submit(f"echo '{said}' >&2; exit 1"), Reason.GPU_OUT_OF_MEMORY)
    assert final.exit_code == 1


# What it asks for


@row("expired before a start")
def _expired(walk: Walk) -> None:
    past = datetime.now(UTC) - timedelta(minutes=1)
    late = walk.make_message(header_says={"submitted_at": past, "expires_at": past + timedelta(seconds=1)})
    walk.ended(walk.send(late), Reason.EXPIRED)


@row("an image that the node denies")
def _image_refused(walk: Walk) -> None:
    said = error_of(walk.ended(walk.submit("true", image=DENIED, retries=3), Reason.IMAGE_REFUSED))
    assert "jobqueue-test/*" in said


@row("an input that is missing")
def _input_missing(walk: Walk) -> None:
    experiment = walk.submit("true", inputs={"data": "store:uploads/none.bin"}, retries=3)
    assert "data" in error_of(walk.ended(experiment, Reason.INPUT_INVALID))


@row("an input that has changed")
def _input_changed(walk: Walk) -> None:
    walk.client._connections.store.put("uploads/changed.bin", b"other")
    changed = Artifact(uri="store:uploads/changed.bin", sha256="0" * 64, size_bytes=5)
    experiment = walk.send(walk.make_message(inputs={"data": changed}, retries=3))
    assert "data" in error_of(walk.ended(experiment, Reason.INPUT_INVALID))


@row("more than any slot here has")
def _does_not_fit(walk: Walk) -> None:
    experiment = walk.submit("true", cpus=500, queue=walk.later)
    assert "500" in error_of(walk.given_back(experiment, Reason.DOES_NOT_FIT))
    cancel_later(walk, experiment)


@row("a spec that is not the header's")
def _bad_spec(walk: Walk) -> None:
    small = Resources(cpus=0.01, memory_bytes=2**20, disk_bytes=2**20, shm_bytes=2**20)
    experiment = walk.send(walk.make_message(header_says={"resources": small, "project": "another"}, retries=3))
    said = error_of(walk.ended(experiment, Reason.BAD_SPEC))
    assert "resources: not the same" in said
    assert "project: not the same" in said


@row("an idempotency key of another spec")
def _idempotency(walk: Walk) -> None:
    key = make_experiment_id()
    experiment = walk.submit("echo first", idempotency_key=key)
    with pytest.raises(IdempotencyMismatch):
        walk.submit("echo second", idempotency_key=key)
    assert walk.submit("echo first", idempotency_key=key).id == experiment.id
    walk.ended(experiment, Reason.EXITED_ZERO)
    assert list(experiment.logs()) == ["first"]


# What people do


@row("cancelled by a user")
def _cancelled(walk: Walk) -> None:
    seconds = number()
    experiment = walk.submit(f"sleep {seconds}")
    wait_for_sleep(seconds)
    experiment.cancel()
    walk.ended(experiment, Reason.CANCELLED_BY_USER)
    assert sleepers(seconds) == []


@row("its queue deleted")
def _queue_deleted(walk: Walk) -> None:
    seconds = number()
    with walk.open_broker() as broker:
        broker.queues.create(walk.brief)
        running = walk.submit(f"sleep {seconds}", queue=walk.brief)
        wait_for_sleep(seconds)
        waiting = walk.submit("true", queue=walk.brief)
        assert walk.call("queues", "delete", walk.brief, "--yes").exit_code == 0
        for experiment, attempts in ((running, 1), (waiting, 0)):
            assert experiment.wait(90)
            record = walk.record(experiment)
            assert (record.reason, record.state) == (Reason.QUEUE_DELETED, State.CANCELLED)
            assert (record.attempt, record.history) == (attempts, ())
            walk._check_user(experiment, record)
        wait_until(lambda: not sleepers(seconds), what="it stopped", within=LONG)
        assert not broker.queues.exists(walk.brief)


# What a node, a store, a registry does


@row("what runs containers failed")
def _runtime_failure(walk: Walk) -> None:
    seconds = number()
    experiment = walk.submit(f"sleep {seconds}", queue=walk.later)
    wait_for_sleep(seconds)
    kill_supervisor(walk)
    assert "supervisor" in error_of(walk.given_back(experiment, Reason.RUNTIME_FAILURE))
    cancel_later(walk, experiment)


def kill_supervisor(walk: Walk) -> None:
    """Kill what keeps the one process container that runs."""
    children = psutil.Process(walk.worker.pid).children()
    next(child for child in children if "shim" in " ".join(child.cmdline())).kill()


@row("the store away at its start")
def _store_away_at_first(walk: Walk) -> None:
    with store_away(walk):
        data = Artifact(uri="store:uploads/none.bin")
        experiment = walk.send(walk.make_message(header_says={"queue": walk.later}, inputs={"data": data}))
        walk.given_back(experiment, Reason.STORE_UNAVAILABLE)
    cancel_later(walk, experiment)


@row("the store away at its end")
def _store_away_at_last(walk: Walk) -> None:
    seconds = number()
    experiment = walk.submit(f"echo kept; sleep {seconds}; exit 0")
    pid = wait_for_sleep(seconds)
    with store_away(walk):
        end_sleep(pid)
        wait_until(lambda: walk.record(experiment).state is State.FINALIZING, what="its end not stored", within=LONG)
    walk.ended(experiment, Reason.EXITED_ZERO)
    assert list(experiment.logs()) == ["kept"]


@contextmanager
def store_away(walk: Walk) -> Iterator[None]:
    store = Path(walk.site.settings.storage.removeprefix("file://"))
    away = store.with_name("away")
    store.rename(away)
    store.symlink_to(store)  # whoever follows it never arrives
    try:
        yield
    finally:
        store.unlink()
        away.rename(store)


@row("the node's disk full")
def _node_disk_full(walk: Walk) -> None:
    walk.client._connections.store.put("uploads/large.bin", bytes(3_000_000))
    seconds = number()
    walk.submit(f"sleep {seconds}")  # the other worker takes nothing meanwhile
    pid = wait_for_sleep(seconds)
    with small_disk(walk.site.folder / "small") as disk, walk.make_worker("full", environment=on(walk, disk)) as other:
        (disk / "filling").write_bytes(bytes(4_000_000))
        experiment = walk.submit("wc -c < /inputs/data", inputs={"data": "store:uploads/large.bin"}, disk="4MiB")
        full_worker = walk.given_back(experiment, Reason.NODE_DISK_FULL).worker_id
        wait_until(lambda: states(walk) == {"OK", "DISK_FULL"}, what="the full node told apart", within=LONG)
        end_sleep(pid)
        final = walk.ended(experiment, Reason.EXITED_ZERO, after=[Reason.NODE_DISK_FULL], told=[])
        assert final.worker_id != full_worker
        assert other.running
    assert list(experiment.logs()) == ["3000000"]


def states(walk: Walk) -> set[str]:
    return {worker.state for worker in walk.registry.workers.present()}


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def on(walk: Walk, disk: Path) -> dict[str, str]:
    """Return what makes a worker one of another node, with a disk of its own."""
    settings = walk.site.settings
    return {
        "JOBQUEUE_CACHE_DIR": str(disk),
        "JOBQUEUE_DISK_FLOOR": "1KiB",
        "JOBQUEUE_STATE_DIR": str(walk.site.folder / "elsewhere"),
        "JOBQUEUE_KEYS": str(settings.keys_dir),
        "JOBQUEUE_STORAGE_URL": settings.storage,
    }


@row("its lease superseded")
def _superseded(walk: Walk) -> None:
    seconds = number()
    experiment = walk.submit(f"sleep {seconds}", queue=walk.later)
    wait_for_sleep(seconds)
    wait_until(lambda: experiment.state is State.RUNNING, what="a record that it runs", within=LONG)
    submission = walk.record(experiment).submission
    walk.worker.pause()
    try:
        answer = wait_until(lambda: granted(walk, submission), what="the lease over", within=LONG)
        assert answer
    finally:
        walk.worker.resume()
    wait_until(lambda: is_held(walk, experiment, answer), what="the stale attempt given up", within=LONG)
    assert sleepers(seconds) == []
    assert [report.reason for report in walk.reports_now(experiment) if report.reason] == []
    finish(walk, answer.lease)
    record = walk.record(experiment)
    assert (record.state, record.attempt) == (State.SUCCEEDED, 2)
    assert [past.reason for past in record.history] == [Reason.WORKER_LOST]


def is_held(walk: Walk, experiment: Experiment, answer: Granted) -> bool:
    """Hold on to a lease, and tell whether the worker has met it."""
    walk.registry.leases.renew(answer.lease, ttl=HELD)
    return bool(walk.said(experiment, HELD_ELSEWHERE))


def finish(walk: Walk, lease: Lease) -> None:
    """End what a row holds as a worker does: its message is still to come, to a registry that may be wiped by then."""
    marker = Marker(
        experiment_id=lease.experiment_id,
        attempt=lease.attempt,
        token=lease.token,
        state=State.SUCCEEDED,
        reason=DONE.reason,
        exit_code=DONE.exit_code,
        finished_at=datetime.now(UTC),
    )
    write_marker(walk.client._connections.store, marker)
    walk.registry.leases.finish(lease, DONE, state=State.SUCCEEDED)


def granted(walk: Walk, submission: Submission) -> Granted | None:
    answer = walk.take_lease(submission)
    return answer if isinstance(answer, Granted) else None


@row("the platform's attempts used up")
def _attempts_exhausted(walk: Walk) -> None:
    seconds = number()
    submission = walk.make_message(command=["sleep", seconds])
    walk.registry.experiments.register(submission)
    past = [Reason.RUNTIME_FAILURE, Reason.STORE_UNAVAILABLE, Reason.IMAGE_PULL_FAILED, Reason.NODE_DISK_FULL]
    for reason in past:
        answer = walk.take_lease(submission)
        assert isinstance(answer, Granted)
        walk.registry.leases.release(answer.lease, Outcome(reason=reason), delay=timedelta(0))
    walk.publish(submission)
    wait_for_sleep(seconds)
    kill_supervisor(walk)
    experiment = walk.client.get(submission.id)
    assert experiment.wait(90)
    wait_until(lambda: walk.depth("_dead"), what="its message set aside", within=LONG)
    put_back = walk.call("dlq", "replay", experiment.id, "-q", walk.site.queue)
    assert (put_back.exit_code, "submit the experiment again" in put_back.stderr) == (1, True)
    said = error_of(walk.ended(experiment, Reason.ATTEMPTS_EXHAUSTED, after=past, told=[]))
    assert ", ".join(reason.name for reason in [*past, Reason.RUNTIME_FAILURE]) in said


@row("the registry wiped")
def _quarantine(walk: Walk) -> None:
    seconds = number()
    running = walk.submit(f"sleep {seconds}")
    pid = wait_for_sleep(seconds)
    wait_until(lambda: running.state is State.RUNNING, what="a record that it runs")
    waiting = walk.submit("true")
    with redis.Redis.from_url(walk.server.url) as client:
        client.flushall()
    wait_until(lambda: is_known(walk, running), what="what runs known again", within=LONG)
    end_sleep(pid)
    walk.ended(running, Reason.EXITED_NONZERO)
    # Its message tells of it again, and waits until nobody can hold its lease any more.
    wait_until(lambda: is_known(walk, waiting), what="what waits known again", within=LONG)
    walk.ended(waiting, Reason.EXITED_ZERO)


def is_known(walk: Walk, experiment: Experiment) -> bool:
    return id_of(experiment) in walk.registry.experiments.states([id_of(experiment)])


# What lies in a queue


@row("not an envelope")
def _bad_envelope(walk: Walk) -> None:
    refused(walk, b"\x01" * 400, Reason.BAD_ENVELOPE)


@row("of an unknown sender")
def _untrusted(walk: Walk) -> None:
    keys = walk.site.folder / "foreign"
    ensure_laptop_keys(keys)
    refused(walk, walk.make_message(keys=keys).message, Reason.UNTRUSTED)


def refused(walk: Walk, message: bytes, reason: Reason) -> None:
    """Check that a message is refused, that nobody is answered, and that the worker goes on."""
    submission = replace(walk.make_message(), message=message)
    walk.publish(submission)
    walk.check_message(walk.site.queue, set_aside=[reason] if reason is Reason.BAD_ENVELOPE else [])
    walk.ended(walk.submit("true"), Reason.EXITED_ZERO)
    with pytest.raises(NotFound):
        walk.client.get(submission.id)


@row("sealed to another node")
def _undecryptable(walk: Walk) -> None:
    keys = walk.site.folder / "sealed"
    ensure_laptop_keys(keys)  # a node's key of its own
    for old in (keys / "sender").iterdir():
        old.unlink()
    for own in (walk.site.settings.keys_dir / "sender").iterdir():
        (keys / "sender" / own.name).write_bytes(own.read_bytes())
        (keys / "sender" / own.name).chmod(0o600)
    final = walk.ended(walk.send(walk.make_message(keys=keys)), Reason.UNDECRYPTABLE)
    assert final.fault is Fault.SENDER


@row("a copy of what is held elsewhere")
def _duplicate_alive(walk: Walk) -> None:
    submission = walk.make_message(header_says={"queue": walk.later})
    walk.registry.experiments.register(submission)
    answer = walk.take_lease(submission)
    assert isinstance(answer, Granted)
    walk.publish(submission)
    experiment = walk.client.get(submission.id)
    wait_until(lambda: is_held(walk, experiment, answer), what="it put off", within=LONG)
    record = walk.record(experiment)
    assert (record.state, record.attempt, record.history) == (State.PREPARING, 1, ())
    assert walk.reports_now(experiment) == []
    finish(walk, answer.lease)


@row("a copy of what is over")
def _duplicate_final(walk: Walk) -> None:
    experiment = walk.submit("echo once; exit 3")
    submission = walk.record(experiment).submission
    walk.ended(experiment, Reason.EXITED_NONZERO)
    for _ in range(2):
        walk.publish(submission)
        walk.check_message(submission.queue)
    assert walk.reports_now(experiment) == []
    assert list(experiment.logs()) == ["once"]


@row("another message under a known id")
def _replay(walk: Walk) -> None:
    experiment = walk.submit("echo once")
    walk.ended(experiment, Reason.EXITED_ZERO)
    other = walk.make_message(header_says={"experiment_id": id_of(experiment)}, command=["sh", "-c", "echo twice"])
    walk.publish(other)
    walk.check_message(other.queue, set_aside=[Reason.BAD_ENVELOPE])
    assert walk.reports_now(experiment) == []
    assert list(experiment.logs()) == ["once"]


@pytest.mark.parametrize("name", ROWS)
def test_row(walk: Walk, name: str) -> None:
    ROWS[name](walk)
