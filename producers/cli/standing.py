"""What the registry knows of a request queue: who serves it, what runs and waits, what its experiments ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from jobqueue.lifecycle import State
from jobqueue.quantities import describe_size
from producers.cli.output import UNKNOWN, describe_age, write_instant

if TYPE_CHECKING:
    from jobqueue.registry.base import Registry
    from jobqueue.registry.pauses import Pause
    from jobqueue.resources import Resources

_COUNTED: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a request queue stands.

    Attributes:
        workers: how many serve it now.
        waiting, running: experiments, of the newest ten thousand that are not over.
        oldest_at: when the one was submitted that has waited longest; None: none waits.
        pause: who wants nothing taken from it, and since when; None: nobody.
        needs: the least that its messages were seen to ask for lately; None: nobody has seen one.
    """

    workers: int
    waiting: int
    running: int
    oldest_at: datetime | None
    needs: "Resources | None"
    pause: "Pause | None" = None


def read_standings(registry: "Registry", queues: Sequence[str]) -> dict[str, Standing]:
    """Return how request queues stand.

    Raises:
        RegistryUnavailable: the registry does not answer.
    """
    workers, needs = registry.workers.present(), registry.needs.known(queues) if queues else {}
    pauses = registry.pauses.paused()
    standings = {}
    for queue in queues:
        records = registry.experiments.find(queue=queue, limit=_COUNTED)
        waiting = [record.submission.submitted_at for record in records if record.state is State.QUEUED]
        standings[queue] = Standing(
            workers=sum(queue in worker.queues for worker in workers),
            waiting=len(waiting),
            running=len(records) - len(waiting),
            oldest_at=min(waiting, default=None),
            needs=needs.get(queue),
            pause=pauses.get(queue),
        )
    return standings


def as_cells(standing: Standing | None) -> dict[str, str]:
    """Return the cells of one line of `queues ls`; a companion has no standing of its own."""
    if standing is None:
        return dict.fromkeys(("WORKERS", "RUNNING", "OLDEST", "PAUSED", "NEEDS"), UNKNOWN)
    pause = standing.pause
    return {
        "WORKERS": str(standing.workers),
        "RUNNING": str(standing.running),
        "OLDEST": describe_age(standing.oldest_at) if standing.oldest_at else UNKNOWN,
        "PAUSED": f"{describe_age(pause.at)} by {pause.by}" if pause else UNKNOWN,
        "NEEDS": _describe(standing.needs) if standing.needs else UNKNOWN,
    }


def as_values(standing: Standing | None) -> Mapping[str, Any]:
    """Return the same as JSON values; sizes are bytes."""
    if standing is None:
        return {}
    pause = standing.pause
    return {
        "workers": standing.workers,
        "waiting": standing.waiting,
        "running": standing.running,
        "oldest_waiting_at": write_instant(standing.oldest_at) or None,
        "paused": {"at": write_instant(pause.at), "by": pause.by, "reason": pause.reason} if pause else None,
        "needs": asdict(standing.needs) if standing.needs else None,
    }


def _describe(needs: "Resources") -> str:
    parts = [f"{needs.cpus:g} cpus", describe_size(needs.memory_bytes)]
    if needs.gpus:
        memory = f" of {describe_size(needs.gpu_memory_bytes)}" if needs.gpu_memory_bytes else ""
        parts.append(f"{needs.gpus} GPUs{memory}")
    return ", ".join(parts)
