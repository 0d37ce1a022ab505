"""What an earlier worker has left: adopted while it is the newest attempt, else removed without a trace."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from services.node import FakeNode
from services.waiting import wait_until

from jobqueue.artifacts import attempt_prefix, log_key
from jobqueue.config import Settings
from jobqueue.envelope import Verified, open_sealed
from jobqueue.errors import NotFound, RegistryUnavailable
from jobqueue.ids import WorkerId
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry.base import Granted, Quarantined, Record
from workers.attempt import workspace
from workers.attempt.lease import LONGEST_INTERVAL, clock_seconds
from workers.attempt.lease_files import KeptLease, LeaseFile, read_boot_id, read_leases
from workers.attempt.ledger import Ledger
from workers.attempt.planning import make_plan
from workers.attempt.runtimes.base import Exit, Plan
from workers.attempt.runtimes.fake import FakeContainer, Script
from workers.attempt.supervise import submission_of
from workers.attempt.telling import make_reporter
from workers.attempt.turn import length_of
from workers.bootstrap import Node
from workers.hardware.devices import Device
from workers.hardware.timetable import Entry
from workers.node.janitor import Janitor

TTL = timedelta(seconds=30)
RENEWAL_SECONDS = LONGEST_INTERVAL.total_seconds()


class Place:
    """One worker that starts on a node where another one of its name was killed."""

    def __init__(self, fake: FakeNode, state_dir: Path) -> None:
        settings = Settings(broker_url="memory://", state_dir=state_dir, cache_dir=state_dir, runtime="process")
        self.node = Node(settings, worker_name="cpu@host", queues=(fake.queue,))
        self.opened = self.node.site
        folder = self.node.folder
        self.site = replace(fake.site, node_id=folder.node_id, leases=folder.leases, lease=TTL)
        self.node.site = self.site
        self.fake, self.janitor = fake, Janitor(self.node)

    def close(self) -> None:
        """Close what the node had opened for itself."""
        self.node.site = self.opened
        self.node.close()

    def leave(self, message: Verified, *, worker: str = "cpu@host", started_before: float = 0.0) -> FakeContainer:
        """Do what a worker does up to a running container, and no more."""
        answer = self.site.registry.leases.acquire(
            self.fake.register(message),
            worker_id=WorkerId(worker),
            node_id=self.site.node_id,
            ttl=TTL,
            platform_budget=3,
        )
        assert isinstance(answer, Granted)
        self.lease = answer.lease
        self.site.registry.leases.advance(self.lease, State.RUNNING)
        folder = workspace.attempt_folder(self.site.folder, self.lease)
        workspace.workspace_folder(folder).mkdir(parents=True)
        kept = KeptLease(
            experiment_id=self.lease.experiment_id,
            attempt=self.lease.attempt,
            token=self.lease.token,
            worker_id=WorkerId(worker),
            queue=self.fake.queue,
            boot_id=read_boot_id(),
            deadline_seconds=clock_seconds() - 1,
            started_at_seconds=clock_seconds() - started_before,
            reports=5,
        )
        self.file = LeaseFile(self.site.leases, kept)
        self.file.create(message.message)
        container = self.site.runtime.start(self._plan(message, folder))
        assert isinstance(container, FakeContainer)
        return container

    def _plan(self, message: Verified, folder: Path) -> Plan:
        return make_plan(
            open_sealed(message, keys=self.site.keys).spec,
            lease=self.lease,
            queue=self.fake.queue,
            node_id=self.site.node_id,
            image="any:1",
            workspace=workspace.workspace_folder(folder),
            inputs={},
            grace=self.site.grace,
        )

    def is_clean(self) -> bool:
        """Tell whether nothing is left on the node."""
        folders = [*(self.site.folder / "attempts").glob("*"), *self.site.leases.iterdir()]
        return not folders and all(container.is_removed for container in self.fake.runtime.containers)


@pytest.fixture
def place(node: FakeNode, tmp_path: Path) -> Iterator[Place]:
    node.runtime.script = Script(output=[("stdout", b"one\ntwo\n")], is_held=True)
    place = Place(node, tmp_path / "state")
    yield place
    place.close()


def ended(place: Place) -> bool:
    return not place.node.adopted


def test_a_lease_file_that_was_half_written_long_ago_goes(place: Place) -> None:
    young, old = (place.site.leases / f"exp-{number}-1-1.lease.new" for number in range(2))
    for path in (young, old):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    place.janitor.look()
    assert list(place.site.leases.iterdir()) == [young]


def test_what_still_is_the_newest_attempt_is_run_to_its_end(place: Place) -> None:
    message = place.fake.message()
    container = place.leave(message)
    prefix = attempt_prefix(place.lease.experiment_id, place.lease.attempt, place.lease.token)
    place.site.store.put(log_key(prefix, "stdout", 0), b"one\n")
    container.pause()
    place.janitor.look()
    assert place.node.adopted == 1
    wait_until(lambda: not container.is_paused, what="its thaw")
    (kept,) = read_leases(place.site.leases).values()
    assert not kept.is_overdue(clock_seconds()), "the guard would freeze it again"
    container.emit("stdout", b"three\n")
    container.finish()
    wait_until(lambda: ended(place), what="its end")
    record = place.fake.record(message)
    assert (record.state, record.attempt, record.platform_failures) == (State.SUCCEEDED, 1, 0)
    assert place.fake.output(message) == b"one\ntwo\nthree\n"
    assert len(place.fake.runtime.containers) == 1
    assert place.is_clean()
    assert min(report.sequence for report in place.fake.reports()) == 5


def test_what_a_worker_without_a_ledger_has_left_counts_in_the_ledger_from_then_on(place: Place) -> None:
    device = Device(uuid="GPU-0", index=0, memory_bytes=2**34)
    ledger = Ledger(place.node.folder, worker_id=place.site.worker_id, cpus=4, memory_bytes=2**33)
    ledger.join(cpus=4, device=device)
    message = place.fake.message(gpus=1, timeout="1h")
    container = place.leave(message, started_before=600)
    place.node.site = place.site = replace(place.site, ledger=ledger, gpus=(device.uuid,))
    assert place.site.is_device_idle
    Janitor(place.node).look()
    wait_until(lambda: not place.site.is_device_idle, what="its device known as in use")
    assert ledger.user_of(device.uuid) == message.header.experiment_id
    (kept,) = read_leases(place.site.leases).values()
    assert kept.entry is not None
    length_seconds = length_of(timedelta(hours=1), place.site.grace)
    assert kept.entry.until_seconds == kept.started_at_seconds + length_seconds
    container.finish()
    wait_until(lambda: ended(place), what="its end")
    assert place.site.is_device_idle


def test_its_timeout_counts_from_its_start(place: Place) -> None:
    message = place.fake.message(timeout="1h")
    place.leave(message, started_before=3601)
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")
    assert place.fake.record(message).reason is Reason.TIMED_OUT


def test_an_end_while_nobody_was_there_is_committed(place: Place) -> None:
    message = place.fake.message()
    place.leave(message).finish(Exit(code=3))
    place.site.registry.leases.advance(place.lease, State.FINALIZING)
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")
    record = place.fake.record(message)
    assert (record.reason, record.exit_code, record.attempt) == (Reason.EXITED_NONZERO, 3, 1)
    assert place.is_clean()


def test_an_adopted_attempt_is_cancelled_and_drained_as_any_other(place: Place) -> None:
    first, second = place.fake.message(), place.fake.message()
    place.leave(first)
    place.janitor.look()
    place.site.registry.experiments.cancel(first.header.experiment_id)
    place.node.ask(first.header.experiment_id, Reason.CANCELLED_BY_USER)
    wait_until(lambda: ended(place), what="its end")
    assert place.fake.record(first).state is State.CANCELLED
    place.leave(second)
    place.janitor.look()
    place.node.drain()
    wait_until(lambda: ended(place), what="its end")
    record = place.fake.record(second)
    assert (record.state, record.platform_failures) == (State.QUEUED, 0)
    assert place.is_clean()


def test_what_was_superseded_is_removed(place: Place) -> None:
    message = place.fake.message()
    place.leave(message)
    place.fake.clock.ahead = 2 * TTL
    other = place.site.registry.leases.acquire(
        place.fake.register(message),
        worker_id=WorkerId("cpu@other"),
        node_id=place.site.node_id,
        ttl=TTL,
        platform_budget=3,
    )
    assert isinstance(other, Granted)
    place.janitor.look()
    assert place.node.adopted == 0
    assert place.is_clean()
    assert place.fake.record(message).token == other.lease.token


def test_what_a_wiped_registry_has_forgotten_is_adopted_once_no_newer_holder_can_be_there(place: Place) -> None:
    message = place.fake.message()
    container = place.leave(message)
    place.fake.registry.forget()
    place.janitor.look()
    assert place.node.adopted == 0
    assert not container.is_removed
    place.fake.clock.ahead = TTL + timedelta(seconds=1)
    place.janitor.look()
    assert place.node.adopted == 1
    container.finish()
    wait_until(lambda: ended(place), what="its end")
    record = place.fake.record(message)
    assert (record.state, record.attempt, record.token) == (State.SUCCEEDED, 1, place.lease.token)
    assert place.is_clean()


def test_what_a_wiped_registry_learnt_anew_from_its_message_is_not_taken_for_newer(place: Place) -> None:
    message = place.fake.message()
    container = place.leave(message)
    place.fake.registry.forget()
    place.file.update(deadline_seconds=clock_seconds() + 60)
    answer = place.site.registry.leases.acquire(
        submission_of(message),
        worker_id=WorkerId("cpu@other"),
        node_id=place.site.node_id,
        ttl=TTL,
        platform_budget=3,
    )
    assert isinstance(answer, Quarantined)
    place.janitor.look()
    assert place.node.adopted == 1
    container.finish()
    wait_until(lambda: ended(place), what="its end")
    assert place.fake.record(message).state is State.SUCCEEDED


def test_what_is_over_is_removed(place: Place) -> None:
    message = place.fake.message()
    place.leave(message)
    place.site.registry.leases.finish(place.lease, Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED)
    place.janitor.look()
    assert place.is_clean()


def test_a_folder_that_cannot_be_removed_now_is_tried_again_and_has_no_share_meanwhile(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = place.fake.message()
    place.leave(message)
    resources = open_sealed(message, keys=place.site.keys).spec.resources
    entry = Entry(worker_id=place.site.worker_id, resources=resources, since_seconds=0, seconds=60, is_granted=True)
    place.file.update(entry=entry)
    place.site.registry.leases.finish(place.lease, Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED)
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "remove", lambda _: False)
        place.janitor.look()
    assert [kept.entry for kept in read_leases(place.site.leases).values()] == [None]
    place.janitor.look()
    assert place.is_clean()


def age(folder: Path) -> None:
    """Let a folder have lain there for an hour."""
    then = time.time() - 3600
    os.utime(folder, (then, then))


def test_a_folder_of_which_nothing_else_is_known_here_is_removed_once_its_attempt_is_over(place: Place) -> None:
    place.leave(place.fake.message())
    folder = workspace.attempt_folder(place.site.folder, place.lease)
    place.file.remove()
    place.site.runtime.find(place.site.node_id)[0].remove()
    stranger = folder.with_name("exp-and-somebody-elses")
    stranger.mkdir()
    for each in (folder, stranger):
        age(each)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place.site.registry.experiments, "get", nobody_knows)
        place.janitor.look()
    assert folder.exists()
    place.site.registry.leases.finish(place.lease, Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED)
    place.janitor.look()
    assert not folder.exists()
    assert stranger.exists()
    stranger.rmdir()


def nobody_knows(_: object) -> Record:
    raise NotFound("no such experiment")


@pytest.mark.parametrize("lack", ["container", "message", "file", "boot"])
def test_what_cannot_be_gone_on_with_is_removed_and_given_back_at_once(place: Place, lack: str) -> None:
    message = place.fake.message()
    container = place.leave(message)
    match lack:
        case "container":
            container.remove()
        case "message":
            next(place.site.leases.glob("*.message")).unlink()
        case "file":
            place.file.remove()
        case "boot":
            LeaseFile(place.site.leases, replace(place.file.kept, boot_id="another")).update()
    place.janitor.look()
    assert place.is_clean() or lack == "file"
    record = place.fake.record(message)
    assert (record.state, record.history[-1].reason) == (State.QUEUED, Reason.WORKER_LOST)
    workspace.remove(workspace.attempt_folder(place.site.folder, place.lease))


def test_a_registry_that_is_away_leaves_everything_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object, **__: object) -> None:
        raise RegistryUnavailable("silent")

    message = place.fake.message()
    container = place.leave(message)
    monkeypatch.setattr(place.site.registry.experiments, "get", away)
    for _ in range(3):
        place.janitor.look()
    assert not container.is_removed
    assert caplog.messages.count("orphan.not_settled") == 1, "told once for a while"
    monkeypatch.undo()
    place.janitor.look()
    container.finish()
    wait_until(lambda: ended(place), what="its end")
    assert place.fake.record(message).state is State.SUCCEEDED


@pytest.mark.parametrize("is_alive", [True, False])
def test_what_another_worker_of_the_node_has_is_left_to_it(place: Place, *, is_alive: bool) -> None:
    message = place.fake.message()
    container = place.leave(message, worker="gpu0@host")
    claim = place.node.folder.claim(WorkerId("gpu0@host"))
    if not is_alive:
        os.close(claim)
    place.janitor.look()
    assert container.calls == []
    place.site.registry.leases.finish(place.lease, Outcome(reason=Reason.EXITED_ZERO), state=State.SUCCEEDED)
    place.janitor.look()
    assert container.is_removed is not is_alive
    if is_alive:
        os.close(claim)
        place.janitor.look()
    assert place.is_clean()


def test_an_engine_that_is_away_is_asked_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    message = place.fake.message()
    container = place.leave(message)
    place.fake.runtime.is_down = True
    place.janitor._rounds.take()
    place.janitor.start()
    assert caplog.messages.count("round.failed") == 1, "told once for a while"
    place.fake.runtime.is_down = False
    wait_until(lambda: place.node.adopted, what="the adoption")
    container.finish()
    wait_until(lambda: ended(place), what="its end")
    place.janitor.close()
    assert place.fake.record(message).attempt == 1


def test_what_the_guard_froze_is_thawed_after_a_lapse(node: FakeNode) -> None:
    node.runtime.script = Script(is_held=True)
    running = node.start(node.message())
    container = node.container()
    container.pause()
    execution = running.attempt._execution
    assert execution is not None
    execution._keeper.lapses += 1
    wait_until(lambda: not container.is_paused, what="its thaw")
    container.finish()
    running.join()


@pytest.mark.parametrize("reason", [Reason.CANCELLED_BY_USER, Reason.DRAINED, Reason.STALLED])
def test_what_was_told_to_end_before_its_worker_died_ends_for_that_reason(place: Place, reason: Reason) -> None:
    message = place.fake.message()
    place.fake.runtime.script = Script(is_held=True)
    execution = place.fake.start(message)
    container = place.fake.container()
    told: list[Outcome | None] = []
    stop = container.stop

    def note(grace: timedelta) -> None:
        told.extend(kept.stopping for kept in read_leases(place.fake.site.leases).values())
        stop(grace)

    container.stop = note  # type: ignore[method-assign]
    execution.attempt.ask(reason)
    execution.join()
    assert told == [Outcome(reason=reason)], "nobody could know why it ended"
    other = place.fake.message()
    # It ends in a way of its own, and nobody is there to see it.
    place.leave(other).finish(Exit(code=7))
    place.file.update(stopping=Outcome(reason=reason))
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")
    record = place.fake.record(other)
    assert record.state is (reason.verdict.state or State.QUEUED)
    assert (record.history[-1].reason if record.history else record.reason) is reason
    assert place.is_clean()


def test_the_details_of_a_begun_stop_outlive_its_worker_and_a_later_cancel(place: Place) -> None:
    message = place.fake.message()
    container = place.leave(message)
    place.file.update(stopping=Outcome(reason=Reason.TIMED_OUT, detail="its timeout is 1h"))
    place.site.registry.experiments.cancel(message.header.experiment_id)
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")
    assert container.calls.count("stop") == 1, "its worker may have died before it was told"
    record = place.fake.record(message)
    assert (record.reason, record.detail, record.exit_code) == (Reason.TIMED_OUT, "its timeout is 1h", 143)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, Reason.EXITED_ZERO),
        (7, Reason.EXITED_NONZERO),
        (143, Reason.CANCELLED_BY_USER),
        (137, Reason.CANCELLED_BY_USER),
    ],
)
def test_what_ended_while_a_tombstone_lay_there_is_cancelled_if_a_signal_ended_it(
    place: Place, code: int, reason: Reason
) -> None:
    message = place.fake.message(timeout="1h")
    container = place.leave(message, started_before=3601)
    container.finish(Exit(code=code))
    place.site.registry.experiments.cancel(message.header.experiment_id)
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")
    record = place.fake.record(message)
    assert (record.reason, record.exit_code, record.attempt) == (reason, code, 1)
    assert "stop" not in container.calls
    assert place.is_clean()


def test_a_cancel_is_seen_at_the_adoption_and_not_a_renewal_later(place: Place) -> None:
    message = place.fake.message()
    place.leave(message)
    place.site.registry.experiments.cancel(message.header.experiment_id)
    began = clock_seconds()
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")
    assert place.fake.record(message).state is State.CANCELLED
    assert clock_seconds() - began < RENEWAL_SECONDS


@pytest.mark.parametrize("reason", [Reason.EXITED_ZERO, Reason.TIMED_OUT, Reason.DRAINED])
@pytest.mark.parametrize("is_gone", [True, False])
def test_an_end_that_was_seen_is_committed_without_the_container(
    place: Place, reason: Reason, *, is_gone: bool
) -> None:
    message = place.fake.message()
    container = place.leave(message)
    seen = Outcome(reason=reason, detail="as seen", exit_code=143, last_lines=("its last words",))
    place.file.update(ended=seen, manifest="its/manifest")
    container.finish(Exit(code=1))
    if is_gone:
        container.remove()
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")
    record = place.fake.record(message)
    assert "follow" not in container.calls
    assert place.is_clean()
    if reason is Reason.DRAINED:
        assert (record.state, record.history[-1].reason, record.platform_failures) == (State.QUEUED, reason, 0)
        return
    assert (record.reason, record.detail, record.exit_code, record.attempt) == (reason, "as seen", 143, 1)
    marker = place.fake.marker(message)
    assert marker is not None
    assert (marker.manifest, marker.last_lines) == ("its/manifest", ("its last words",))


def test_what_an_end_means_is_kept_before_its_container_goes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Outcome | None] = []
    remove = FakeContainer.remove

    def note(container: FakeContainer) -> None:
        kept.extend(each.ended for each in read_leases(place.fake.site.leases).values())
        remove(container)

    monkeypatch.setattr(FakeContainer, "remove", note)
    place.fake.runtime.script = Script(exit=Exit(code=3))
    place.fake.run(place.fake.message())
    assert [end and (end.reason, end.exit_code) for end in kept] == [(Reason.EXITED_NONZERO, 3)]


def test_what_a_later_version_keeps_beside_does_not_hide_a_lease(place: Place) -> None:
    place.leave(place.fake.message()).finish()
    (path,) = place.site.leases.glob("*.lease")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    assert list(read_leases(place.site.leases)) == [place.file.kept.name]
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")


def test_an_end_that_may_have_been_told_is_told_again_under_the_same_numbers(place: Place) -> None:
    message = place.fake.message()
    place.leave(message).finish()
    place.file.update(ended=Outcome(reason=Reason.EXITED_ZERO))
    earlier = make_reporter(place.site, message, lease=place.lease, file=place.file)
    earlier.ended(Reason.EXITED_ZERO, state=State.SUCCEEDED, sentence="")
    place.janitor.look()
    wait_until(lambda: ended(place), what="its end")
    assert [report.sequence for report in place.fake.reports() if report.state is State.SUCCEEDED] == [5, 5]
