"""What users do meanwhile: they submit, cancel, and their messages come again and again; and who reads the reports."""

import random
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import timedelta
from typing import Final

from faults.flavours import Order
from faults.history import History, clock_seconds
from faults.ticks import Watcher
from faults.world import World, open_registry_of
from jobqueue.application import make_app
from jobqueue.brokers import open_broker
from jobqueue.codec import decode_report
from jobqueue.errors import JobqueueError, Refused
from jobqueue.publishing import Publisher
from jobqueue.registry.base import Submission
from jobqueue.routing import reporting_queue
from producers.client import Client

_PAUSE_SECONDS: Final = 0.5


class Users:
    """Submits the orders one after the other over a time, and cancels those that are to be cancelled.

    Attributes:
        submissions: what was accepted, by id, as it was published.
        flavours: of each id.
    """

    def __init__(self, world: World) -> None:
        self.submissions: dict[str, Submission] = {}
        self.flavours: dict[str, str] = {}
        self._world = world
        self._client = Client(world.settings)
        self._lock = threading.Lock()

    def submit_all(self, orders: Sequence[Order], *, over_seconds: float) -> None:
        """Submit everything, spread over a time; what is refused is submitted again until it is accepted."""
        began = clock_seconds()
        timers = []
        for number, order in enumerate(orders):
            due = began + over_seconds * number / max(len(orders), 1)
            time.sleep(max(0.0, due - clock_seconds()))
            name = self._submit(order)
            if order.cancel_after_seconds is not None:
                timers.append(threading.Timer(order.cancel_after_seconds, self._cancel, [name]))
                timers[-1].start()
        for timer in timers:
            timer.join()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _submit(self, order: Order) -> str:
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    # The key makes the repetition of a submission whose answer was lost harmless.
                    handle = self._client.submit(**order.fields, name=order.name, idempotency_key=order.name)
            except JobqueueError as error:
                self._world.history.add("refused", name=order.name, code=error.code)
                time.sleep(_PAUSE_SECONDS)
                continue
            self._note(order, handle.id)
            return str(handle.id)

    def _note(self, order: Order, name: str) -> None:
        self._world.history.add(
            "submitted",
            experiment=name,
            flavour=order.flavour.name,
            ends=order.flavour.ends,
            seconds=order.seconds,
        )
        self.flavours[name] = order.flavour.name
        with suppress(JobqueueError), open_registry_of(self._world) as registry:
            self.submissions[name] = registry.experiments.get(name).submission

    def _cancel(self, name: str) -> None:
        for _ in range(20):
            try:
                with open_registry_of(self._world) as registry:
                    state = registry.experiments.cancel(name)
            except JobqueueError as error:
                self._world.history.add("cancel_refused", experiment=name, code=error.code)
                time.sleep(_PAUSE_SECONDS)
            else:
                self._world.history.add("cancelled", experiment=name, state=state)
                return


class Copies:
    """Publishes messages again that were published before, of running experiments above all.

    Args:
        users: whose messages.
        seed: decides which.
    """

    def __init__(self, world: World, users: Users, watcher: Watcher, *, seed: int) -> None:
        self._world, self._users, self._watcher = world, users, watcher
        self._chance = random.Random(f"copies {seed}")
        self._broker = open_broker(world.settings.broker, lease=world.settings.lease)
        app = make_app(world.settings)
        self._publisher = Publisher(broker=lambda: self._broker, app=lambda: app)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)

    def start(self, *, every_seconds: float) -> None:
        """Begin."""
        self._every_seconds = every_seconds
        self._thread.start()

    def publish(self, count: int) -> None:
        """Publish some again: those that run now first, then any."""
        live = [each.experiment for each in self._watcher.live() if each.experiment in self._users.submissions]
        names = self._chance.sample(sorted(set(live)), min(count, len(set(live))))
        known = sorted(self._users.submissions)
        names += self._chance.choices(known, k=count - len(names)) if known else []
        with self._lock:
            for name in names:
                try:
                    self._publisher.publish([self._users.submissions[name]])
                except JobqueueError:
                    continue
                self._world.history.add("duplicate", experiment=name, was_live=name in live)

    def close(self) -> None:
        """Publish no more."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        self._publisher.close()
        self._broker.close()

    def _run(self) -> None:
        while not self._closed.wait(self._every_seconds):
            if self._watcher.live():
                self.publish(1)


class Reader:
    """Writes every report down, repetitions too.

    Attributes:
        ended: the experiments of which an end was reported.
    """

    def __init__(self, world: World, history: History) -> None:
        self.ended: set[str] = set()
        self._world, self._history = world, history
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        queue = reporting_queue(self._world.queue)
        while not self._closed.is_set():
            with (
                suppress(JobqueueError),
                closing(open_broker(self._world.settings.broker, lease=self._world.settings.lease)) as broker,
            ):
                while not self._closed.is_set():
                    mail = broker.post.receive(queue, timeout=timedelta(seconds=0.5))
                    if mail is not None:
                        self._note(mail.body)
                        broker.post.acknowledge(mail)
            self._closed.wait(_PAUSE_SECONDS)

    def _note(self, body: bytes) -> None:
        try:
            report = decode_report(body)
        except Refused as error:
            self._history.add("report_refused", code=error.code)
            return
        if report.state and report.state.is_final:
            self.ended.add(report.experiment_id)
        self._history.add(
            "report",
            experiment=report.experiment_id,
            attempt=report.attempt,
            token=report.token,
            sequence=report.sequence,
            worker=report.worker_id,
            at=report.at.timestamp(),
            state=report.state.value if report.state else None,
            reason=report.reason.name if report.reason else None,
        )
