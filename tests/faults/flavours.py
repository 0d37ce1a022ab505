"""What is submitted: each flavour is a container with an end of its own, and the ends that the platform may give it.

Every container prints its kernel's uptime five times a second, so that the containers themselves say when they lived.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.images import BUSYBOX, PYTHON

EXHAUSTED: Final = "FAILED:ATTEMPTS_EXHAUSTED"
_TICK: Final = "read up rest </proc/uptime; echo tick $up"
_SHORT_SECONDS: Final = (2.0, 4.0)
_LONG_SECONDS: Final = (9.0, 14.0)
_RESULT: Final = '{\\"token\\": $JOBQUEUE_TOKEN, \\"attempt\\": $JOBQUEUE_ATTEMPT}'
_OOM: Final = """
import time
kept = []
for _ in range({count}):
    print("tick", open("/proc/uptime").read().split()[0], flush=True)
    time.sleep(0.2)
while True:
    kept.append(bytearray(b"x" * 2**20))
"""


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """A way to end.

    Attributes:
        weight: how often it comes, of all.
        ends: `STATE:REASON` that are right, besides that the platform gave up; `*` for any reason.
    """

    name: str
    weight: int
    ends: tuple[str, ...]


FLAVOURS: Final = (
    Flavour(name="succeeds", weight=80, ends=("SUCCEEDED:EXITED_ZERO",)),
    Flavour(name="exits_3", weight=5, ends=("FAILED:EXITED_NONZERO",)),
    Flavour(name="out_of_memory", weight=3, ends=("FAILED:OUT_OF_MEMORY",)),
    Flavour(name="overruns", weight=3, ends=("FAILED:TIMED_OUT",)),
    Flavour(name="stubborn", weight=3, ends=("FAILED:TIMED_OUT",)),
    Flavour(name="cancelled", weight=4, ends=("CANCELLED:CANCELLED_BY_USER", "SUCCEEDED:EXITED_ZERO")),
    Flavour(name="poison", weight=2, ends=("SUCCEEDED:EXITED_ZERO",)),
)


@dataclass(frozen=True, kw_only=True)
class Order:
    """One experiment to submit.

    Attributes:
        seconds: how long its container works.
        cancel_after_seconds: after its submission; None: nobody cancels it.
        fields: what `submit` takes.
    """

    name: str
    flavour: Flavour
    seconds: float
    cancel_after_seconds: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def make_orders(count: int, *, seed: int) -> list[Order]:
    """Return `count` experiments, half of them longer than a lease; the same ones for the same seed."""
    chance = random.Random(f"orders {seed}")
    weights = [flavour.weight for flavour in FLAVOURS]
    orders = []
    for number in range(count):
        flavour = chance.choices(FLAVOURS, weights)[0]
        if flavour.name == "poison" and count < 20:
            flavour = FLAVOURS[0]
        seconds = round(chance.uniform(*(_LONG_SECONDS if number % 2 else _SHORT_SECONDS)), 1)
        cancel = round(chance.uniform(0.1, seconds + 2), 1) if flavour.name == "cancelled" else None
        orders.append(
            Order(
                name=f"{flavour.name}-{number}",
                flavour=flavour,
                seconds=seconds,
                cancel_after_seconds=cancel,
                fields=_fields(flavour.name, seconds),
            )
        )
    return orders


def _fields(name: str, seconds: float) -> dict[str, Any]:
    base: dict[str, Any] = {"image": BUSYBOX, "cpus": 0.5, "memory": "64MiB", "disk": "8MiB", "timeout": "10m"}
    count = round(seconds / 0.2)
    if name == "out_of_memory":
        return {**base, "image": PYTHON, "command": ["python3", "-c", _OOM.format(count=count)]}
    # A full disk is waited for: what a program makes of one is its own affair.
    write = f'until echo "{_RESULT}" > outputs/result.json; do {_TICK}; sleep 0.2; done'
    ending = "exit 3" if name == "exits_3" else f"{write} 2>/dev/null; echo end"
    trap = "trap '' TERM; " if name == "stubborn" else ""
    loop = f"while [ $i -lt {count} ]; do i=$((i+1)); {_TICK}; sleep 0.2; done"
    if name in ("overruns", "stubborn"):
        base["timeout"] = f"{seconds}s"
        loop = f"while :; do {_TICK}; sleep 0.2; done"
    return {**base, "command": ["sh", "-c", f"{trap}i=0; echo begin; {loop}; {ending}"]}
