"""Whether a request can ever run in an offer, and why not."""

from dataclasses import replace

import pytest
from hypothesis import given
from strategies import resources

from jobqueue.resources import Offer, Resources, fits_in

GIB = 2**30
REQUEST = Resources(
    cpus=4, memory_bytes=16 * GIB, disk_bytes=50 * GIB, shm_bytes=GIB, gpus=2, gpu_memory_bytes=20 * GIB
)
OFFER = Offer(cpus=4, memory_bytes=16 * GIB, disk_bytes=50 * GIB, gpu_memory_bytes=(24 * GIB, 20 * GIB))


def test_what_is_exactly_there_fits() -> None:
    assert fits_in(REQUEST, OFFER) == []


def test_a_request_without_gpus_fits_where_there_are_none() -> None:
    assert fits_in(replace(REQUEST, gpus=0, gpu_memory_bytes=0), replace(OFFER, gpu_memory_bytes=())) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cpus": 3.5}, "asks for 4 cpus, 3.5 are there"),
        ({"memory_bytes": 8 * GIB}, "asks for 16 GiB of memory, 8 GiB are there"),
        ({"disk_bytes": 0}, "asks for 50 GiB of disk, 0 B are there"),
        ({"gpu_memory_bytes": (24 * GIB,)}, "asks for 2 GPUs, 1 are there"),
        ({"gpu_memory_bytes": ()}, "asks for 2 GPUs, 0 are there"),
        (
            {"gpu_memory_bytes": (24 * GIB, 16 * GIB)},
            "asks for 2 GPUs with 20 GiB of memory each, 1 are there",
        ),
    ],
)
def test_every_shortage_is_named_with_both_numbers(change: dict[str, object], reason: str) -> None:
    assert fits_in(REQUEST, replace(OFFER, **change)) == [reason]  # type: ignore[arg-type]


def test_all_shortages_are_named_at_once() -> None:
    assert len(fits_in(REQUEST, Offer(cpus=1, memory_bytes=1, disk_bytes=1))) == 4


@given(resources)
def test_a_request_fits_in_an_offer_of_just_that(request: Resources) -> None:
    offer = Offer(
        cpus=request.cpus,
        memory_bytes=request.memory_bytes,
        disk_bytes=request.disk_bytes,
        gpu_memory_bytes=(request.gpu_memory_bytes,) * request.gpus,
    )
    assert fits_in(request, offer) == []
    assert fits_in(request, replace(offer, cpus=request.cpus / 2))
