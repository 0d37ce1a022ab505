"""In which order the tests run where several processes share them: what takes long comes first, what is short fills up.

Each process is given an equal number of tests, one run after the other, and takes from the end of another's when it has
none left. Without this, one of them ends minutes after the others with the longest tests of all.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

# Seconds of whole modules, roughly, on two cores that do nothing else.
SECONDS: Final = {
    "acceptance/test_by_hand.py": 50,
    "acceptance/test_cli_dev.py": 20,
    "acceptance/test_demo.py": 45,
    "acceptance/test_docs.py": 110,
    "acceptance/test_notebook.py": 25,
    "contract/test_registry_holders.py": 15,
    "contract/test_registry_stateful.py": 15,
    "faults/test_broker_faults.py": 60,
    "faults/test_failpoints.py": 140,
    "faults/test_fault_suite.py": 180,
    "faults/test_sqs_faults.py": 80,
    "integration/test_ahead.py": 25,
    "integration/test_begun_stops.py": 20,
    "integration/test_caches.py": 25,
    "integration/test_ephemeral_nodes.py": 35,
    "integration/test_experiments.py": 90,
    "integration/test_grants.py": 35,
    "integration/test_listener.py": 35,
    "integration/test_long_runs.py": 50,
    "integration/test_machine.py": 25,
    "integration/test_machine_patterns.py": 35,
    "integration/test_machine_shares.py": 35,
    "integration/test_outcomes.py": 150,
    "integration/test_poison.py": 50,
    "integration/test_queues_end.py": 40,
    "integration/test_queues_found.py": 50,
    "integration/test_reports_kept.py": 45,
    "integration/test_revoke.py": 25,
    "integration/test_rules.py": 45,
    "integration/test_serving.py": 60,
    "integration/test_submit_servers.py": 90,
    "integration/test_taking.py": 45,
    "integration/test_worker_ends.py": 100,
    "integration/test_worker_lost.py": 80,
    "security/test_flower_cases.py": 20,
    "security/test_limit_cases.py": 20,
    "security/test_secret_cases.py": 35,
    "security/test_transport.py": 40,
    "security/test_url_cases.py": 20,
}
# Of modules that are not named.
_QUICK: Final = ("unit/", "contract/")
_OTHER_SECONDS: Final = 5
# Each of these keeps more than one core busy, so one process has them all, one after the other.
CROWDED: Final = frozenset(
    {
        "acceptance/test_demo.py",
        "acceptance/test_docs.py",
        "acceptance/test_notebook.py",
        "faults/test_fault_suite.py",
    }
)

Test = TypeVar("Test")


def deal(tests: Sequence[Test], processes: int, *, module_of: Callable[[Test], str]) -> list[Test]:
    """Return the tests in the order in which they are to be handed out; tests of a module stay as they are."""
    modules: dict[str, list[Test]] = defaultdict(list)
    for test in tests:
        modules[module_of(test)].append(test)
    hands: list[list[Test]] = [[] for _ in range(processes)]
    loads = [0] * processes
    long = [name for name in modules if _seconds_of(name)]
    for name in sorted(long, key=lambda name: (name not in CROWDED, -_seconds_of(name))):
        lightest = 0 if name in CROWDED else min(range(processes), key=loads.__getitem__)
        hands[lightest] += modules.pop(name)
        loads[lightest] += _seconds_of(name)
    short = [test for found in modules.values() for test in found]
    for hand, size in zip(hands, _sizes(len(tests), processes), strict=True):
        taken = max(0, size - len(hand))
        hand.extend(short[:taken])
        del short[:taken]
    return [test for hand in hands for test in hand] + short


def _seconds_of(module: str) -> int:
    return SECONDS.get(module, 0 if module.startswith(_QUICK) else _OTHER_SECONDS)


def _sizes(count: int, processes: int) -> list[int]:
    """Return how many tests each process is given at first, as pytest-xdist divides them."""
    sizes: list[int] = []
    for left in range(processes, 0, -1):
        sizes.append((count - sum(sizes)) // left)
    return sizes
