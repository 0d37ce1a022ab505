"""Identities: typed strings, and the one place that makes them.

An experiment id is `exp-` and a ULID in lower-case Crockford base32, so ids sort by their time of submission, are legal
as queue message id, container label, object key and host name, and can be made without asking anybody.
"""

import re
import secrets
import time
from typing import NewType

from jobqueue.errors import InvalidSpec, Problem

ExperimentId = NewType("ExperimentId", str)
NodeId = NewType("NodeId", str)
WorkerId = NewType("WorkerId", str)
KeyId = NewType("KeyId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_EXPERIMENT_ID = re.compile(rf"exp-[0-7][{_ALPHABET}]{{25}}")


def make_experiment_id() -> ExperimentId:
    """Return a new id: 48 bits of wall time in milliseconds, the nanoseconds within it, 60 random bits."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    number = milliseconds << 80 | nanoseconds << 60 | secrets.randbits(60)
    digits = (number >> shift & 31 for shift in range(125, -1, -5))
    return ExperimentId("exp-" + "".join(_ALPHABET[digit] for digit in digits))


def is_experiment_id(text: str) -> bool:
    """Tell whether `text` is a whole experiment id."""
    return _EXPERIMENT_ID.fullmatch(text) is not None


def parse_experiment_id(text: str) -> ExperimentId:
    """Return `text` as an id.

    Raises:
        InvalidSpec: it is not one.
    """
    if not is_experiment_id(text):
        raise InvalidSpec(
            [
                Problem(
                    path="id",
                    message=f"not an experiment id: {text!r:.80} (use exp- and 26 characters)",
                )
            ]
        )
    return ExperimentId(text)
