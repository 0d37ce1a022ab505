"""Which request queues a worker may serve now: found by patterns on a thread of its own, over and over again.

A queue that the patterns find is served when its name suits the slot, a sender is trusted for it, and the least that
its messages were seen to ask for can fit. Keys are files that are read again when they change, so a new project's
queue is served without a restart. A queue that is named is served whatever is known of it.
"""

import logging
import threading
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Final

from jobqueue.brokers.base import Seen
from jobqueue.errors import RegistryUnavailable
from jobqueue.header import Header
from jobqueue.quantities import format_duration
from jobqueue.registry.needs import least
from jobqueue.resources import Offer, Resources, fits_in
from jobqueue.routing import Selection, is_suited
from workers.bootstrap import Node
from workers.delivery.view import SharedView
from workers.rounds import Rounds

log = logging.getLogger(__name__)

# What is new is worth a look before anybody knows what waits in it.
_NEW_ROUNDS: Final = 10
_NAMED: Final = 5


class Scout:
    """Looks for queues.

    Args:
        node: the worker's ports, and what it can give.
        selection: what it is to serve.
        refresh: how often it looks.

    Attributes:
        paused: the request queues from which an operator wants nothing taken, as the registry said last.
        found: how many messages wait in each queue that the patterns find and that it may serve now; None: it is not
            known. A new mapping after each look.
    """

    def __init__(self, node: Node, selection: Selection, *, refresh: timedelta) -> None:
        self.selection = selection
        self.paused: frozenset[str] = frozenset()
        self.found: Mapping[str, int | None] = {}
        self._node, self._refresh = node, refresh
        self._view = SharedView(
            node.broker.survey, selection, folder=node.folder.root, broker=node.settings.broker, refresh=refresh
        )
        self._known: frozenset[str] | None = None
        self._new: dict[str, int] = {}
        self._unmatched: set[str] = set()
        self._asked: dict[str, Resources] = {}
        self._needs: Mapping[str, Resources] = {}
        self._lock = threading.Lock()
        self._rounds = Rounds("scout", self.look, every=lambda: refresh)

    def start(self) -> None:
        """Look once, then go on on a thread of its own."""
        self._rounds.take()
        self._rounds.start()

    def close(self) -> None:
        """Stop looking."""
        self._rounds.close()
        self._view.close()

    def saw(self, header: Header) -> None:
        """Learn what a message of a queue asks for; any thread, without waiting for the registry."""
        with self._lock:
            known = self._asked.get(header.queue, header.resources)
            self._asked[header.queue] = least(known, header.resources)

    def look(self) -> None:
        """Look once.

        Raises:
            BrokerUnavailable: what is known is that of before.
            KeyRefused: the same; a key's file cannot be used.
        """
        self._learn_pauses()
        self._share_needs()
        if not self.selection.patterns:
            return
        seen = self._view.look()
        self._tell_unmatched(seen)
        self._note_new(frozenset(seen.waiting))
        offer = self._node.site.best_offer  # once: the other workers of the machine are asked
        served = [name for name in seen.waiting if self._may_serve(name, offer)]
        found = {name: self._estimate(name, seen.waiting[name]) for name in served}
        before, self.found = self.found, found
        if found.keys() != before.keys():
            _log_change(before.keys(), found.keys())
            self._node.serve((*self.selection.names, *sorted(found.keys() - set(self.selection.names))))

    def _learn_pauses(self) -> None:
        """Learn what is paused; while the registry is away, what was paused stays so."""
        try:
            paused = frozenset(self._node.site.registry.pauses.paused())
        except RegistryUnavailable as error:
            log.debug("pauses.unknown", extra={"error": error.message})
            return
        if paused != self.paused:
            log.info("queues.paused", extra={"now": _some(paused), "resumed": _some(self.paused - paused)})
            self.paused = paused

    def _share_needs(self) -> None:
        """Exchange with the registry what queues ask for; while it is away nothing is known, and all is served."""
        with self._lock:
            asked, self._asked = self._asked, {}
        if not (asked or self.selection.patterns):
            return
        needs = self._node.site.registry.needs
        try:
            known = needs.known() if self.selection.patterns else needs.known(list(asked))
            for queue, resources in asked.items():
                lowest = least(known.get(queue, resources), resources)
                if known.get(queue) != lowest:
                    needs.note(queue, resources)
                    known[queue] = lowest
        except RegistryUnavailable as error:
            log.debug("needs.unknown", extra={"error": error.message})
            known = {}
        self._needs = known

    def _tell_unmatched(self, seen: Seen) -> None:
        """Say once of each pattern that it matches nothing, and again after it has matched something."""
        for pattern in self.selection.patterns:
            if any(fnmatchcase(name, pattern) for name in seen.waiting):
                self._unmatched.discard(pattern)
            elif pattern not in self._unmatched:
                self._unmatched.add(pattern)
                again = format_duration(self._refresh)
                log.warning("queues.none_match", extra={"pattern": pattern, "seen": _tell(seen), "again_every": again})

    def _note_new(self, names: frozenset[str]) -> None:
        """Note which queues were not there at the last look: what is new is worth a look of its own."""
        new = names - self._known if self._known is not None else frozenset()
        self._new = {name: left - 1 for name, left in self._new.items() if left and name in names}
        self._new |= dict.fromkeys(new, _NEW_ROUNDS)
        self._known = names

    def _estimate(self, name: str, waiting: int | None) -> int | None:
        return waiting or (None if name in self._new else waiting)

    def _may_serve(self, name: str, offer: Offer) -> bool:
        site = self._node.site
        if not is_suited(name, has_device=bool(site.gpus)) or not site.keys.trusts_any(name):
            return False
        return name not in self._needs or not fits_in(self._needs[name], offer)


def _tell(seen: Seen) -> str:
    others = [*seen.waiting, *seen.others]
    named = ", ".join(others[:_NAMED])
    further = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"{len(others)} request queues: {named}{further}" if others else "no request queue"


def _log_change(before: AbstractSet[str], after: AbstractSet[str]) -> None:
    new, gone = _some(after - before), _some(before - after)
    log.info("queues.found", extra={"found": len(after), "new": new, "gone": gone})


def _some(names: AbstractSet[str]) -> str:
    return ",".join(sorted(names)[:_NAMED]) + (",..." if len(names) > _NAMED else "")
