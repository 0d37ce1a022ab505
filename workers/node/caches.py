"""Keeps what a node has fetched within its bounds: looks now and then, on a thread of its own.

Every worker of a machine does so, over the same folders; each change is made under a lock that they share.
"""

import logging
from datetime import timedelta
from typing import Final

from jobqueue.errors import RuntimeFailure
from jobqueue.quantities import describe_size
from workers.attempt.input_cache import InputCache
from workers.attempt.runtimes.base import ContainerRuntime
from workers.rounds import Rounds

log = logging.getLogger(__name__)

_EVERY: Final = timedelta(minutes=1)
_LEAVE: Final = timedelta(seconds=2)


class CacheKeeper:
    """Looks after the caches of inputs and images.

    Args:
        inputs: the node's.
        runtime: whose images are kept.
    """

    def __init__(self, inputs: InputCache, runtime: ContainerRuntime) -> None:
        self._inputs, self._runtime = inputs, runtime
        self._said: dict[str, str] = {}
        self._rounds = Rounds("caches", self.look, every=lambda: _EVERY, is_first_due=True)

    def start(self) -> None:
        """Look soon, and say what is kept; then now and then. Removing much takes long, so nobody waits for it."""
        self._rounds.start()

    def close(self) -> None:
        """Stop looking; a removal that takes long is left behind, for the next look."""
        self._rounds.close(within=_LEAVE)

    def look(self) -> None:
        """Let go what is over a bound, and say what is kept when that has changed."""
        self._inputs.trim()
        images = ""
        try:
            images = self._runtime.tidy()
        except RuntimeFailure as error:  # the node's health says so already
            log.debug("images.not_tidied", extra={"error": error.message})
        said = {"inputs": describe(self._inputs)} | ({"images": images} if images else {})
        if said != self._said:
            self._said = said
            log.info("caches.kept", extra=said)


def describe(inputs: InputCache) -> str:
    """Return how full a cache of inputs is, in words."""
    fill = inputs.fill()
    return (
        f"{fill.count} kept, {describe_size(fill.size_bytes)} of {describe_size(inputs.size_bytes)}, {fill.held} in use"
    )
