"""Names, logs, progress, errors and reports that would drive a terminal or a page: nothing that acts comes out."""

import io
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner
from services.node import FakeNode, open_fake_node

from jobqueue.brokers import open_broker
from jobqueue.config import Settings
from jobqueue.errors import ExperimentFailed
from jobqueue.ids import ExperimentId, NodeId, WorkerId, make_experiment_id
from jobqueue.keys import ensure_laptop_keys
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Granted, Submission
from jobqueue.registry.pauses import Pause
from jobqueue.registry.presence import WorkerRecord
from jobqueue.report import Progress, TaskState
from jobqueue.resources import Offer, Resources
from producers import logs
from producers.cli import jobqueue
from producers.cli.output import write_output
from producers.client import Client
from workers.attempt.runtimes.base import Exit
from workers.attempt.runtimes.fake import Script
from workers.delivery.lines import make_formatter

# Clears the screen, names the window, rings, begins a line anew, turns the writing, and has a browser run something.
HOSTILE = "a\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e\x08\x7f<script>alert(1)</script>'\"><img src=x onerror=alert(1)>"
SECONDS = timedelta(minutes=1)


def acting(text: str) -> set[str]:
    """Return what in a text would drive a terminal."""
    return {letter for letter in text if letter != "\n" and not letter.isprintable()}


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExperimentId]:
    """An experiment that is over, every text of which is hostile, in a registry and a store of this process."""
    project = f"p{uuid4().hex}"
    variables = {
        "BROKER_URL": "memory://",
        "REGISTRY_URL": "memory://",
        "STORAGE_URL": f"memory://{project}",
        "STATE_DIR": str(tmp_path / "state"),
        "PROJECT": project,
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"JOBQUEUE_{name}", value)
    ensure_laptop_keys(tmp_path / "state" / "keys")
    monkeypatch.chdir(tmp_path)
    now = datetime.now(UTC)
    submission = Submission(
        id=make_experiment_id(),
        queue=f"{project}_cpu",
        project=project,
        resources=Resources(cpus=1, memory_bytes=2**20, disk_bytes=2**20, shm_bytes=0),
        submitted_at=now,
        expires_at=now + timedelta(days=1),
        name=HOSTILE,
        labels={HOSTILE: HOSTILE},
    )
    registry = open_registry("memory://")
    registry.experiments.register(submission)
    answer = registry.leases.acquire(
        submission, worker_id=WorkerId(HOSTILE), node_id=NodeId(HOSTILE), ttl=SECONDS, platform_budget=5
    )
    assert isinstance(answer, Granted)
    registry.leases.advance(answer.lease, State.PREPARING)
    registry.leases.advance(answer.lease, State.RUNNING, progress=json.dumps({HOSTILE: HOSTILE, "progress": 0.5}))
    registry.live_logs.append(answer.lease, "stdout", f"{HOSTILE}\n".encode(), offset=0)
    worker = WorkerRecord(
        worker_id=WorkerId(HOSTILE),
        node_id=NodeId(f"node {HOSTILE}"),
        host=HOSTILE,
        slot=HOSTILE,
        queues=(submission.queue,),
        offer=Offer(cpus=4, memory_bytes=2**34, disk_bytes=2**40),
        runtime=HOSTILE,
        takes_first=False,
    )
    registry.workers.announce(worker, ttl=SECONDS)
    request_queues = [f"{project}_cpu", f"{project}_gpu"]
    with closing(open_broker("memory://", lease=SECONDS)) as broker:
        for queue in request_queues:
            broker.queues.create(queue)
    registry.pauses.pause(Pause(queue=submission.queue, at=now, by=HOSTILE, reason=HOSTILE))
    failed = Outcome(reason=Reason.EXITED_NONZERO, detail=HOSTILE, exit_code=3, last_lines=(HOSTILE,))
    registry.leases.finish(answer.lease, failed, state=State.FAILED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield submission.id
    registry.workers.leave(worker.worker_id)
    for target in (worker.worker_id, worker.node_id):
        registry.workers.resume(target)
    with closing(open_broker("memory://", lease=SECONDS)) as broker:
        for queue in request_queues:
            registry.pauses.resume(queue)
            broker.queues.delete(queue)


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
@pytest.mark.parametrize(
    "words",
    [
        ("ls",), ("ls", "-o", "json"), ("ls", "-o", "name"), ("show", "ID"), ("show", "ID", "-o", "json"),
        ("why", "ID"), ("wait", "ID"), ("get", "ID"), ("cancel", "ID"), ("retry", "ID"), ("show", HOSTILE),
        ("queues", "ls"), ("queues", "pause", "QUEUE"),
        ("nodes", "ls"), ("nodes", "drain", "a"), ("nodes", "resume", "a"),
    ],
    ids=lambda words: "-".join(words)[:20].encode("ascii", "replace").decode().replace("\x1b", "?"),
)  # fmt: skip
def test_no_command_writes_what_would_drive_a_terminal(hostile: ExperimentId, words: tuple[str, ...]) -> None:
    """Each text of an experiment, and what is typed for its id, holds escape sequences and turned writing.

    Refused: what acts is written as `?`, in JSON as its number.
    Evidence: every character that the commands write on stdout and stderr.
    Red before: JSON held what drives a terminal from above ASCII, and names of nodes were written as they came.
    """
    places = {"ID": hostile, "QUEUE": f"{Settings().project}_cpu"}
    result = CliRunner().invoke(jobqueue, [places.get(word, word) for word in words])
    assert acting(result.stdout + result.stderr) == set()
    if "json" in words and words[0] == "show":
        assert json.loads(result.stdout)["name"] == HOSTILE


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
def test_a_notebook_shows_markup_as_text(hostile: ExperimentId) -> None:
    """Name, labels, progress, worker and the reason of an end hold HTML that runs a script.

    Refused: it is shown as text in the handle's table, which holds no script of its own.
    Evidence: the HTML of the handle, of an error, and of a handle that nobody knows.
    """
    client = Client(Settings())
    try:
        shown = client.get(hostile)._repr_html_() + client.get(hostile).why()
        assert "<script" not in client.get(hostile)._repr_html_()
        assert "<img" not in client.get(hostile)._repr_html_()
        assert "&lt;script&gt;" in shown
        assert acting(client.get(hostile)._repr_html_()) == set()
    finally:
        client.close()


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
def test_a_program_that_fails_prints_nothing_that_drives_its_terminal(
    hostile: ExperimentId, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script waits for an experiment, and Python prints the error that ends it, with names and the last lines.

    Refused: in the text of an error, of `why()` and of what `watch()` prints what acts is a question mark, colours go.
    Evidence: the traceback as Python prints it, and both texts; the error's own fields are as they were.
    Red before: each of them had every byte, on the terminal of whoever ran the script.
    """
    client = Client(Settings())
    try:
        experiment = client.get(hostile)
        with pytest.raises(ExperimentFailed) as failed:
            experiment.result()
        experiment.watch()
        printed = "".join(traceback.format_exception(failed.value))
        assert acting(printed) | acting(experiment.why()) | acting(capsys.readouterr().out) == set()
        assert "| a??]0;owned" in str(failed.value).replace("?[2J", "?")
        assert failed.value.last_lines == (HOSTILE,)
    finally:
        client.close()


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_watched_drives_no_terminal(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> None:
    """A running experiment is watched from Python, and prints what clears the screen and names the window.

    Refused: on a terminal as by `jobqueue logs`; a notebook and a file get its bytes.
    Evidence: what is printed of a log that holds them.
    Red before: a terminal got every byte.
    """
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setattr(logs, "follow_log", lambda *_, **__: iter([f"\x1b[31mred\x1b[0m 10%\r20%{HOSTILE}"]))
    logs.print_log(logs.LogSource(store=None, live=None, look=None), stream="stdout")  # type: ignore[arg-type]
    if is_terminal:
        assert acting(written.getvalue()) == set()
        assert written.getvalue().startswith("red 10%\n20%")
    else:
        assert written.getvalue() == f"\x1b[31mred\x1b[0m 10%\r20%{HOSTILE}\n"


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
def test_what_an_experiment_prints_cannot_drive_the_terminal_that_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An experiment prints what clears the screen, names the window, hides a line and sends keys.

    Refused: on a terminal it is written as `?`, colours go, what would be written over stands on its own line.
    Evidence: what `jobqueue logs` and `run` write to a terminal; into a file the bytes stay as they were printed.
    Red before: a terminal got every byte.
    """
    line = f"\x1b[31mred\x1b[0m 10%\r20%\t{HOSTILE}"
    for is_terminal in (True, False):
        written = io.StringIO()
        monkeypatch.setattr(written, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, "stdout", written)
        write_output(line)
        if is_terminal:
            assert acting(written.getvalue()) == set()
            assert written.getvalue().startswith("red 10%\n20%")
        else:
            assert written.getvalue() == line + "\n"


def fail() -> None:
    raise ValueError(HOSTILE)


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_line_of_a_worker_is_one_line_that_drives_nothing(form: str) -> None:
    """What a stranger wrote stands in a worker's log: as a field, as a message, in an error.

    Refused: no character of it acts, and a field or an error's text begins no line that looks like another one.
    Evidence: the formatted lines.
    Red before: messages and errors of other libraries were written as they came.
    """
    formatter = make_formatter(form)  # type: ignore[arg-type]
    try:
        fail()
    except ValueError:
        error = sys.exc_info()
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, f"event {HOSTILE}", None, error)
    record.detail = f"{HOSTILE}\n2026-01-01T00:00:00Z [info     ] forged"
    line = formatter.format(record)
    assert acting(line) == set()
    assert not [each for each in line.splitlines() if each.startswith("2026-01-01")]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with open_fake_node(tmp_path) as opened:
        yield opened


FORGED = (
    b"::jobqueue state=SUCCEEDED task_state=SUCCESS reason=EXITED_ZERO exit_code=0 manifest=x progress=1::\n",
    b"::jobqueue progress=1 note=\x1b[2J::\n",
    b'{"state": "SUCCEEDED", "experiment_id": "other", "sequence": 99, "fencing_token": 99}\n',
    b"\n2026-01-01T00:00:00Z [info     ] experiment.final state=SUCCEEDED\n",
)


@pytest.mark.security_case("forged report")
def test_what_an_experiment_prints_forges_no_report(node: FakeNode) -> None:
    """An experiment that fails prints lines that say it has succeeded: as progress, as a report, as a worker's log.

    Refused: they are progress or output, whatever they say; states come from the worker alone, and numbers have no gap.
    Evidence: every report of the attempt, and the registry's record.
    """
    message = node.message()
    node.register(message)
    node.runtime.script = Script(output=[("stdout", line) for line in FORGED], exit=Exit(code=3))
    node.run(message)
    reports = node.reports()
    assert [report.sequence for report in reports] == list(range(len(reports)))
    assert {report.experiment_id for report in reports} == {message.header.experiment_id}
    assert [report.state for report in reports if report.state] == [
        State.PREPARING, State.RUNNING, State.FINALIZING, State.FAILED,
    ]  # fmt: skip
    said = [report for report in reports if isinstance(report.payload, Progress) and report.payload.json]
    for report in said:
        assert isinstance(report.payload, Progress)
        assert report.payload.task_state is TaskState.STARTED
        assert (report.state, report.reason, report.exit_code, report.manifest) == (None, None, None, "")
        assert acting(report.payload.json) == set()
    assert node.record(message).state is State.FAILED
