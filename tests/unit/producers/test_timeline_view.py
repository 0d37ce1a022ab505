"""A record says in one sentence where an experiment is, and draws a table without a script."""

import html
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from jobqueue.errors import NotFound
from jobqueue.ids import WorkerId, make_experiment_id
from jobqueue.lifecycle import Phase, Reason, State
from jobqueue.registry.base import PastAttempt, Record, Submission
from jobqueue.resources import Resources
from producers.timeline import error_to_html, explain, make_view, parse_progress, to_html

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def record() -> Record:
    resources = Resources(cpus=1.5, memory_bytes=2**31, disk_bytes=1, shm_bytes=1, gpus=2, gpu_memory_bytes=24 * 2**30)
    return Record(
        submission=Submission(
            id=make_experiment_id(),
            queue="vision_gpu",
            project="vision",
            resources=resources,
            submitted_at=NOW,
            expires_at=NOW + timedelta(days=1),
            name="resnet",
        )
    )


def test_a_waiting_one_names_its_queue(record: Record) -> None:
    assert explain(record) == "QUEUED: waiting in 'vision_gpu' for a worker to take it"


def test_a_retried_one_says_why_the_last_attempt_ended(record: Record) -> None:
    text = explain(replace(record, attempt=1, reason=Reason.STORE_UNAVAILABLE, detail="timed out"))

    assert text.startswith(
        "QUEUED: waiting in 'vision_gpu' for attempt 2, as the artifact store did not answer: timed out"
    )
    assert "STORE_UNAVAILABLE" in text


def test_a_preparing_one_says_what_it_is_busy_with(record: Record) -> None:
    preparing = replace(record, state=State.PREPARING, phase=Phase.PULLING, attempt=1, worker_id=WorkerId("gpu0@node"))

    assert explain(preparing) == "PREPARING (pulling) attempt 1 on gpu0@node"
    assert explain(replace(preparing, phase=None)) == "PREPARING attempt 1 on gpu0@node"


def test_a_running_one_says_how_far_it_is(record: Record) -> None:
    running = replace(record, state=State.RUNNING, attempt=2, progress='{"progress": 0.62, "loss": 0.41234567}')

    assert explain(running) == "RUNNING attempt 2: progress=0.62 loss=0.4123"


def test_one_that_is_being_cancelled_says_so(record: Record) -> None:
    running = replace(record, state=State.RUNNING, attempt=1, cancel_reason=Reason.CANCELLED_BY_USER)

    assert explain(running) == "RUNNING attempt 1 and is being cancelled"


def test_an_end_without_a_reason_is_told_as_that(record: Record) -> None:
    assert explain(replace(record, state=State.FAILED)) == "FAILED: no reason is recorded"


@pytest.mark.parametrize("progress", ["", "not json", "[1]", "{"])
def test_progress_that_is_none_is_left_out(record: Record, progress: str) -> None:
    assert parse_progress(progress) == {}
    assert explain(replace(record, state=State.RUNNING, attempt=1, progress=progress)) == "RUNNING attempt 1"


def test_a_failed_one_says_why_and_what_to_do(record: Record) -> None:
    failed = replace(
        record, state=State.FAILED, reason=Reason.OUT_OF_MEMORY, detail="the limit is 2 GiB", exit_code=137
    )

    assert explain(failed) == (
        "FAILED: the container was killed by its memory limit: the limit is 2 GiB [OUT_OF_MEMORY]; "
        "ask for more with memory="
    )


def test_the_table_holds_what_happened(record: Record) -> None:
    past = PastAttempt(attempt=1, token=7, reason=Reason.WORKER_LOST)
    view = make_view(
        replace(
            record,
            state=State.RUNNING,
            attempt=2,
            started_at=NOW + timedelta(seconds=1),
            finished_at=NOW + timedelta(minutes=1),
            history=(past,),
            progress='{"progress": 0.5}',
        )
    )
    assert view.rows == (
        ("queue", "vision_gpu"),
        ("asks for", "2 GPUs of 24 GiB, 1.5 cpus, 2 GiB memory"),
        ("submitted", "2026-01-02 03:04:05 UTC"),
        ("started", "2026-01-02 03:04:06 UTC"),
        ("finished", "2026-01-02 03:05:05 UTC"),
        ("attempt 1", Reason.WORKER_LOST.verdict.sentence),
        ("progress", "progress=0.5"),
    )
    assert '<progress value="0.5000" max="1"></progress> 50%<table><tr>' in to_html(view)
    assert to_html(view).count("</tr><tr>") == 6


def test_one_device_of_any_size_is_one_device(record: Record) -> None:
    resources = replace(record.submission.resources, gpus=1, gpu_memory_bytes=0)
    view = make_view(replace(record, submission=replace(record.submission, resources=resources)))
    assert dict(view.rows) == {
        "queue": "vision_gpu",
        "asks for": "1 GPU, 1.5 cpus, 2 GiB memory",
        "submitted": "2026-01-02 03:04:05 UTC",
    }


@pytest.mark.parametrize(("share", "percent"), [("0", "0%"), ("1", "100%")])
def test_a_bar_may_be_empty_or_full(record: Record, share: str, percent: str) -> None:
    assert f"</progress> {percent}" in to_html(make_view(replace(record, progress=f'{{"progress": {share}}}')))


@pytest.mark.parametrize("share", ['"<b>"', "1.01", "true", "null", "-1"])
def test_a_bar_is_drawn_for_a_share_only(record: Record, share: str) -> None:
    text = to_html(make_view(replace(record, progress=f'{{"progress": {share}}}')))

    assert "</p><table>" in text
    assert "<b>" not in text


def test_every_text_is_escaped(record: Record) -> None:
    evil = "<img src=x onerror=alert(1)>"
    submission = replace(record.submission, name=evil, queue=evil)
    text = to_html(
        make_view(replace(record, submission=submission, state=State.FAILED, reason=Reason.EXITED_NONZERO, detail=evil))
    )

    assert "<img" not in text
    assert f"<bdi>{html.escape(evil)}</bdi>" in text


def test_what_turns_or_hides_text_is_shown_and_stays_within_its_own(record: Record) -> None:
    submission = replace(record.submission, name="\u202etxt.exe\x1b[2J\ud800\x00")
    text = to_html(make_view(replace(record, submission=submission, detail="שלום\n👩‍🔬", reason=Reason.WORKER_LOST)))

    assert r"<bdi>\u202etxt.exe\x1b[2J\ud800\x00</bdi>" in text
    assert "שלום\n👩‍🔬" in text, "other scripts stay as they are"
    text.encode()


def test_an_error_in_the_place_of_a_table_is_escaped_as_well(record: Record) -> None:
    text = error_to_html(record.submission.id, NotFound("<script>\u202e", hint="<b>look</b>"))

    assert "<script" not in text
    assert "<b>" not in text
    assert r"&lt;script&gt;\u202e (&lt;b&gt;look&lt;/b&gt;)" in text
