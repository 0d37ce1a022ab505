"""What keeps an experiment from going on, as far as the registry and the broker know: each cause with its numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from jobqueue.brokers.base import Depth
from jobqueue.envelope import CLOCK_TOLERANCE
from jobqueue.errors import NoSuchQueue, NotFound, Unavailable
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Reason, State
from jobqueue.printable import plain_lines
from jobqueue.quantities import format_duration
from jobqueue.registry.base import Record, Registry
from jobqueue.registry.pauses import Pause
from jobqueue.registry.presence import DRAINING, TAKING, WorkerRecord
from jobqueue.resources import Resources
from jobqueue.spec import ExperimentSpec
from producers.capacity import find_busy, find_misfits, find_refusals, find_shortfalls
from producers.connections import Connections
from producers.timeline import explain

# With more than that between two clocks it is time to look at them: nodes put off what comes from further ahead.
CLOCK_LIMIT: Final = CLOCK_TOLERANCE / 2
_NAMED: Final = 3
_COUNTED: Final = 1000
_ASKED: Final = 200


def find_obstacles(queue: str, resources: Resources, workers: Sequence[WorkerRecord]) -> list[str]:
    """Return what keeps every worker that there is from running an experiment; nothing when one could."""
    serving = [worker for worker in workers if queue in worker.queues]
    if not serving:
        others = f"{len(workers)} serve others" if workers else "none is there"
        follows = "the experiment waits until one does (`celery -A jobqueue worker` starts one of the project's)"
        return [f"no worker serves the queue {queue!r} now ({others}): {follows}", *_tell_misfit(resources, workers)]
    misfits = find_misfits(resources, serving)
    large_enough = [worker for worker in serving if not misfits[worker.worker_id]]
    if not large_enough:
        reasons = _tell_reasons(resources, serving)
        return [f"it fits into no worker that serves the queue {queue!r} now (of {len(serving)} there): {reasons}"]
    if any(worker.state == TAKING for worker in large_enough):
        return []
    states = _some([_tell_state(worker) for worker in large_enough])
    return [f"no worker that it fits into takes anything from {queue!r} now (of {len(large_enough)} there): {states}"]


def find_refusal(spec: ExperimentSpec, queue: str, workers: Sequence[WorkerRecord]) -> list[str]:
    """Return why none of the workers that are large enough allows what it asks for; nothing when one does.

    What it asks for is sealed: who submits it can tell, and nobody who looks at it later.
    """
    serving = [worker for worker in workers if queue in worker.queues]
    misfits = find_misfits(spec.resources, serving)
    refusals = {each.worker_id: find_refusals(spec, each) for each in serving if not misfits[each.worker_id]}
    if not refusals or not all(refusals.values()):
        return []
    told = _some([f"{worker_id} {', and '.join(reasons)}" for worker_id, reasons in refusals.items()])
    return [f"no worker of the queue {queue!r} allows what it asks for now (of {len(refusals)} large enough): {told}"]


def tell_pause(pause: Pause) -> str:
    """Return that a queue is paused, by whom and since when, and what ends that."""
    reason = f" ({pause.reason})" if pause.reason else ""
    told = f"the queue {pause.queue!r} is paused by {pause.by} since {_time(pause.at)}{reason}"
    return f"{told}: nothing is taken from it until `jobqueue queues resume {pause.queue}`"


def _tell_misfit(resources: Resources, workers: Sequence[WorkerRecord]) -> list[str]:
    """Tell what keeps it out of every worker: one that finds its queues leaves those whose experiments cannot fit."""
    misfits = find_misfits(resources, workers)
    if not misfits or not all(misfits.values()):
        return []
    follows = "and one that finds its queues by patterns leaves this one for that"
    reasons = _tell_reasons(resources, workers)
    return [f"it fits into none of the workers that are there (of {len(workers)}), {follows}: {reasons}"]


def _tell_reasons(resources: Resources, workers: Sequence[WorkerRecord]) -> str:
    """Return why it fits into none of these workers."""
    misfits = find_misfits(resources, workers)
    each = [f"{worker_id} {', '.join(reasons)}" for worker_id, reasons in misfits.items()]
    return "; ".join(find_shortfalls(resources, workers)) or _some(each)


def _tell_state(worker: WorkerRecord) -> str:
    if worker.state == DRAINING:
        return f"{worker.worker_id} is DRAINING (unless it stops, `jobqueue nodes resume {worker.node_id}` ends that)"
    return f"{worker.worker_id} is {worker.condition}" + (f": {worker.detail}" if worker.detail else "")


def judge_clock(ahead: timedelta) -> str:
    """Return what it means that this machine's clock is `ahead` of the registry's; empty when that is little."""
    if abs(ahead) <= CLOCK_LIMIT:
        return ""
    off = format_duration(timedelta(seconds=round(abs(ahead).total_seconds())))
    if ahead > timedelta(0):
        follows = f"nodes put off what is sent more than {format_duration(CLOCK_TOLERANCE)} ahead of their time"
        return f"this machine's clock is {off} ahead of the registry's: {follows} (synchronise it)"
    follows = "the experiment expires sooner by as much"
    return f"this machine's clock is {off} behind the registry's: {follows} (synchronise it)"


def find_causes(record: Record, connections: Connections) -> list[str]:
    """Return where an experiment is and why, one sentence to a cause; the first one needs nothing but the record.

    Raises:
        RegistryUnavailable: the registry does not answer. A broker that does not is one of the sentences.
    """
    return [plain_lines(cause) for cause in _find_causes(record, connections)]


def _find_causes(record: Record, connections: Connections) -> list[str]:
    if record.state.is_final:
        return [explain(record)]
    registry = connections.registry
    if record.worker_id is not None:
        return [explain(record), *_judge_holder(record, registry.workers.present())]
    now, submission, workers = registry.ping(), record.submission, registry.workers.present()
    obstacles = find_obstacles(submission.queue, submission.resources, workers)
    open_records = registry.experiments.find(queue=submission.queue, limit=_COUNTED)
    pause = registry.pauses.paused().get(submission.queue)
    room = [tell_pause(pause)] if pause else _tell_room(record, open_records, workers, registry)
    return [
        explain(record),
        *_tell_next_try(record, now),
        *([*room, *obstacles] if pause else obstacles or room),
        *_tell_place(record, open_records),
        *_ask_broker(submission.queue, lambda: connections.broker.queues.depth(submission.queue)),
        f"it expires at {_time(submission.expires_at)} unless a worker has begun with it by then",
    ]


def _judge_holder(record: Record, workers: Sequence[WorkerRecord]) -> Iterator[str]:
    found = next((worker for worker in workers if worker.worker_id == record.worker_id), None)
    if found is None:
        yield f"its worker {record.worker_id} is silent: another one may take over once its lease is over"
        yield from find_obstacles(record.submission.queue, record.submission.resources, workers)
    elif found.state != TAKING:
        yield f"its worker {_tell_state(found)}"


def _tell_next_try(record: Record, now: datetime) -> Iterator[str]:
    if record.next_try_at is not None and record.next_try_at > now:
        left = format_duration(timedelta(seconds=1 + int((record.next_try_at - now).total_seconds())))
        yield f"it is not tried again before {_time(record.next_try_at)}, in {left}"


def _tell_room(
    record: Record, open_records: Sequence[Record], present: Sequence[WorkerRecord], registry: Registry
) -> Iterator[str]:
    """Tell which workers could run it and have no room now; some of them could."""
    queue, resources = record.submission.queue, record.submission.resources
    workers, running = _bring_up_to_date(present, open_records, registry)
    misfits = find_misfits(resources, workers)
    able = [
        worker
        for worker in workers
        if queue in worker.queues and worker.state == TAKING and not misfits[worker.worker_id]
    ]
    busy = find_busy(resources, able, present=workers, running=running)
    told = _some([f"{worker_id} {why}" for worker_id, why in busy.items()])
    if len(busy) == len(able):
        yield f"every worker that could run it is busy, it starts when one of them has room (of {len(able)}): {told}"
    else:
        # What one refused for its network or its image, the others may refuse as well; here only sizes are known.
        able_to = "are large enough" if record.reason is Reason.DOES_NOT_FIT else "could run it now"
        of = f"workers that {able_to}: {len(able)}, of which {len(busy)} are busy"
        yield of + (f": {told}" if told else "")


def _bring_up_to_date(
    workers: Sequence[WorkerRecord], open_records: Sequence[Record], registry: Registry
) -> tuple[list[WorkerRecord], dict[ExperimentId, Resources]]:
    """Return workers with what they run now, and what that asks for: what they announced is some seconds old."""
    known = {found.submission.id: found for found in open_records if found.worker_id}
    for experiment_id in [each for worker in workers for each in worker.experiment_ids][:_ASKED]:
        with suppress(NotFound):  # a registry that was wiped may not know it yet
            known[experiment_id] = known.get(experiment_id) or registry.experiments.get(experiment_id)
    fresh = []
    for worker in workers:
        held = {each for each, found in known.items() if found.worker_id == worker.worker_id}
        held |= {each for each in worker.experiment_ids if each not in known}
        fresh.append(replace(worker, experiment_ids=tuple(sorted(held))))
    return fresh, {each: found.submission.resources for each, found in known.items()}


def _tell_place(record: Record, open_records: Sequence[Record]) -> Iterator[str]:
    waiting = [other.submission for other in open_records if other.state is State.QUEUED]
    own = record.submission
    before = sum(other.id < own.id and other.is_fast >= own.is_fast for other in waiting)
    ahead = sum(other.is_fast and not own.is_fast and other.id > own.id for other in waiting)
    if len(open_records) < _COUNTED:
        which = " as fast ones like it" if own.is_fast else ""
        told = f"experiments that wait in the queue: {len(waiting)}, and {before} were submitted before it{which}"
        yield told + (f", {ahead} later ones are fast and go ahead" if ahead else "")


def _ask_broker(queue: str, ask: Callable[[], Depth]) -> Iterator[str]:
    try:
        depth = ask()
    except NoSuchQueue:
        yield f"the broker has no queue {queue!r} any more (`jobqueue queues create {queue}` makes it)"
        return
    except Unavailable as error:
        yield f"{error.message} (`jobqueue doctor` looks further)"
        return
    further = "" if depth.unacked is None else f", taken or put off: {depth.unacked}"
    further += "" if depth.consumers is None else f", consumers: {depth.consumers}"
    yield f"messages that wait at the broker: {depth.ready}{further}"
    if not depth.ready and not depth.unacked:
        yield "so its own message is being taken just now, or was lost, and then a worker publishes it again"
        yield "if that stays so, no node may trust who sent it: `jobqueue keys trust` there, with this sender's line"


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return "; ".join(texts[:_NAMED]) + more


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
