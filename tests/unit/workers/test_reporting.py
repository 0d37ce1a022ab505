"""Reports leave in order, none that carries a state is lost with its process, and nobody's queue is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from services.waiting import wait_until

from jobqueue.codec import decode_report
from jobqueue.errors import BrokerUnavailable, InvalidSetting
from jobqueue.ids import WorkerId, make_experiment_id
from jobqueue.keys import KeyRing
from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.report import LogEntry, Progress, Report, TaskState
from workers.attempt import reporting
from workers.attempt.reporting import Addressee, Outbox, Reporter

SOON = timedelta(seconds=5)
EXPERIMENT = make_experiment_id()


class Post:
    """A broker's post that can be away, or lack the queue."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Report]] = []
        self.tries = 0
        self.is_away = False
        self.has_queue = True

    def send(self, queue: str, body: bytes, **_: object) -> bool:
        self.tries += 1
        if self.is_away:
            raise BrokerUnavailable("away")
        if self.has_queue:
            self.sent.append((queue, decode_report(body)))
        return self.has_queue


@dataclass(frozen=True, kw_only=True)
class Office:
    """A post, and the folder that a worker keeps its reports in."""

    post: Post
    folder: Path

    @contextmanager
    def opened(self, **options: Any) -> Iterator[tuple[Outbox, Reporter]]:
        """Open it for one process; what it cannot send stays."""
        keys = KeyRing(self.folder / "no keys")
        outbox = Outbox(self.post, self.folder, keys=keys)  # type: ignore[arg-type]
        numbers = {"experiment_id": EXPERIMENT, "attempt": 1, "token": 7, **options}
        yield outbox, Reporter(outbox, to=Addressee(queue="q_cpu"), worker_id=WorkerId("cpu@host"), **numbers)
        outbox.close(timedelta(0))
        outbox._thread.join(SOON.total_seconds())
        outbox.close(timedelta(0))

    def left(self) -> list[str]:
        """Return what lies in the folder, but for what was set aside."""
        return sorted(path.name for path in self.folder.iterdir() if path.name != "unreadable")

    def set_aside(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "unreadable").iterdir())


@pytest.fixture
def post(monkeypatch: pytest.MonkeyPatch) -> Post:
    monkeypatch.setattr(reporting, "RETRY_EVERY", timedelta(milliseconds=10))
    return Post()


@pytest.fixture
def office(post: Post, tmp_path: Path) -> Office:
    return Office(post=post, folder=tmp_path / "reports" / "cpu@host")


def sequences(post: Post) -> list[int]:
    return [report.sequence for _, report in post.sent]


def test_reports_go_to_the_reporting_queue_in_order_and_numbered(office: Office, post: Post) -> None:
    with office.opened() as (outbox, reporter):
        for state in (State.PREPARING, State.RUNNING):
            reporter.entered(state)
        reporter.progressed('{"progress": 1}')
        reporter.entered(State.FINALIZING)
        reporter.ended(Reason.EXITED_ZERO, state=State.SUCCEEDED, sentence="fine", exit_code=0, manifest="m")
        assert outbox.flush(SOON)
    assert {queue for queue, _ in post.sent} == {"q_cpu_reporting"}
    reports = [report for _, report in post.sent]
    assert [report.sequence for report in reports] == [0, 1, 2, 3, 4]
    assert [report.payload.task_state for report in reports if isinstance(report.payload, Progress)] == [
        TaskState.PRESTART,
        TaskState.STARTED,
        TaskState.STARTED,
        TaskState.STOPPING,
        TaskState.SUCCESS,
    ]
    assert {(report.attempt, report.token) for report in reports} == {(1, 7)}


@pytest.mark.security_case("secrets on a shared node")
@pytest.mark.parametrize("is_old", [False, True])
def test_what_waits_for_the_broker_is_its_workers_alone(office: Office, post: Post, *, is_old: bool) -> None:
    """Another user of a node reads what an experiment printed, in a report that waits until the broker is back.

    Refused: the folder of a worker's reports is its owner's alone, also one that an older worker made.
    Evidence: the mode of the folder while a report with the last lines lies in it.
    Red before: the folder and the reports in it could be read by everybody.
    """
    if is_old:
        office.folder.mkdir(parents=True)
        office.folder.chmod(0o755)
    post.is_away = True
    with office.opened() as (_, reporter):
        reporter.ended(Reason.EXITED_NONZERO, state=State.FAILED, sentence="x", exit_code=3, last_lines=("patient 7",))
        assert any(b"patient 7" in (office.folder / name).read_bytes() for name in office.left())
        assert office.folder.stat().st_mode & 0o077 == 0


def test_a_failure_carries_its_code_its_fault_and_its_last_lines(office: Office, post: Post) -> None:
    with office.opened() as (outbox, reporter):
        reporter.ended(
            Reason.EXITED_NONZERO, state=State.FAILED, sentence="exit code 3", exit_code=3, last_lines=("a", "b")
        )
        assert outbox.flush(SOON)
    (_, lines), (_, final) = post.sent
    assert isinstance(lines.payload, LogEntry)
    assert lines.payload.message == "a\nb"
    assert isinstance(final.payload, Progress)
    assert (final.payload.task_state, final.payload.error, final.payload.error_code) == (
        TaskState.FAILED,
        "exit code 3",
        3,
    )
    assert (final.state, final.reason, final.fault) == (State.FAILED, Reason.EXITED_NONZERO, Fault.USER)


def test_an_attempt_that_another_one_follows_is_stopping_not_failed(office: Office, post: Post) -> None:
    with office.opened() as (outbox, reporter):
        reporter.ended(Reason.STORE_UNAVAILABLE, state=None, sentence="503")
        assert outbox.flush(SOON)
    ((_, report),) = post.sent
    assert isinstance(report.payload, Progress)
    assert (report.payload.task_state, report.state) == (TaskState.STOPPING, State.QUEUED)


def test_reports_wait_for_a_broker_that_is_away_and_keep_their_order(office: Office, post: Post) -> None:
    post.is_away = True
    with office.opened() as (outbox, reporter):
        reporter.entered(State.PREPARING)
        reporter.entered(State.RUNNING)
        wait_until(lambda: post.tries > 2, what="several tries")
        assert not outbox.flush(timedelta(0))
        post.is_away = False
        assert outbox.flush(SOON)
    assert [report.sequence for _, report in post.sent] == [0, 1]


def test_where_nobody_listens_reports_are_dropped_and_counted(
    office: Office, post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    post.has_queue = False
    with caplog.at_level("INFO"), office.opened() as (outbox, reporter):
        for state in (State.PREPARING, State.RUNNING):
            reporter.entered(state)
        assert outbox.flush(SOON)
        assert outbox.dropped == 2
        assert office.left() == []
    said = [record for record in caplog.records if record.message == "reports.dropped"]
    assert [(record.__dict__["total"], record.__dict__["why"]) for record in said] == [
        (1, "there is no queue q_cpu_reporting")
    ]


@pytest.mark.parametrize(("name", "limit"), [("SPOOL_REPORTS", 3), ("SPOOL_BYTES", 400)])
def test_a_full_spool_takes_no_progress_but_every_state_and_numbers_have_no_gap(
    office: Office, post: Post, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    monkeypatch.setattr(reporting, name, limit)
    post.is_away = True
    with office.opened() as (outbox, reporter):
        reporter.entered(State.PREPARING)
        for number in range(10):
            reporter.progressed(f'{{"progress": {number}}}')
        reporter.entered(State.RUNNING)
        reporter.logged("not now")
        reporter.entered(State.FINALIZING)
        reporter.ended(Reason.EXITED_ZERO, state=State.SUCCEEDED, sentence="")
        post.is_away = False
        assert outbox.flush(SOON)
        reporter.progressed("{}")
        assert outbox.flush(SOON)
    states = [report.state for _, report in post.sent if report.state]
    assert states == [State.PREPARING, State.RUNNING, State.FINALIZING, State.SUCCEEDED]
    assert 0 < outbox.dropped < 11
    assert sequences(post) == list(range(16 - outbox.dropped))


def test_an_outbox_that_is_closed_while_the_broker_is_away_does_not_wait_for_it(office: Office, post: Post) -> None:
    post.is_away = True
    with office.opened() as (outbox, reporter):
        reporter.entered(State.PREPARING)
        outbox.close(timedelta(milliseconds=50))
        assert not outbox._thread.is_alive()


# Over the death of a process


def test_what_one_process_could_not_send_is_sent_by_the_next_in_order(office: Office, post: Post) -> None:
    post.is_away = True
    with office.opened() as (_, reporter):
        reporter.entered(State.PREPARING)
        reporter.progressed('{"progress": 1}')
    with office.opened(token=8, attempt=2) as (_, reporter):
        reporter.entered(State.PREPARING)
    assert len(office.left()) == 3
    post.is_away = False
    with office.opened(token=9, attempt=3) as (outbox, reporter):
        reporter.entered(State.PREPARING)
        assert outbox.flush(SOON)
    assert [(report.attempt, report.sequence) for _, report in post.sent] == [(1, 0), (1, 1), (2, 0), (3, 0)]
    assert {queue for queue, _ in post.sent} == {"q_cpu_reporting"}
    assert office.left() == []


def test_a_report_whose_answer_was_lost_comes_again_as_it_was(
    office: Office, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = post.send

    def send_and_lose_the_answer(queue: str, body: bytes, **options: object) -> bool:
        send(queue, body, **options)
        raise BrokerUnavailable("the answer was lost")

    monkeypatch.setattr(post, "send", send_and_lose_the_answer)
    with office.opened() as (_, reporter):
        reporter.entered(State.PREPARING)
        reporter.entered(State.RUNNING)
        wait_until(lambda: post.tries, what="a try")
    monkeypatch.setattr(post, "send", send)
    tries = len(post.sent)
    with office.opened(token=8) as (outbox, _):
        assert outbox.flush(SOON)
    told = {report.sequence: report for _, report in post.sent}
    assert sequences(post) == [0] * tries + [0, 1]
    assert all(report == told[report.sequence] for _, report in post.sent)


def test_who_goes_on_with_an_attempt_goes_on_with_its_numbers(office: Office, post: Post) -> None:
    kept: list[int] = []
    with office.opened(on_number=kept.append) as (outbox, reporter):
        for state in (State.PREPARING, State.RUNNING):
            reporter.entered(state)
        assert outbox.flush(SOON)
    post.is_away = True
    with office.opened(told=kept[-1], on_number=kept.append) as (_, reporter):
        reporter.progressed("{}")
        reporter.progressed("{}")
    post.is_away = False
    # The process before was killed after it had kept its last report and before it could note the number.
    with office.opened(told=kept[-1] - 1, on_number=kept.append) as (outbox, reporter):
        reporter.ended(Reason.EXITED_ZERO, state=State.SUCCEEDED, sentence="")
        assert outbox.flush(SOON)
    assert sequences(post) == [0, 1, 2, 3, 4]
    assert kept == [1, 2, 3, 4, 5]


def test_a_number_is_noted_before_its_report_may_be_sent(office: Office, post: Post) -> None:
    sent_before: list[int] = []

    def note(count: int) -> None:
        sent_before.append(len([number for number in sequences(post) if number == count - 1]))

    with office.opened(on_number=note) as (outbox, reporter):
        for _ in range(50):
            reporter.logged("hello")
        assert outbox.flush(SOON)
    assert sent_before == [0] * 50


def test_two_processes_cannot_have_one_folder(office: Office) -> None:
    with office.opened(), pytest.raises(InvalidSetting, match="two workers of one name"):
        Outbox(office.post, office.folder, keys=KeyRing(office.folder))  # type: ignore[arg-type]
    with office.opened():
        pass


def test_what_is_said_after_the_close_is_kept_for_the_next_process(office: Office, post: Post) -> None:
    with office.opened() as (outbox, reporter):
        outbox.close(SOON)
        reporter.ended(Reason.DRAINED, state=None, sentence="")
        reporter.ended(Reason.CANCELLED_BY_USER, state=State.CANCELLED, sentence="")
    with office.opened(token=8) as (outbox, _):
        assert outbox.flush(SOON)
    assert [report.state for _, report in post.sent] == [State.QUEUED, State.CANCELLED]


# A disk that fails


@pytest.mark.parametrize("damage", ["emptied", "garbage", "another's", "a folder", "cut"])
def test_what_cannot_be_read_is_set_aside_and_holds_nothing_up(
    office: Office, post: Post, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    post.is_away = True
    with office.opened() as (_, reporter):
        for number in range(3):
            reporter.logged(f"number {number}")
    paths = [office.folder / name for name in office.left()]
    damaged = paths[1]
    match damage:
        case "emptied":
            damaged.write_bytes(b"")
        case "garbage":
            damaged.write_bytes(b"q_cpu_reporting\n\xff\xff\xff")
        case "another's":
            damaged.write_bytes(paths[0].read_bytes())
        case "cut":
            damaged.write_bytes(damaged.read_bytes()[:40])
        case _:
            damaged.unlink()
            damaged.mkdir()
    (office.folder / "new").write_bytes(b"half a repo")
    (office.folder / "stranger").write_text("?")
    post.is_away = False
    with office.opened(token=8) as (outbox, reporter):
        reporter.entered(State.PREPARING)
        assert outbox.flush(SOON)
    assert [(report.token, report.sequence) for _, report in post.sent] == [(7, 0), (7, 2), (8, 0)]
    assert office.set_aside() == [damaged.name, "stranger"]
    assert {"reports.unreadable"} == {record.message for record in caplog.records if record.levelname == "ERROR"}
    assert office.left() == []


def test_reports_that_the_disk_does_not_take_are_sent_all_the_same(
    office: Office, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    refused: list[Path] = []

    def full(path: Path, target: Path) -> Path:
        if len(refused) < 2 and target.name.endswith(".report"):
            refused.append(target)
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    post.is_away = True
    with office.opened() as (outbox, reporter):
        for state in (State.PREPARING, State.RUNNING, State.FINALIZING):
            reporter.entered(state)
        assert len(refused) == 2
        post.is_away = False
        assert outbox.flush(SOON)
    assert sequences(post) == [0, 1, 2]


def test_a_report_that_nothing_can_send_does_not_end_the_sender(
    office: Office, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = post.send
    refused: list[bytes] = []

    def refuse_one(queue: str, body: bytes, **options: object) -> bool:
        if not refused:
            refused.append(body)
            raise ValueError("this one, never")
        return send(queue, body, **options)

    monkeypatch.setattr(post, "send", refuse_one)
    with office.opened() as (outbox, reporter):
        for state in (State.PREPARING, State.RUNNING):
            reporter.entered(state)
        assert outbox.flush(SOON)
    assert sequences(post) == [1]
    assert len(office.set_aside()) == 1


def test_a_folder_that_cannot_be_made_is_told_with_what_to_do(post: Post, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="reports cannot be kept") as refused:
        Outbox(post, tmp_path / "file" / "reports", keys=KeyRing(tmp_path))  # type: ignore[arg-type]
    assert "JOBQUEUE_STATE_DIR" in refused.value.hint
