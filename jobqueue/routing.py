"""Queue names: which queue an experiment goes to, and what its companions are called.

Names hold letters, digits, `-` and `_` only and stay under 80 characters with every suffix, because SQS allows no more.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Final

from jobqueue.errors import InvalidSetting, InvalidSpec, Problem
from jobqueue.spec import ExperimentSpec, is_name

REPORTING: Final = "_reporting"
DEFERRED: Final = "_deferred"
DEAD: Final = "_dead"
FIRST: Final = "_first"
COMPANIONS: Final = (REPORTING, DEFERRED, DEAD, FIRST)

_CPU: Final = "_cpu"
_GPU: Final = "_gpu"
_SPECIAL: Final = "*?["
_SPLIT: Final = re.compile(r"[*?\[]")
_EXCLUDE: Final = "!"
_PATTERN: Final = re.compile(r"[A-Za-z0-9_*?\[\]!-]+")


def request_queues(project: str) -> tuple[str, str]:
    """Return the project's pair of request queues: for CPU work, for GPU work."""
    return project + _CPU, project + _GPU


def choose_queue(spec: ExperimentSpec) -> str:
    """Return the request queue of an experiment: the one it names, else by its project and resources.

    Raises:
        InvalidSpec: it names a companion, where nothing runs.
    """
    cpu_queue, gpu_queue = request_queues(spec.project)
    queue = spec.queue or (gpu_queue if spec.gpus else cpu_queue)
    if not is_request_queue(queue):
        raise InvalidSpec([Problem(path="queue", message=f"{queue!r} is no request queue (leave its ending out)")])
    return queue


def reporting_queue(queue: str) -> str:
    """Return where the reports of a request queue's experiments go, if somebody has created it."""
    return queue + REPORTING


def reported_queue(name: str) -> str:
    """Return the request queue whose reports go to a reporting queue."""
    return name.removesuffix(REPORTING)


def deferred_queue(queue: str) -> str:
    """Return where deliveries wait that were put off."""
    return queue + DEFERRED


def dead_letter_queue(queue: str) -> str:
    """Return where messages lie that can never be processed."""
    return queue + DEAD


def first_queue(queue: str) -> str:
    """Return where messages lie that are served before those of a request queue: what has waited once already."""
    return queue + FIRST


def is_first_queue(name: str) -> bool:
    """Tell whether it is one that is served before another."""
    return name.endswith(FIRST)


def served_queue(name: str) -> str:
    """Return the request queue whose experiments come through a queue that workers consume."""
    return name.removesuffix(FIRST)


def is_request_queue(name: str) -> bool:
    """Tell whether a name is that of a request queue, not of a companion."""
    return not name.endswith(COMPANIONS)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which request queues a worker is to serve.

    Attributes:
        names: served as soon as they are there, whatever the patterns say.
        patterns: shell patterns; what one of them matches is served as well.
        excluded: patterns of what is left out of that.
    """

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """What it was written as."""
        return (*self.names, *self.patterns, *(_EXCLUDE + pattern for pattern in self.excluded))

    @property
    def prefix(self) -> str:
        """What every name begins with that a pattern may match."""
        beginnings = [_SPLIT.split(pattern, maxsplit=1)[0] for pattern in self.patterns] or [""]
        pairs = zip(min(beginnings), max(beginnings), strict=False)
        return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def finds(self, name: str) -> bool:
        """Tell whether a name is that of a request queue that the patterns match."""
        if not (is_name(name) and is_request_queue(name)):
            return False
        if any(fnmatchcase(name, pattern) for pattern in self.excluded):
            return False
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def parse_selection(words: Iterable[str]) -> Selection:
    """Return what names and patterns select: `lab_*` finds queues, `!lab_private_*` leaves some of them out.

    Patterns that only leave something out leave it out of everything.

    Raises:
        InvalidSetting: a word is a companion's name, or no name, or a pattern that no name can match.
    """
    given = tuple(word for word in map(str.strip, words) if word)
    excluded = tuple(word.removeprefix(_EXCLUDE) for word in given if word.startswith(_EXCLUDE))
    included = tuple(word for word in given if not word.startswith(_EXCLUDE))
    patterns = tuple(word for word in included if any(special in word for special in _SPECIAL))
    for word in (*included, *excluded):
        if not is_request_queue(word):
            told = f"{word} is a companion of a request queue, no request queue"
            raise InvalidSetting(told, hint="name the request queue; its companions are served with it")
    for pattern in (*patterns, *excluded):
        if not _PATTERN.fullmatch(pattern):
            told = f"no queue's name can match {pattern!r}"
            raise InvalidSetting(told, hint="names hold letters, digits, - and _; write lab_* or !lab_private_*")
    names = tuple(word for word in included if word not in patterns)
    for name in names:
        if not is_name(name):
            told = f"{name!r} is no queue's name"
            raise InvalidSetting(told, hint="names hold letters, digits, - and _; commas stand between them")
    return Selection(names=names, patterns=patterns if included else ("*",) * bool(excluded), excluded=excluded)


def is_suited(name: str, *, has_device: bool) -> bool:
    """Tell by the name of a request queue whether it may hold work for a slot with a device, or for one without."""
    return not name.endswith(_CPU if has_device else _GPU)
