"""Judges a history, without any server: every violation has the name of its invariant and what shows it."""

from collections.abc import Iterator, Sequence

from faults.history import Fact, of_kind
from faults.invariants import Violation, judge_experiment
from faults.seen import Run, put_in_order

_INJECTED = 0.9
# With fewer experiments chance may pass a node over.
_FOR_EACH_NODE = 10
_MORE_FILES = 100
# What a worker that has worked keeps and a new one does not have yet, besides a thread of the store's library per core.
_MORE_THREADS = 8


def judge(facts: Sequence[Fact]) -> list[Violation]:
    """Return everything in a history that must not be."""
    run = put_in_order(facts)
    found = [violation for seen in run.experiments.values() for violation in judge_experiment(run, seen)]
    return [*found, *_judge_site(run)]


def is_void(facts: Sequence[Fact]) -> bool:
    """Tell whether a run proves nothing: too few of the planned faults hit anything, or a node ran nothing."""
    run = put_in_order(facts)
    hit = sum(1 for fact in of_kind(facts, "fault") if fact["phase"] == "hit")
    nodes = set(run.about.get("nodes", ()))
    is_long = len(run.experiments) >= _FOR_EACH_NODE * len(nodes)
    has_idle_node = is_long and not nodes <= {fact["node"] for fact in of_kind(facts, "container")}
    return hit < _INJECTED * len(run.about.get("faults", ())) or has_idle_node or not run.experiments


def _judge_site(run: Run) -> Iterator[Violation]:
    def violation(invariant: str, evidence: str) -> Violation:
        return Violation(invariant=invariant, experiment="site", evidence=evidence)

    if not run.end:
        yield violation("I1", "the history has no end")
    elif not run.end["is_converged"]:
        late = ", ".join(run.end["unfinished"]) or "none"
        yield violation("I1", f"not everything was final after {run.end['allowed_seconds']:.0f} s; unfinished: {late}")
    for fact in of_kind(run.facts, "residue"):
        yield violation("I5", f"{fact['what']} was left: {fact['item']}")
    for fact in of_kind(run.facts, "queue"):
        least, most = _expected(run) if fact["is_dead_letters"] else (0, 0)
        if not least <= fact["messages"] <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            yield violation("I6", f"{fact['queue']} holds {fact['messages']} messages instead of {wanted}")
    yield from (violation("I13", evidence) for evidence in (*_leaks(run), *_threads_left(run)))
    yield from (violation("I14", evidence) for evidence in _unexplained_ends(run))


def _unexplained_ends(run: Run) -> Iterator[str]:
    for fact in of_kind(run.facts, "worker"):
        if fact["event"] == "died":
            yield f"the worker of {fact['node']} ended with {fact['code']}; nobody had asked it to"
    for fact in of_kind(run.facts, "drained"):
        if fact.get("is_last") and fact["code"] != 0:
            how = "had to be killed" if fact["code"] is None else f"ended with {fact['code']}"
            yield f"the worker of {fact['node']}, told to end when all was over, {how}"


def _expected(run: Run) -> tuple[int, int]:
    """Return how many dead letters there are at least and at most.

    Each is copied before it is acknowledged: a fault in between leaves a second one, and a wiped broker none.
    """
    exhausted = sum(1 for seen in run.experiments.values() if seen.marker.get("reason") == "ATTEMPTS_EXHAUSTED")
    count = exhausted + sum(fact["messages"] for fact in of_kind(run.facts, "malformed"))
    hit = sum(1 for fact in of_kind(run.facts, "fault") if fact["phase"] == "hit")
    return (0 if run.wipes.get("broker") else count), count * (1 + hit)


def _leaks(run: Run) -> Iterator[str]:
    first: dict[int, Fact] = {}
    last: dict[int, Fact] = {}
    for fact in of_kind(run.facts, "sample"):
        first.setdefault(fact["pid"], fact)
        last[fact["pid"]] = fact
    for pid, fact in last.items():
        grown = fact["files"] - first[pid]["files"]
        if grown > _MORE_FILES:
            yield f"the worker of {fact['node']} opened {grown} files and did not close them"


def _threads_left(run: Run) -> Iterator[str]:
    """Compare idle workers: those that have worked with those that had not yet."""
    idle = [fact for fact in of_kind(run.facts, "sample") if fact.get("is_idle")]
    new = max((fact["threads"] for fact in idle if fact["t"] <= idle[0]["t"] + 1), default=0)
    for fact in idle:
        if fact["threads"] > new + run.about["cores"] + _MORE_THREADS:
            yield f"the worker of {fact['node']} has {fact['threads']} threads and nothing to do, a new one {new}"
