"""What a node keeps of a sick device outlives the worker that found it sick."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from workers.attempt.health import Trouble
from workers.hardware.custody_files import CustodyFiles
from workers.hardware.devices import Device
from workers.hardware.fitness import Ailment, Unfit
from workers.hardware.holding import HeldDevice
from workers.hardware.in_memory import MemoryDevices
from workers.hardware.locks import open_device_locks
from workers.hardware.quarantine import FIRST_BACK_OFF, Custody, Standing, condemn, examine
from workers.hardware.slots import parse_slot

GPU = Device(uuid="GPU-a/1", index=0, memory_bytes=2**34, ecc_uncorrected=2)
SICK = Unfit(ailment=Ailment.XID, detail="GPU-a/1: Xid 79 1 times")


@pytest.fixture
def files(tmp_path: Path) -> CustodyFiles:
    return CustodyFiles(folder=tmp_path / "devices", boot_id="boot")


def condemned(at_seconds: float = 100.0) -> Custody:
    return condemn(Custody(known=GPU), SICK, now=replace(GPU, xids={79: 1}), at_seconds=at_seconds)


def sickness(held: HeldDevice) -> Trouble | None:
    return Trouble[f"GPU_{held.unfit.ailment}"] if held.unfit else None


def test_a_device_that_was_never_sick_is_fit_and_has_no_file(files: CustodyFiles) -> None:
    assert files.load(GPU, at_seconds=5) == Custody(known=GPU)
    files.save(Custody(known=GPU))
    assert not files.folder.exists()


def test_a_quarantine_goes_on_to_its_time_and_a_new_error_of_the_same_kind_counts(files: CustodyFiles) -> None:
    files.save(condemned())
    kept = files.load(GPU, at_seconds=110)
    until_seconds = 100 + FIRST_BACK_OFF.total_seconds()
    assert (kept.standing, kept.strikes, kept.until_seconds) == (Standing.QUARANTINED, 1, until_seconds)
    assert kept.unfit == SICK
    assert examine(kept, GPU, at_seconds=until_seconds).standing is Standing.PAROLE
    again = examine(kept, replace(GPU, xids={79: 1}), at_seconds=until_seconds)
    assert (again.standing, again.strikes) == (Standing.QUARANTINED, 2)


def test_a_parole_is_kept_and_its_end_forgets_everything(files: CustodyFiles) -> None:
    on_parole = examine(condemned(), replace(GPU, xids={79: 1}), at_seconds=1000)
    files.save(on_parole)
    assert files.load(GPU, at_seconds=1001).standing is Standing.PAROLE
    files.save(examine(on_parole, replace(GPU, xids={79: 1}), at_seconds=5000))
    assert list(files.folder.iterdir()) == []


def test_memory_errors_that_grew_while_nobody_looked_count(files: CustodyFiles) -> None:
    files.save(condemned())
    now = replace(GPU, ecc_uncorrected=3)
    kept = files.load(now, at_seconds=1000)
    assert examine(kept, now, at_seconds=1000).strikes == 2
    # A driver that was loaded anew counts from nothing.
    assert files.load(replace(GPU, ecc_uncorrected=0), at_seconds=1000).known.ecc_uncorrected == 0
    assert files.load(replace(GPU, ecc_uncorrected=None), at_seconds=1000).known.ecc_uncorrected == 2


def test_after_a_boot_a_quarantined_device_is_tested_at_once(files: CustodyFiles) -> None:
    files.save(condemned(at_seconds=1_000_000))
    booted = replace(files, boot_id="another")
    kept = booted.load(GPU, at_seconds=7)
    assert (kept.standing, kept.until_seconds, kept.strikes) == (Standing.QUARANTINED, 7, 1)
    assert examine(kept, GPU, at_seconds=7).standing is Standing.PAROLE


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"boot_id": "boot", "standing": "ODD", "strikes": 1}', "\0"])
def test_a_damaged_file_costs_no_device(files: CustodyFiles, text: str) -> None:
    files.save(condemned())
    (path,) = files.folder.iterdir()
    path.write_text(text)
    assert files.load(GPU, at_seconds=5) == Custody(known=GPU)


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = CustodyFiles(folder=tmp_path / "file" / "devices", boot_id="b")
    files.save(condemned())
    files.tell(GPU.uuid, SICK)
    files.forget_told(GPU.uuid)
    assert files.told(GPU.uuid) is None


def test_a_damaged_note_says_nothing(files: CustodyFiles) -> None:
    files.tell(GPU.uuid, SICK)
    assert files.told(GPU.uuid) == SICK
    (path,) = files.folder.iterdir()
    path.write_text("{")
    assert files.told(GPU.uuid) is None


def test_a_worker_that_starts_anew_offers_no_device_before_its_retest(
    tmp_path: Path, files: CustodyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    at_seconds = [0.0]

    def hold(now: Device) -> tuple[HeldDevice, MemoryDevices]:
        driver = MemoryDevices(now)
        held = HeldDevice(
            parse_slot(f"gpu0={GPU.uuid}"),
            devices=driver,
            locks=open_device_locks(tmp_path / "state"),
            owner="gpu0@host",
            kept=files,
            clock=lambda: at_seconds[0],
        )
        held.is_idle = lambda: True
        return held, driver

    held, driver = hold(GPU)
    driver.show(replace(GPU, xids={79: 1}))
    held.look()
    assert sickness(held) is Trouble.GPU_XID
    held.close()

    at_seconds[0] = 10
    held, driver = hold(GPU)
    assert sickness(held) is Trouble.GPU_XID, "known before anybody looks"
    held.look()
    assert sickness(held) is Trouble.GPU_XID
    at_seconds[0] = (FIRST_BACK_OFF + timedelta(seconds=1)).total_seconds()
    held.look()
    assert sickness(held) is None
    held.close()

    at_seconds[0] *= 10
    held, driver = hold(GPU)
    held.look()
    assert (sickness(held), list(files.folder.iterdir())) == (None, [])
    held.close()
