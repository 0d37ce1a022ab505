"""Experiments from their submission to their outputs, through a real broker, worker and runtime."""

import json
import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from services.image_registry import ImageRegistry
from services.images import BUSYBOX, PYTHON
from services.place import DENIED, LONG, Place, open_place, sleepers
from services.process import Process
from services.waiting import TOLD_WITHIN_SECONDS, free_port, wait_until, waited_seconds

from jobqueue.application import make_app
from jobqueue.config import Settings
from jobqueue.errors import BrokerUnavailable, ExperimentCancelled, ExperimentFailed
from jobqueue.lifecycle import State
from jobqueue.registry import open_registry
from jobqueue.report import LogEntry, Progress, TaskState
from jobqueue.storage.manifests import load_manifest
from producers.client import Client
from producers.handle import Experiment
from producers.preparation import JobqueueWarning

pytestmark = pytest.mark.filterwarnings("ignore::producers.preparation.JobqueueWarning")

MIB = 2**20
PLACES = [("rabbitmq", "docker"), ("redis", "process"), ("sqs", "process")]
UNICODE = "Über-日本-🎉"


@dataclass(frozen=True, kw_only=True)
class Served(Place):
    """A place with one worker, which serves every test of this file."""

    worker: Process


@pytest.fixture(
    scope="module",
    params=PLACES,
    ids="-".join,
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    broker, runtime = request.param
    registry = request.getfixturevalue("redis_server")
    server = request.getfixturevalue(f"{broker}_server")
    engine = request.getfixturevalue("engine") if runtime == "docker" else None
    folder = tmp_path_factory.mktemp(broker)
    with (
        open_place(folder, broker=server.url, registry=registry.url, engine=engine) as opened,
        opened.make_worker() as worker,
    ):
        served = Served(site=opened.site, engine=engine, worker=worker)
        assert served.submit("true").result(timeout=90) == {"exit_code": 0}
        yield served
        assert worker.running, worker.log_tail()


def fails(experiment: Experiment) -> ExperimentFailed:
    with pytest.raises(ExperimentFailed) as caught:
        experiment.result(timeout=60)
    return caught.value


def runs(experiment: Experiment) -> None:
    wait_until(lambda: experiment.state == State.RUNNING, what=f"{experiment} running", within=LONG)


def number() -> str:
    """Return a time to sleep for that no other process of this machine sleeps for."""
    return f"{1000 + secrets.randbelow(9000)}.{secrets.randbelow(10**9):09d}"


# Ends


def test_a_success_comes_back_with_result_outputs_and_both_logs(place: Served) -> None:
    experiment = place.submit(
        "echo hello; echo oops >&2; echo model > outputs/model.pt; echo '{\"accuracy\": 0.9}' > outputs/result.json"
    )
    assert experiment.result(timeout=90) == {"accuracy": 0.9}
    assert (list(experiment.logs()), list(experiment.logs(stream="stderr"))) == (["hello"], ["oops"])
    assert experiment.outputs.read_bytes("outputs/model.pt") == b"model\n"
    assert sorted(experiment.outputs) == ["outputs/model.pt", "outputs/result.json"]
    assert (experiment.state, experiment.attempt) == (State.SUCCEEDED, 1)


def test_a_failure_tells_its_code_and_its_last_lines(place: Served) -> None:
    error = fails(place.submit("for i in $(seq 30); do echo line $i; done; exit 3"))
    assert (error.reason, error.exit_code) == ("EXITED_NONZERO", 3)
    assert error.last_lines == tuple(f"line {i}" for i in range(11, 31))


def test_what_takes_more_memory_than_it_asked_for_is_told_so(place: Served) -> None:
    code = "import time; kept = [bytearray(b'x' * 2**20) for _ in range(200)]; time.sleep(30)"
    error = fails(place.submit("python3", "-c", code, image=PYTHON, memory="100MiB"))
    assert error.reason == "OUT_OF_MEMORY"
    assert "100 MiB" in str(error)


def test_a_timeout_keeps_the_outputs_so_far(place: Served) -> None:
    experiment = place.submit("echo half > outputs/half; echo begun; sleep 60", timeout="3s")
    assert fails(experiment).reason == "TIMED_OUT"
    assert experiment.outputs.read_bytes("outputs/half") == b"half\n"
    assert list(experiment.logs()) == ["begun"]


def test_a_container_that_ignores_sigterm_is_killed_after_the_grace(place: Served) -> None:
    seconds = number()
    experiment = place.submit(f"trap '' TERM; echo ready; sleep {seconds} & wait; while :; do sleep 1; done")
    next(experiment.logs(follow=True))
    experiment.cancel()
    with pytest.raises(ExperimentCancelled):
        experiment.result(timeout=90)
    assert sleepers(seconds) == []


def test_a_cancel_ends_what_runs_and_what_waits_behind_it(place: Served) -> None:
    seconds = number()
    first, second = place.submit(f"sleep {seconds}"), place.submit("echo never")
    wait_until(lambda: sleepers(seconds), what="the first one", within=LONG)
    second.cancel()
    assert second.state == State.CANCELLED
    first.cancel()
    with pytest.raises(ExperimentCancelled):
        first.result(timeout=90)
    assert place.submit("true").result(timeout=90) == {"exit_code": 0}
    assert (sleepers(seconds), second.attempt, list(second.logs())) == ([], 0, [])


# What travels


def test_workspace_and_inputs_arrive_and_inputs_cannot_be_changed(place: Served, tmp_path: Path) -> None:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "deep" / "train.sh").write_text("cat /inputs/words /inputs/tree/a.txt; pwd\n")
    (tmp_path / "words").write_text("words\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.txt").write_text("a\n")
    experiment = place.submit(
        "sh deep/train.sh; (echo no > /inputs/words) 2>/dev/null || echo refused",
        workspace=str(tmp_path / "src"),
        inputs={"words": str(tmp_path / "words"), "tree": str(tmp_path / "tree")},
    )
    experiment.result(timeout=90)
    assert list(experiment.logs()) == ["words", "a", "/workspace", "refused"]


def test_progress_is_passed_on(place: Served) -> None:
    experiment = place.submit(
        "echo '::jobqueue progress=0.25 loss=1.5::'; sleep 2;"
        "echo '{\"progress\": 0.75}' >> $JOBQUEUE_PROGRESS; sleep 60"
    )
    wait_until(lambda: experiment.progress == {"progress": 0.25, "loss": 1.5}, what="a line's", within=LONG)
    wait_until(lambda: experiment.progress == {"progress": 0.75}, what="the file's", within=LONG)
    experiment.cancel()
    assert experiment.wait(90)


def test_every_text_may_be_any_text(place: Served, tmp_path: Path) -> None:
    (tmp_path / UNICODE).mkdir()
    (tmp_path / UNICODE / f"{UNICODE}.txt").write_text(UNICODE)
    experiment = place.submit(
        f'echo "$V"; cat {UNICODE}/{UNICODE}.txt; cp -r {UNICODE} outputs/;'
        f"echo '{{\"{UNICODE}\": 1}}' > outputs/result.json",
        workspace=str(tmp_path),
        env={"V": UNICODE},
        name=UNICODE,
        labels={UNICODE: UNICODE},
    )
    assert experiment.result(timeout=90) == {UNICODE: 1}
    assert list(experiment.logs()) == [UNICODE, UNICODE]
    assert experiment.outputs.read_bytes(f"outputs/{UNICODE}/{UNICODE}.txt") == UNICODE.encode()
    assert place.client.get(UNICODE).id == experiment.id


def test_links_and_pipes_among_the_outputs_are_left_out(place: Served) -> None:
    experiment = place.submit(
        "cd outputs; echo fine > fine; ln -s /etc/passwd link; ln -s / root; mkfifo pipe; ln -s /proc/self/environ env"
    )
    experiment.result(timeout=90)
    assert list(experiment.outputs) == ["outputs/fine"]
    store = place.client._connections.store
    marker = json.loads(b"".join(store.get(f"experiments/{experiment.id}/RESULT")))
    manifest = load_manifest(store, marker["manifest"].removesuffix("/manifest.json"))
    assert sorted(line.partition(":")[0] for line in manifest.left_out) == [
        "outputs/env",
        "outputs/link",
        "outputs/pipe",
        "outputs/root",
    ]


# Images


def test_an_image_that_the_node_denies_is_refused(place: Served) -> None:
    with pytest.warns(JobqueueWarning, match="allows the images"):
        experiment = place.submit("true", image=DENIED)
    error = fails(experiment)
    assert error.reason == "IMAGE_REFUSED"
    assert "jobqueue-test/*" in str(error)


@pytest.mark.parametrize("place", PLACES[:1], indirect=True, ids="-".join)
def test_an_image_that_does_not_exist_is_refused_and_one_that_does_is_pulled(
    place: Served, request: pytest.FixtureRequest
) -> None:
    assert place.engine is not None
    registry: ImageRegistry = request.getfixturevalue("image_registry")
    assert fails(place.submit("true", image=f"{registry.address}/never-pushed:1")).reason == "IMAGE_REFUSED"
    pushed = registry.push(BUSYBOX, "pushed")
    assert place.submit("true", image=pushed).result(timeout=60) == {"exit_code": 0}
    place.engine.client.images.remove(pushed)


# Hostile or careless


def test_a_long_line_and_a_flood_of_output_leave_the_worker_as_small_as_it_was(place: Served) -> None:
    def resident() -> int:
        return int(psutil.Process(place.worker.pid).memory_info().rss)

    before = resident()
    experiment = place.submit(
        "head -c 50000000 /dev/zero | tr '\\0' x; echo; yes 'a line of the flood' | head -c 150000000; echo end >&2",
        timeout="90s",
    )
    largest = before
    while not experiment.wait(0.2):
        largest = max(largest, resident())
    assert experiment.state == State.SUCCEEDED, experiment.why()
    assert max(largest, resident()) - before < 64 * MIB
    store = place.client._connections.store
    sizes = [each.size_bytes for each in store.list(f"experiments/{experiment.id}/") if "/logs/stdout/" in each.key]
    assert sum(sizes) == 200_000_001
    assert list(experiment.logs(stream="stderr")) == ["end"]


def test_a_fork_bomb_is_contained(place: Served) -> None:
    experiment = place.submit("f() { f | f & }; f; sleep 2; echo survived", timeout="10s")
    assert experiment.wait(90)
    assert experiment.state.is_final
    assert place.submit("true").result(timeout=90) == {"exit_code": 0}
    assert len(psutil.pids()) < 2000


# Celery's own commands


def test_inspect_shows_the_experiment_and_no_secret(place: Served) -> None:
    seconds = number()
    experiment = place.submit(
        f"echo $PASSWORD; sleep {seconds}", env={"HINT": "hunter1"}, secrets={"PASSWORD": "hunter2"}
    )
    wait_until(lambda: sleepers(seconds), what="it running", within=LONG)
    with make_app(place.site.settings) as app, app.connection_for_write() as connection:
        inspect = app.control.inspect(timeout=40, limit=1, connection=connection)
        active, stats = inspect.active(), inspect.stats()
    assert active
    assert stats
    said = json.dumps([active, stats])
    assert experiment.id in said
    assert "hunter" not in said
    assert seconds not in said
    experiment.cancel()
    experiment.wait(90)
    assert "hunter" not in place.worker.log.read_text()
    assert list(experiment.logs()) == ["[secret]"]


def test_events_tell_when_an_experiment_came_started_and_ended(place: Served) -> None:
    seen: list[dict[str, Any]] = []
    with make_app(place.site.settings) as app, app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        listening = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
        listening.start()
        wait_until(lambda: seen, what="a heartbeat", within=LONG)
        experiment = place.submit("true")
        types = ["task-received", "task-started", "task-succeeded"]
        wait_until(lambda: types_of(seen, experiment.id) == types, what="its events", within=LONG)
        receiver.should_stop = True
        listening.join()


def types_of(events: list[dict[str, Any]], task_id: str) -> list[str]:
    return [event["type"] for event in events if event.get("uuid") == task_id]


@pytest.mark.parametrize("terminate", [False, True])
def test_a_revoke_is_a_cancel(place: Served, *, terminate: bool) -> None:
    seconds = number()
    running = place.submit(f"sleep {seconds}")
    wait_until(lambda: sleepers(seconds), what="it running", within=LONG)
    waiting = place.submit("echo never")
    with make_app(place.site.settings) as app, app.connection_for_write() as connection:
        revoke = partial(app.control.revoke, connection=connection)
        revoke(waiting.id, terminate=terminate)
        if terminate:
            revoke(running.id, terminate=True)
        else:
            running.cancel()
    for experiment in (running, waiting):
        with pytest.raises(ExperimentCancelled):
            experiment.result(timeout=90)
    assert (sleepers(seconds), list(waiting.logs())) == ([], [])
    assert place.submit("true").result(timeout=90) == {"exit_code": 0}


# Duplicates


@pytest.mark.security_case("replayed while it runs, replayed after success")
def test_a_second_copy_of_a_running_or_finished_experiment_starts_nothing(place: Served) -> None:
    """The bytes of a message are published again while its experiment runs, and after its end.

    Refused: a copy finds the lease held and is put off, or finds the end and goes; nothing is started for it.
    Evidence: one attempt, one line of output, no process left, no copy left in the queue; what is behind succeeds.
    """
    seconds = number()
    experiment = place.submit(f"echo once; sleep {seconds}")
    wait_until(lambda: sleepers(seconds), what="it running", within=LONG)
    submission = place.record_of(experiment).submission
    publisher = place.client._sender._publisher
    publisher.publish([submission])
    behind = place.submit("echo behind")
    experiment.cancel()
    experiment.wait(90)
    publisher.publish([submission])
    assert behind.result(timeout=90) == {"exit_code": 0}
    assert place.submit("true").result(timeout=90) == {"exit_code": 0}
    wait_until(lambda: place.depth() == 0, what="no copy left", within=LONG)
    assert (experiment.state, experiment.attempt, sleepers(seconds)) == (State.CANCELLED, 1, [])
    assert list(experiment.logs()) == ["once"]


# Reports


def test_reports_tell_the_whole_story_where_somebody_wants_them(place: Served) -> None:
    reporting = f"{place.site.queue}_reporting"
    with place.open_broker() as broker:
        place.submit("true").result(timeout=90)
        assert not broker.queues.exists(reporting)
        broker.queues.create_plain(reporting)
        try:
            success = place.submit("echo '::jobqueue progress=1::'")
            told = place.take_reports(success)
            failure = place.take_reports(place.submit("echo why; exit 3"))
        finally:
            broker.queues.delete(reporting)
    assert [report.sequence for report in told] == list(range(len(told)))
    states = [report.payload.task_state for report in told if isinstance(report.payload, Progress)]
    assert sorted(set(states)) == [TaskState.PRESTART, TaskState.STARTED, TaskState.STOPPING, TaskState.SUCCESS]
    assert sorted(states) == states
    assert told[-1].manifest
    last = failure[-1]
    assert isinstance(last.payload, Progress)
    assert (last.payload.task_state, last.payload.error_code, last.exit_code) == (TaskState.FAILED, 3, 3)
    assert "exit code 3" in last.payload.error
    assert "why" in [report.payload.message for report in failure if isinstance(report.payload, LogEntry)]


def test_a_broker_that_is_down_is_told_within_two_seconds_and_nothing_is_left(place: Served, tmp_path: Path) -> None:
    changes = {
        "broker_url": re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_port()}", place.site.settings.broker),
        "project": "nobody",
        "storage_url": (tmp_path / "store").as_uri(),
    }
    settings = Settings(**{**place.site.settings.model_dump(exclude_defaults=True), **changes})
    (tmp_path / "code").mkdir()
    with Client(settings) as client:
        started = waited_seconds()
        with pytest.raises(BrokerUnavailable):
            client.submit(image=BUSYBOX, command=["true"], workspace=str(tmp_path / "code"))
        assert waited_seconds() - started < TOLD_WITHIN_SECONDS
    registry = open_registry(place.site.settings.registry)
    assert registry.experiments.find(project="nobody") == []
    registry.close()
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
