"""What must never be seen of an experiment, whatever was broken: one function for each invariant of docs/faults.md."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from faults.flavours import EXHAUSTED
from faults.history import Fact, of_kind
from faults.seen import FINAL, OVERLAP_SECONDS, Run, Seen, find_overlaps

# Who was stopped or cut off may say one more thing before it learns that it was superseded.
_LATE_SECONDS: Final = 2.0
_DEAFENS: Final = frozenset({"worker.stop", "cut.registry", "cut.all"})


@dataclass(frozen=True, kw_only=True)
class Violation:
    """An invariant that does not hold, and what shows it."""

    invariant: str
    experiment: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.experiment}: {self.evidence}"


def judge_experiment(run: Run, seen: Seen) -> Iterator[Violation]:
    """Judge one experiment by every invariant that is about one."""
    for name, rule in _RULES.items():
        for evidence in rule(run, seen):
            yield Violation(invariant=name, experiment=f"{seen.name} ({seen.submitted['flavour']})", evidence=evidence)


def _one_final_state(run: Run, seen: Seen) -> Iterator[str]:
    ends = seen.ends
    if not ends:
        yield f"it never became final: {_describe(seen)}"
        return
    if len(set(ends.values())) > 1:
        yield f"its witnesses differ: {ends}"
    if seen.containers and "marker" not in ends and set(ends.values()) != {("CANCELLED", "CANCELLED_BY_USER")}:
        yield f"it is final and has no result marker: {ends}"
    state, reason = ends.get("marker") or next(iter(ends.values()))
    allowed = {*seen.submitted["ends"], EXHAUSTED}
    if run.wipes.get("broker"):
        allowed.add("CANCELLED:QUEUE_DELETED")
    if f"{state}:{reason}" not in allowed:
        yield f"it ended {state} ({reason}), which is none of {sorted(allowed)}"
    elif f"{state}:{reason}" == EXHAUSTED and len(seen.containers) == 0 and not seen.record.get("history"):
        yield "the platform gave up without a single attempt"


def _one_live_attempt(run: Run, seen: Seen) -> Iterator[str]:
    del run
    for one, other, seconds in find_overlaps(seen.intervals):
        if seconds > OVERLAP_SECONDS:
            yield (
                f"two attempts lived at once for {seconds:.2f} s: token {one.token} on {one.node} "
                f"({one.begin_seconds:.2f} to {one.end_seconds:.2f}) and token {other.token} on {other.node} "
                f"({other.begin_seconds:.2f} to {other.end_seconds:.2f})"
            )


def _outputs_of_one_attempt(run: Run, seen: Seen) -> Iterator[str]:
    del run
    attempts = f"experiments/{seen.name}/attempts/"
    for key in seen.keys:
        if key != f"experiments/{seen.name}/RESULT" and not key.startswith(attempts):
            yield f"an object lies outside of its attempts: {key}"
    if seen.outputs:
        for problem in seen.outputs["problems"]:
            yield f"its outputs are not those of its manifest: {problem}"
        result = seen.outputs["result"]
        if result is not None and result.get("token") != seen.marker.get("token"):
            yield f"its outputs were written by token {result.get('token')}, its marker by {seen.marker.get('token')}"


def _complete_success(run: Run, seen: Seen) -> Iterator[str]:
    del run
    if seen.marker.get("state") != "SUCCEEDED":
        return
    if seen.marker["exit_code"] not in (0, None):
        yield f"it succeeded with exit code {seen.marker['exit_code']}"
    if not seen.outputs or seen.outputs["result"] is None:
        yield "it succeeded without the output that it wrote last"


def _ordered_reports(run: Run, seen: Seen) -> Iterator[str]:
    by_token: dict[int, dict[int, Fact]] = defaultdict(dict)
    for report in seen.reports:
        by_token[report["token"]].setdefault(report["sequence"], report)
    for token, reports in by_token.items():
        missing = sorted(set(range(max(reports) + 1)) - set(reports))
        if missing and not run.wipes.get("broker"):
            yield f"reports {missing} of token {token} never came, later ones did"
        times = [reports[sequence]["at"] for sequence in sorted(reports)]
        if token and times != sorted(times):
            yield f"the reports of token {token} are not in the order of their times"
    if seen.ends and not run.wipes.get("broker") and not any(report["state"] in FINAL for report in seen.reports):
        yield f"its end was never reported: {seen.ends}"
    yield from _stale_reports(run, seen)


def _stale_reports(run: Run, seen: Seen) -> Iterator[str]:
    # One whose container ended while it was cut off may still be the first to write the marker, and says so.
    first: dict[int, float] = {}
    for report in seen.reports:
        first[report["token"]] = min(report["at"], first.get(report["token"], report["at"]))
    for report in seen.reports:
        newer = [at for token, at in first.items() if token > report["token"] > 0]
        is_terminal = report["state"] in FINAL
        may_win = report["state"] == "FINALIZING" or (is_terminal and report["token"] == seen.marker.get("token"))
        if not newer or not report["state"] or may_win or _could_not_know(run, report):
            continue
        if report["at"] > min(newer) + _LATE_SECONDS:
            late = report["at"] - min(newer)
            yield f"token {report['token']} reported {report['state']} {late:.1f} s after a newer one had begun"


def _could_not_know(run: Run, report: Fact) -> bool:
    """Tell whether a report comes from a worker that was stopped, or cut off from the registry, until just then."""
    node, at_seconds = report["worker"].partition("@")[0], report["at"] + run.behind_seconds
    began: dict[int, float] = {}
    for fact in of_kind(run.facts, "fault"):
        if fact["fault"] not in _DEAFENS or fact["node"] != node:
            continue
        if fact["phase"] == "hit":
            began[fact["index"]] = fact["t"]
        elif began.get(fact["index"], fact["t"]) <= at_seconds <= fact["t"] + _LATE_SECONDS:
            return True
    return False


def _growing_tokens(run: Run, seen: Seen) -> Iterator[str]:
    # A worker that is stopped may have its container made late: an attempt begins with the first sign of it.
    began = {container["token"]: container["began"] for container in reversed(seen.containers)}
    for report in seen.reports:
        token, at_seconds = report["token"], report["at"] + run.behind_seconds
        if token:
            began[token] = min(at_seconds, began.get(token, at_seconds))
    for before, after in pairwise(sorted(began, key=lambda token: began[token])):
        if after <= before:
            yield f"token {after} began after token {before}"


def _bounded_attempts(run: Run, seen: Seen) -> Iterator[str]:
    drained = {report["token"] for report in seen.reports if report["reason"] == "DRAINED"}
    counted = {container["token"] for container in seen.containers} - drained
    limit = run.about["platform_budget"] * (1 + len(run.wipes.get("registry", ())))
    if len(counted) > limit:
        yield f"{len(counted)} attempts were made, at most {limit} are paid for"


def _one_marker(run: Run, seen: Seen) -> Iterator[str]:
    del run
    if len(seen.marker_puts) > 1:
        times = [f"{fact['node']} at {fact['t']}" for fact in seen.marker_puts]
        yield f"its marker was written {len(times)} times: {times}"


def _explained_attempts(run: Run, seen: Seen) -> Iterator[str]:
    explained = {report["token"] for report in seen.reports if report["reason"]}
    explained |= {past["token"] for past in seen.record.get("history", ())}
    explained |= {seen.marker.get("token"), seen.record.get("token")}
    last_wipe = max(run.wipes.get("registry", ()), default=0.0)
    for container in seen.containers:
        if container["token"] not in explained and container["began"] > last_wipe and not run.wipes.get("broker"):
            yield f"nobody says why attempt {container['attempt']} (token {container['token']}) ended"


def _recovered(run: Run, seen: Seen) -> Iterator[str]:
    limit = run.about["recovery_limit_seconds"]
    ticks = seen.ticks
    longest = max((after - before for before, after in pairwise(ticks)), default=0.0)
    if longest > limit:
        yield f"nothing lived of it for {longest:.1f} s between two signs of life, at most {limit:.0f} s are allowed"


_RULES: Final = {
    "I1": _one_final_state,
    "I2": _one_live_attempt,
    "I3": _outputs_of_one_attempt,
    "I4": _complete_success,
    "I7": _ordered_reports,
    "I8": _growing_tokens,
    "I9": _bounded_attempts,
    "I10": _one_marker,
    "I12": _recovered,
    "I14": _explained_attempts,
}


def _describe(seen: Seen) -> str:
    record = {name: seen.record.get(name) for name in ("state", "attempt", "token", "worker", "reason", "detail")}
    states = Counter(str(report["state"]) for report in seen.reports)
    return f"record {record}, {len(seen.containers)} containers, reports {dict(states)}"
