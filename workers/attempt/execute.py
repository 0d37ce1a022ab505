"""The steps under one lease: open the spec, prepare, run the container, collect. Every error becomes an outcome."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from jobqueue.artifacts import attempt_prefix, manifest_key
from jobqueue.envelope import Verified, open_sealed
from jobqueue.errors import JobqueueError, RegistryUnavailable, RuntimeFailure, StoreUnavailable, Superseded
from jobqueue.lifecycle import Outcome, Phase, Reason, State
from jobqueue.registry.base import Record
from jobqueue.spec import ExperimentSpec
from jobqueue.storage import show_permit
from jobqueue.storage.manifests import digest_manifest
from workers.attempt import workspace
from workers.attempt.answers import shorten
from workers.attempt.aside import Result, run_aside
from workers.attempt.ending import outcome_of_error, outcome_of_exit
from workers.attempt.lease import LeaseKeeper, Standing, clock_seconds
from workers.attempt.leftovers import remove_earlier
from workers.attempt.log_resume import StoredLog, find_stored
from workers.attempt.logs import STREAMS, LogWriter
from workers.attempt.patience import patiently
from workers.attempt.planning import PROGRESS_FILE, make_plan, refuse
from workers.attempt.progress import ProgressFile
from workers.attempt.redaction import Redactor, forms_of
from workers.attempt.reporting import Reporter
from workers.attempt.runtimes.base import Container, Exit
from workers.attempt.site import Site
from workers.attempt.turn import Stopped, Turn
from workers.attempt.watch import TICKS_PER_LEASE, ProgressRelay, Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Executed:
    """How the attempt went.

    Attributes:
        manifest, manifest_sha256: store key and digest of its outputs' manifest; empty when none was written.
        retries: what the spec allows; 0 when it could not be opened.
        has_started: whether there was a container.
    """

    outcome: Outcome
    manifest: str = ""
    manifest_sha256: str = ""
    retries: int = 0
    has_started: bool = False


class Execution:
    """One execution under one lease, on the calling thread; any may `ask`, and read whether it `has_started`.

    Args:
        left: the container that an earlier worker has started for this attempt, if it is still there.
    """

    def __init__(
        self,
        site: Site,
        message: Verified,
        *,
        record: Record,
        keeper: LeaseKeeper,
        reporter: Reporter,
        left: Container | None,
    ) -> None:
        self._site, self._message, self._record = site, message, record
        self._keeper, self._reporter = keeper, reporter
        self._file, self._left = keeper.file, left
        self.has_started = left is not None or keeper.file.kept.ended is not None
        self._lease = keeper.lease
        self._prefix = attempt_prefix(self._lease.experiment_id, self._lease.attempt, self._lease.token)
        self._asked: Reason | None = None
        self._watch: Watch | None = None
        self._spec: ExperimentSpec | None = None
        self._manifest = self._manifest_sha256 = ""
        self._tick_seconds = site.lease.total_seconds() / TICKS_PER_LEASE

    def ask(self, reason: Reason) -> None:
        """Ask for its end; returns at once."""
        self._asked = self._asked or reason
        if self._watch:
            self._watch.ask(reason)

    def run(self) -> Executed:
        """Return how it went; nothing of it is left on this node but what an adapter could not remove."""
        folder = workspace.attempt_folder(self._site.folder, self._lease)
        try:
            outcome = self._go_on(folder) if self.has_started else self._run(folder)
        except Stopped as stop:
            outcome = stop.outcome
        except JobqueueError as error:
            outcome = outcome_of_error(error)
            message = self._redact(error.message)
            log.warning("attempt.failed", extra={"experiment": self._lease.experiment_id, "error": message})
        except BaseException as error:  # the last line of defence: no error may end without a reason
            log.exception("attempt.failed", extra={"experiment": self._lease.experiment_id})
            outcome = outcome_of_error(error)
        finally:
            workspace.remove(folder)
        outcome = replace(outcome, detail=self._redact(outcome.detail))
        retries = self._spec.retries if self._spec else 0
        left = {"manifest": self._manifest, "manifest_sha256": self._manifest_sha256}
        return Executed(outcome=outcome, retries=retries, has_started=self.has_started, **left)

    def _redact(self, text: str) -> str:
        """Return what may be told of an error: an engine's may repeat what it was asked for, and be of any length."""
        return shorten(Redactor(forms_of(self._spec.secrets.values())).redact(text) if self._spec else text)

    def _run(self, folder: Path) -> Outcome:
        self._check_waiting()
        site = self._site
        spec = self._open()
        if refusal := self._aside(
            lambda: refuse(spec, policy=site.policy, offer=site.best_offer, find_fault=site.runtime.find_fault)
        ):
            return refusal
        self._reporter.entered(State.PREPARING)
        self._note(State.PREPARING, Phase.PULLING)
        turn = Turn(site=site, file=self._file, spec=spec, check=self._check_waiting, tell=self._tell_wait)
        gpus = turn.take()
        hold = workspace.make_folder(folder)
        image = self._aside(lambda: site.runtime.resolve(spec.image, hold=hold))
        self._check()
        self._note(State.PREPARING, Phase.STAGING)
        staged = workspace.stage_in(
            spec, folder, store=site.store, cache=site.inputs, allowed=site.allowed, check=self._check
        )
        remove_earlier(self._lease, site=site, may_run=bool(self._record.history))
        gpus = turn.keep(gpus)
        if fault := self._aside(lambda: site.runtime.find_fault(spec.network)):
            raise Stopped(Reason.DOES_NOT_FIT, f"the network {spec.network!r} has failed meanwhile: {fault}")
        self._await_trust()
        plan = make_plan(
            spec,
            lease=self._lease,
            queue=self._message.header.queue,
            node_id=site.node_id,
            image=image,
            workspace=staged.workspace,
            inputs=staged.inputs,
            grace=site.grace,
            gpus=gpus,
        )
        # Before there is a container, because a worker that finds one asks how old it is.
        self._file.update(started_at_seconds=clock_seconds())
        container = site.runtime.start(plan)
        self.has_started = True
        try:
            site.health.note_start()
            return self._supervise(container, spec, staged.workspace)
        finally:
            self._remove(container)

    def _open(self) -> ExperimentSpec:
        opened = open_sealed(self._message, keys=self._site.keys)
        show_permit(self._site.store, opened.permit, attempt=self._lease.attempt, token=self._lease.token)
        self._spec = opened.spec
        return opened.spec

    def _go_on(self, folder: Path) -> Outcome:
        """Supervise to the end what an earlier worker has started, as if nothing had happened."""
        kept, container = self._file.kept, self._left
        try:
            spec = self._open()
            if kept.ended or container is None:
                self._manifest, self._manifest_sha256 = kept.manifest, kept.manifest_sha256
                return kept.ended or Outcome(reason=Reason.WORKER_LOST)
            return self._supervise(container, spec, workspace.workspace_folder(folder))
        finally:
            if container:
                self._remove(container)

    def _supervise(self, container: Container, spec: ExperimentSpec, folder: Path) -> Outcome:
        was = self._record.state if self._left else State.PREPARING
        now = State.FINALIZING if was is State.FINALIZING else State.RUNNING
        secrets = forms_of(spec.secrets.values())
        progress = ProgressRelay(
            self._site.registry.leases,
            self._keeper,
            self._reporter,
            file=ProgressFile(folder / PROGRESS_FILE, secrets=secrets),
            state=now,
        )
        logs = LogWriter(
            self._lease,
            store=self._site.store,
            prefix=self._prefix,
            live=self._site.registry.live_logs,
            limit_bytes=self._site.policy.log_limit_bytes,
            secrets=secrets,
            on_progress=progress.offer,
            stored=self._find_stored() if self._left else None,
        )
        watch = Watch(
            container,
            runtime=self._site.runtime,
            spec=spec,
            keeper=self._keeper,
            logs=logs,
            progress=progress,
            grace=self._site.grace,
            folder=folder,
        )
        self._watch = watch
        if self._asked:
            watch.ask(self._asked)
        try:
            if was is State.PREPARING:
                self._reporter.entered(State.RUNNING)
            progress.send(now=True)
            ended = watch.run()
        finally:
            self._watch = None
            # What the store does not take now stays for `_finalize`, which has more patience.
            with suppress(StoreUnavailable):
                logs.close()
        outcome = watch.stopped
        if outcome is None or outcome.reason is not Reason.DRAINED:
            self._reporter.entered(State.FINALIZING)
            if progress.is_told:
                self._note(State.FINALIZING)
            outcome = self._finalize(spec, folder, ended, watch=watch, logs=logs)
        # Before the container goes, without which a worker that takes over could not tell that there was an end.
        with suppress(OSError):
            self._file.update(ended=outcome, manifest=self._manifest, manifest_sha256=self._manifest_sha256)
        return outcome

    def _finalize(self, spec: ExperimentSpec, folder: Path, ended: Exit, *, watch: Watch, logs: LogWriter) -> Outcome:
        patiently(StoreUnavailable, logs.close)
        left = patiently(
            StoreUnavailable,
            lambda: workspace.stage_out(spec, folder, store=self._site.store, prefix=self._prefix),
        )
        self._manifest, self._manifest_sha256 = manifest_key(self._prefix), digest_manifest(left)
        return outcome_of_exit(
            ended,
            stopped=watch.stopped,
            cancel_reason=self._keeper.cancel_reason,
            is_judged=watch.is_judged,
            resources=spec.resources,
            logs=logs,
        )

    def _find_stored(self) -> Mapping[str, StoredLog]:
        return patiently(StoreUnavailable, lambda: find_stored(self._site.store, self._prefix, STREAMS))

    def _tell_wait(self, wait: str) -> None:
        self._note(State.PREPARING, Phase.WAITING if wait else Phase.PULLING, progress=wait or "{}")

    def _note(self, state: State, phase: Phase | None = None, progress: str | None = None) -> None:
        """Tell the registry where the attempt is; one that is away learns the end all the same."""
        try:
            self._site.registry.leases.advance(self._lease, state, phase=phase, progress=progress)
        except RegistryUnavailable as error:
            log.warning(
                "state.not_recorded",
                extra={"experiment": self._lease.experiment_id, "state": state, "error": error.message},
            )

    def _aside(self, step: Callable[[], Result]) -> Result:
        """Return what a step returns that may take as long as a pull."""
        return run_aside(step, check=self._check, every_seconds=self._tick_seconds)

    def _check(self) -> None:
        """Raise when the attempt should not go on."""
        if self._keeper.standing is Standing.LOST:
            raise Superseded("a newer attempt holds the lease")
        if self._keeper.standing is Standing.CANCELLED:
            raise Stopped(self._keeper.cancel_reason or Reason.CANCELLED_BY_USER)
        if self._asked:
            raise Stopped(self._asked)

    def _check_waiting(self) -> None:
        """Raise when an attempt that has not begun should not."""
        if self._message.header.expires_at <= datetime.now(UTC):
            raise Stopped(Reason.EXPIRED)
        self._check()

    def _await_trust(self) -> None:
        """Return once the lease is held beyond doubt: what starts in doubt could run beside another attempt."""
        while self._keeper.standing is Standing.IN_DOUBT:
            self._check()
            time.sleep(self._tick_seconds)
        self._check()

    def _remove(self, container: Container) -> None:
        try:
            container.remove()
        except RuntimeFailure as error:
            log.warning(
                "container.not_removed", extra={"experiment": self._lease.experiment_id, "error": error.message}
            )
