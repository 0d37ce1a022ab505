"""Which messages need not be asked about again: their experiments have ended in this worker."""

import hashlib
from collections import OrderedDict
from typing import Any, Final

_REMEMBERED: Final = 10_000
_ATTRIBUTE: Final = "jobqueue_ends"


class Ends:
    """The messages whose experiments have ended here lately. Main thread only."""

    def __init__(self) -> None:
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def note(self, body: bytes) -> None:
        """Remember a message."""
        self._digests[_digest(body)] = None
        if len(self._digests) > _REMEMBERED:
            self._digests.popitem(last=False)

    def __contains__(self, body: bytes) -> bool:
        return _digest(body) in self._digests


def ends_of(app: Any) -> Ends:
    """Return what has ended in the worker of an application."""
    ends: Ends | None = getattr(app, _ATTRIBUTE, None)
    if ends is None:
        ends = Ends()
        setattr(app, _ATTRIBUTE, ends)
    return ends


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
