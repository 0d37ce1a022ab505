"""The table of outcomes, walked: one worker on one broker, and all that a user sees of an end."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from jobqueue.codec import decode_report
from jobqueue.envelope import seal
from jobqueue.errors import ExperimentCancelled, ExperimentFailed
from jobqueue.header import Header
from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.keys import KeyRing
from jobqueue.lifecycle import Budget, Message, Outcome, Reason, State
from jobqueue.registry.base import Answer, Record, Registry, Submission
from jobqueue.report import LogEntry, Progress, Report
from jobqueue.routing import dead_letter_queue, reporting_queue
from jobqueue.spec import parse_spec
from producers.cli import jobqueue
from producers.handle import Experiment
from services.engine import Engine
from services.images import BUSYBOX
from services.place import LONG, Place, open_place
from services.process import Process
from services.redis import RedisServer, open_redis
from services.registries import make_submission
from services.waiting import wait_until

LEASE = timedelta(seconds=4)
# Of what a row holds itself: longer than all that it looks at meanwhile takes, on a busy machine.
HELD = timedelta(seconds=25)
_MOMENT = timedelta(milliseconds=200)


@dataclass(frozen=True, kw_only=True)
class Walk(Place):
    """A place with a worker for every row, and a registry's server of its own, which a row may wipe.

    Attributes:
        worker: serves the request queue, `later` and, while it exists, `brief`.
    """

    worker: Process
    server: RedisServer

    @property
    def registry(self) -> Registry:
        """What the client asks."""
        return self.client._connections.registry

    @property
    def later(self) -> str:
        """A queue for what is put off for so long that no row waits for its message."""
        return f"{self.site.settings.project}_later"

    @property
    def brief(self) -> str:
        """A queue that is not there yet."""
        return f"{self.site.settings.project}_brief"

    def record(self, experiment: Experiment) -> Record:
        """Return what the registry knows."""
        return self.registry.experiments.get(experiment.id)

    def call(self, *words: str) -> Result:
        """Call the command line."""
        result = CliRunner().invoke(jobqueue, words, env=dict(self.site.environment))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.stderr
        return result

    def make_message(
        self,
        *,
        keys: Path | None = None,
        header_says: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Submission:
        """Return a sealed message as a sender with these keys makes it, by default this site's; nobody knows of it."""
        small = {"image": BUSYBOX, "command": ["true"], "memory": "128MiB", "disk": "1GiB"}
        spec = parse_spec({**small, "project": self.site.settings.project, **fields})
        now = datetime.now(UTC)
        blank = make_submission(
            queue=self.site.queue,
            project=spec.project,
            resources=spec.resources,
            submitted_at=now,
            expires_at=now + spec.expires,
            spec_digest="0" * 64,
        )
        header = Header(
            experiment_id=blank.id,
            queue=blank.queue,
            project=blank.project,
            resources=blank.resources,
            submitted_at=blank.submitted_at,
            expires_at=blank.expires_at,
        )
        header = replace(header, **(header_says or {}))
        message = seal(spec, header, keys=KeyRing(keys or self.site.settings.keys_dir))
        return replace(
            blank,
            id=header.experiment_id,
            queue=header.queue,
            submitted_at=header.submitted_at,
            expires_at=header.expires_at,
            message=message,
        )

    def publish(self, submission: Submission) -> None:
        """Put a message into its request queue, and tell nobody."""
        self.client._sender._publisher.publish([submission])

    def send(self, submission: Submission) -> Experiment:
        """Submit a message, as a client does."""
        self.registry.experiments.register(submission)
        self.publish(submission)
        return self.client.get(submission.id)

    def take_lease(self, submission: Submission) -> Answer:
        """Ask for a lease as a worker of another node does."""
        return self.registry.leases.acquire(
            submission, worker_id=WorkerId("cpu@elsewhere"), node_id=NodeId("elsewhere"), ttl=HELD, platform_budget=5
        )

    def said(self, experiment: Experiment, words: str) -> list[str]:
        """Return the lines in which the worker said something of an experiment."""
        lines = self.worker.log.read_text(errors="replace").splitlines()
        return [line for line in lines if experiment.id in line and words in line]

    def given_back(self, experiment: Experiment, reason: Reason) -> Report:
        """Check that an attempt was given back for a reason that ends nothing; return what was reported of it."""

        def find() -> Record | None:
            record = self.record(experiment)
            return record if record.history else None

        record = wait_until(find, what=f"an attempt given back for {reason.name}", within=LONG)
        assert record
        spent = reason.verdict.budget
        assert [past.reason for past in record.history] == [reason], record
        assert (record.state, record.attempt) == (State.QUEUED, 1)
        counts = (int(spent is Budget.USER), int(spent is Budget.PLATFORM))
        assert (record.user_failures, record.platform_failures) == counts
        queue = record.submission.queue
        wait_until(lambda: self._comes_back(experiment, queue), what="its message put off", within=LONG)
        *_, last = self._take_reports(experiment, until=lambda report: report.reason is not None)
        assert (last.reason, last.fault, last.state) == (reason, reason.verdict.fault, State.QUEUED)
        return last

    def ended(
        self,
        experiment: Experiment,
        reason: Reason,
        *,
        after: Sequence[Reason] = (),
        told: Sequence[Reason] | None = None,
        attempts: int | None = None,
    ) -> Report:
        """Check everything that a user sees of an end against its row, and return the final report.

        Args:
            experiment: to end, or over.
            reason: of the end.
            after: the reasons of the attempts that were given back.
            told: those of them that are reported; by default all.
            attempts: how many were granted; by default one more than were given back.
        """
        queue, verdict = self.record(experiment).submission.queue, reason.verdict
        assert verdict.state
        *_, final = reports = self._take_reports(experiment, until=_is_final)
        wait_until(lambda: self.record(experiment).state.is_final, what="its end in the registry", within=LONG)
        record = self.record(experiment)
        assert (record.reason, record.state) == (reason, verdict.state), record
        assert [past.reason for past in record.history] == list(after)
        assert record.attempt == (len(after) + 1 if attempts is None else attempts)
        spent = [past.verdict.budget for past in after]
        assert (record.user_failures, record.platform_failures) == (
            spent.count(Budget.USER),
            spent.count(Budget.PLATFORM),
        )
        assert (final.reason, final.state, final.fault) == (reason, verdict.state, verdict.fault)
        assert final.exit_code == record.exit_code
        assert error_of(final) == ("" if verdict.state is State.SUCCEEDED else _sentence(record))
        assert [report.reason for report in reports[:-1] if report.reason] == list(after if told is None else told)
        _check_numbers(reports)
        self._check_user(experiment, record)
        self.check_message(queue, set_aside=[reason] if verdict.message is Message.DEAD_LETTER else [])
        return final

    def check_message(self, queue: str, *, set_aside: Sequence[Reason] = ()) -> None:
        """Wait until no message lies in a request queue, and take out its dead letters, set aside for these reasons."""
        dead = dead_letter_queue(queue)
        with self.open_broker() as broker:

            def count(name: str) -> int:
                depth = broker.queues.depth(name)
                return depth.ready + (depth.unacked or 0)

            wait_until(lambda: count(queue) == 0, what=f"the message gone from {queue}", within=LONG)
            wait_until(lambda: count(dead) == len(set_aside), what="as many dead letters", within=LONG)
            for reason in set_aside:
                mail = broker.post.receive(dead, timeout=LONG)
                assert mail is not None
                assert mail.headers["jobqueue-reason"] == reason.name
                broker.post.acknowledge(mail)

    def reports_now(self, experiment: Experiment) -> list[Report]:
        """Return the reports of an experiment that lie in the reporting queue now."""
        reports: list[Report] = []
        queue = reporting_queue(self.record(experiment).submission.queue)
        with self.open_broker() as broker:
            while mail := broker.post.receive(queue, timeout=_MOMENT):
                broker.post.acknowledge(mail)
                report = decode_report(mail.body)
                reports.extend([report] if report.experiment_id == experiment.id else [])
        return reports

    def cancel_all(self) -> None:
        """End what a row that failed has left running, so that the next one finds a place."""
        for record in self.registry.experiments.find(project=self.site.settings.project, limit=1000):
            if not record.state.is_final:
                self.registry.experiments.cancel(record.submission.id)

    def left(self) -> list[Path]:
        """Return what lies on the node for attempts: folders, lease files, process containers."""
        settings = self.site.settings
        folders = [settings.cache_dir / "attempts", settings.state_dir / "process"]
        folders += (settings.state_dir / "nodes").glob("*/leases")
        return [each for folder in folders if folder.exists() for each in folder.iterdir()]

    def _comes_back(self, experiment: Experiment, queue: str) -> bool:
        """Tell whether a message is to come back, or has come back already."""
        with self.open_broker() as broker:
            depth = broker.queues.depth(queue)
        return depth.ready + (depth.unacked or 0) > 0 or self.record(experiment).attempt > 1

    def _take_reports(self, experiment: Experiment, *, until: Any) -> list[Report]:
        """Wait for a report of an experiment, and return it after all that came before it."""
        reports: list[Report] = []
        queue = reporting_queue(self.record(experiment).submission.queue)
        with self.open_broker() as broker:

            def is_there() -> bool:
                mail = broker.post.receive(queue, timeout=timedelta(seconds=1))
                if mail:
                    broker.post.acknowledge(mail)
                    report = decode_report(mail.body)
                    reports.extend([report] if report.experiment_id == experiment.id else [])
                return bool(reports) and bool(until(reports[-1]))

            wait_until(is_there, what=f"a report of {experiment.id}", within=LONG)
        return reports

    def _check_user(self, experiment: Experiment, record: Record) -> None:
        """Check what `result()` raises, and what `jobqueue show` prints."""
        assert record.reason
        sentence = _sentence(record)
        error = experiment.exception(timeout=60)
        match record.state:
            case State.SUCCEEDED:
                assert error is None
            case State.CANCELLED:
                assert isinstance(error, ExperimentCancelled)
                assert sentence in str(error)
            case _:
                assert isinstance(error, ExperimentFailed)
                assert (error.reason, error.exit_code) == (record.reason.name, record.exit_code)
                assert sentence in str(error)
                assert record.reason.verdict.hint in str(error)
        shown = json.loads(self.call("show", experiment.id, "-o", "json").stdout)
        assert (shown["state"], shown["reason"], shown["fault"]) == (
            record.state,
            record.reason.name,
            record.reason.verdict.fault,
        )
        assert (shown["sentence"], shown["exit_code"], shown["attempt"]) == (sentence, record.exit_code, record.attempt)
        assert [past["reason"] for past in shown["history"]] == [past.reason.name for past in record.history]


def error_of(report: Report) -> str:
    """Return the sentence of a report about an end."""
    assert isinstance(report.payload, Progress)
    return report.payload.error


def last_lines_of(reports: Sequence[Report]) -> list[str]:
    """Return the last lines that were reported."""
    entries = [report.payload for report in reports if isinstance(report.payload, LogEntry)]
    return [line for entry in entries if entry.fields.get("kind") == "last_lines" for line in entry.message.split("\n")]


def _is_final(report: Report) -> bool:
    return report.state is not None and report.state.is_final


def _sentence(record: Record) -> str:
    assert record.reason
    return Outcome(reason=record.reason, detail=record.detail).sentence


def _check_numbers(reports: Sequence[Report]) -> None:
    """Check that the reports of each attempt are numbered from 0 and in order, without a gap."""
    for attempt in {(report.attempt, report.token) for report in reports}:
        numbers = [report.sequence for report in reports if (report.attempt, report.token) == attempt]
        assert numbers == list(range(len(numbers)))


@contextmanager
def open_walk(folder: Path, *, broker: str, engine: Engine | None = None) -> Iterator[Walk]:
    """Open one over a running broker; at its end nothing may lie in its queues, unacknowledged deliveries included."""
    settings = {"lease": f"{LEASE.total_seconds():g}s", "grace": "1s", "log_limit": "1MB"}
    with (
        open_redis(folder / "registry") as server,
        open_place(folder, broker=broker, registry=server.url, engine=engine, **settings) as place,
    ):
        project = place.site.settings.project
        queues = (place.site.queue, f"{project}_later")
        place.create(*queues, is_reported=True)
        served = ",".join([*queues, f"{project}_brief"])
        with place.make_worker(environment={"JOBQUEUE_QUEUES": served}) as worker:
            walk = Walk(site=place.site, engine=engine, worker=worker, server=server)
            yield walk
            # Once the one place is free for it, nothing is on its way from the worker back into a queue.
            assert walk.submit("true", queue=walk.later).wait(LONG.total_seconds())
            for queue in queues:
                walk.check_message(queue)
            worker.stop()
        walk.check_message(place.site.queue)
        assert walk.left() == []


def id_of(experiment: Experiment) -> ExperimentId:
    """Return its id as messages carry it."""
    return ExperimentId(experiment.id)
