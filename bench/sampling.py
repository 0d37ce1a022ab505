"""Interleaved samples and what is said of them: medians, because a machine has bad moments."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Samples = dict[str, list[float]]


def interleave(rounds: int, measures: Mapping[str, Callable[[], float]]) -> Samples:
    """Take one sample of each in turn, `rounds` times, each round beginning with another one.

    One more round goes before: what is done for the first time is not what is asked.
    """
    names = list(measures)
    samples: Samples = {name: [] for name in names}
    for name in names:
        measures[name]()
    for index in range(rounds):
        start = index % len(names)
        for name in (*names[start:], *names[:start]):
            samples[name].append(measures[name]())
    return samples


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range: the width of the middle half."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low
