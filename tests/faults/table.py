"""What a run was, in one table: faults by kind, ends, violations, and how long recovery took."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from faults.history import Fact, of_kind
from faults.invariants import Violation
from faults.seen import LONGEST_GAP_SECONDS, OVERLAP_SECONDS, Run, find_overlaps, put_in_order


def make_table(facts: Sequence[Fact], violations: Sequence[Violation]) -> str:
    """Return the table as text."""
    run = put_in_order(facts)
    hit = Counter(fact["fault"] for fact in of_kind(facts, "fault") if fact["phase"] == "hit")
    missed = Counter(fact["fault"] for fact in of_kind(facts, "fault") if fact["phase"] == "missed")
    rows = [("fault", "hit", "missed")]
    rows += [(kind, str(hit[kind]), str(missed[kind] or "")) for kind in sorted(hit | missed)]
    rows += [("duplicates", str(sum(1 for _ in of_kind(facts, "duplicate"))), "")]
    ends = Counter(" ".join(next(iter(seen.ends.values()), ("never final", ""))) for seen in run.experiments.values())
    broken = Counter(violation.invariant for violation in violations)
    recovery = find_recoveries(run)
    lines = [f"{name:<30}{count:>6}{void:>8}" for name, count, void in rows]
    lines += ["", *_facts(run), *(f"  {count:>4}  {end}" for end, count in ends.most_common())]
    lines += [f"recovery                      {_percentiles(recovery)}"]
    lines += [f"violations                    {sum(broken.values())} {dict(sorted(broken.items())) or ''}"]
    return "\n".join([*lines, *(f"  {violation}" for violation in violations)])


def _facts(run: Run) -> list[str]:
    attempts = sum(len(seen.containers) for seen in run.experiments.values())
    overlaps = [
        overlap
        for seen in run.experiments.values()
        for *_, overlap in find_overlaps(seen.intervals)
        if overlap > OVERLAP_SECONDS
    ]
    took = run.end.get("t", 0.0) - run.about["t"]
    return [
        f"seed {run.about['seed']}, broker {run.about['broker']}, store {run.about['store']}, {took:.0f} s",
        f"experiments                   {len(run.experiments)}",
        f"attempts that began           {attempts}",
        f"attempts alive at once        {len(overlaps)}, longest {max(overlaps, default=0.0):.2f} s",
        "final states",
    ]


def find_recoveries(run: Run) -> list[float]:
    """Return for each experiment that a fault silenced how long it took until it lived again, in seconds, sorted."""
    found = []
    for seen in run.experiments.values():
        ticks = seen.ticks
        gaps = (after - before for before, after in pairwise(ticks))
        found += [gap for gap in gaps if gap > 2 * LONGEST_GAP_SECONDS]
    return sorted(found)


def _percentiles(values: Sequence[float]) -> str:
    if not values:
        return "nothing was silenced"
    p50, p99 = (values[min(int(share * len(values)), len(values) - 1)] for share in (0.50, 0.99))
    return f"p50 {p50:.1f} s, p99 {p99:.1f} s, max {values[-1]:.1f} s of {len(values)}"
