"""Which messages need not be asked about again: their experiments have ended in this worker."""

import hashlib
from collections import OrderedDict
from typing import Final

_REMEMBERED: Final = 10_000


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


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
