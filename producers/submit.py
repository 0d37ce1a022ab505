"""The words of a notebook: submit one experiment or many, find one again, and spell out a grid."""

import inspect
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from jobqueue.errors import InvalidSpec, Problem
from jobqueue.spec import ExperimentSpec
from producers.client import default_client
from producers.handle import Experiment


def submit_experiment(**fields: Any) -> Experiment:
    """Submit an experiment and return its handle at once; it runs when a worker takes it.

    Args:
        **fields: as named below.
        image: the container image, as in `python:3.12-slim`.
        command: a list of words, or one text that is split as a shell would.
        workspace: a folder that becomes the working folder; packed once per content, `.jobqueueignore` and `.gitignore`
            honoured.
        inputs: read-only data by name: a path on this disk, or an address such as `s3://bucket/key`.
        outputs: files and folders of the workspace to keep; by default all of `outputs/`.
        env: environment variables.
        secrets: names of this process's environment variables that travel sealed and are redacted everywhere; or a
            mapping of names to values.
        gpus, cpus: how many (StudioML's `gpuCount` is accepted).
        gpu_memory, memory, disk, shm_size: sizes such as `24GiB` (StudioML's `gpuMem`, `ram`, `hdd` are accepted).
        timeout: how long it may run, as in `6h` (StudioML's `max_duration` is accepted).
        stall_timeout: how long it may print nothing and report no progress.
        expires: how long it may wait for its start.
        retries: further attempts after a failure of its own; the platform's failures have attempts of their own.
        network: `none`; `egress` (the internet, and nothing private) or `bridge` where the node allows it.
        project: whose pair of queues, `<project>_cpu` and `<project>_gpu`; they are made when first used.
        queue: another queue, which must exist.
        priority: `normal`; or `fast`, which begins before all that waits in its queue and has to be small: at most 15
            minutes (its default `timeout` then), 4 cpus, 16 GiB of memory, one GPU, 64 MiB of files.
        name, labels: for people.
        idempotency_key: submitting the same again returns the same experiment.

    Raises:
        InvalidSpec: with every wrong field.
        BrokerUnavailable, RegistryUnavailable, StoreUnavailable: nothing was submitted.
        NoSuchQueue: the named queue does not exist.
        IdempotencyMismatch: the key was used for another spec.

    Warns:
        JobqueueWarning: nobody serves the queue, the image is not pinned, the workspace is large, files were left out.
    """
    return default_client().submit(**fields)


def submit_many(specs: Iterable[Mapping[str, Any]]) -> list[Experiment]:
    """Submit several experiments, after all of them have been checked: see `Client.submit_many`."""
    return default_client().submit_many(specs)


def get(text: str) -> Experiment:
    """Return the experiment of an id, a unique beginning of one, a name, or `last`: see `Client.get`."""
    return default_client().get(text)


def grid(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """Return every combination of the axes' values, the last axis changing fastest.

    >>> grid(lr=[0.1, 0.01], seed=[1, 2])
    [{'lr': 0.1, 'seed': 1}, {'lr': 0.1, 'seed': 2}, {'lr': 0.01, 'seed': 1}, {'lr': 0.01, 'seed': 2}]

    To submit one experiment for each:

        submit_many(
            {"image": "python:3.12-slim", "command": f"python train.py --lr {point['lr']} --seed {point['seed']}"}
            for point in grid(lr=[0.1, 0.01], seed=[1, 2])
        )

    Raises:
        InvalidSpec: an axis is one value, or a text, whose letters nobody means.
    """
    wrong = [
        name for name, values in axes.items() if isinstance(values, str | bytes) or not isinstance(values, Iterable)
    ]
    if wrong:
        raise InvalidSpec(
            [Problem(path=name, message=f"not a list of values (use [{axes[name]!r:.80}])") for name in wrong]
        )
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _signature() -> inspect.Signature:
    """Return what a notebook completes: every field by its name."""
    fields = ExperimentSpec.model_fields.items()
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        if field.is_required()
        else inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=field.get_default(call_default_factory=True)
        )
        for name, field in fields
    ]
    return inspect.Signature(parameters, return_annotation=Experiment)


submit_experiment.__signature__ = _signature()  # type: ignore[attr-defined]
