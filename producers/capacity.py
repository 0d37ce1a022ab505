"""What workers offer against what an experiment asks for: where all of them fall short, and who has room now."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from jobqueue.ids import ExperimentId
from jobqueue.quantities import describe_size, format_duration
from jobqueue.registry.presence import WorkerRecord
from jobqueue.resources import Offer, Resources, fits_in, is_image_allowed
from jobqueue.spec import ExperimentSpec

_CPU_SLOT: Final = "cpu"
_A_LITTLE: Final = 1e-6
_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    """Something that is asked for and offered as a number."""

    asked: Callable[[Resources], float]
    offered: Callable[[Offer], float]
    write: Callable[[float], str]
    unit: str


# What all slots of a node share.
_SHARED: Final = (
    _Quantity(asked=lambda of: of.cpus, offered=lambda of: of.cpus, write="{:g}".format, unit=" cpus"),
    _Quantity(
        asked=lambda of: of.memory_bytes,
        offered=lambda of: of.memory_bytes,
        write=lambda size: describe_size(int(size)),
        unit=" of memory",
    ),
)
_QUANTITIES: Final = (
    *_SHARED,
    _Quantity(
        asked=lambda of: of.disk_bytes,
        offered=lambda of: of.disk_bytes,
        write=lambda size: describe_size(int(size)),
        unit=" of disk",
    ),
    _Quantity(asked=lambda of: of.gpus, offered=lambda of: len(of.gpu_memory_bytes), write="{:g}".format, unit=" GPUs"),
)


def find_shortfalls(asked: Resources, workers: Sequence[WorkerRecord]) -> list[str]:
    """Return what no worker offers enough of, each with the most that one does; workers must be there."""
    found = []
    for what in _QUANTITIES:
        best = _best(workers, what.offered)
        size, most = what.asked(asked), what.offered(best.offer)
        if size > most:
            told = f"the best of them offers {what.write(most)} ({best.worker_id})"
            found.append(f"it asks for {what.write(size)}{what.unit}, {told}")
    return found + _find_small_devices(asked, workers)


def _find_small_devices(asked: Resources, workers: Sequence[WorkerRecord]) -> list[str]:
    most = _best(workers, lambda offer: len(offer.gpu_memory_bytes))
    if not asked.gpus or not asked.gpu_memory_bytes or len(most.offer.gpu_memory_bytes) < asked.gpus:
        return []
    each = describe_size(asked.gpu_memory_bytes)
    largest = _best(workers, lambda offer: max(offer.gpu_memory_bytes, default=0))
    largest_bytes = max(largest.offer.gpu_memory_bytes, default=0)
    if largest_bytes < asked.gpu_memory_bytes:
        told = f"the largest device has {describe_size(largest_bytes)} ({largest.worker_id})"
        return [f"it asks for {each} of GPU memory, {told}"]

    def count(offer: Offer) -> int:
        return sum(size >= asked.gpu_memory_bytes for size in offer.gpu_memory_bytes)

    best = _best(workers, count)
    if count(best.offer) >= asked.gpus:
        return []
    told = f"the best of them offers {count(best.offer)} ({best.worker_id})"
    return [f"it asks for {asked.gpus} GPUs with {each} of memory each, {told}"]


def find_busy(
    asked: Resources,
    workers: Sequence[WorkerRecord],
    *,
    present: Sequence[WorkerRecord],
    running: Mapping[ExperimentId, Resources],
) -> dict[str, str]:
    """Return which of these workers, all of which it fits into, have no room for it now, each with what is in its way.

    Args:
        asked: what the experiment asks for.
        workers: those that could run it, and take messages.
        present: all that are there: those of one node share its devices.
        running: what is asked for by what runs, as far as it is known.
    """
    found = {worker.worker_id: _find_obstruction(asked, worker, present, running) for worker in workers}
    return {worker_id: why for worker_id, why in found.items() if why}


def _find_obstruction(
    asked: Resources,
    worker: WorkerRecord,
    present: Sequence[WorkerRecord],
    running: Mapping[ExperimentId, Resources],
) -> str:
    if len(worker.experiment_ids) >= worker.places:
        return f"runs {_name(worker.experiment_ids)}"
    if asked.gpus:
        told = _find_taken_devices(asked, worker, present, running)
        if told:
            return told
    if worker.slot == _CPU_SLOT:
        told = _find_full_cores(asked, worker, running)
        if told:
            return told
    return _find_full_node(asked, worker, present, running) if worker.slot else ""


def _find_taken_devices(
    asked: Resources,
    worker: WorkerRecord,
    present: Sequence[WorkerRecord],
    running: Mapping[ExperimentId, Resources],
) -> str:
    there = {each for other in present if other.node_id == worker.node_id for each in other.experiment_ids}
    using = [each for each in there if each in running and running[each].gpus]
    total = len(worker.offer.gpu_memory_bytes)
    free = max(0, total - sum(running[each].gpus for each in using))
    if asked.gpus <= free:
        return ""
    return f"has {free} of {total} GPUs free, {asked.gpus} are asked for: its node runs {_name(using)}"


def _find_full_cores(asked: Resources, worker: WorkerRecord, running: Mapping[ExperimentId, Resources]) -> str:
    """Tell whether the cores' worker has too few left of those that it may use of its machine."""
    free = worker.offer.cpus - sum(running[each].cpus for each in worker.experiment_ids if each in running)
    if asked.cpus <= free + _A_LITTLE:
        return ""
    told = f"{max(0.0, free):g} of its {worker.offer.cpus:g} cpus free, {asked.cpus:g} are asked for"
    return f"has {told}: it runs {_name(worker.experiment_ids)}"


def _find_full_node(
    asked: Resources,
    worker: WorkerRecord,
    present: Sequence[WorkerRecord],
    running: Mapping[ExperimentId, Resources],
) -> str:
    """Tell whether too little is left of the cores and the memory that all slots of a node share."""
    slots = [other for other in present if other.node_id == worker.node_id and other.slot]
    using = {each for slot in slots for each in slot.experiment_ids if each in running}
    for what in _SHARED:
        total = max(what.offered(slot.offer) for slot in slots)
        free = total - sum(what.asked(running[each]) for each in using)
        if what.asked(asked) > free + _A_LITTLE:
            left, size = what.write(max(0.0, free)), what.write(what.asked(asked))
            told = f"{left} of its node's {what.write(total)}{what.unit} free, {size} are asked for"
            return f"has {told}: its node runs {_name(list(using))}"
    return ""


def find_misfits(asked: Resources, workers: Sequence[WorkerRecord]) -> dict[str, list[str]]:
    """Return why it fits into each worker or not: an empty list where it does."""
    return {worker.worker_id: fits_in(asked, worker.offer) for worker in workers}


def find_refusals(spec: ExperimentSpec, worker: WorkerRecord) -> list[str]:
    """Return what a worker would refuse it for beside its size; nothing where it does not say what it allows."""
    found = []
    if worker.images and not is_image_allowed(spec.image, worker.images):
        found.append(f"allows the images {', '.join(worker.images[:_NAMED])} and not {spec.image!r}")
    if worker.networks and spec.network not in worker.networks:
        found.append(f"allows the network {' or '.join(worker.networks)} and not {spec.network!r}")
    longest = timedelta(seconds=worker.max_timeout_seconds or 0)
    if longest and spec.timeout > longest:
        found.append(f"allows {format_duration(longest)} and not a timeout of {format_duration(spec.timeout)}")
    return found


def _best(workers: Sequence[WorkerRecord], offered: Callable[[Offer], float]) -> WorkerRecord:
    return max(workers, key=lambda worker: offered(worker.offer))


def _name(experiment_ids: Sequence[ExperimentId]) -> str:
    first, *further = sorted(set(experiment_ids)) or ("nothing that is known",)
    return f"{first} and {len(further)} more" if further else str(first)
