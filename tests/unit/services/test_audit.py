"""What pip-audit reported is sorted, and where nobody could be asked nothing is called clean."""

from datetime import date
from typing import Any

import pytest
from services.audit import WAIVERS, judge, read_waivers, tell

TODAY = date(2026, 11, 21)
HOLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


def test_a_hole_fails() -> None:
    verdict = judge(report({"name": "a", "version": "1.0", "vulns": [HOLE]}), waivers={}, today=TODAY)
    text, status = tell(verdict, name="lock")
    assert (status, "a 1.0: PYSEC-1 (mended in: 2.0)" in text) == (1, True)


@pytest.mark.parametrize(("until", "status"), [(TODAY, 0), (date(2026, 11, 20), 1)])
@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_a_waiver_counts_until_the_end_of_its_last_day(name: str, until: date, status: int) -> None:
    verdict = judge(report({"name": "a", "version": "1.0", "vulns": [HOLE]}), waivers={name: until}, today=TODAY)
    assert tell(verdict, name="lock")[1] == status


def test_packages_that_nobody_knows_are_named() -> None:
    verdict = judge(
        report({"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "?"}), waivers={}, today=TODAY
    )
    text, status = tell(verdict, name="lock")
    assert (status, "NOT CHECKED, unknown there: b" in text) == (0, True)


def test_nobody_to_ask_is_not_called_clean() -> None:
    unknown = judge(report({"name": "a", "skip_reason": "?"}), waivers={}, today=TODAY)
    assert tell(unknown, name="lock") == tell(None, name="lock")
    assert "NOT CHECKED" in tell(None, name="lock")[0]
    assert tell(None, name="lock")[1] == 0


def test_the_waivers_of_this_repository_can_be_read() -> None:
    read_waivers(WAIVERS.read_text())
    assert read_waivers('[[waiver]]\nid = "A"\nuntil = 2027-01-31\nreason = "r"\n') == {"A": date(2027, 1, 31)}
