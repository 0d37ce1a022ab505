"""Whether a device is fit, and when it is let back."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.hardware.devices import Device, Inventory, Presence
from workers.hardware.fitness import FATAL_XIDS, FREE_WITHIN, Ailment, Unfit, check, check_before_start, check_free
from workers.hardware.in_memory import MemoryDevices
from workers.hardware.quarantine import (
    FIRST_BACK_OFF,
    LONGEST_BACK_OFF,
    Custody,
    Standing,
    back_off,
    condemn,
    examine,
)

MIB = 2**20
GPU = Device(uuid="GPU-1", index=0, memory_bytes=80 * 1024 * MIB, used_bytes=5 * MIB, ecc_uncorrected=2, xids={31: 4})


def test_a_device_that_did_not_change_is_fit() -> None:
    assert check(GPU, since=GPU) is None


@pytest.mark.parametrize(
    ("now", "ailment", "evidence"),
    [
        (None, Ailment.LOST, "GPU-1 is not there"),
        (replace(GPU, fault="GPU is lost"), Ailment.LOST, "GPU is lost"),
        (replace(GPU, ecc_uncorrected=5), Ailment.ECC, "from 2 to 5"),
        (replace(GPU, xids={31: 4, 79: 2}), Ailment.XID, "Xid 79 2 times: it has fallen off the bus"),
        (replace(GPU, recovery="reset the GPU"), Ailment.RECOVERY, "reset the GPU"),
        (replace(GPU, xids={48: 1, 63: 1}), Ailment.XID, "Xid 63"),
    ],
)
def test_a_sick_device_is_found_with_its_numbers(now: Device | None, ailment: Ailment, evidence: str) -> None:
    unfit = check(now, since=GPU)
    assert unfit is not None
    assert unfit.ailment is ailment
    assert evidence in unfit.detail


@pytest.mark.parametrize("code", [48, 63, 64, 74, 79, 94, 95, 119])
def test_errors_of_the_hardware_are_fatal(code: int) -> None:
    assert check(replace(GPU, xids={code: 1}), since=GPU) is not None


@pytest.mark.parametrize("code", [13, 31, 43, 45, 68, 109])
def test_what_a_program_does_to_itself_is_not_the_devices_fault(code: int) -> None:
    assert check(replace(GPU, xids={code: 100}), since=GPU) is None


def test_what_was_there_before_does_not_count() -> None:
    sick = replace(GPU, ecc_uncorrected=7, xids={79: 3})
    assert check(sick, since=sick) is None
    # A driver that was loaded anew counts from nothing.
    assert check(replace(sick, ecc_uncorrected=0, xids={}), since=sick) is None


def test_a_device_without_such_counts_is_fit() -> None:
    plain = replace(GPU, ecc_uncorrected=None, xids={})
    assert check(plain, since=plain) is None
    assert check(replace(plain, ecc_uncorrected=0), since=plain) is None


@pytest.mark.parametrize(
    ("total_mib", "used_mib", "is_free"),
    [
        (80 * 1024, 4096, True),
        (80 * 1024, 4097, False),
        (4096, 512, True),
        (4096, 513, False),
        (0, 0, True),
    ],
)
def test_memory_in_use_before_a_start_has_a_limit(total_mib: int, used_mib: int, *, is_free: bool) -> None:
    used = replace(GPU, memory_bytes=total_mib * MIB, used_bytes=used_mib * MIB, process_ids=(4711,))
    unfit = check_free(used)
    assert (unfit is None) is is_free
    assert unfit is None or ("4711" in unfit.detail and unfit.ailment is Ailment.OCCUPIED)


def test_memory_that_comes_back_within_the_patience_delays_a_start_and_no_more() -> None:
    occupied = replace(GPU, used_bytes=40 * 1024 * MIB)
    devices = MemoryDevices(occupied)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            devices.show(GPU)

    assert check_before_start(devices, since=GPU, wait=wait) is None
    assert len(waited) == 3
    devices.show(occupied)
    waited += [0.0] * 3
    unfit = check_before_start(devices, since=GPU, wait=waited.append)
    assert unfit is not None
    assert unfit.ailment is Ailment.OCCUPIED
    assert sum(waited[6:]) == pytest.approx(FREE_WITHIN.total_seconds())


def never(_: float) -> None:
    pytest.fail("waited")


def test_a_start_on_a_device_that_is_gone_or_not_known_does_not_wait() -> None:
    devices = MemoryDevices()
    found = check_before_start(devices, since=GPU, wait=never)
    assert found == Unfit(ailment=Ailment.LOST, detail="GPU-1 is not there any more: no GPU was said to be there")
    devices.inventory = Inventory(presence=Presence.PRESENT, problems=("device 0: lost", "device 1: lost"))
    found = check_before_start(devices, since=GPU, wait=never)
    assert found == Unfit(ailment=Ailment.LOST, detail="GPU-1 is not there any more: device 0: lost; device 1: lost")
    devices.inventory = Inventory(presence=Presence.UNKNOWN, detail="NVML hangs")
    found = check_before_start(devices, since=GPU, wait=never)
    assert found is not None
    assert (found.ailment, "NVML hangs" in found.detail) == (Ailment.UNKNOWN, True)


def seconds(duration: timedelta) -> float:
    return duration.total_seconds()


def test_a_sick_device_leaves_is_tested_again_and_returns_by_way_of_parole() -> None:
    sick = replace(GPU, ecc_uncorrected=3)
    custody = examine(Custody(known=GPU), GPU, at_seconds=0)
    assert (custody.standing, custody.is_offered) == (Standing.FIT, True)

    custody = examine(custody, sick, at_seconds=10)
    assert (custody.standing, custody.is_offered, custody.strikes) == (Standing.QUARANTINED, False, 1)
    assert custody.unfit is not None
    assert "from 2 to 3" in custody.unfit.detail

    retest = 10 + seconds(FIRST_BACK_OFF)
    assert examine(custody, sick, at_seconds=retest - 0.1) == custody
    # The error of then does not count again.
    custody = examine(custody, sick, at_seconds=retest)
    assert (custody.standing, custody.is_offered) == (Standing.PAROLE, True)

    assert examine(custody, sick, at_seconds=retest + 1) == custody
    custody = examine(custody, sick, at_seconds=retest + seconds(FIRST_BACK_OFF))
    assert (custody.standing, custody.strikes) == (Standing.FIT, 0)


def test_a_device_that_fails_on_parole_stays_out_twice_as_long() -> None:
    custody, now, at = Custody(known=GPU), GPU, 0.0
    stays = []
    for strike in range(1, 12):
        now = replace(now, ecc_uncorrected=strike + 10)
        custody = examine(custody, now, at_seconds=at)
        assert (custody.standing, custody.strikes) == (Standing.QUARANTINED, strike)
        stays.append(custody.until_seconds - at)
        at = custody.until_seconds
        custody = examine(custody, now, at_seconds=at)
        assert custody.standing is Standing.PAROLE
    assert stays[:4] == [60, 120, 240, 480]
    assert stays[-1] == seconds(LONGEST_BACK_OFF)


@pytest.mark.parametrize(
    "still",
    [
        None,
        replace(GPU, fault="GPU is lost"),
        replace(GPU, used_bytes=40 * 1024 * MIB),
        replace(GPU, recovery="reset the GPU"),
    ],
    ids=["gone", "lost", "in use", "not reset"],
)
def test_a_device_that_is_no_better_fails_its_retest(still: Device | None) -> None:
    custody = examine(Custody(known=GPU), None, at_seconds=0)
    custody = examine(custody, still, at_seconds=custody.until_seconds)
    assert (custody.standing, custody.strikes) == (Standing.QUARANTINED, 2)
    custody = examine(custody, GPU, at_seconds=custody.until_seconds)
    assert custody.standing is Standing.PAROLE


def test_memory_in_use_takes_out_nothing_while_experiments_may_run() -> None:
    busy = replace(GPU, used_bytes=70 * 1024 * MIB)
    assert examine(Custody(known=GPU), busy, at_seconds=0).standing is Standing.FIT
    unfit = check_free(busy)
    assert unfit is not None
    assert condemn(Custody(known=GPU), unfit, now=busy, at_seconds=0).unfit == unfit


@given(st.integers(0, 10_000))
def test_quarantines_grow_and_are_bounded(strikes: int) -> None:
    assert FIRST_BACK_OFF <= back_off(strikes) <= back_off(strikes + 1) <= LONGEST_BACK_OFF


STEPS = st.lists(
    st.tuples(st.sampled_from(["well", "ecc", "xid", "gone", "lost", "used"]), st.floats(0, 4000)), max_size=30
)


@given(STEPS)
def test_whatever_happens_the_rules_of_quarantine_hold(steps: list[tuple[str, float]]) -> None:
    custody, device, at = Custody(known=GPU), GPU, 0.0
    for event, passed in steps:
        at += passed
        device = worn(device, event)
        seen = {"gone": None, "lost": replace(device, fault="GPU is lost")}.get(event, device)
        if event == "used":
            seen = replace(device, used_bytes=device.memory_bytes)
        before, custody = custody, examine(custody, seen, at_seconds=at)
        if before.standing is Standing.QUARANTINED and at < before.until_seconds:
            assert custody == before  # nobody gets out early
        else:
            assert event not in ("ecc", "xid", "gone", "lost") or not custody.is_offered  # nothing sick is offered
            follows_the_rules(before, custody, at)
    # A device that is well again is offered again.
    for _ in range(2):
        at = max(at, custody.until_seconds)
        custody = examine(custody, device, at_seconds=at)
    assert custody.is_offered


def worn(device: Device, event: str) -> Device:
    if event == "ecc":
        return replace(device, ecc_uncorrected=(device.ecc_uncorrected or 0) + 1)
    if event == "xid":
        return replace(device, xids={**device.xids, 79: device.xids.get(79, 0) + 1})
    return device


def follows_the_rules(before: Custody, after: Custody, at: float) -> None:
    if after.standing is Standing.QUARANTINED:
        assert after.strikes == before.strikes + 1
        assert after.until_seconds == pytest.approx(at + seconds(back_off(after.strikes)))
        assert after.unfit is not None
    elif before.standing is Standing.QUARANTINED:
        assert after.standing is Standing.PAROLE  # no way round it
    if after.standing is Standing.FIT:
        assert after.strikes == 0


def test_the_catalogue_of_errors_says_what_each_one_is() -> None:
    assert all(FATAL_XIDS.values())
