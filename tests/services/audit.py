"""Asks pip-audit for known holes in locked files: `python -m services.audit requirements/wheel.txt`.

Where nobody can be asked it says so, and does not call that clean. It runs in an environment of its own that has
nothing but pip-audit.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

WAIVERS = Path(__file__).parents[2] / "requirements" / "waivers.toml"
SERVICES = ("pypi", "osv")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of some locked packages.

    Attributes:
        checked: Packages that somebody was asked of.
        unknown: Packages of which nobody knew anything, known holes or none.
        found: Holes that no waiver covers, one line each.
        waived: Holes that one does.
    """

    checked: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    waived: tuple[str, ...] = ()


def judge(report: Mapping[str, Any], *, waivers: Mapping[str, date], today: date) -> Verdict:
    """Sort what pip-audit reported; a waiver counts until the end of its last day."""
    packages = report["dependencies"]
    found: list[str] = []
    waived: list[str] = []
    for package in packages:
        for hole in package.get("vulns", ()):
            names = {hole["id"], *hole.get("aliases", ())}
            is_waived = any(waivers.get(name, date.min) >= today for name in names)
            fixed = ", ".join(hole.get("fix_versions", ())) or "no version yet"
            line = f"{package['name']} {package['version']}: {hole['id']} (mended in: {fixed})"
            (waived if is_waived else found).append(line)
    return Verdict(
        checked=tuple(package["name"] for package in packages if "skip_reason" not in package),
        unknown=tuple(package["name"] for package in packages if "skip_reason" in package),
        found=tuple(found),
        waived=tuple(waived),
    )


def tell(verdict: Verdict | None, *, name: str) -> tuple[str, int]:
    """Return what to print, and the exit status: 1 for a hole. Nobody to ask is no failure, and no clean bill."""
    if verdict is None or not verdict.checked:
        return f"{name}: NOT CHECKED: no source of known holes can be reached from here", 0
    lines = [f"{name}: {len(verdict.checked)} packages checked, {len(verdict.found)} known holes"]
    lines += [f"  {line}" for line in verdict.found]
    lines += [f"  waived: {line}" for line in verdict.waived]
    lines += [f"  NOT CHECKED, unknown there: {', '.join(verdict.unknown)}"] if verdict.unknown else []
    return "\n".join(lines), int(bool(verdict.found))


def read_waivers(text: str) -> dict[str, date]:
    """Return each waived hole with its last day."""
    waivers = tomllib.loads(text).get("waiver", [])
    return {waiver["id"]: waiver["until"] for waiver in waivers if waiver["reason"]}


def main(files: Sequence[str]) -> int:
    """Tell of each file, and return the worst status."""
    today, waivers = datetime.now(UTC).date(), read_waivers(WAIVERS.read_text(encoding="utf-8"))
    worst = 0
    for file in files:
        reports = (_ask(service, file) for service in SERVICES)
        verdicts = (judge(report, waivers=waivers, today=today) for report in reports if report)
        text, status = tell(next((verdict for verdict in verdicts if verdict.checked), None), name=file)
        sys.stdout.write(text + "\n")
        worst = max(worst, status)
    return worst


def _ask(service: str, file: str) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off"]
    command += ["--vulnerability-service", service, "--format", "json", "--timeout", "10", "--requirement", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return None
    return report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
