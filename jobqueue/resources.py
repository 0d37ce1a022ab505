"""What an experiment asks for, what a slot offers, and whether the one fits into the other."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from jobqueue.quantities import describe_size


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The request of an experiment: it travels in the clear header, because scheduling needs it.

    Attributes:
        cpus: cores, fractions allowed.
        memory_bytes, disk_bytes, shm_bytes: limits of the container.
        gpus: whole devices (or MIG instances) of one node.
        gpu_memory_bytes: what each of them must have at least.
    """

    cpus: float
    memory_bytes: int
    disk_bytes: int
    shm_bytes: int
    gpus: int = 0
    gpu_memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a slot can give at most.

    Attributes:
        cpus: cores it may use.
        memory_bytes, disk_bytes: it may use.
        gpu_memory_bytes: of each device it is pinned to; empty on a CPU slot.
    """

    cpus: float
    memory_bytes: int
    disk_bytes: int
    gpu_memory_bytes: tuple[int, ...] = ()


def fits_in(request: Resources, offer: Offer) -> list[str]:
    """Return why `request` can never run in `offer`, with numbers; empty when it can."""
    reasons = []
    if request.cpus > offer.cpus:
        reasons.append(f"asks for {request.cpus:g} cpus, {offer.cpus:g} are there")
    if request.memory_bytes > offer.memory_bytes:
        reasons.append(_short("memory", request.memory_bytes, offer.memory_bytes))
    if request.disk_bytes > offer.disk_bytes:
        reasons.append(_short("disk", request.disk_bytes, offer.disk_bytes))
    large_enough = [size for size in offer.gpu_memory_bytes if size >= request.gpu_memory_bytes]
    if request.gpus > len(offer.gpu_memory_bytes):
        reasons.append(f"asks for {request.gpus} GPUs, {len(offer.gpu_memory_bytes)} are there")
    elif request.gpus > len(large_enough):
        each = describe_size(request.gpu_memory_bytes)
        reasons.append(f"asks for {request.gpus} GPUs with {each} of memory each, {len(large_enough)} are there")
    return reasons


def is_image_allowed(image: str, patterns: Iterable[str]) -> bool:
    """Tell whether one of an operator's patterns covers an image.

    One without a slash covers no other registry or folder but `*`: else `python:3*` would cover `python:3/any/image:1`,
    which is an image of a machine that is called python.
    """
    nearer = (pattern for pattern in patterns if "/" in pattern or "/" not in image or pattern == "*")
    return any(fnmatchcase(image, pattern) for pattern in nearer)


def _short(what: str, asked_bytes: int, offered_bytes: int) -> str:
    return f"asks for {describe_size(asked_bytes)} of {what}, {describe_size(offered_bytes)} are there"
