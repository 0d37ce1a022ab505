"""Submitting experiments and finding them again, over connections that stay open."""

import builtins
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from jobqueue.config import Settings
from jobqueue.errors import InvalidSetting, InvalidSpec, NotFound, Problem
from jobqueue.ids import ExperimentId, is_experiment_id, parse_experiment_id
from jobqueue.lifecycle import State
from jobqueue.registry.base import Record
from jobqueue.storage import check_address
from producers.connections import Connections
from producers.handle import Experiment
from producers.preparation import Draft, Packed, check_fields, placed
from producers.sending import Sender
from producers.watching import Watcher

LAST: Final = "last"
_ID_START: Final = "exp-"
_USE: Final = "use an id, the beginning of one, a name, or 'last'"
_SHOWN: Final = 5
# How many of `submit_many` are registered in one step, and published before the first confirmation is waited for.
_AT_ONCE: Final = 64


class Client:
    """Submits to one broker and registry. Safe in threads; a forked child gets connections of its own.

    Nothing is connected before the first use. `with Client(settings) as client:` closes it at the end.

    Args:
        settings: where the servers are; by default what the environment says.

    Raises:
        InvalidSetting: they are none.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = _as_settings(settings)
        self._connections = Connections(self.settings)
        self._watcher = Watcher(self._states)
        self._sender = Sender(self._connections)
        self._handles: weakref.WeakValueDictionary[ExperimentId, Experiment] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._last: Experiment | None = None
        _living.add(self)

    def submit(self, **fields: Any) -> Experiment:
        """Submit one experiment: see `producers.submit_experiment`."""
        packed = Packed()
        (handle,) = self._send([self._check(fields, packed)], packed)
        return handle

    def submit_many(self, specs: Iterable[Mapping[str, Any]]) -> builtins.list[Experiment]:
        """Submit several, after all of them have been checked; a folder that they share is packed once.

        Args:
            specs: for each experiment the arguments of `submit`; a generator is read to its end first.

        Raises:
            InvalidSpec: with every wrong field, as in `[3].memory`; nothing was submitted.
            BrokerUnavailable, RegistryUnavailable, StoreUnavailable, NoSuchQueue, IdempotencyMismatch: a note says
                which ones were submitted before.
        """
        packed, handles = Packed(), list[Experiment]()
        drafts = self._check_many(specs, packed)
        for start in range(0, len(drafts), _AT_ONCE):
            try:
                handles += self._send(drafts[start : start + _AT_ONCE], packed)
            except BaseException as error:  # also Ctrl-C: what runs by then has to be found again
                done = ", ".join(handle.id for handle in handles)
                error.add_note(f"{len(handles)} of {len(drafts)} were submitted before: {done or 'none'}")
                raise
        return handles

    def get(self, text: str) -> Experiment:
        """Return the experiment that `text` means.

        Args:
            text: an id; the unique beginning of one, with or without `exp-`; a name (the newest one of that name); or
                `last`: what this client submitted last, else the newest one of the settings' project.

        Raises:
            NotFound: there is none, or there are several.
            InvalidSpec: it is no text, or an empty one, which would mean any.
        """
        _check_text(text)
        if text == LAST and self._last is not None:
            return self._last
        return self._handle_of(self._find(text))

    def list(
        self, *, project: str = "", name: str = "", prefix: str = "", limit: int = 100
    ) -> builtins.list[Experiment]:
        """Return experiments, newest first; what is left empty matches everything. `prefix` is of the id."""
        found = self._connections.registry.experiments.find(prefix=prefix, name=name, project=project, limit=limit)
        return [self._handle_of(record) for record in found]

    def handle(self, experiment_id: ExperimentId) -> Experiment:
        """Return the handle of an id without asking whether there is such an experiment.

        Raises:
            InvalidSpec: it is not an id.
        """
        parse_experiment_id(experiment_id)
        with self._lock:
            handle = self._handles.get(experiment_id)
            if handle is None:
                handle = Experiment(experiment_id, connections=self._connections, watcher=self._watcher, reopen=reopen)
                self._handles[experiment_id] = handle
                self._watcher.add(handle)
            return handle

    def is_of(self, site: str) -> bool:
        """Tell whether it is open and asks the registry of that site: see `Connections.site`."""
        try:
            return not self._connections.is_closed and self._connections.site == site
        except InvalidSetting:  # it names no registry
            return False

    def close(self) -> None:
        """Close every connection. Handles of this client cannot ask any more; the experiments go on."""
        self._watcher.close()
        self._sender.close()
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_in_child(self) -> None:
        """Begin anew in a forked process, without its parent's locks, threads and connections."""
        self._lock = threading.Lock()
        self._sender = Sender(self._connections)
        for handle in list(self._handles.values()):
            handle.start_in_child()
        self._watcher.start_in_child()

    def _states(self, ids: Sequence[ExperimentId]) -> dict[ExperimentId, State]:
        return self._connections.registry.experiments.states(ids)

    def _check(self, fields: Mapping[str, Any], packed: Packed) -> Draft:
        return check_fields(fields, project=self.settings.project, check_address=check_address, packed=packed)

    def _check_many(self, specs: object, packed: Packed) -> builtins.list[Draft]:
        if isinstance(specs, str | bytes | Mapping) or not isinstance(specs, Iterable):
            message = f"not a list of specs: {type(specs).__name__} (use a list of mappings, or submit_experiment)"
            raise InvalidSpec([Problem(path="specs", message=message)])
        drafts, problems = list[Draft](), list[Problem]()
        for index, fields in enumerate(specs):
            try:
                drafts.append(replace(self._check(_as_fields(fields), packed), place=f"[{index}]"))
            except InvalidSpec as error:
                problems += placed(error, f"[{index}]").problems
        if problems:
            raise InvalidSpec(problems)
        return drafts

    def _send(self, drafts: Sequence[Draft], packed: Packed) -> builtins.list[Experiment]:
        handles = []
        for submission in self._sender.send(*drafts, packed=packed):
            handle = self.handle(submission.id)
            handle.introduce(submission)
            handles.append(handle)
        self._last = handles[-1]
        return handles

    def _handle_of(self, record: Record) -> Experiment:
        handle = self.handle(record.submission.id)
        handle.accept(record)
        return handle

    def _find(self, text: str) -> Record:
        experiments = self._connections.registry.experiments
        if is_experiment_id(text.strip().lower()):  # as it comes out of a table or a chat
            experiment_id = ExperimentId(text.strip().lower())
            try:
                return experiments.get(experiment_id)
            except NotFound:
                raise self._connections.unknown(experiment_id) from None
        if text == LAST:
            found = experiments.find(project=self.settings.project, limit=1)
        else:
            found = experiments.find(name=text, limit=1) or self._find_by_prefix(text)
        if not found:
            raise NotFound(f"there is no experiment {text!r:.80}", hint="`jobqueue ls` lists them")
        return found[0]

    def _find_by_prefix(self, text: str) -> builtins.list[Record]:
        if not text.removeprefix(_ID_START).isalnum():
            return []
        prefix = text if text.startswith(_ID_START) else _ID_START + text
        found = self._connections.registry.experiments.find(prefix=prefix, limit=_SHOWN)
        if len(found) > 1:
            shown = ", ".join(record.submission.id for record in found)
            raise NotFound(f"{text!r} is the beginning of several ids: {shown}", hint="give more of it")
        return found


def _as_settings(value: object) -> Settings:
    if value is not None and not isinstance(value, Settings):
        hint = "use Client(Settings(broker_url=...)), with `from jobqueue.config import Settings`"
        raise InvalidSetting(f"not settings: {type(value).__name__}", hint=hint)
    return value or Settings()


def _check_text(text: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InvalidSpec([Problem(path="experiment", message=f"not an id or a name: {text!r:.80} ({_USE})")])


def _as_fields(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        example = "as in {'image': 'python:3.12-slim', 'command': 'python train.py'}"
        message = f"not a spec: {type(value).__name__} (use a mapping of fields, {example})"
        raise InvalidSpec([Problem(path="", message=message)])
    return value


_living: Final[weakref.WeakSet[Client]] = weakref.WeakSet()
_default_lock = threading.Lock()
_default: list[Client] = []


def default_client() -> Client:
    """Return the client of this process, made with what the environment says when it is first asked for."""
    with _default_lock:
        if not _default:
            _default.append(Client())
        return _default[0]


def reopen(experiment_id: str, site: str = "") -> Experiment:
    """Return what a pickled handle becomes: the handle of an id, from a client of its site or from the default one.

    Args:
        experiment_id: what was pickled.
        site: which registry it was submitted to; see `Connections.site`.

    Raises:
        InvalidSpec: it is not an id.
    """
    return _client_of(site).handle(ExperimentId(experiment_id))


def _client_of(site: str) -> Client:
    with _default_lock:
        known = [*_default, *_living]
    return next((client for client in known if client.is_of(site)), None) or default_client()


def _start_all_in_child() -> None:
    global _default_lock  # noqa: PLW0603 - the parent's may be held for ever
    _default_lock = threading.Lock()
    for client in list(_living):
        client.start_in_child()


os.register_at_fork(after_in_child=_start_all_in_child)
