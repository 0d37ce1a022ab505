"""Which faults come when: a list that a seed decides, so that the same seed is the same list."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NODES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of fault.

    Attributes:
        weight: how often it comes.
        lasts_leases: how long it stays, in leases; 0 where it is over at once.
        is_of_node: it is done to one node; else to a server that all share.
        brokers: where it makes sense; empty: everywhere.
        is_gentle: it is in short runs too.
    """

    name: str
    weight: int
    lasts_leases: float = 0
    is_of_node: bool = True
    brokers: tuple[str, ...] = ()
    is_gentle: bool = False


KINDS: Final = (
    Kind(name="worker.kill", weight=12, is_gentle=True),
    Kind(name="worker.kill_and_stay_away", weight=6, lasts_leases=2, is_gentle=True),
    Kind(name="node.kill", weight=5, lasts_leases=1),
    Kind(name="guard.kill", weight=4),
    Kind(name="container.kill", weight=8, is_gentle=True),
    Kind(name="worker.stop", weight=8, lasts_leases=2, is_gentle=True),
    Kind(name="worker.drain", weight=6),
    Kind(name="cut.registry", weight=8, lasts_leases=2, is_gentle=True),
    Kind(name="cut.broker", weight=6, lasts_leases=2),
    Kind(name="cut.store", weight=4, lasts_leases=1),
    Kind(name="cut.all", weight=4, lasts_leases=2),
    Kind(name="reset.all", weight=4),
    Kind(name="slow.all", weight=4, lasts_leases=1),
    Kind(name="store.errors", weight=4, lasts_leases=1, is_gentle=True),
    Kind(name="store.hangs", weight=2, lasts_leases=1),
    Kind(name="store.truncates", weight=2, lasts_leases=0.5),
    Kind(name="store.loses_answers", weight=3, lasts_leases=0.5),
    Kind(name="disk.full", weight=2, lasts_leases=0.5),
    Kind(name="engine.restart", weight=3, is_of_node=False),
    Kind(name="broker.restart", weight=3, is_of_node=False, brokers=("rabbitmq", "redis"), is_gentle=True),
    Kind(name="broker.kill", weight=3, is_of_node=False, brokers=("rabbitmq",)),
    Kind(name="broker.wipe", weight=1, is_of_node=False),
    Kind(name="queue.delete", weight=1, is_of_node=False, brokers=("rabbitmq", "redis")),
    Kind(name="registry.restart", weight=4, is_of_node=False),
    Kind(name="registry.wipe", weight=3, is_of_node=False, is_gentle=True),
    Kind(name="registry.away", weight=2, lasts_leases=3, is_of_node=False),
    Kind(name="registry.clock", weight=3, is_of_node=False),
    Kind(name="messages.malformed", weight=3, is_of_node=False, is_gentle=True),
    Kind(name="duplicates.burst", weight=5, is_of_node=False, is_gentle=True),
)
# Either of them may lose everything, but not both: a run empties the one or the other.
_EMPTIES: Final = ({"registry.wipe"}, {"broker.wipe", "queue.delete"})


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One planned fault: when, what, to which node, for how long."""

    index: int
    at_seconds: float
    kind: Kind
    node: int
    lasts_seconds: float


def make_plan(
    count: int, *, seed: int, broker: str, lease_seconds: float, kinds: Sequence[str] = (), is_gentle: bool = False
) -> list[Fault]:
    """Return `count` faults in their order.

    Args:
        count: how many.
        seed: decides everything.
        broker: `rabbitmq`, `redis` or `sqs`.
        lease_seconds: of the run.
        kinds: only these; empty: all that fit.
        is_gentle: only those that a short run survives in its time.
    """
    chance = random.Random(f"faults {seed}")
    eligible = [kind for kind in KINDS if _fits(kind, broker=broker, kinds=kinds, is_gentle=is_gentle)]
    if not kinds:
        spared = chance.choice(_EMPTIES)
        eligible = [kind for kind in eligible if kind.name not in spared]
    chosen = _choose(eligible, count, chance)
    faults, at_seconds = [], 4.0
    for index, kind in enumerate(chosen):
        lasts_seconds = round(kind.lasts_leases * lease_seconds, 1)
        node = chance.randrange(NODES)
        faults.append(
            Fault(index=index, at_seconds=round(at_seconds, 1), kind=kind, node=node, lasts_seconds=lasts_seconds)
        )
        # What is done to one node leaves the others; what is done to all is let pass before the next one.
        pause = 0.35 * lasts_seconds if kind.is_of_node else 1.1 * lasts_seconds + 1
        at_seconds += pause + chance.uniform(1.0, 3.5)
    return faults


def _fits(kind: Kind, *, broker: str, kinds: Sequence[str], is_gentle: bool) -> bool:
    if kind.brokers and broker not in kind.brokers:
        return False
    return kind.name in kinds if kinds else kind.is_gentle or not is_gentle


def _choose(eligible: Sequence[Kind], count: int, chance: random.Random) -> list[Kind]:
    """Return each kind once before any comes twice, in a random order, as far as `count` goes."""
    first = chance.sample(eligible, min(count, len(eligible)))
    more = chance.choices(eligible, [kind.weight for kind in eligible], k=count - len(first))
    chosen = first + more
    chance.shuffle(chosen)
    return chosen
