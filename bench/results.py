"""One measured number, the table of them, and the file that keeps them."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.sampling import spread


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number.

    Attributes:
        value: the median of ours, in `unit`.
        baseline: the median of what it is compared with; None where it is an absolute number.
        ratio: value / baseline.
        spread: the interquartile range of `value`.
        n: how many samples, of each.
        note: what the baseline is.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    spread: float = 0.0
    n: int = 1
    machine: str = field(default_factory=lambda: describe_machine())  # noqa: PLW0108 - defined below
    note: str = ""


def describe_machine() -> str:
    """Return what the numbers were measured on."""
    gpu = "a GPU" if Path("/dev/nvidiactl").exists() else "no GPU"
    return f"{os.cpu_count()} cores, {gpu}, Python {platform.python_version()}"


def compare(name: str, ours: Sequence[float], baseline: Sequence[float], *, unit: str, note: str) -> Result:
    """Return the medians of both and their ratio."""
    value, base = statistics.median(ours), statistics.median(baseline)
    return Result(
        name=name,
        value=value,
        unit=unit,
        baseline=base,
        ratio=value / base,
        spread=spread(ours),
        n=len(ours),
        note=note,
    )


def absolute(name: str, ours: Sequence[float], *, unit: str, note: str) -> Result:
    """Return a median that is compared with nothing."""
    return Result(name=name, value=statistics.median(ours), unit=unit, spread=spread(ours), n=len(ours), note=note)


def make_table(results: Sequence[Result]) -> str:
    """Return the results as a table in Markdown."""
    rows = [("name", "median", "spread", "baseline", "ratio", "unit", "n", "against")]
    rows += [
        (
            result.name,
            f"{result.value:.4g}",
            f"{result.spread:.2g}",
            "" if result.baseline is None else f"{result.baseline:.4g}",
            "" if result.ratio is None else f"{result.ratio:.2f}",
            result.unit,
            str(result.n),
            result.note,
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    lines = (
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (rows[0], rule, *rows[1:])
    )
    return "\n".join(f"| {line} |" for line in lines)


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Keep the results; one that was not measured this time stays as it was."""
    kept = {entry["name"]: entry for entry in json.loads(path.read_text())} if path.exists() else {}
    kept |= {result.name: asdict(result) for result in results}
    path.write_text(json.dumps(list(kept.values()), indent=1) + "\n")
