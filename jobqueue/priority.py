"""Which experiments may go ahead of the others: small ones only, or nobody would be ahead of anybody."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Protocol

from jobqueue.artifacts import Artifact
from jobqueue.errors import Problem
from jobqueue.quantities import describe_size, format_duration
from jobqueue.resources import Resources

NORMAL: Final = "normal"
FAST: Final = "fast"
LONGEST: Final = timedelta(minutes=15)
MOST_GPUS: Final = 1
MOST_CPUS: Final = 4.0
MOST_MEMORY_BYTES: Final = 16 * 2**30
# Workspace and inputs together, as far as their size is known: they are fetched before it can begin.
MOST_FILES_BYTES: Final = 64 * 2**20

LIMITS: Final = (
    f"{format_duration(LONGEST)}, {MOST_CPUS:g} cpus, {describe_size(MOST_MEMORY_BYTES)} of memory, {MOST_GPUS} GPU, "
    f"{describe_size(MOST_FILES_BYTES)} of files"
)


class Asking(Protocol):
    """What a spec says of it."""

    @property
    def priority(self) -> str: ...  # noqa: D102
    @property
    def resources(self) -> Resources: ...  # noqa: D102
    @property
    def timeout(self) -> timedelta: ...  # noqa: D102
    @property
    def workspace(self) -> Artifact | None: ...  # noqa: D102
    @property
    def inputs(self) -> Mapping[str, Artifact]: ...  # noqa: D102


def judge_priority(spec: Asking) -> list[Problem]:
    """Return what is too much for a spec that is to go ahead, all of it as one problem; empty when nothing is."""
    if spec.priority != FAST:
        return []
    asked = spec.resources
    files_bytes = sum(file.size_bytes for file in (*spec.inputs.values(), spec.workspace) if file)
    excess = [
        (spec.timeout > LONGEST, f"a timeout of {format_duration(spec.timeout)}"),
        (asked.cpus > MOST_CPUS, f"{asked.cpus:g} cpus"),
        (asked.memory_bytes > MOST_MEMORY_BYTES, f"{describe_size(asked.memory_bytes)} of memory"),
        (asked.gpus > MOST_GPUS, f"{asked.gpus} GPUs"),
        (files_bytes > MOST_FILES_BYTES, f"{describe_size(files_bytes)} of files"),
    ]
    found = [what for is_too_much, what in excess if is_too_much]
    if not found:
        return []
    told = f"'{FAST}' is for small experiments, and this one asks for {', '.join(found)}"
    return [Problem(path="priority", message=f"{told} (at most {LIMITS}; ask for less, or leave priority out)")]
