"""Measures, prints a table, and writes bench/results.json; nothing here asserts a time."""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from services.process import MissingProgramError

from bench.artifacts import measure_artifact_throughput
from bench.experiments import measure_overhead, measure_slot_memory, measure_start_latency
from bench.garbage import measure_garbage
from bench.importing import measure_import_time
from bench.output import measure_log_throughput
from bench.queues import measure_many_queues, measure_sqs_requests
from bench.results import Result, describe_machine, make_table, write_results
from bench.sealing import measure_seal_open_rate
from bench.servers import Servers, open_servers
from bench.submitting import measure_submit_rate

_RESULTS = Path(__file__).with_name("results.json")
_MEASURES: dict[str, Callable[[Servers], list[Result]]] = {
    "import_time": measure_import_time,
    "seal_open_rate": measure_seal_open_rate,
    "submit_rate": measure_submit_rate,
    "experiment_overhead_redis": lambda servers: measure_overhead(servers, "redis"),
    "experiment_overhead_rabbitmq": lambda servers: measure_overhead(servers, "rabbitmq"),
    "start_latency": measure_start_latency,
    "slot_memory": measure_slot_memory,
    "many_queues": measure_many_queues,
    "sqs_requests": measure_sqs_requests,
    "garbage": measure_garbage,
    "log_throughput": measure_log_throughput,
    "artifact_throughput": measure_artifact_throughput,
}


def main(arguments: list[str]) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help=f"one of {', '.join(_MEASURES)}; or several")
    parser.add_argument("--quick", action="store_true", help="few samples, to see that it works; nothing is written")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="the file of results (%(default)s)")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.only or ()) - set(_MEASURES):
        parser.error(f"no such measure: {', '.join(sorted(unknown))} (use {', '.join(_MEASURES)})")
    # What a submission warns of is not what is measured.
    warnings.simplefilter("ignore")
    try:
        results = _measure(asked.only or list(_MEASURES), is_quick=asked.quick)
    except MissingProgramError as error:
        sys.exit(str(error))
    print(f"\n{describe_machine()}\n\n{make_table(results)}")
    if not asked.quick:
        write_results(asked.output, results)


def _measure(names: list[str], *, is_quick: bool) -> list[Result]:
    results = []
    with open_servers(is_quick=is_quick) as servers:
        for name in names:
            began = time.monotonic()
            found = _MEASURES[name](servers)
            results += found
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
