"""What a node keeps of its sick devices, so that a worker that starts anew offers none of them before its time.

A worker that was given another one's device and finds it unfit leaves a note there: whose device it is takes it out.
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from workers.hardware.devices import Device
from workers.hardware.fitness import Ailment, Unfit
from workers.hardware.quarantine import Custody, Standing, back_off

log = logging.getLogger(__name__)

_NEW: Final = ".new"
_TOLD: Final = ".told"


@dataclass(frozen=True, kw_only=True)
class CustodyFiles:
    """One file for each device that is not FIT, and a note beside it while its worker has not read that.

    Attributes:
        folder: the node's own; made when something is kept.
        boot_id: of the machine now: its clock, and the driver's counts, begin anew with each boot.
    """

    folder: Path
    boot_id: str

    def load(self, device: Device, *, at_seconds: float) -> Custody:
        """Return a device as it was kept; one of which nothing can be read is fit.

        After a boot a quarantined device is due for its retest at once; its strikes stay.

        Args:
            device: as it is now.
            at_seconds: now, on the clock of the custody, which counts from the machine's boot.
        """
        try:
            kept = json.loads(self._path(device.uuid).read_text(encoding="utf-8"))
            return self._read(kept, device, at_seconds)
        except FileNotFoundError:
            return Custody(known=device)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("custody.not_read", extra={"device": device.uuid, "error": str(error)})
            return Custody(known=device)

    def save(self, custody: Custody) -> None:
        """Keep it, or forget what was kept of a device that is FIT; what cannot be kept is logged."""
        path = self._path(custody.known.uuid)
        try:
            if custody.standing is Standing.FIT:
                path.unlink(missing_ok=True)
                return
            self._put(path, self._write(custody))
        except OSError as error:
            log.warning("custody.not_kept", extra={"device": custody.known.uuid, "error": error.strerror})

    def tell(self, uuid: str, unfit: Unfit) -> None:
        """Leave a note for the worker that watches a device; one that cannot be left is logged."""
        try:
            self._put(self._note(uuid), {"ailment": unfit.ailment, "detail": unfit.detail})
        except OSError as error:
            log.warning("custody.not_told", extra={"device": uuid, "error": error.strerror})

    def told(self, uuid: str) -> Unfit | None:
        """Return why another worker has found a device unfit, as long as its own one has not forgotten that."""
        try:
            said = json.loads(self._note(uuid).read_text(encoding="utf-8"))
            return Unfit(ailment=Ailment(said["ailment"]), detail=str(said["detail"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("custody.not_read", extra={"device": uuid, "error": str(error)})
            return None

    def forget_told(self, uuid: str) -> None:
        """Remove the note, if there is one."""
        try:
            self._note(uuid).unlink(missing_ok=True)
        except OSError as error:
            log.warning("custody.not_forgotten", extra={"device": uuid, "error": error.strerror})

    def _read(self, kept: dict[str, Any], device: Device, at_seconds: float) -> Custody:
        strikes, is_same_boot = int(kept["strikes"]), kept["boot_id"] == self.boot_id
        latest_seconds = at_seconds + back_off(strikes).total_seconds()
        errors = [count for count in (kept["ecc_uncorrected"], device.ecc_uncorrected) if count is not None]
        return Custody(
            # Xids are counted anew by each process; of memory errors, those that grew while nobody looked count.
            known=replace(device, ecc_uncorrected=min(errors, default=None)),
            standing=Standing(kept["standing"]),
            strikes=strikes,
            until_seconds=min(float(kept["until_seconds"]), latest_seconds) if is_same_boot else at_seconds,
            unfit=Unfit(ailment=Ailment(kept["ailment"]), detail=str(kept["detail"])),
        )

    def _write(self, custody: Custody) -> dict[str, object]:
        unfit = custody.unfit
        return {
            "boot_id": self.boot_id,
            "standing": custody.standing,
            "strikes": custody.strikes,
            "until_seconds": custody.until_seconds,
            "ecc_uncorrected": custody.known.ecc_uncorrected,
            "ailment": unfit.ailment if unfit else Ailment.UNKNOWN,
            "detail": unfit.detail if unfit else "",
        }

    def _put(self, path: Path, said: dict[str, object]) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_name(path.name + _NEW)
        new.write_text(json.dumps(said), encoding="utf-8")
        new.replace(path)

    def _note(self, uuid: str) -> Path:
        path = self._path(uuid)
        return path.with_name(path.name + _TOLD)

    def _path(self, uuid: str) -> Path:
        return self.folder / quote(uuid, safe="")
